"""What is compared, and whether it can be: cells of experiment × split, what forbids to pair them, what makes figures hard to compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from skincancer.comparison.predictions import ClassScores, Scores, pool
from skincancer.errors import RunError

# params and tags that make figures hard to compare where they differ, and how they are called
WATCHED = {
    "dataset": "data set", "target": "target", "split_seed": "split seed", "size": "image size", "resize": "resize", "clean": "cleaning",
    "weights": "first weights", "crop": "crop", "masks": "masks of crops or features", "leaks": "handling of leaks",
    "dropped_images": "images left out",
}  # fmt: skip
UNNAMED = {"clean": "none"}  # what it means that an older run lacks a param
OWN_PARAMS = (
    "seed",
    "split",
    "devices",
    "ranks",
    "train_images",
    "val_images",
    "test_images",
    "segmenter_saw_test_images",
    "leaking_lesions",
)
# params that make a method, by the keys of the config that they come from
METHOD = {
    "backbone": "model.backbone", "architecture": "model.architecture", "balance": "data.balance", "size": "data.size",
    "batch_size": "data.batch_size", "max_epochs": "trainer.max_epochs", "lr": "model.optimizer.lr", "optimizer": "model.optimizer.name",
    "augment": "augment.policy", "freeze": "model.freeze", "dropout": "model.dropout", "tta": "model.tta",
}  # fmt: skip
WATCHED_TAGS = {"index_hash": "index of images", "groups_hash": "groups of lesions", "synthetic": "synthetic data"}


@dataclass(frozen=True)
class Cell:
    """One experiment at one split. With `fold:*/k` each seed's k runs are pooled into one set of predictions.

    `shipped` is what the experiment itself says on these data, in dotted keys; empty where that is not known.
    """

    experiment: str
    split: str
    runs: tuple[ComparedRun, ...]
    shipped: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """The seeds, sorted."""
        return sorted({run.seed for run in self.runs})

    @cached_property
    def scores(self) -> list[Scores]:
        """The predictions of each seed.

        Raises:
            RunError: a fold is missing, or folds are of different splits.
        """
        if not self.split.startswith("fold:*/"):
            return [run.scores for run in self.runs]
        folds, pooled = int(self.split.rpartition("/")[2]), []
        for seed in self.seeds:
            parts = [run for run in self.runs if run.seed == seed]
            if len(parts) != folds:
                there = ", ".join(sorted(run.params.get("split", "?") for run in parts))
                raise RunError(
                    f"{self.experiment}, seed {seed}: {len(parts)} of {folds} folds are there ({there}); train the others "
                    "(--run-missing), or leave the seed out (--seeds)."
                )
            try:
                pooled.append(pool([run.scores for run in parts]))
            except ValueError as error:
                raise RunError(f"{self.experiment}, {self.split}, seed {seed}: {error}") from error
        return pooled


def obstacle(cells: Iterable[Cell]) -> str:
    """Say why runs cannot be paired image by image; "" where they can."""
    runs = [run for cell in cells for run in cell.runs]
    if len({run.classes for run in runs}) > 1:
        return "their classes differ"
    for name in ("dataset", "target", "split_seed"):
        if len({run.params.get(name) for run in runs}) > 1:
            return f"their {WATCHED[name]}s differ"
    if len({run.tags.get("groups_hash") for run in runs}) > 1:
        return "their groups of lesions differ"
    return ""


def departures(cell: Cell) -> str:
    """Say in what a cell's runs are not what their experiment says, "" where they are, or where it is not known what that says."""
    found = []
    for param, key in METHOD.items():
        if key not in cell.shipped:
            continue
        values = dict.fromkeys(run.params[param] for run in cell.runs if param in run.params)
        if others := [value for value in values if value != str(cell.shipped[key])]:
            found.append(f"{param} {', '.join(others)} instead of {cell.shipped[key]}")
    return "; ".join(found)


def find_differences(cells: Sequence[Cell]) -> list[str]:
    """Say, a line each, wherever compared runs differ in what makes their figures hard to compare, or from their experiments."""
    changed: dict[str, list[str]] = {}
    for cell in cells:
        if said := departures(cell):
            changed.setdefault(f"{cell.experiment} is not as its file says: {said}", []).append(cell.split)
    lines = [f"{said} ({', '.join(splits)})" for said, splits in changed.items()]
    runs = [(f"{cell.experiment} {cell.split} s{run.seed}", run) for cell in cells for run in cell.runs]
    facts = [(label, [run.params.get(name, UNNAMED.get(name)) for _, run in runs]) for name, label in WATCHED.items()]
    facts += [(label, [run.tags.get(name) for _, run in runs]) for name, label in WATCHED_TAGS.items()]
    facts.append(("classes", [" ".join(run.classes) for _, run in runs]))
    for label, found in facts:
        values: dict[str, list[str]] = {}
        for (name, _), value in zip(runs, found, strict=True):
            # a run that takes no masks differs in its method, which its name says
            if value or label != WATCHED["masks"]:
                values.setdefault(value or "(none)", []).append(name)
        if len(values) > 1:
            said = "; ".join(f"{value}: {_few(names)}" for value, names in values.items())
            lines.append(f"{label} differs: {said}")
    saw = [name for name, run in runs if run.params.get("segmenter_saw_test_images", "0") != "0"]
    if saw:
        lines.append(f"the segmenter behind the crops had seen test images: {_few(saw)}")
    return lines + _mixed_cells(cells) + _missing_classes(cells)


def _mixed_cells(cells: Sequence[Cell]) -> list[str]:
    """Say where the runs of one cell differ by more than seed and fold, so that their mean is of no one method."""
    lines = []
    for cell in cells:
        names = dict.fromkeys(name for run in cell.runs for name in run.params if name not in OWN_PARAMS)
        for name in names:
            values = dict.fromkeys(str(run.params.get(name, "(none)")) for run in cell.runs)
            if len(values) > 1 and name not in WATCHED:
                lines.append(f"{cell.experiment} {cell.split}: its runs differ in {name}: {', '.join(values)}")
    return lines


def _missing_classes(cells: Sequence[Cell]) -> list[str]:
    lines = []
    for cell in cells:
        for scores in cell.scores:
            if isinstance(scores, ClassScores):
                absent = [name for number, name in enumerate(scores.classes) if not (scores.stratum == number).any()]
                if absent:
                    lines.append(
                        f"{cell.experiment} {cell.split}: no test image of {', '.join(absent)}; averages over classes leave it out"
                    )
                    break
    return lines


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True)
class ComparedRun:
    """A finished fit as it was read back.

    Attributes:
        run_id: MLflow's.
        experiment_id: MLflow's, of the group that the run is in.
        params: of the run.
        tags: of the run.
        metrics: the last value of each.
        classes: in their order; none for a segmenter.
        scores: its predictions for its own test images.
        epochs: a row an epoch; none of a classical classifier.
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
        """The seed of its training."""
        return int(self.params.get("seed", "0"))
