"""Entries of a comparison (experiment × split), and differences between their runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from skincancer.comparison.predictions import ClassScores, Scores, pool_folds
from skincancer.errors import RunError

# Params that make figures hard to compare if they differ, with their names in warnings.
WATCHED = {
    "dataset": "data set", "target": "target", "split_seed": "split seed", "size": "image size", "resize": "resize", "clean": "cleaning",
    "weights": "first weights", "crop": "crop", "masks": "masks of crops or features", "leaks": "handling of leaks",
    "dropped_images": "images left out", "where": "selection of rows",
}  # fmt: skip
# Meaning of a param that older runs lack.
UNNAMED = {"clean": "none", "where": "all rows"}
# Params in which the runs of one entry may differ.
OWN_PARAMS = (
    "seed", "split", "devices", "ranks", "train_images", "val_images", "test_images", "segmenter_saw_test_images", "leaking_lesions",
)  # fmt: skip
# Params that define a method, with their keys of the config.
METHOD = {
    "backbone": "model.backbone", "architecture": "model.architecture", "balance": "data.balance", "size": "data.size",
    "batch_size": "data.batch_size", "max_epochs": "trainer.max_epochs", "lr": "model.optimizer.lr", "optimizer": "model.optimizer.name",
    "augment": "augment.policy", "freeze": "model.freeze", "dropout": "model.dropout", "tta": "model.tta",
    "schedule": "model.schedule.name", "ema_decay": "training.ema_decay", "resize": "data.resize", "crop": "data.crop",
}  # fmt: skip
WATCHED_TAGS = {"index_hash": "index of images", "groups_hash": "groups of lesions", "synthetic": "synthetic data"}


@dataclass(frozen=True)
class Entry:
    """One experiment at one split. The folds of `fold:*/k` are pooled per seed.

    Attributes:
        shipped: values of the experiment file in dotted keys, empty if the file is unknown.
    """

    experiment: str
    split: str
    runs: tuple[ComparedRun, ...]
    shipped: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Sorted seeds of the runs."""
        return sorted({run.seed for run in self.runs})

    @cached_property
    def scores(self) -> list[Scores]:
        """Test predictions of each seed.

        Raises:
            RunError: a fold is missing, or the folds belong to different splits.
        """
        if not self.split.startswith("fold:*/"):
            return [run.scores for run in self.runs]
        folds, pooled = int(self.split.rpartition("/")[2]), []
        for seed in self.seeds:
            folded = [run for run in self.runs if run.seed == seed]
            if len(folded) != folds:
                present = ", ".join(sorted(run.params.get("split", "?") for run in folded))
                raise RunError(
                    f"{self.experiment}, seed {seed}: {len(folded)} of {folds} folds are there ({present}); train the others "
                    "(--run-missing), or use other seeds (--seeds)."
                )
            try:
                pooled.append(pool_folds([run.scores for run in folded]))
            except ValueError as error:
                raise RunError(f"{self.experiment}, {self.split}, seed {seed}: {error}") from error
        return pooled


def pairing_obstacle(entries: Iterable[Entry]) -> str:
    """Return the reason why runs cannot be paired by image, "" if they can."""
    runs = [run for entry in entries for run in entry.runs]
    if len({run.classes for run in runs}) > 1:
        return "their classes differ"
    for name in ("dataset", "target", "split_seed"):
        if len({run.params.get(name) for run in runs}) > 1:
            return f"their {WATCHED[name]}s differ"
    if len({run.tags.get("groups_hash") for run in runs}) > 1:
        return "their groups of lesions differ"
    return ""


def find_deviations(entry: Entry) -> str:
    """List params of an entry that deviate from the experiment file, if known."""
    deviations = []
    for param, key in METHOD.items():
        if key not in entry.shipped:
            continue
        values = dict.fromkeys(run.params[param] for run in entry.runs if param in run.params)
        if others := [value for value in values if value != str(entry.shipped[key])]:
            deviations.append(f"{param} {', '.join(others)} instead of {entry.shipped[key]}")
    return "; ".join(deviations)


def find_differences(entries: Sequence[Entry]) -> list[str]:
    """List the differences between runs, and from their experiments, that limit a comparison."""
    changed: dict[str, list[str]] = {}
    for entry in entries:
        if deviations := find_deviations(entry):
            changed.setdefault(f"{entry.experiment} deviates from its file: {deviations}", []).append(entry.split)
    lines = [f"{text} ({', '.join(splits)})" for text, splits in changed.items()]
    runs = [(f"{entry.experiment} {entry.split} s{run.seed}", run) for entry in entries for run in entry.runs]
    facts = [(label, [run.params.get(name, UNNAMED.get(name)) for _, run in runs]) for name, label in WATCHED.items()]
    facts += [(label, [run.tags.get(name) for _, run in runs]) for name, label in WATCHED_TAGS.items()]
    facts.append(("classes", [" ".join(run.classes) for _, run in runs]))
    for label, facts_of_runs in facts:
        values: dict[str, list[str]] = {}
        for (name, _), value in zip(runs, facts_of_runs, strict=True):
            # A run without masks is of another method, which the names of the experiments show.
            if value or label != WATCHED["masks"]:
                values.setdefault(value or "(none)", []).append(name)
        if len(values) > 1:
            text = "; ".join(f"{value}: {_few(names)}" for value, names in values.items())
            lines.append(f"{label} differs: {text}")
    leaking = [name for name, run in runs if run.params.get("segmenter_saw_test_images", "0") != "0"]
    if leaking:
        lines.append(f"the segmenter of the masks was trained on test images: {_few(leaking)}")
    return lines + _mixed_entries(entries) + _missing_classes(entries)


def _mixed_entries(entries: Sequence[Entry]) -> list[str]:
    """List entries with runs that differ by more than seed and fold."""
    lines = []
    for entry in entries:
        names = dict.fromkeys(name for run in entry.runs for name in run.params if name not in OWN_PARAMS)
        for name in names:
            values = dict.fromkeys(str(run.params.get(name, "(none)")) for run in entry.runs)
            if len(values) > 1 and name not in WATCHED:
                lines.append(f"{entry.experiment} {entry.split}: its runs differ in {name}: {', '.join(values)}")
    return lines


def _missing_classes(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for entry in entries:
        for scores in entry.scores:
            if isinstance(scores, ClassScores):
                absent = [name for number, name in enumerate(scores.classes) if not (scores.label == number).any()]
                if absent:
                    lines.append(
                        f"{entry.experiment} {entry.split}: no test image of {', '.join(absent)}; averages over classes exclude it"
                    )
                    break
    return lines


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True)
class ComparedRun:
    """Finished fit with its test predictions.

    Attributes:
        run_id, experiment_id: ids in MLflow.
        metrics: last value of each metric.
        classes: class names in label order, empty for a segmenter.
        epochs: one row per epoch, empty for a classical classifier.
    """

    run_id: str
    experiment_id: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    classes: tuple[str, ...]
    scores: Scores
    epochs: pd.DataFrame

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.params.get("seed", "0"))
