"""Python interface: the commands as functions that return tables, arrays and figures.

`import skincancer as sc` loads these names at their first use.
"""

from __future__ import annotations

import contextlib
import io
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from skincancer import compare, evaluate, fit, sweep
from skincancer.comparison.figures import draw_all
from skincancer.comparison.request import Request
from skincancer.comparison.tables import Comparison
from skincancer.config import experiments
from skincancer.config.cli import build_parser, parse_layer
from skincancer.config.resolve import resolve
from skincancer.data.catalog import DATASETS
from skincancer.data.datamodule import LesionDataModule
from skincancer.data.prepare import PreparedData, prepare_data
from skincancer.errors import ConfigError, nearest
from skincancer.imaging.decode import ImageFile
from skincancer.inference.image_files import find_images
from skincancer.inference.model import mask_source
from skincancer.inference.predictor import Predictor, load_predictor
from skincancer.plugins import load_plugins
from skincancer.runs.artifacts import BEST_FILE, TRIALS_FILE, config_to_keep
from skincancer.runs.finished import FinishedRun
from skincancer.runs.search import search_runs
from skincancer.runs.store import RunStore
from skincancer.schema import Experiment, flatten
from skincancer.sweeps.request import Request as SweepRequest
from skincancer.system.console import make_console, progress_bars
from skincancer.system.interrupts import Interrupted, signals_as_interrupts
from skincancer.system.yaml_files import dump_yaml, load_yaml
from skincancer.training.resume import load_resumed

ImageInput = str | Path | npt.NDArray[np.uint8]


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """End a run as KILLED on SIGINT, then raise the exception that notebooks expect."""
    try:
        with signals_as_interrupts():
            yield
    except Interrupted as interrupt:
        if interrupt.signum == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(interrupt.exit_code) from None


def list_experiments() -> pd.DataFrame:
    """Return the shipped experiments: name and description."""
    rows = list(experiments.list_experiments().items())
    return pd.DataFrame(rows, columns=["name", "description"])


def list_datasets() -> pd.DataFrame:
    """Return the data sets of the catalog, with licence, citation and download instructions."""
    rows = [
        {
            "name": entry.name, "title": entry.title, "tasks": " ".join(entry.tasks), "classes": " ".join(entry.classes),
            "licence": entry.licence, "citation": entry.citation, "how_to_get": entry.how_to_get,
        }
        for entry in DATASETS.values()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def load_experiment(experiment: str | Path, values: Mapping[str, Any] | None = None) -> Experiment:
    """Return an experiment with its values checked.

    Args:
        experiment: name of a shipped experiment, or path of a YAML file.
        values: dotted keys that replace values of the file, such as {"data.dataset": "ham10000"}.

    Raises:
        ConfigError: a name, key, type or value is wrong.
    """
    values = dict(values or {})
    load_plugins(values.get("plugins", ()))
    parser = build_parser("skincancer", "")
    parse_layer(parser, values, "values")
    loaded, notes = resolve(str(experiment), values, parser)
    for note in notes:
        make_console().print(note, markup=False)
    return loaded


@dataclass(frozen=True)
class PreparedDataset:
    """Images of an experiment, decoded and split: index, subsets and image store."""

    experiment: Experiment
    prepared: PreparedData

    @property
    def index(self) -> pd.DataFrame:
        """One row per image: metadata, `label` and `role`.

        `label` is the number of the class, -1 without a class. `role` is train, val, test or "" for an image in no subset.
        """
        return self.prepared.index

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.prepared.classes

    @property
    def split_table(self) -> pd.DataFrame:
        """Content of split.csv of a run: the subset of each image."""
        return self.prepared.split_table

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """Input images in index order, memory-mapped uint8 (N, S, S, 3), RGB."""
        return self.prepared.store.images

    def datamodule(self) -> LesionDataModule:
        """Return a Lightning data module with the balance and the augmentation of the experiment."""
        data = self.experiment.data
        return LesionDataModule(
            self.prepared, batch_size=data.batch_size, balance=data.balance, balance_fixed=data.balance_fixed,
            augment=self.experiment.augment, seed=self.experiment.seed, workers=data.workers,
        )  # fmt: skip


def prepare_dataset(experiment: Experiment) -> PreparedDataset:
    """Read, check, split and decode the images of an experiment.

    Raises:
        ConfigError: the split or the target does not fit the data.
        DataError: the data are missing, have another layout, or contain unreadable files.
    """
    store, hand_crafted = RunStore(experiment.tracking.uri), experiment.model.is_hand_crafted
    with _interruptible(), progress_bars(make_console()) as bars:
        masks = mask_source(experiment.data, store) if experiment.data.crop or hand_crafted else None
        prepared = prepare_data(experiment.data, masks, bars, task=experiment.task, hand_crafted=hand_crafted)
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
    with _interruptible():
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
    with _interruptible():
        fit.fit(load_resumed(run_id, None, flags, fit.make_parser(), RunStore(uri)), resume=run_id)
    return FinishedRun(run_id, RunStore(uri))


def load_run(run: str | Path, *, uri: str | None = None) -> FinishedRun:
    """Open a finished run.

    Args:
        run: run id, folder of the artifacts of a run, or registered model (NAME@ALIAS).
        uri: MLflow tracking URI (default: the store of this project).

    Raises:
        RunError: the run is unknown or not finished.
    """
    return FinishedRun(run, RunStore(uri))


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
    rows = [
        {
            "run_id": run.info.run_id, "start": pd.Timestamp(run.info.start_time, unit="ms"), **run.data.params,
            **{name: value for name, value in run.data.metrics.items() if name.startswith(("test/", "best/"))},
        }
        for run in search_runs(RunStore(uri), [f"tags.kind = '{kind}'"])
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=None if rows else ["run_id", "start", *params])
    for name, value in params.items():
        if name not in table:
            known = [str(column) for column in table.columns]
            raise ConfigError(
                f"find_runs: {name} is not a param of these runs.{nearest(name, known)} Use one of {', '.join(known)}."
            )
        table = table[table[name] == str(value)]
    return table.reset_index(drop=True)


@dataclass(frozen=True)
class Model:
    """Model of a finished run.

    Attributes:
        predictor: prediction of any number of images in constant memory.
    """

    predictor: Predictor

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities, none for a segmenter."""
        return self.predictor.model.classes

    def predict(self, images: ImageInput | Sequence[ImageInput], *, masks: bool = False) -> pd.DataFrame:
        """Predict images.

        Args:
            images: paths of image files or folders, and arrays uint8 (H, W, 3), RGB.
            masks: add the column `mask` with arrays bool (H, W) of the original size.

        Returns:
            One row per image: `image` (path, or number of the array), `prediction` and `p_<class>` for classes, `lesion_share` for
            masks, and `error` ("" for an image that could be read).

        Raises:
            ConfigError: `masks` for a classifier, or an array of another type or shape.
            DataError: a path does not exist, or a folder contains no image.
        """
        segments = self.predictor.model.segments
        if masks and not segments:
            raise ConfigError("predict: masks is True, but the model is a classifier. Use the run of a segmenter.")
        names, files = _image_files([images] if isinstance(images, str | Path | np.ndarray) else images)
        rows = []
        with _interruptible():
            for name, prediction in zip(names, self.predictor.predict(files), strict=True):
                row: dict[str, Any] = {"image": name}
                if prediction.probability is not None:
                    row["prediction"] = self.classes[int(prediction.probability.argmax())]
                    row |= {f"p_{label}": p for label, p in zip(self.classes, prediction.probability, strict=True)}
                if segments and not prediction.error:
                    mask = self.predictor.mask(prediction)
                    row |= {"lesion_share": mask.mean(), **({"mask": mask} if masks else {})}
                rows.append({**row, "error": prediction.error})
        table = pd.DataFrame(rows)
        return table[[name for name in table if name != "error"] + ["error"]]


def _image_files(images: Sequence[ImageInput]) -> tuple[list[str | int], list[ImageFile]]:
    names: list[str | int] = []
    files: list[ImageFile] = []
    for number, image in enumerate(images):
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ConfigError(
                    f"predict: image {number} is {image.dtype} {image.shape}; expected uint8 (H, W, 3), RGB. Convert the array."
                )
            content = io.BytesIO()
            Image.fromarray(image).save(content, "png", compress_level=1)
            names.append(number)
            files.append(content.getvalue())
        else:
            paths = [path for _, path in find_images([image])]
            names += paths
            files += map(Path, paths)
    return names, files


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
    run: str | Sequence[str], values: Mapping[str, Any], *, part: str = "all", mapping: Mapping[str, Sequence[str]] | None = None,
    prevalence: float | None = None, near_duplicates: str = "exclude", uri: str | None = None,
) -> FinishedRun:  # fmt: skip
    """Test a finished run, or an ensemble of runs, on other data.

    Args:
        run: run id or folder of artifacts. Several classifiers are an ensemble with averaged probabilities.
        values: dotted keys of the data, such as {"data.dataset": "ph2"}.
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
    runs = [run] if isinstance(run, str) else list(run)
    with _interruptible():
        run_id = evaluate.evaluate(
            runs, values, part=part, mapping=mapping, prevalence=prevalence, near_duplicates=near_duplicates, uri=uri,
        )  # fmt: skip
    return FinishedRun(run_id, RunStore(uri))


@dataclass(frozen=True)
class ComparedRuns:
    """Comparison of finished runs, logged in MLflow as the run `run_id`."""

    run_id: str
    comparison: Comparison

    @property
    def table(self) -> pd.DataFrame:
        """One row per experiment, split and metric: value with 95 % interval."""
        return self.comparison.table

    @property
    def pairs(self) -> pd.DataFrame:
        """One row per pair of experiments and split, with paired tests.

        Columns: difference of the metric with 95 % interval, p values.
        """
        return self.comparison.pairs

    def figures(self) -> dict[str, Figure]:
        """Return the figures of the comparison by name."""
        metric = self.comparison.metrics[0]
        rows = self.table[self.table["metric"] == metric]
        return draw_all(self.comparison.entries, rows, metric, title=f"{metric} · {self.comparison.dataset}")


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
    metrics = (metric,) if isinstance(metric, str) else tuple(metric)
    with _interruptible():
        run_id, comparison = compare.compare(
            Request(runs=tuple(runs), metrics=metrics, uri=uri), out=out, console=Console(quiet=True)
        )
    return ComparedRuns(run_id, comparison)


@dataclass(frozen=True)
class FinishedSweep:
    """Finished search for hyper-parameters.

    Attributes:
        run: MLflow run of the sweep.
        trials: one row per trial, with its values of the search space.
        best_experiment: complete experiment of the best trial.
    """

    run: FinishedRun
    trials: pd.DataFrame
    best_experiment: Experiment


def sweep_experiment(
    experiment: Experiment, trials: int, *, workers: int | None = None, study: str | None = None, storage: str | None = None,
    sampler: str = "tpe", pruner: str = "median",
) -> FinishedSweep:  # fmt: skip
    """Search the space `search` of an experiment with Optuna.

    Each trial trains in its own process.

    Args:
        experiment: as `load_experiment` returns it.
        trials: total number of trials. It includes finished trials of a study with the same name.
        workers: trials at the same time (default: one per GPU, or one).
        study: name of the study (default: from experiment, data set and split).
        storage: Optuna storage URL (default: a journal next to the MLflow store).
        sampler: tpe, random or grid.
        pruner: median, hyperband or none.

    Raises:
        SkinCancerError: the space, the data or the storage cannot be used, or the first trials failed.
    """
    with tempfile.TemporaryDirectory() as folder, _interruptible():
        file = Path(folder) / f"{experiment.name}.yaml"
        file.write_text(dump_yaml(config_to_keep(experiment)), encoding="utf-8")
        flags = {} if experiment.tracking.uri is None else {"tracking.uri": experiment.tracking.uri}
        run_id = sweep.sweep(
            SweepRequest(
                str(file), flags, trials=trials, workers=workers, study=study, storage=storage, sampler=sampler, pruner=pruner
            )
        )  # fmt: skip
    run = FinishedRun(run_id, RunStore(experiment.tracking.uri))
    table = run.table(TRIALS_FILE)
    assert table is not None, "every finished sweep has trials.csv"
    best, _ = resolve(None, {}, base=flatten(load_yaml(run.file(BEST_FILE))))
    return FinishedSweep(run, table, best)
