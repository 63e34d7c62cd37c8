"""A fit on the user's own table: its name, its selected rows, and what is known about its lesions."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY_FIT, finished_run

from skincancer import prepare
from skincancer.comparison.request import Request, resolve_entry, run_query
from skincancer.evaluation.external import plan
from skincancer.runs.finished import FinishedRun
from skincancer.runs.search import find_runs
from skincancer.runs.store import RunStore

NAME, WHERE = "clinic_1.own set", "dx in ['mel', 'nv', 'bcc'] and dx_type != 'consensus'"


@pytest.fixture(scope="module")
def table(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of the demo without lesion ids, apart from its images."""
    rows = pd.read_csv(tiny_demo / "metadata.csv", dtype=str).drop(columns="lesion_id")
    path = tmp_path_factory.mktemp("table") / "own.csv"
    rows.to_csv(path, index=False, sep=";", encoding="utf-16")
    return path


@pytest.fixture(scope="module")
def flags(tiny_demo: Path, table: Path) -> list[str]:
    """Keys of the data."""
    return ["--data.dataset=csv", f"--data.root={table}", f"--data.images={tiny_demo / 'images'}", f"--data.where={WHERE}",
            f"--data.name={NAME}"]  # fmt: skip


@pytest.fixture(scope="module")
def output():
    """Printed text of the fit."""
    return io.StringIO()


@pytest.fixture
def fitted_output(finished, output) -> str:
    return output.getvalue()


@pytest.fixture(scope="module")
def finished(session_cache, tmp_path_factory, flags, output):
    one_epoch = [flag for flag in TINY_FIT if "max_epochs" not in flag] + ["--trainer.max_epochs=1"]
    with (
        contextlib.redirect_stdout(output),
        finished_run(
            session_cache, tmp_path_factory.mktemp("own"), "--experiment=densenet169_undersample", *one_epoch, *flags
        ) as fitted,
    ):
        yield fitted


def test_a_run_has_the_name_and_the_rows_of_the_data(run, artifacts, table):
    rows = pd.read_csv(table, sep=";", encoding="utf-16").query(WHERE)
    split = pd.read_csv(artifacts / "split.csv")
    assert sorted(split["image_id"]) == sorted(rows["image_id"])
    assert set(split["diagnosis"]) == {"bcc", "mel", "nv"}
    assert run.data.params["dataset"] == NAME
    assert run.data.params["where"] == WHERE
    assert RunStore(None).client.get_experiment(run.info.experiment_id).name == f"{NAME}-classification"
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {
        f"{NAME} 80:20 {role}" for role in ("train", "val", "test")
    }
    settings = FinishedRun(run.info.run_id, RunStore(None)).settings
    assert (settings["data.where"], settings["data.name"]) == (WHERE, NAME)
    assert f"<h1>densenet169_undersample · {NAME} · 80:20" in (artifacts / "report.html").read_text()


def test_nothing_is_claimed_about_unknown_lesions(run, artifacts, fitted_output):
    unknown = "the data have no lesion ids: each image counts as one lesion, and whether images of one lesion are in two subsets"
    assert "no lesion is in two subsets" not in fitted_output
    assert "no known lesion" not in fitted_output
    assert fitted_output.count(unknown) == 1
    tested = len(pd.read_csv(artifacts / "predictions/test.csv"))
    assert f"{tested} images, lesions unknown (each image counts as one); 95 % intervals" in fitted_output
    report = (artifacts / "report.html").read_text()
    assert unknown.replace("the data", "The data") in report
    assert "unknown: every image has its own lesion" in report


def test_compare_finds_the_run_by_its_name(run, flags):
    for name, count in ((NAME, 1), ("other", 0), (None, 0)):
        request = Request(("densenet169_undersample",), dataset="csv", flags={"data.name": name} if name else {})
        entry = resolve_entry("densenet169_undersample", "80:20", request)
        assert len(find_runs(RunStore(None), request.dataset_name, run_query(entry, request))) == count


def test_an_evaluation_on_another_table_has_none_of_its_options(run, tmp_path):
    fit = FinishedRun(run.info.run_id, RunStore(None))
    options = ("images", "where", "name")
    assert [bool(getattr(plan(fit, {}).data, name)) for name in options] == [True, True, True]
    other = plan(fit, {"data.root": str(tmp_path)}).data
    assert [getattr(other, name) for name in options] == [None, None, None]
    assert [getattr(plan(fit, {"data.dataset": "ph2"}).data, name) for name in options] == [None, None, None]


def test_prepare_prints_what_it_read(flags, table, capsys):
    assert prepare.main(["csv", "--data.size=32", *flags[1:]]) == 0
    output = capsys.readouterr().out
    total = len(pd.read_csv(table, sep=";", encoding="utf-16"))
    assert f"of {total} rows of own.csv" in output
    assert (
        "own.csv: read image_id as image and image_id, dx as diagnosis, age, sex, localization as site, dx_type"
        in output
    )
    assert output.count("own.csv: read") == 1
