"""Plugins: parts of a user, registered by a module outside the package, from the first check to a finished run."""

import importlib
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import TINY_FIT, only_run

from skincancer import compare, evaluate, fit, plugins, predict, prepare, sweep
from skincancer.__main__ import main
from skincancer.errors import ConfigError
from skincancer.plugins import load_plugins
from skincancer.runs.store import connect

# The demo's images as a data set of one's own, a small backbone, a loss, and a callback that writes what it saw.
CLINIC = """
    import json
    import os
    from pathlib import Path

    import pandas as pd
    import torch
    from pytorch_lightning import Callback
    from torch import nn

    from skincancer.plugins import register_backbone, register_callback, register_loss, register_reader

    SEEN = Path(os.environ.get("PLUGIN_SEEN", "seen.jsonl"))


    @register_reader(
        "clinic", title="Our clinic", classes=("benign", "malignant"), malignant=("malignant",), licence="CC0",
        citation="Our clinic. 2026.", defaults={"data.size": 32, "data.batch_size": 8},
    )
    def read_clinic(root):
        table = pd.read_csv(root / "metadata.csv", dtype=str)
        malignant = table["dx"].isin(["akiec", "bcc", "mel"])
        files = [str(path.relative_to(root)) for name in table["image_id"] for path in root.rglob(name + ".jpg")]
        return pd.DataFrame(
            {
                "image_id": table["image_id"], "image": files, "lesion_id": table["lesion_id"],
                "diagnosis": malignant.map({True: "malignant", False: "benign"}),
            }
        )


    @register_backbone("small_cnn")
    def build_small_cnn(size):
        return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


    @register_loss("margin")
    def margin(logits, label, weight):
        known = label >= 0
        return nn.functional.multi_margin_loss(logits[known].float(), label[known], weight=weight)


    @register_loss("area", masks=True)
    def area(logits, mask, has_mask):
        return ((logits.sigmoid().mean((1, 2, 3)) - mask.mean((1, 2, 3))) ** 2 * has_mask).mean()


    @register_callback("watcher")
    class Watcher(Callback):
        def on_train_epoch_end(self, trainer, module):
            if os.environ.get("PLUGIN_BREAKS") == str(trainer.current_epoch):
                raise RuntimeError("broken on purpose")
            with SEEN.open("a") as file:
                row = {"epoch": trainer.current_epoch, "loss": getattr(module, "class_loss", margin).__name__, "rank": trainer.global_rank}
                print(json.dumps(row), file=file)
"""
OWN = ["--plugin=clinic_parts", "--data.dataset=clinic", "--model.backbone=small_cnn", "--model.loss.name=margin"]
FLAGS = [flag for flag in TINY_FIT if "backbone" not in flag and "weights" not in flag]
EXPERIMENT = "--experiment=densenet169_undersample"


@pytest.fixture
def write_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """A writer of modules into the working directory; afterwards all that plugins registered is removed."""
    state = {kind: getattr(importlib.import_module(module), name) for kind, (module, name, _) in plugins._KINDS.items()}
    before = {kind: set(registry) for kind, registry in state.items()}
    names: list[str] = []

    def write(name: str, text: str) -> Path:
        names.append(name)
        file = tmp_path / f"{name}.py"
        file.write_text(textwrap.dedent(text))
        return file

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_parts", [])
    monkeypatch.setattr(plugins, "_loaded", set())
    yield write
    for kind, registry in state.items():
        for name in set(registry) - before[kind]:
            del registry[name]
    for name in names:
        sys.modules.pop(name, None)


def forget(name: str) -> None:
    """Be as a new process, that has not imported a plugin."""
    plugins._forget(name)
    plugins._loaded.discard(name)
    sys.modules.pop(name, None)


@pytest.fixture
def clinic(write_plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLUGIN_SEEN", str(tmp_path / "seen.jsonl"))
    return write_plugin("clinic_parts", CLINIC)


def error_of(capsys: pytest.CaptureFixture[str], verb: Callable[[list[str]], int], *flags: str) -> str:
    assert verb(list(flags)) == 2
    return capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- whole runs


def test_reader_backbone_loss_and_callback_in_a_fit_that_is_evaluated_and_predicts(clinic, tiny_demo, store, tmp_path):
    assert fit.main([EXPERIMENT, *OWN, *FLAGS, f"--data.root={tiny_demo}"]) == 0
    run = only_run()
    assert run.info.status == "FINISHED"
    assert (run.data.params["dataset"], run.data.params["backbone"]) == ("clinic", "small_cnn")
    assert run.data.params["weights"] == "as built"
    rows = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["loss"]) for row in rows] == [(0, "margin"), (1, "margin")]
    folder = Path(connect(None).download_artifacts(run.info.run_id, ""))
    assert yaml.safe_load((folder / "config.yaml").read_text())["plugins"] == ["clinic_parts"]
    assert json.loads((folder / "classes.json").read_text())["classes"] == ["benign", "malignant"]
    assert "Our clinic" in (folder / "report.html").read_text()

    forget("clinic_parts")
    images = [str(path) for path in sorted(tiny_demo.rglob("*.jpg"))[:3]]
    assert predict.main(["--run", run.info.run_id, "--out", str(tmp_path / "answers"), *images]) == 0
    answers = pd.read_csv(tmp_path / "answers" / "predictions.csv")
    assert set(answers["prediction"]) <= {"benign", "malignant"}

    forget("clinic_parts")
    assert evaluate.main(["--run", run.info.run_id, "--part=test", f"--data.root={tiny_demo}"]) == 0


def test_without_its_plugin_a_run_says_what_is_missing(clinic, tiny_demo, store, tmp_path, capsys, monkeypatch):
    assert fit.main([EXPERIMENT, *OWN, *FLAGS, f"--data.root={tiny_demo}"]) == 0
    run = only_run()
    import mlflow

    model = Path(connect(None).download_artifacts(run.info.run_id, ""))
    forget("clinic_parts")
    clinic.unlink()
    capsys.readouterr()
    missing = (
        "plugin clinic_parts: there is no module clinic_parts. Run the command in the folder of the module, or install"
    )
    assert missing in error_of(
        capsys, predict.main, "--run", run.info.run_id, "--out", str(tmp_path / "a"), str(tiny_demo)
    )
    assert missing in error_of(capsys, evaluate.main, "--run", run.info.run_id, "--part=test")
    with pytest.raises(ConfigError, match="plugin clinic_parts: there is no module"):
        mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    assert model.is_dir()


def test_a_resumed_run_imports_its_plugin(clinic, tiny_demo, store, monkeypatch):
    monkeypatch.setenv("PLUGIN_BREAKS", "1")
    with pytest.raises(RuntimeError, match="broken on purpose"):
        fit.main([EXPERIMENT, *OWN, *FLAGS, f"--data.root={tiny_demo}"])
    monkeypatch.delenv("PLUGIN_BREAKS")
    forget("clinic_parts")
    assert fit.main(["--resume", only_run().info.run_id]) == 0
    assert only_run().info.status == "FINISHED"
    assert [json.loads(line)["epoch"] for line in Path("seen.jsonl").read_text().splitlines()] == [0, 1]


def test_a_loss_of_masks_trains_a_segmenter(clinic, tiny_demo, store):
    flags = [flag for flag in TINY_FIT if "backbone" not in flag and "size" not in flag]
    file = Path("mine.yaml")
    file.write_text(
        "task: segmentation\nplugins: [clinic_parts]\nmodel:\n  architecture: unet\n  backbone: tu-test_efficientnet\n"
        "  loss: {masks: {area: 1.0, dice: 0.5}}\n"
    )
    assert (
        fit.main(
            [f"--experiment={file}", *flags, "--data.size=64", "--trainer.max_epochs=1", f"--data.root={tiny_demo}"]
        )
        == 0
    )
    folder = Path(connect(None).download_artifacts(only_run().info.run_id, ""))
    assert yaml.safe_load((folder / "config.yaml").read_text())["plugins"] == ["clinic_parts"]


def test_trials_of_a_sweep_import_the_plugin(clinic, tiny_demo, store):
    Path("mine.yaml").write_text(
        "plugins: [clinic_parts]\ndata: {dataset: clinic}\nmodel: {backbone: small_cnn}\n"
        "search:\n  model.loss.name: {choices: [margin, cross_entropy]}\n"
    )
    flags = [f"--data.root={tiny_demo}", *FLAGS, "--trainer.max_epochs=1"]
    assert sweep.main(["--experiment=mine.yaml", "--trials=2", "--workers=1", "--sampler=grid", *flags]) == 0
    seen = [json.loads(line)["loss"] for line in Path("seen.jsonl").read_text().splitlines()]
    assert sorted(seen) == ["loss", "margin"]


@pytest.mark.slow
def test_ranks_import_the_plugin(clinic, tiny_demo, store):
    code = "import sys; from skincancer.__main__ import main; sys.exit(main())"
    script = Path("skincancer")
    script.write_text(code)
    flags = [f"--data.root={tiny_demo}", *FLAGS, "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(
        [sys.executable, str(script), "fit", EXPERIMENT, *OWN, *flags], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in Path("seen.jsonl").read_text().splitlines()]
    assert sorted((row["rank"], row["epoch"]) for row in rows) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_prepare_knows_the_data_set_of_a_plugin(clinic, tiny_demo, store, capsys, tmp_path, monkeypatch):
    # The verdict of the audit would be reported by every later fit on the tiny demo.
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "cache"))
    assert prepare.main(["--plugin=clinic_parts", "--list"]) == 0
    assert "Our clinic" in capsys.readouterr().out
    assert prepare.main(["clinic", "--plugin", "clinic_parts", f"--data.root={tiny_demo}"]) == 0
    shown = capsys.readouterr().out
    assert "Our clinic. 2026." in shown
    assert "malignant" in shown
    assert prepare.main(["clinic", "--plugin", "clinic_parts", "--audit", f"--data.root={tiny_demo}", "--out=."]) == 0


# ------------------------------------------------------------------------------------------------------------------ errors


def test_a_plugin_that_exits_is_named(write_plugin, capsys):
    write_plugin("leaves", "raise SystemExit(3)")
    assert "plugin leaves cannot be imported: SystemExit: 3 (" in error_of(
        capsys, fit.main, EXPERIMENT, "--plugin=leaves"
    )


def test_a_file_name_is_not_a_plugin(write_plugin, capsys):
    write_plugin("parts", "")
    shown = error_of(capsys, fit.main, EXPERIMENT, "--plugin=parts.py")
    assert "plugin parts.py: expected the name of a module. Use --plugin parts." in shown


def test_a_plugin_that_is_not_there(write_plugin, tmp_path, capsys):
    message = error_of(capsys, fit.main, EXPERIMENT, "--plugin=my_prats", "--dry_run")
    assert message.startswith("error: plugin my_prats: there is no module my_prats. Run the command in the folder")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import skincancer.plugins\n\n\ndef one():\n    return 1 / 0\n\n\none()\n",
            "ZeroDivisionError: division by zero ({file}, line 5)",
        ),
        ("import not_installed_here\n", "ModuleNotFoundError: No module named 'not_installed_here' ({file}, line 1)"),
        ("x = (1,\n\ny = 2 2\n", "SyntaxError: "),
        ("from skincancer.plugins import register_los\n", "ImportError: cannot import name 'register_los'"),
    ],
)
def test_an_exception_in_a_plugin_names_its_file_and_line(text, message, write_plugin, capsys):
    file = write_plugin("broken_parts", text)
    shown = error_of(capsys, fit.main, EXPERIMENT, "--plugin=broken_parts", "--dry_run")
    assert "plugin broken_parts cannot be imported: " + message.format(file=file) in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "@p.register_loss('focal')\ndef f(logits, label, weight): ...",
            "the loss 'focal' exists already, in skincancer. Choose",
        ),
        (
            "@p.register_reader('demo')\ndef f(root): ...",
            "the reader 'demo' exists already, in skincancer. Choose another name.",
        ),
        (
            "@p.register_loss('a')\ndef f(logits, label, weight): ...\n@p.register_loss('a')\ndef g(logits, label, weight): ...",
            "the loss 'a' exists already, in plugin wrong_parts.",
        ),
        (
            "@p.register_loss('a')\ndef f(logits, label): ...",
            "the loss 'a' takes (logits, label); expected (logits, label, weight).",
        ),
        ("@p.register_backbone('a')\ndef f(): ...", "the backbone 'a' takes (); expected (size)."),
        ("@p.register_reader('a')\ndef f(root, table): ...", "the reader 'a' takes (root, table); expected (root)."),
        ("@p.register_callback('a')\ndef f(trainer): ...", "the callback 'a' takes (trainer); expected ()."),
        (
            "p.register_loss('a', masks=True)(lambda logits, mask: 0)",
            "the mask loss 'a' takes (logits, mask); expected (logits, mask, has_mask).",
        ),
    ],
)
def test_a_part_that_cannot_be_registered(text, message, write_plugin, capsys):
    write_plugin("wrong_parts", f"import skincancer.plugins as p\n{text}\n")
    shown = error_of(capsys, fit.main, EXPERIMENT, "--plugin=wrong_parts", "--dry_run")
    assert f"plugin wrong_parts: {message}" in shown


def test_what_a_failed_plugin_registered_is_removed(write_plugin):
    from skincancer.models.losses import LOSSES

    file = write_plugin(
        "half_parts",
        "import skincancer.plugins as p\np.register_loss('half')(lambda logits, label, weight: 0)\n1 / 0\n",
    )
    with pytest.raises(ConfigError, match="line 3"):
        load_plugins(["half_parts"])
    assert "half" not in LOSSES
    file.write_text(file.read_text().replace("1 / 0", ""))
    importlib.invalidate_caches()
    load_plugins(["half_parts"])
    assert "half" in LOSSES


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no such size')", "fails on images of 32 px: ValueError: no such size ("),
        ("return nn.Conv2d(3, 4, 3)", "turns images (2, 3, 32, 32) into (2, 4, 30, 30); expected features (2, F)."),
    ],
)
def test_a_backbone_that_gives_no_features(body, message, write_plugin, store, capsys):
    write_plugin(
        "odd_parts",
        f"from torch import nn\nimport skincancer.plugins as p\n\n\n@p.register_backbone('odd')\ndef f(size):\n    {body}\n",
    )
    shown = error_of(capsys, fit.main, EXPERIMENT, *FLAGS, "--plugin=odd_parts", "--model.backbone=odd")
    assert f"model.backbone odd of a plugin {message}" in shown


def test_a_backbone_of_a_plugin_has_no_imagenet_weights(clinic, tiny_demo, store, capsys):
    shown = error_of(capsys, fit.main, EXPERIMENT, *OWN, *FLAGS, f"--data.root={tiny_demo}", "--model.weights=imagenet")
    assert (
        "small_cnn is a backbone of a plugin, for which there are no ImageNet weights. Use --model.weights none"
        in shown
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("lambda: {}", "the callback mine is dict; expected pytorch_lightning.Callback. Fix the plugin."),
        ("lambda: 1 / 0", "the callback mine cannot be created: ZeroDivisionError: division by zero"),
    ],
)
def test_a_callback_that_is_none_is_reported_before_data_are_read(write_plugin, store, capsys, function, message):
    write_plugin("callback_parts", f"import skincancer.plugins as p\np.register_callback('mine')({function})\n")
    shown = error_of(capsys, fit.main, EXPERIMENT, *TINY_FIT, "--data.root=/nowhere", "--plugin=callback_parts")
    assert message in shown


# ------------------------------------------------------------------------------------------------------- where they are named


def test_file_and_command_line_are_joined(write_plugin, capsys):
    for name in ("first_parts", "second_parts"):
        write_plugin(
            name, f"import skincancer.plugins as p\np.register_loss('{name}')(lambda logits, label, weight: 0)\n"
        )
    Path("mine.yaml").write_text("plugins: [first_parts]\n")
    flags = ["--plugin=second_parts", "--plugin=first_parts", "--model.loss.name=second_parts", "--dry_run"]
    assert fit.main(["--experiment=mine.yaml", *flags]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["plugins"] == ["first_parts", "second_parts"]


def test_plugins_cannot_be_searched(write_plugin, capsys):
    Path("mine.yaml").write_text("search:\n  plugins: {choices: [[a], [b]]}\n")
    assert "search: plugins cannot be searched" in error_of(capsys, fit.main, "--experiment=mine.yaml", "--dry_run")


@pytest.fixture
def installed(write_plugin, monkeypatch) -> None:
    """Two installed packages with entry points, one of them broken."""
    write_plugin(
        "good_package",
        "import skincancer.plugins as p\np.register_loss('installed')(lambda logits, label, weight: 0)\n",
    )
    write_plugin("bad_package", "raise RuntimeError('built for another version')\n")
    points = [EntryPoint(name, f"{name}_package", plugins.GROUP) for name in ("good", "bad")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints(points).select(group=group))


def test_installed_plugins_are_loaded_and_recorded_where_they_are_used(installed, capsys):
    flags = [EXPERIMENT, "--plugin=no:bad", "--dry_run"]
    assert fit.main(flags) == 0
    assert yaml.safe_load(capsys.readouterr().out)["plugins"] == ["no:bad"]
    assert fit.main([*flags, "--model.loss.name=installed"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["plugins"] == ["no:bad", "good_package"]


def test_a_broken_installed_plugin_is_named_with_how_to_leave_it_out(installed, capsys):
    shown = error_of(capsys, fit.main, EXPERIMENT, "--dry_run")
    assert "plugin bad_package cannot be imported: RuntimeError: built for another version (" in shown
    assert (
        "It is the entry point bad of an installed package. Leave it out with --plugin no:bad, or uninstall the package."
        in shown
    )


def test_help_of_the_front_door_loads_no_plugin(installed):
    assert main(["--help"]) == 0


def test_a_run_needs_no_installed_plugin_but_its_own(installed):
    load_plugins([])
    with pytest.raises(ConfigError, match="plugin bad_package cannot be imported"):
        load_plugins([], installed=True)


def test_parts_of_a_notebook_work_in_it_alone(write_plugin, monkeypatch):
    def part(logits, label, weight): ...

    part.__module__ = "__main__"
    plugins.register_loss("of_a_notebook")(part)
    experiment, _ = fit.resolve("densenet169_undersample", {"model.loss.name": "of_a_notebook"})
    assert experiment.plugins == ["__main__"]
    load_plugins(["__main__"])
    monkeypatch.setattr(plugins, "_parts", [])
    with pytest.raises(ConfigError, match="a script or a notebook registered parts of this run"):
        load_plugins(["__main__"])


# ---------------------------------------------------------------------------------------------------------- augmentations

SHIFTED = """
    import json
    import os
    from pathlib import Path

    import torch

    from skincancer.plugins import register_augmentation


    @register_augmentation("shift")
    def shift(image, mask, generator):
        by = torch.rand(len(image), 1, 1, 1, generator=generator)
        with Path(os.environ["PLUGIN_SEEN"]).open("a") as file:
            print(json.dumps([len(image), mask is None, by.flatten().tolist()]), file=file)
        return (image + by.to(image.device)).clamp(0, 1), mask


    register_augmentation("whole")(lambda image, mask, generator: image.mean())
"""


@pytest.fixture
def shifted(write_plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLUGIN_SEEN", str(tmp_path / "drawn.jsonl"))
    write_plugin("shifts", SHIFTED)
    return tmp_path / "drawn.jsonl"


def test_an_augmentation_is_applied_in_training_alone_and_repeats(shifted, tiny_demo, new_store):
    flags = [EXPERIMENT, *TINY_FIT, f"--data.root={tiny_demo}", "--plugin=shifts", "--augment.extra=[shift]"]
    drawn = []
    for store in ("first", "again"):
        new_store(store)
        assert fit.main(flags) == 0
        drawn.append([json.loads(line) for line in shifted.read_text().splitlines()])
        shifted.unlink()
    images = 7 * 3 * 2  # undersampled training images of two epochs: none of validation or test
    assert sum(row[0] for row in drawn[0]) == images
    assert all(row[1] for row in drawn[0])
    assert drawn[0] == drawn[1]
    assert len({str(row[2]) for row in drawn[0]}) == len(drawn[0])  # batches and epochs differ


def test_the_draws_of_an_augmentation_depend_on_the_seed_alone_and_leave_the_others_as_they_are(shifted):
    import torch

    from skincancer.imaging.augmentation import Augment
    from skincancer.schema.data import AugmentConfig

    load_plugins(["shifts"])
    image = torch.rand(4, 3, 16, 16)
    plain, _ = Augment(AugmentConfig(policy="strong"))(image, None, seed=7)
    extra, _ = Augment(AugmentConfig(policy="strong", extra=["shift"]))(image, None, seed=7)
    by = torch.tensor(json.loads(shifted.read_text())[2])
    torch.testing.assert_close(extra, (plain + by.view(-1, 1, 1, 1)).clamp(0, 1))
    torch.rand(3)  # the global generator has no part
    again, _ = Augment(AugmentConfig(policy="strong", extra=["shift"]))(image, None, seed=7)
    assert torch.equal(again, extra)
    other, _ = Augment(AugmentConfig(policy="none", extra=["shift"]))(image, None, seed=8)
    assert not torch.equal(other, extra)


def test_an_augmentation_is_shown_by_prepare(shifted, tiny_demo, store):
    flags = [
        f"--data.root={tiny_demo}",
        "--plugin=shifts",
        "--augment.extra=[shift]",
        "--data.size=32",
        "--out=sheet.png",
    ]
    assert prepare.main(["demo", "--show=augment", *flags]) == 0
    assert shifted.is_file()


def test_an_augmentation_that_is_unknown_or_returns_something_else(shifted, tiny_demo, store, capsys):
    unknown = error_of(capsys, fit.main, EXPERIMENT, "--plugin=shifts", "--augment.extra=[shfit]", "--dry_run")
    assert (
        "augment.extra: 'shfit' is no augmentation of a plugin. Did you mean 'shift'? Known: shift, whole." in unknown
    )
    flags = [*TINY_FIT, f"--data.root={tiny_demo}", "--plugin=shifts", "--augment.extra=[whole]"]
    assert fit.main([EXPERIMENT, *flags]) == 1
    assert (
        "the augmentation whole of a plugin returns [((), torch.float32)]; expected (image, mask)"
        in capsys.readouterr().err
    )


# ---------------------------------------------------------------------------------------------------------------- metrics

KAPPA = """
    import numpy as np
    from sklearn.metrics import cohen_kappa_score

    from skincancer.plugins import register_metric


    @register_metric("kappa")
    def kappa(label, probability, weight):
        return cohen_kappa_score(label, probability.argmax(1), sample_weight=weight)


    @register_metric("brier", higher_is_better=False)
    def brier(label, probability, weight):
        error = ((probability - np.eye(probability.shape[1])[label]) ** 2).sum(1)
        return np.average(error, weights=weight)
"""


def test_a_metric_is_logged_monitored_and_compared(write_plugin, tiny_demo, store, tmp_path, capsys):
    from sklearn.metrics import cohen_kappa_score

    write_plugin("kappas", KAPPA)
    flags = [EXPERIMENT, *TINY_FIT, f"--data.root={tiny_demo}", "--plugin=kappas", "--training.monitor=val/brier"]
    assert fit.main(flags) == 0
    run = only_run()
    folder = Path(connect(None).download_artifacts(run.info.run_id, ""))
    table = pd.read_csv(folder / "predictions/test.csv", dtype={"label": str})
    kappa = cohen_kappa_score(table["label"], table["prediction"])
    assert run.data.metrics["test/kappa"] == pytest.approx(kappa)
    epochs = pd.read_csv(folder / "epochs.csv")
    assert run.data.metrics["best/brier"] == pytest.approx(epochs["val/brier"].min())
    intervals = pd.read_csv(next(folder.rglob("*interval*.csv"))).set_index("metric")
    assert intervals.loc["kappa", "value"] == pytest.approx(kappa)
    low, value, high = intervals.loc["brier", ["low", "value", "high"]]
    assert low < value < high
    assert "kappa" in (folder / "report.html").read_text()

    forget("kappas")
    assert "--metric is 'kappa'; use one of" in error_of(
        capsys, compare.main, EXPERIMENT.replace("experiment", "experiments"), "--metric=kappa"
    )
    assert compare.main(["--runs", run.info.run_id, "--metric", "kappa", "--out=together"]) == 0
    assert "kappa" in (tmp_path / "together" / "compare.html").read_text()


def test_a_monitored_metric_that_is_always_nan_ends_the_run(write_plugin, tiny_demo, store, capsys):
    write_plugin(
        "undefined",
        "import skincancer.plugins as p\np.register_metric('nothing')(lambda label, probability, weight: float('nan'))\n",
    )
    argv = [EXPERIMENT, *TINY_FIT, "--plugin=undefined", f"--data.root={tiny_demo}", "--training.monitor=val/nothing"]
    assert fit.main(argv) == 1
    assert "training.monitor is val/nothing, which is NaN after epoch 1" in " ".join(capsys.readouterr().err.split())
    assert only_run().info.status == "FAILED"


def test_a_metric_counts_as_often_as_its_weights_say(write_plugin):
    import numpy as np

    from skincancer.metrics.classification import classification_metrics

    write_plugin("kappas", KAPPA)
    load_plugins(["kappas"])
    random = np.random.default_rng(0)
    label, probability = random.integers(0, 3, 40), random.dirichlet([1, 1, 1], 40)
    weight = random.integers(1, 4, 40)
    weighted = classification_metrics(label, probability, "abc", weight)
    repeated = classification_metrics(label.repeat(weight), probability.repeat(weight, 0), "abc")
    for name in ("kappa", "brier", "accuracy"):
        assert weighted[name] == pytest.approx(repeated[name])


@pytest.mark.parametrize("name", ["accuracy", "jaccard", "loss"])
def test_a_metric_cannot_take_a_name_of_the_framework(name, write_plugin, capsys):
    write_plugin(
        "taken", f"import skincancer.plugins as p\np.register_metric({name!r})(lambda label, probability, weight: 0)\n"
    )
    shown = error_of(capsys, fit.main, EXPERIMENT, "--plugin=taken", "--dry_run")
    assert f"plugin taken: the metric {name!r} exists already, in skincancer." in shown


def test_a_metric_that_fails_says_where(write_plugin, tiny_demo, store, capsys):
    file = write_plugin(
        "failing",
        "import skincancer.plugins as p\np.register_metric('odd')(lambda label, probability, weight: 1 / 0)\n",
    )
    assert fit.main([EXPERIMENT, *TINY_FIT, f"--data.root={tiny_demo}", "--plugin=failing"]) == 1
    message = f"the metric odd of a plugin fails: ZeroDivisionError: division by zero ({file}, line 2). Fix it."
    assert message in capsys.readouterr().err
    assert only_run().info.status == "FAILED"


def test_an_installed_metric_that_is_monitored_is_recorded(write_plugin, monkeypatch, capsys):
    write_plugin("kappas", KAPPA)
    point = EntryPoint("kappas", "kappas", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints([point]).select(group=group))
    assert fit.main([EXPERIMENT, "--training.monitor=val/kappa", "--dry_run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["plugins"] == ["kappas"]


# ------------------------------------------------------------------------------------------------------------------- docs


def test_the_examples_of_the_docs_register(write_plugin, capsys):
    page = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    write_plugin("my_module", "\n".join(blocks))
    for flags in (
        [
            "--model.loss.name=my_loss",
            "--model.backbone=small_cnn",
            "--training.monitor=val/kappa",
            "--augment.extra=[gamma]",
        ],
        ["--data.dataset=my_clinic", "--data.target=malignancy", "--model.head=sigmoid"],
    ):
        assert fit.main(["--experiment=efficientnet_lite0", "--plugin=my_module", *flags, "--dry_run"]) == 0
    masks = ["--model.loss.masks={area: 1, dice: 1}", "--augment.extra=[gamma]"]
    assert fit.main(["--experiment=unet_resnet34", "--plugin=my_module", *masks, "--dry_run"]) == 0
    assert sorted({part.kind for part in plugins._parts}) == sorted(plugins._KINDS)
