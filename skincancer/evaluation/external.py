"""Evaluation of finished runs on new data: preparation of data and classes, and predictions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from skincancer.config.resolve import resolve
from skincancer.data.cache import ProgressBar
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.data.catalog import malignant_classes
from skincancer.data.datamodule import LesionDataModule, check_shared_memory, check_workers
from skincancer.data.index import add_target, image_root, load_index
from skincancer.data.mask_sources import used_mask_source
from skincancer.data.overlap import find_overlap, find_similar, open_whole, pixel_digests
from skincancer.data.prepare import PreparedData, locate_dataset, prepare_data
from skincancer.data.reading import Reading
from skincancer.errors import ConfigError, DataError, RunError
from skincancer.evaluation.class_mapping import ClassMapping, map_classes
from skincancer.inference.classical_model import ClassicalModel, predict_test_set
from skincancer.inference.model import mask_source
from skincancer.models.factory import build_scorer, load_task
from skincancer.models.lightning import OwnSignals
from skincancer.models.tasks.classification import Classifying, Predictions
from skincancer.models.tasks.joint import JointPredictions
from skincancer.models.tasks.segmentation import Segmenting
from skincancer.plugins import load_plugins
from skincancer.runs.finished import FinishedRun, Validation
from skincancer.runs.store import RunStore
from skincancer.schema.data import RUN
from skincancer.schema.dotted_keys import flatten
from skincancer.schema.experiment import Experiment
from skincancer.schema.model import DEEP
from skincancer.schema.tasks import TASKS
from skincancer.system.console import make_console, progress_bars

OF_TRAINING = ("data.balance", "data.balance_fixed", "data.class_weight_power", "data.positive", "training.monitor")
OF_RUN = ("data.size", "data.resize", "data.clean", "data.crop", "data.crop_margin", *OF_TRAINING)
OF_DATASET = (
    "data.root",
    "data.images",
    "data.where",
    "data.name",
    "data.groups",
    "data.malignant",
    "data.leaks",
    "data.skip_bad",
)
# Keys that are the same for every run of an ensemble.
OF_ALL = (
    *OF_DATASET, "data.dataset", "data.split", "data.split_seed", "data.target", "data.quality", "data.quality_rules",
)  # fmt: skip
# Keys of one folder or table of the user.
OF_OWN_FILES = ("data.images", "data.where", "data.name", "data.malignant")
# Data sets with one name but other images in every folder.
OWN_FILES = ("demo", "folder", "csv")
# The mean of probabilities with nine digits has no meaningful logarithm below this value.
_LOWEST = 1e-12


@dataclass(frozen=True)
class Evaluation:
    """Prepared evaluation, before predictions. Tuples have one entry per run.

    Attributes:
        data: the same images, preprocessed as for each run. The evaluated ones have the role test, all others none.
        mappings: empty for segmenters.
        seen: image_id and reason (a key of `overlap.REASONS`) of the excluded images.
        whole: whether all images are evaluated, and not only the test set.
        similar: image_id, like (image of a run) and correlation of near-duplicates without another reason.
        keeps_similar: whether near-duplicates are evaluated.
    """

    runs: tuple[FinishedRun, ...]
    experiments: tuple[Experiment, ...]
    data: tuple[PreparedData, ...]
    mappings: tuple[ClassMapping, ...]
    seen: pd.DataFrame
    whole: bool
    similar: pd.DataFrame = field(default_factory=pd.DataFrame)
    keeps_similar: bool = False

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Title and text of each warning."""
        notes = []
        for run, experiment in zip(self.runs, self.experiments, strict=True):
            before, now = catalog_entry(run.settings["data.dataset"]), catalog_entry(experiment.data.dataset)
            if before.name in now.copies or now.name in before.copies:
                text = f"run {run.name} was trained on {before.name}, and {now.name} shows the same lesions under other image names. "
                if self.keeps_similar or run.fingerprints is None:
                    text += "Copies in another encoding are not excluded: metrics are better than on new images."
                else:
                    text += "Copies are excluded, but not other images of the same lesions: metrics may be better than on new lesions."
                notes.append(("this is no external validation", text))
            precision = str(run.settings["trainer.precision"])
            if precision != experiment.trainer.precision:
                text = f"run {run.name} was tested in {precision}, which this machine does not support; with 32, the last digits differ."
                notes.append(("another precision", text))
        return notes

    @property
    def classes(self) -> tuple[str, ...]:
        """Compared classes, empty for segmenters."""
        return self.mappings[0].classes if self.mappings else ()


def same_files(run: FinishedRun, experiment: Experiment) -> bool:
    """Return whether an experiment and a run have the same image files."""
    same = run.settings["data.dataset"] == experiment.data.dataset
    return same and (experiment.data.dataset not in OWN_FILES or run.settings["data.root"] == experiment.data.root)


def load_fit(run: str, store: RunStore) -> FinishedRun:
    """Open a finished fit, and check the files that an evaluation needs.

    Raises:
        RunError: the run is unknown, not finished or of another kind, or a file is missing or malformed.
    """
    fit = FinishedRun(run, store)
    if not fit.is_folder and (kind := fit.tags.get("kind")) not in ("fit", "trial"):
        raise RunError(f"run {run} is of kind {kind!r}, which contains no model; use the run of a fit.")
    load_plugins(fit.settings["plugins"])
    _ = fit.model_folder, fit.classes, fit.split, fit.fingerprints, fit.mask_sources, fit.segmenter, fit.validation
    return fit


def plan(run: FinishedRun, flags: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a run with other data, on one device.

    Raises:
        ConfigError: a flag is fixed by the run, or does not fit its task.
    """
    for key in OF_RUN:
        if key in flags:
            value = run.positive if key == "data.positive" else run.settings[key]
            raise ConfigError(f"--{key} is fixed by the run to {value!r}; remove the flag, or train another run.")
    values = dict(run.settings)
    schema = flatten(Experiment().to_dict())
    values |= {key: schema[key] for key in OF_TRAINING}
    if flags.get("data.dataset", values["data.dataset"]) != values["data.dataset"]:
        values |= {key: schema[key] for key in OF_DATASET}
    elif "data.root" in flags and values["data.dataset"] in OWN_FILES:
        values |= {key: schema[key] for key in OF_OWN_FILES}
    elif values["data.root"] and not os.path.exists(values["data.root"]):
        # The run was trained on another machine, so the standard folders are searched.
        values["data.root"] = None
    values |= {
        f"trainer.{key}": schema[f"trainer.{key}"] for key in ("accelerator", "devices", "num_nodes", "strategy")
    }
    if values["trainer.precision"] == "16-mixed" and not torch.cuda.is_available():
        values["trainer.precision"] = "32"
    values |= {"tracking.uri": None, "tracking.system_metrics": False}
    measured = not run.is_network and DEEP not in values["model.classical.features"]
    if (values["data.crop"] or measured) and "data.masks" not in flags:
        values["data.masks"] = _masks(run)
    experiment, _ = resolve(None, flags, base=values)
    return experiment


def _masks(run: FinishedRun) -> str:
    """Return the mask source of the images of a run."""
    return f"{RUN}{run.segmenter}" if run.segmenter else used_mask_source(run.settings["data.masks"], run.mask_sources)


def prepare_evaluation(
    runs: Sequence[FinishedRun], flags: Mapping[str, Any], whole: bool, explicit: Mapping[str, Sequence[str]] | None,
    store: RunStore, progress: ProgressBar | None = None, keep_similar: bool = False,
) -> Evaluation:  # fmt: skip
    """Prepare the data for each run, map classes, and exclude used images.

    Args:
        runs: one run, or an ensemble of classifiers.
        flags: dotted keys of the data section. The default target is that of the first run.
        whole: whether to evaluate all images, and not only the test set.
        explicit: explicit mapping of classes (`class_mapping.map_classes`).
        store: MLflow store.
        progress: factory of progress callbacks.
        keep_similar: whether to evaluate near-duplicates of images that a run has used. They are counted in any case.

    Raises:
        ConfigError: flags or mapping do not fit.
        DataError: the data cannot be used, or a run has used all images.
        RunError: the runs do not fit each other.
    """
    first = plan(runs[0], flags)
    shared = {key: value for key, value in flatten(first.to_dict()).items() if key in OF_ALL}
    experiments = (first, *(plan(run, {**shared, **flags}) for run in runs[1:]))
    mappings = map_runs(runs, first, explicit) if TASKS[first.task].has_classes else ()
    data = tuple(
        prepare_data(
            experiment.data, mask_source(experiment.data, store), progress,
            task=experiment.task, whole=whole, hand_crafted=experiment.model.is_hand_crafted,
        )
        for experiment in experiments
    )  # fmt: skip
    test = data[0].rows("test")
    reasons = np.full(len(test), "", dtype=object)
    tables: list[pd.DataFrame] = []
    for run, experiment, prepared in zip(runs, experiments, data, strict=True):
        rows = prepared.rows("test")
        if not rows["image_id"].equals(test["image_id"]):
            raise DataError(
                "the preprocessing of the runs drops different images (data.skip_bad); repair or remove the bad files."
            )
        if run.has_digests:
            rows = rows.assign(pixels=pixel_digests(prepared.store.images, rows.index.to_numpy()))
        run_reasons = find_overlap(rows, run.split, same_files(run, experiment))
        reasons = np.where(reasons == "", run_reasons, reasons)
        if run.fingerprints is not None:
            images = image_root(prepared.root)
            whole_images, resize = open_whole(prepared.index, images, prepared.store, experiment.data, progress)
            report = progress(f"comparing the images with those of run {run.name}") if progress else None
            tables.append(find_similar(whole_images, rows.index.to_numpy(), resize, run.fingerprints, report))
    similar = pd.concat(tables) if tables else pd.DataFrame(columns=["row", "like", "correlation"])
    similar = similar.sort_values("correlation", ascending=False, kind="stable").drop_duplicates("row")
    similar = similar[similar["row"].isin(test.index[reasons == ""])].sort_values("row", ignore_index=True)
    if not keep_similar:
        reasons[test.index.isin(similar["row"])] = "near"
    similar = similar.assign(image_id=test["image_id"].reindex(similar["row"]).to_numpy())
    excluded = test.index[reasons != ""]
    if len(excluded) == len(test):
        raise DataError(
            f"all {len(test)} images have been seen by the run in training or validation; nothing is left to evaluate. "
            "Use other data, or --part test on the split of the run."
        )
    seen = pd.DataFrame({"image_id": test["image_id"], "reason": reasons})[reasons != ""].reset_index(drop=True)
    kept = set(test.index) - set(excluded)
    data = tuple(
        dataclasses.replace(
            prepared,
            index=prepared.index.assign(
                role=np.where(prepared.index.index.isin(kept), "test", "").astype(object)
            ),
        )
        for prepared in data
    )  # fmt: skip
    for experiment, prepared in zip(experiments, data, strict=True):
        check_workers(experiment.data.workers)
        check_shared_memory(prepared, experiment.data, ranks=1)
    return Evaluation(
        tuple(runs), experiments, data, mappings, seen, whole, similar[["image_id", "like", "correlation"]], keep_similar,
    )  # fmt: skip


def map_runs(
    runs: Sequence[FinishedRun], experiment: Experiment, explicit: Mapping[str, Sequence[str]] | None
) -> tuple[ClassMapping, ...]:
    """Map the classes of each run and of the data.

    Raises:
        ConfigError: the classes cannot be mapped.
        RunError: the compared classes of the runs differ.
    """
    settings = experiment.data
    entry, root = locate_dataset(settings)
    index, diagnoses = load_index(entry, root, Reading.from_config(settings))
    names = settings.malignant_names
    _, classes = add_target(index, entry, diagnoses, settings.target, names)
    malignant = malignant_classes(entry, classes, settings.target, names)
    mappings = tuple(map_classes(run.classes, run.malignant, classes, malignant, explicit) for run in runs)
    for run, mapping in zip(runs, mappings, strict=True):
        if mapping.classes != mappings[0].classes:
            raise RunError(
                f"run {runs[0].name} predicts {', '.join(mappings[0].classes)}, but run {run.name} predicts {', '.join(mapping.classes)}: "
                "their probabilities cannot be averaged. Use --map, or runs of the same classes."
            )
    return mappings


def predict_test(run: FinishedRun, experiment: Experiment, data: PreparedData, progress_bar: bool) -> tuple[Any, Any]:
    """Predict the test images as a fit does, and return task and predictions.

    The model gets no labels: they may belong to other classes, and metrics are computed from the tables.
    """
    if not run.is_network:
        model = ClassicalModel(run.model_folder)
        with progress_bars(make_console()) as bars:
            return model, predict_test_set(model, experiment, data, bars)
    task = load_task(run.checkpoint)
    if isinstance(task, Classifying):
        task.needs_labels = False
        data = dataclasses.replace(data, index=data.index.assign(label=np.int64(-1)))
    if isinstance(task, Segmenting):
        task.scorer = build_scorer(data, experiment)
    settings, options = experiment.data, experiment.trainer
    datamodule = LesionDataModule(
        data, batch_size=settings.batch_size, balance="none", balance_fixed=False, augment=experiment.augment,
        seed=experiment.seed, workers=settings.workers,
    )  # fmt: skip
    kept: dict[str, Any] = {name: getattr(options, name) for name in ("accelerator", "precision", "deterministic")}
    trainer = pl.Trainer(
        **kept, devices=1,
        callbacks=[OwnSignals()], logger=False, enable_checkpointing=False, enable_progress_bar=progress_bar,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.test(task, datamodule=datamodule, verbose=False)
    assert task.predictions is not None
    return task, task.predictions


def mapped_predictions(evaluation: Evaluation, predictions: Sequence[Any]) -> Any:
    """Return the mean predictions of the runs, with the compared classes and labels."""
    if not evaluation.mappings:
        return predictions[0]
    of_classes = [item.classes if isinstance(item, JointPredictions) else item for item in predictions]
    index = of_classes[0].index
    label = evaluation.mappings[0].data_label(evaluation.data[0].index["label"].to_numpy(np.int64)[index])
    pairs = [
        (mapping.logits(item.logits), mapping.probability(item.probability))
        for item, mapping in zip(of_classes, evaluation.mappings, strict=True)
    ]
    logits, probability = _mean(pairs)
    mapped = Predictions(index, label, logits, probability, float("nan"))
    return JointPredictions(mapped, predictions[0].masks) if isinstance(predictions[0], JointPredictions) else mapped


def _mean(pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return mean probabilities (N, C), with their logarithms as logits."""
    if len(pairs) == 1:
        return pairs[0]
    probability = np.mean([probability for _, probability in pairs], axis=0)
    return np.log(probability.clip(_LOWEST, 1)), probability


def mapped_validation(evaluation: Evaluation) -> tuple[Validation | None, str]:
    """Return labelled validation predictions in the compared classes, or None and the reason.

    Those of an ensemble are averaged, if all its runs have the same validation images.
    """
    validations = [run.validation for run in evaluation.runs]
    first = validations[0]
    if first is None:
        return None, "segmenters have no classes"
    pairs = []
    order = first.rows["image_id"]
    for run, validation, mapping in zip(evaluation.runs, validations, evaluation.mappings, strict=True):
        assert validation is not None, "ensembles consist of classifiers"
        same = run.settings["data.dataset"] == evaluation.runs[0].settings["data.dataset"]
        if not same or set(validation.rows["image_id"]) != set(order):
            names = f"run {run.name} and run {evaluation.runs[0].name}"
            return None, f"the runs were validated on different images ({names})"
        rows = pd.Index(validation.rows["image_id"]).get_indexer(order)
        pairs.append((mapping.logits(validation.logits[rows]), mapping.probability(validation.probability[rows])))
    logits, probability = _mean(pairs)
    return Validation(first.rows, evaluation.mappings[0].run_label(first.label), logits, probability), ""
