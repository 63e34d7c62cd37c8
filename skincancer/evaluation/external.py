"""A finished run's model on data that it has not seen: the data by the run's own recipe, the classes, what is left out, the predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from skincancer.config.resolve import resolve
from skincancer.data.cache import ProgressBar
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.data.catalog import malignant_classes
from skincancer.data.datamodule import LesionDataModule
from skincancer.data.index import add_target, image_root, load_index
from skincancer.data.mask_sources import used_mask_source
from skincancer.data.overlap import find_seen, find_similar, open_whole, pixel_digests
from skincancer.data.prepare import PreparedData, locate, prepare_data
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
from skincancer.schema import DEEP, RUN, TASKS, Experiment, flatten
from skincancer.system.console import make_console, progress_bars

OF_TRAINING = ("data.balance", "data.balance_fixed", "data.class_weight_power")
OF_RUN = ("data.size", "data.resize", "data.clean", "data.crop", "data.crop_margin", *OF_TRAINING)
OF_DATASET = ("data.root", "data.groups", "data.malignant", "data.leaks", "data.skip_bad")
OF_ALL = (
    *OF_DATASET,
    "data.dataset",
    "data.split",
    "data.split_seed",
    "data.target",
    "data.quality",
    "data.quality_rules",
)  # the same for every run of an ensemble
OWN_FILES = ("demo", "folder", "csv")  # one name, other images in every folder
_FEWEST = 1e-12  # a mean of probabilities of nine digits, below which its logarithm says nothing


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation is made of before anything is predicted; a tuple has an entry a run.

    `data` are the same images, each by its run's recipe: those to evaluate have the role test, all others none. `mappings` are empty
    of segmenters. `seen`: image_id and reason (a key of `seen.REASONS`) of the images left out. `similar`: image_id, like (an image that a
    run used) and correlation of the near-duplicates that are no more than that; `keeps_similar`: they are evaluated all the same.
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
        """Return what nobody may overlook before the numbers: title and text."""
        notes = []
        for run, experiment in zip(self.runs, self.experiments, strict=True):
            before, now = catalog_entry(run.settings["data.dataset"]), catalog_entry(experiment.data.dataset)
            if before.name in now.copies or now.name in before.copies:
                text = f"run {run.name} was trained on {before.name}, and {now.name} holds images of the same lesions under other names. "
                if self.keeps_similar or run.fingerprints is None:
                    text += "Copies in another encoding are not left out: the numbers are better than on new images."
                else:
                    text += (
                        "Copies are found by their looks and left out; other photographs of the same lesions are not, and the numbers may "
                        "be better than on new lesions."
                    )
                notes.append(("this is no external validation", text))
            precision = str(run.settings["trainer.precision"])
            if precision != experiment.trainer.precision:
                text = f"run {run.name} was tested in {precision}, which this machine cannot do; here it is 32, and the last digits differ."
                notes.append(("another precision", text))
        return notes

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes that the runs are compared with the data in."""
        return self.mappings[0].classes if self.mappings else ()


def same_files(run: FinishedRun, experiment: Experiment) -> bool:
    """Say whether an experiment is on the data set of a run, so that ids mean the same images."""
    same = run.settings["data.dataset"] == experiment.data.dataset
    return same and (experiment.data.dataset not in OWN_FILES or run.settings["data.root"] == experiment.data.root)


def load_fit(run: str, store: RunStore) -> FinishedRun:
    """Open a finished fit, and check the files that an evaluation needs before any image is prepared.

    Args:
        run: run id, folder of artifacts, or registered model.
        store: MLflow store.

    Raises:
        RunError: no such finished run, a run of another kind, or a file is missing or malformed.
    """
    fit = FinishedRun(run, store)
    if not fit.is_folder and (kind := fit.tags.get("kind")) not in ("fit", "trial"):
        raise RunError(f"run {run} is of kind {kind!r}, which holds no model; give the run of a fit.")
    load_plugins(fit.settings["plugins"])
    _ = fit.model_folder, fit.classes, fit.split, fit.fingerprints, fit.mask_sources, fit.segmenter, fit.validation
    return fit


def plan(run: FinishedRun, flags: Mapping[str, Any]) -> Experiment:
    """Return the run's experiment on the data that the flags name, on one device of this machine.

    Args:
        run: of a fit.
        flags: dotted keys of the data section.

    Raises:
        ConfigError: a flag belongs to the run, or does not fit its task.
    """
    for key in OF_RUN:
        if key in flags:
            raise ConfigError(
                f"--{key}: an evaluation takes the run's own, {run.settings[key]!r}. Leave it out, or train another run."
            )
    values = dict(run.settings)
    schema = flatten(Experiment().to_dict())
    values |= {key: schema[key] for key in OF_TRAINING}
    if flags.get("data.dataset", values["data.dataset"]) != values["data.dataset"]:
        values |= {key: schema[key] for key in OF_DATASET}
    elif values["data.root"] and not Path(values["data.root"]).exists():
        values["data.root"] = None  # trained elsewhere: the usual places are looked at
    values |= {
        f"trainer.{key}": schema[f"trainer.{key}"] for key in ("accelerator", "devices", "num_nodes", "strategy")
    }
    if values["trainer.precision"] == "16-mixed" and not torch.cuda.is_available():
        values["trainer.precision"] = "32"
    values |= {"tracking.uri": None, "tracking.system_metrics": False}
    hand_made = not run.is_network and DEEP not in values["model.classical.features"]
    if (values["data.crop"] or hand_made) and "data.masks" not in flags:
        values["data.masks"] = _masks(run)
    experiment, _ = resolve(None, flags, base=values)
    return experiment


def _masks(run: FinishedRun) -> str:
    """Return whose masks are taken: those of the run's own images, also where its config left that to the data."""
    return f"{RUN}{run.segmenter}" if run.segmenter else used_mask_source(run.settings["data.masks"], run.mask_sources)


def prepare_evaluation(
    runs: Sequence[FinishedRun], flags: Mapping[str, Any], whole: bool, given: Mapping[str, Sequence[str]] | None,
    store: RunStore, progress: ProgressBar | None = None, keep_similar: bool = False,
) -> Evaluation:  # fmt: skip
    """Prepare the data by each run's recipe, map the classes, and leave out what any of the runs has seen.

    Args:
        runs: one, or an ensemble of classifiers.
        flags: dotted keys of the data section; the target is the first run's where none is given.
        whole: every image, whatever the split; else its test part.
        given: a mapping of classes (`class_mapping.map_classes`).
        store: MLflow store.
        progress: makes progress callbacks by title.
        keep_similar: near-duplicates of images that a run used are counted, but evaluated all the same.

    Raises:
        ConfigError: flags or mapping do not fit.
        DataError: the data cannot be used, or every image has been seen.
        RunError: the runs do not fit each other.
    """
    first = plan(runs[0], flags)
    shared = {key: value for key, value in flatten(first.to_dict()).items() if key in OF_ALL}
    experiments = (first, *(plan(run, {**shared, **flags}) for run in runs[1:]))
    mappings = map_runs(runs, first, given) if TASKS[first.task].has_classes else ()
    data = tuple(
        prepare_data(
            experiment.data,
            mask_source(experiment.data, store),
            progress,
            task=experiment.task,
            whole=whole,
            hand_made=experiment.model.is_hand_made,
        )
        for experiment in experiments
    )
    test = data[0].rows("test")
    reasons = np.full(len(test), "", dtype=object)
    looks: list[pd.DataFrame] = []
    for run, experiment, prepared in zip(runs, experiments, data, strict=True):
        rows = prepared.rows("test")
        if not rows["image_id"].equals(test["image_id"]):
            raise DataError(
                "the runs' recipes leave different images out (data.skip_bad); repair or remove the bad files."
            )
        if run.has_digests:
            rows = rows.assign(pixels=pixel_digests(prepared.store.images, rows.index.to_numpy()))
        found = find_seen(rows, run.split, same_files(run, experiment))
        reasons = np.where(reasons == "", found, reasons)
        if run.fingerprints is not None:
            images = image_root(prepared.root)
            pictures, resize = open_whole(prepared.index, images, prepared.store, experiment.data, progress)
            told = progress(f"comparing the images with those of run {run.name}") if progress else None
            looks.append(find_similar(pictures, rows.index.to_numpy(), resize, run.fingerprints, told))
    similar = pd.concat(looks) if looks else pd.DataFrame(columns=["row", "like", "correlation"])
    similar = similar.sort_values("correlation", ascending=False, kind="stable").drop_duplicates("row")
    similar = similar[similar["row"].isin(test.index[reasons == ""])].sort_values("row", ignore_index=True)
    if not keep_similar:
        reasons[test.index.isin(similar["row"])] = "near"
    similar = similar.assign(image_id=test["image_id"].reindex(similar["row"]).to_numpy())
    left_out = test.index[reasons != ""]
    if len(left_out) == len(test):
        raise DataError(
            f"all {len(test)} images have been seen by the run in training or validation; nothing is left to evaluate. "
            "Use other data, or --part test on the run's own split."
        )
    seen = pd.DataFrame({"image_id": test["image_id"], "reason": reasons})[reasons != ""].reset_index(drop=True)
    kept = set(test.index) - set(left_out)
    data = tuple(
        dataclasses.replace(
            prepared,
            index=prepared.index.assign(
                role=np.where(prepared.index.index.isin(kept), "test", "").astype(object)
            ),
        )
        for prepared in data
    )  # fmt: skip
    return Evaluation(
        tuple(runs),
        experiments,
        data,
        mappings,
        seen,
        whole,
        similar[["image_id", "like", "correlation"]],
        keep_similar,
    )


def map_runs(
    runs: Sequence[FinishedRun], experiment: Experiment, given: Mapping[str, Sequence[str]] | None
) -> tuple[ClassMapping, ...]:
    """Map the classes of each run to those of the data, which are read for that but not prepared.

    Raises:
        ConfigError: they cannot be mapped.
        RunError: the runs' mapped classes differ.
    """
    settings = experiment.data
    entry, root = locate(settings)
    index, diagnoses = load_index(entry, root)
    named = tuple(settings.malignant)
    _, classes = add_target(index, entry, diagnoses, settings.target, named)
    malignant = malignant_classes(entry, classes, settings.target, named)
    mappings = tuple(map_classes(run.classes, run.malignant, classes, malignant, given) for run in runs)
    for run, mapping in zip(runs, mappings, strict=True):
        if mapping.classes != mappings[0].classes:
            raise RunError(
                f"run {runs[0].name} answers in {', '.join(mappings[0].classes)}, run {run.name} in {', '.join(mapping.classes)}: their "
                "probabilities cannot be averaged. Give --map, or runs of the same classes."
            )
    return mappings


def predict_test(run: FinishedRun, experiment: Experiment, data: PreparedData, progress_bar: bool) -> tuple[Any, Any]:
    """Predict the images whose role is test, by the path of a fit's own test; return the task, and its predictions.

    Labels are not given to the model: they may be of other classes, and metrics are taken from the tables.
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
    own: dict[str, Any] = {name: getattr(options, name) for name in ("accelerator", "precision", "deterministic")}
    trainer = pl.Trainer(
        **own, devices=1,
        callbacks=[OwnSignals()], logger=False, enable_checkpointing=False, enable_progress_bar=progress_bar,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.test(task, datamodule=datamodule, verbose=False)
    assert task.predictions is not None
    return task, task.predictions


def mapped_predictions(evaluation: Evaluation, found: Sequence[Any]) -> Any:
    """Return what the runs said, in the classes compared and with the data's labels: of several, the mean of their probabilities.

    Args:
        evaluation: prepared.
        found: the predictions of each run, as its task gives them.
    """
    if not evaluation.mappings:
        return found[0]
    of_classes = [one.classes if isinstance(one, JointPredictions) else one for one in found]
    index = of_classes[0].index
    label = evaluation.mappings[0].data_label(evaluation.data[0].index["label"].to_numpy(np.int64)[index])
    pairs = [
        (mapping.logits(one.logits), mapping.probability(one.probability))
        for one, mapping in zip(of_classes, evaluation.mappings, strict=True)
    ]
    logits, probability = _mean(pairs)
    mapped = Predictions(index, label, logits, probability, float("nan"))
    return JointPredictions(mapped, found[0].masks) if isinstance(found[0], JointPredictions) else mapped


def _mean(pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return logits and probabilities (N, C): of several their mean, whose logits are its logarithm."""
    if len(pairs) == 1:
        return pairs[0]
    probability = np.mean([one for _, one in pairs], axis=0)
    return np.log(probability.clip(_FEWEST, 1)), probability


def mapped_validation(evaluation: Evaluation) -> tuple[Validation | None, str]:
    """Return the labelled validation predictions in the classes compared, and why there are none ("" where there are).

    Those of an ensemble are the mean of its runs' on the same images, which have to be validation images of every run.
    """
    parts = [run.validation for run in evaluation.runs]
    first = parts[0]
    if first is None:
        return None, "segmenters have no classes"
    pairs = []
    order = first.rows["image_id"]
    for run, part, mapping in zip(evaluation.runs, parts, evaluation.mappings, strict=True):
        assert part is not None, "an ensemble is of classifiers"
        same = run.settings["data.dataset"] == evaluation.runs[0].settings["data.dataset"]
        if not same or set(part.rows["image_id"]) != set(order):
            names = f"run {run.name} and run {evaluation.runs[0].name}"
            return None, f"the runs were validated on different images ({names})"
        rows = pd.Index(part.rows["image_id"]).get_indexer(order)
        pairs.append((mapping.logits(part.logits[rows]), mapping.probability(part.probability[rows])))
    logits, probability = _mean(pairs)
    return Validation(first.rows, evaluation.mappings[0].run_label(first.label), logits, probability), ""
