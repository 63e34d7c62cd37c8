"""Every shipped experiment, run from end to end on a few drawn images."""

import pytest
from conftest import TINY_LESIONS, only_run

from skincancer import fit
from skincancer.config.experiments import list_experiments
from skincancer.runs.store import connect
from skincancer.system.paths import experiments_folder
from skincancer.system.yaml_files import load_yaml

SHORT = [
    "--model.weights=none", "--data.size=32", "--data.batch_size=4", "--trainer.max_epochs=2", "--trainer.accelerator=cpu",
    "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2",
    "--tracking.system_metrics=false",
]  # fmt: skip


# of classical classifiers, which have no epochs
SHORT_CLASSICAL = [
    "--data.size=32",
    "--data.batch_size=4",
    "--trainer.accelerator=cpu",
    "--tracking.system_metrics=false",
]

# tens of millions of parameters each: the time goes into writing their checkpoints
LARGE = {
    "convnext_tiny", "deeplabv3plus_resnet50", "fcn_resnet50", "maskrcnn_resnet50", "resnet50_oversample", "segformer_b2",
    "segnet_vgg16", "unet_densenet169", "unet_densenet169_joint", "unetplusplus", "upernet_convnext_tiny", "vgg19_frozen",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in list_experiments()]
)
def test_experiment_runs(name, tiny_demo, store):
    content = load_yaml(experiments_folder() / f"{name}.yaml").get("model", {})
    classical = content.get("classical", {}) if "classifier" in content else None
    short = SHORT if classical is None else SHORT_CLASSICAL
    more = ["--data.size=75"] if name == "inception_v3" else []
    more += ["--model.weights=none"] if classical and "deep" in classical["features"] else []
    more += ["--model.classical.clusters=10"] if content.get("classifier") == "kmeans" else []
    assert fit.main(["--experiment", name, f"--data.root={tiny_demo}", *short, *more]) == 0
    client, run = connect(None), only_run()
    assert run.info.status == "FINISHED"
    assert run.data.params["experiment"] == name
    measured = {
        "classification": ["balanced_accuracy"],
        "segmentation": ["jaccard"],
        "joint": ["balanced_accuracy", "mask_jaccard"],
    }
    for metric in measured[run.data.params["task"]]:
        assert 0 <= run.data.metrics[f"test/{metric}"] <= 1
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {
        "checkpoints",
        "config.yaml",
        "figures",
        "predictions",
    }


@pytest.mark.parametrize("name", list_experiments())
def test_experiment_says_where_its_recipe_comes_from_and_holds_only_differences(name):
    content = load_yaml(experiments_folder() / f"{name}.yaml")
    assert len(content["description"]) > 40
    assert "dataset" not in content.get("data", {}), "which data it runs on is a flag"
    assert "split" not in content.get("data", {})


def test_demo_of_the_tests_has_every_class():
    assert min(TINY_LESIONS.values()) >= 3


@pytest.mark.slow
def test_demo_fit_of_the_readme_ends_clearly_above_chance(store):
    assert fit.main(["--experiment", "densenet169_undersample", "--model.weights=none"]) == 0
    run = only_run()
    assert run.data.metrics["test/balanced_accuracy"] >= 0.4  # of seven classes: chance is 0.14
