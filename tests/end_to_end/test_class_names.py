"""Test runs on classes with names that MLflow refuses, or that files and figures could stumble over."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY_FIT, all_runs, copy_demo, only_run

import skincancer as sc
from skincancer import compare, fit, sweep
from skincancer.data.index import classes_of
from skincancer.errors import DataError
from skincancer.runs.store import connect

NAMES = {
    "akiec": "Bowen's disease", "bcc": "a/../b, c+d", "bkl": "x" * 260, "df": "..", "mel": "melanoma (in situ) <$5%#?",
    "nv": "Nevus", "vasc": "nevus, other",
}  # fmt: skip


@pytest.fixture(scope="module")
def renamed(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as a table, with other class names."""
    root = tmp_path_factory.mktemp("renamed")
    table = copy_demo(tiny_demo, root)
    table.replace({"diagnosis": NAMES}).to_csv(root / "index.csv", index=False)
    return root


def check(values: "pd.Series[float]") -> None:
    """Check that the test recalls of a run have the real names of the classes."""
    recalls = {name.removeprefix("test/recall/") for name in values.index if name.startswith("test/recall/")}
    assert recalls == set(NAMES.values())


def test_a_joint_run_has_its_classes_by_name(renamed, store):
    flags = ["--experiment=unet_efficientnet_lite0_joint", "--data.dataset=csv", f"--data.root={renamed}", *TINY_FIT]
    flags += ["--model.backbone=tu-test_resnet", "--trainer.max_epochs=1"]
    assert fit.main(flags) == 0
    run = only_run()
    assert run.info.status == "FINISHED"
    keys = [key for key in run.data.metrics if key.startswith("val/recall/")]
    assert len({key.casefold() for key in keys}) == len(NAMES)
    assert any(key.startswith("val/recall/Bowen_s disease-") for key in keys)

    opened = sc.load_run(run.info.run_id)
    check(pd.Series(opened.metrics))
    check(sc.find_runs().iloc[0])
    intervals = opened.intervals.set_index("metric")["value"]
    for name in NAMES.values():
        assert opened.metrics[f"test/recall/{name}"] == pytest.approx(intervals[f"recall/{name}"], abs=1e-6)
        assert f"p_{name}" in opened.predictions("test")
    assert f"val/recall/{NAMES['bkl']}" in opened.epochs
    assert opened.report_path.is_file()
    figures = {Path(file.path).name for file in connect(None).list_artifacts(run.info.run_id, "figures")}
    assert {"confusion_matrix.png", "roc.png", "precision_recall.png", "overlays.png"} <= figures
    assert compare.main(["--runs", run.info.run_id, "--metric", "recall/Bowen's disease"]) == 0


@pytest.mark.slow
def test_a_classical_sweep_has_its_classes_by_name(renamed, store, tmp_path):
    (tmp_path / "trees.yaml").write_text(
        "task: classification\nmodel: {classifier: random_forest, classical: {features: [abcd]}}\n"
        "search: {model.classical.trees: {choices: [5, 6]}}\n"
    )
    flags = [f"--experiment={tmp_path / 'trees.yaml'}", "--data.dataset=csv", f"--data.root={renamed}"]
    flags += ["--data.size=32", "--tracking.system_metrics=false", "--data.masks=otsu"]
    assert sweep.main([*flags, "--trials=1", "--workers=1"]) == 0
    assert {run.data.tags["kind"]: run.info.status for run in all_runs()} == {"sweep": "FINISHED", "trial": "FINISHED"}


@pytest.mark.parametrize("name", ["a\nb", "tab\there", "\x1b[31mred", "nul\0"])
def test_control_characters_are_refused(name):
    with pytest.raises(DataError, match="control character"):
        classes_of(pd.DataFrame({"diagnosis": ["nv", name]}))
