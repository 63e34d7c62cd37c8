"""Python interface: the commands as functions that return tables, arrays and figures.

`import skincancer as sc` loads these names at their first use.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from skincancer import compare, evaluate, fit, sweep
from skincancer.comparison.request import Request
from skincancer.config import experiments
from skincancer.config.cli import build_parser
from skincancer.config.resolve import resolve
from skincancer.data.catalog import DATASETS
from skincancer.data.prepare import prepare_data
from skincancer.engines.resources import Resources
from skincancer.errors import ConfigError, nearest
from skincancer.inference.model import mask_source
from skincancer.inference.predictor import load_predictor
from skincancer.metrics.names import has_digested_keys
from skincancer.plugins import load_plugins
from skincancer.results import ComparedRuns, FinishedSweep, Model, PreparedDataset
from skincancer.runs.artifacts import BEST_FILE, CONFIG_FILE, TRIALS_FILE, config_to_keep
from skincancer.runs.finished import FinishedRun
from skincancer.runs.search import search_runs
from skincancer.runs.store import RunStore
from skincancer.schema.dotted_keys import flatten
from skincancer.schema.experiment import Experiment
from skincancer.schema.parsing import parse_layer
from skincancer.sweeps.request import Request as SweepRequest
from skincancer.system.console import make_console, progress_bars, warn
from skincancer.system.interrupts import keyboard_interrupts
from skincancer.system.yaml_files import dump_yaml, load_yaml
from skincancer.training.resume import load_resumed

KINDS = ("fit", "trial", "sweep", "evaluate", "compare")


def list_experiments() -> pd.DataFrame:
    """Return the shipped experiments: name and description."""
    return pd.DataFrame(list(experiments.list_experiments().items()), columns=["name", "description"])


def list_datasets() -> pd.DataFrame:
    """Return the data sets of the catalog, with licence, citation and download instructions."""
    columns = ["name", "title", "tasks", "classes", "licence", "citation", "how_to_get"]
    table = pd.DataFrame([{name: getattr(entry, name) for name in columns} for entry in DATASETS.values()])
    return table.assign(tasks=table["tasks"].map(" ".join), classes=table["classes"].map(" ".join))


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys and types of values, after the import of their plugins."""
    plugins = values.get("plugins", ())
    if isinstance(plugins, str):
        raise ConfigError(f"values: plugins is {plugins!r}; expected a list. Use [{plugins!r}].")
    load_plugins(plugins)
    parse_layer(build_parser("skincancer", ""), values, "values")
    return dict(values)


def _require_experiment(experiment: Experiment) -> None:
    if not isinstance(experiment, Experiment):
        raise ConfigError(
            f"experiment is {experiment!r}; expected an Experiment. Use skincancer.load_experiment({experiment!r})."
        )


def load_experiment(experiment: str | Path, values: Mapping[str, Any] | None = None) -> Experiment:
    """Return an experiment with its values checked.

    Args:
        experiment: name of a shipped experiment, or path of a YAML file.
        values: dotted keys that replace values of the file, such as {"data.dataset": "ham10000"}.

    Raises:
        ConfigError: a name, key, type or value is wrong.
    """
    values = _checked(values or {})
    loaded, notes = resolve(str(experiment), values)
    for note in notes:
        make_console().print(note, markup=False)
    return loaded


def prepare_dataset(experiment: Experiment) -> PreparedDataset:
    """Read, check, split and decode the images of an experiment.

    Raises:
        ConfigError: the split or the target does not fit the data.
        DataError: the data are missing, have another layout, or contain unreadable files.
    """
    _require_experiment(experiment)
    store, hand_crafted = RunStore(experiment.tracking.uri), experiment.model.is_hand_crafted
    with keyboard_interrupts(), progress_bars(make_console()) as bars:
        masks = mask_source(experiment.data, store) if experiment.data.crop or hand_crafted else None
        prepared = prepare_data(experiment.data, masks, bars, task=experiment.task, hand_crafted=hand_crafted)
    prepared.reading.report(make_console())
    return PreparedDataset(experiment, prepared)


def fit_experiment(experiment: Experiment, *, register: str | None = None) -> FinishedRun:
    """Train an experiment and test its best checkpoint.

    An interrupt of the kernel ends the run as KILLED. `resume_run` continues the run.

    Args:
        experiment: as `load_experiment` returns it.
        register: NAME or NAME@ALIAS of the registered model.

    Raises:
        SkinCancerError: data, weights or devices cannot be used, or the run failed.
    """
    _require_experiment(experiment)
    with keyboard_interrupts():
        run_id = fit.fit(experiment, register=register)
    return FinishedRun(run_id, RunStore(experiment.tracking.uri))


def resume_run(run_id: str, *, uri: str | None = None) -> FinishedRun:
    """Continue an interrupted run from its last epoch.

    Args:
        run_id: id of the run.
        uri: MLflow tracking URI (default: the store of this project).

    Raises:
        RunError: the run is unknown, finished, or still running.
    """
    flags = {} if uri is None else {"tracking.uri": uri}
    with keyboard_interrupts():
        fit.fit(load_resumed(run_id, None, flags, fit.make_parser()), resume=run_id)
    return FinishedRun(run_id, RunStore(uri))


def load_run(run: str | Path, *, uri: str | None = None) -> FinishedRun:
    """Open a finished run.

    Args:
        run: run id, folder of the artifacts of a run, or registered model (NAME@ALIAS).
        uri: MLflow tracking URI (default: the store of this project).

    Raises:
        RunError: the run is unknown or not finished.
    """
    opened = FinishedRun(run, RunStore(uri))
    if opened.is_folder:
        # A folder without config.yaml is not the folder of a run.
        opened.file(CONFIG_FILE)
    return opened


def find_runs(*, kind: str = "fit", uri: str | None = None, **params: Any) -> pd.DataFrame:
    """Return the finished runs of a store, the newest first.

    Args:
        kind: fit, trial, sweep, evaluate or compare.
        uri: MLflow tracking URI (default: the store of this project).
        params: values that params of the runs must have, such as dataset="ham10000", experiment="resnet50".

    Returns:
        One row per run: `run_id`, `start` (UTC), the params, and the metrics of the test set or of the best epoch.

    Raises:
        ConfigError: no run has a param of this name.
    """
    if kind not in KINDS:
        raise ConfigError(f"find_runs: kind is {kind!r}; expected one of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    store = RunStore(uri)
    rows = []
    for run in search_runs(store, [f"tags.kind = '{kind}'"]):
        metrics = run.data.metrics
        if has_digested_keys(metrics):
            metrics = FinishedRun(run.info.run_id, store, run).metrics
        results = {name: value for name, value in metrics.items() if name.startswith(("test/", "best/"))}
        start = pd.Timestamp(run.info.start_time, unit="ms")
        rows.append({"run_id": run.info.run_id, "start": start, **run.data.params, **results})
    table = pd.DataFrame(rows, columns=None if rows else ["run_id", "start", *params])
    for name, value in params.items():
        if name not in table:
            known = [str(column) for column in table.columns]
            raise ConfigError(
                f"find_runs: {name} is not a param of these runs.{nearest(name, known)} Use one of {', '.join(known)}."
            )
        table = table[table[name] == str(value)]
    return table.reset_index(drop=True)


def load_model(run: str | Path, *, masks: str | None = None, uri: str | None = None) -> Model:
    """Load the model of a finished run.

    Args:
        run: run id, folder of the artifacts of a run, or registered model (NAME@ALIAS).
        masks: mask source of a run on crops or hand-crafted features, otsu or run:RUN_ID (default: as in training).
        uri: MLflow tracking URI (default: the store of this project).

    Raises:
        ConfigError: `masks` does not fit the run.
        RunError: the run is unknown or not finished.
        WeightsError: the checkpoint cannot be used.
    """
    return Model(load_predictor(str(run), RunStore(uri), masks))


def evaluate_run(
    run: str | Sequence[str], values: Mapping[str, Any] | None = None, *, part: str = "all",
    mapping: Mapping[str, Sequence[str]] | None = None,
    prevalence: float | None = None, near_duplicates: str = "exclude", uri: str | None = None,
) -> FinishedRun:  # fmt: skip
    """Test a finished run, or an ensemble of runs, on other data.

    Args:
        run: run id or folder of artifacts. Several classifiers are an ensemble with averaged probabilities.
        values: dotted keys of the data, such as {"data.dataset": "ph2"} (default: the data of the first run).
        part: all images, or the test set of the split (test).
        mapping: target class to classes of the run and of the data (default: by name).
        prevalence: share of the positive class in the target population (default: as in the images).
        near_duplicates: exclude or keep near-duplicates of training and validation images.
        uri: MLflow tracking URI (default: the store of this project).

    Returns:
        The run of the evaluation.

    Raises:
        SkinCancerError: the data or the run cannot be used, or the classes cannot be mapped.
    """
    runs, values = [run] if isinstance(run, str) else list(run), _checked(values or {})
    with keyboard_interrupts():
        run_id = evaluate.evaluate(
            runs, values, part=part, mapping=mapping, prevalence=prevalence, near_duplicates=near_duplicates, uri=uri,
        )  # fmt: skip
    return FinishedRun(run_id, RunStore(uri))


def compare_runs(
    runs: Sequence[str], metric: str | Sequence[str] = (), *, out: Path | None = None, uri: str | None = None
) -> ComparedRuns:
    """Compare finished runs on their test images, with paired tests.

    Args:
        runs: run ids.
        metric: one metric or several (default: the default metric of the task).
        out: folder that receives tables, figures and the page.
        uri: MLflow tracking URI (default: the store of this project).

    Raises:
        ConfigError: an unknown metric.
        RunError: a run is unknown, unfinished, or cannot be compared with the others.
    """
    if isinstance(runs, str):
        raise ConfigError(f"compare_runs: runs is {runs!r}; expected a list of run ids. Use [{runs!r}, …].")
    metrics = (metric,) if isinstance(metric, str) else tuple(metric)
    with keyboard_interrupts():
        run_id, comparison = compare.compare(
            Request(runs=tuple(runs), metrics=metrics, uri=uri), out=out, console=Console(quiet=True)
        )
    result = ComparedRuns(run_id, comparison)
    if result.warnings:
        warn(make_console(), "read these warnings before you use the values", "\n".join(result.warnings))
    return result


def sweep_experiment(
    experiment: Experiment, trials: int, *, workers: int | None = None, cluster: str | None = None, study: str | None = None,
    storage: str | None = None, sampler: str = "tpe", pruner: str = "median",
) -> FinishedSweep:  # fmt: skip
    """Search the space `search` of an experiment with Optuna.

    Each trial trains in its own process.

    Args:
        experiment: as `load_experiment` returns it.
        trials: total number of trials. It includes finished trials of a study with the same name.
        workers: trials at the same time (default: one per GPU, or one).
        cluster: HOST:PORT of a Ray cluster, auto or local (default: this machine without Ray).
        study: name of the study (default: from experiment, data set and split).
        storage: Optuna storage URL (default: a journal next to the MLflow store).
        sampler: tpe, random or grid.
        pruner: median, hyperband or none.

    Raises:
        SkinCancerError: the space, the data or the storage cannot be used, or the first trials failed.
    """
    _require_experiment(experiment)
    with tempfile.TemporaryDirectory() as folder, keyboard_interrupts():
        # The name of the experiment, which is in the file, need not be that of a file.
        file = Path(folder) / "experiment.yaml"
        file.write_text(dump_yaml(config_to_keep(experiment)), encoding="utf-8")
        flags = {} if experiment.tracking.uri is None else {"tracking.uri": experiment.tracking.uri}
        run_id = sweep.sweep(
            SweepRequest(
                str(file), flags, trials=trials, study=study, storage=storage, sampler=sampler, pruner=pruner,
                resources=Resources(workers, cluster),
            )
        )  # fmt: skip
    run = FinishedRun(run_id, RunStore(experiment.tracking.uri))
    table = run.table(TRIALS_FILE)
    assert table is not None, "every finished sweep has trials.csv"
    best, _ = resolve(None, {}, base=flatten(load_yaml(run.file(BEST_FILE))))
    return FinishedSweep(run, table, best)
