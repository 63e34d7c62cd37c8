"""What an evaluation writes down and prints: a run of its own, by the contract of a fit's, that names the evaluated runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from skincancer.data.catalog import SYNTHETIC_NOTE
from skincancer.data.feature_table import FeatureTable
from skincancer.data.mask_sources import describe_crops, describe_masks
from skincancer.data.overlap import REASONS
from skincancer.evaluation.external import Evaluation, mapped_validation
from skincancer.imaging.cleaning.steps import describe_clean
from skincancer.imaging.crop import EMPTY
from skincancer.metrics import calibration
from skincancer.metrics.operating_point import FEW_POSITIVES, SENSITIVITY, operating_point, sensitivity_threshold
from skincancer.metrics.prediction_files import predictions_table, read_predictions, write_predictions
from skincancer.reports.evaluation_report import write_evaluation_report
from skincancer.reports.task_outputs import OUTCOMES, write_subgroups
from skincancer.runs import artifacts
from skincancer.runs.dataset_inputs import data_tags, log_dataset
from skincancer.runs.finished import Validation
from skincancer.runs.lifecycle import RunWriter, start_run
from skincancer.runs.store import RunStore
from skincancer.schema import RUN, segmenter_run
from skincancer.system.console import warn
from skincancer.system.interrupts import uninterrupted
from skincancer.system.provenance import environment_text
from skincancer.visualization.classification import reliability_change
from skincancer.visualization.style import save
from skincancer.visualization.tables import intervals_table

EVALUATED, EVALUATED_BY = "evaluated_run", "evaluated_by"  # tags: of the evaluation, and of each run that it evaluated
POINT = f"at_{SENSITIVITY * 100:.0f}_sensitivity"


class EvaluationRecorder:
    """Writes one evaluation down, and tells the user about it.

    Args:
        evaluation: prepared.
        store: MLflow store.
        console: of the terminal.
        prevalence: share of positives where a threshold would be used; None for that of the evaluated images.
    """

    def __init__(self, evaluation: Evaluation, store: RunStore, console: Console, prevalence: float | None) -> None:
        self.evaluation, self.store, self.console, self.prevalence = evaluation, store, console, prevalence
        self.experiment = evaluation.experiments[0]
        # the outcome counts and measures in the classes compared
        self.data = dataclasses.replace(evaluation.data[0], classes=evaluation.classes)
        self.outcome = OUTCOMES[self.experiment.task](self.data)
        self.positive = tuple(evaluation.mappings[0].positive) if evaluation.mappings else ()
        if not 0 < len(self.positive) < len(evaluation.classes):
            self.positive = ()
        self.split = "all" if evaluation.whole else self.experiment.data.split
        names = dict.fromkeys(experiment.name for experiment in evaluation.experiments)
        self.name = ", ".join(names)
        ensemble = f"ensemble of {len(evaluation.runs)}, " if len(evaluation.runs) > 1 else ""
        self.title = f"{ensemble}{self.name} · {self.data.entry.name} · {self.split}"
        self.note = SYNTHETIC_NOTE if self.data.entry.synthetic else ""
        self.tables: list[tuple[str, str, pd.DataFrame]] = []  # title, caption, metrics with intervals
        self.validation: Validation | None = None
        self.run_id, self.folder = "", Path()

    def announce(self) -> None:
        """Print what is about to be evaluated on what."""
        evaluation, data = self.evaluation, self.data
        rows = data.rows("test")
        self.console.print(
            Text(
                f"{data.entry.title}, {'every image' if evaluation.whole else f'test part of {self.split}'}: {len(rows)} images of "
                f"{rows['lesion_id'].nunique()} lesions"
            )
        )
        if evaluation.mappings:
            self.console.print(Text(f"classes: {evaluation.mappings[0].describe()}"))
            if len(evaluation.classes) == 2:
                self.console.print(Text(f"the positive class is {evaluation.classes[1]}"))
        for reason, count in self._excluded().items():
            self.console.print(Text(f"left out: {count} images ({REASONS[reason]})"))
        if unusable := len(data.dropped) - data.flagged:
            self.console.print(Text(f"left out: {unusable} images that cannot be used ({artifacts.DROPPED_FILE})"))
        if data.flagged:
            self.console.print(
                Text(f"left out: {data.flagged} images that data.quality flags ({artifacts.DROPPED_FILE} says why)")
            )
        similar = len(evaluation.similar)
        if similar and evaluation.keeps_similar:
            warn(
                self.console, "near-duplicates of training images are evaluated",
                f"{similar} images are nearly the same picture as one that the run was trained or chosen on; they are kept, as asked.",
            )  # fmt: skip
        unlike = [run.name for run in evaluation.runs if run.fingerprints is None]
        if unlike:
            warn(
                self.console, "near-duplicates cannot be found",
                f"run {', '.join(unlike)} has no {artifacts.FINGERPRINTS_FILE}: copies of images that it was trained on, in another "
                "encoding, size or position, are not found and not left out.",
            )  # fmt: skip
        blind = [run.name for run in evaluation.runs if not run.has_digests]
        if blind:
            warn(
                self.console, "pixels cannot be compared",
                f"run {', '.join(blind)} holds no {artifacts.DIGESTS_FILE}: of images that it was trained on, those are left out that "
                "have the same id or lesion in the same data set (or in the ISIC archive); copies under other names are not found.",
            )  # fmt: skip
        if self.experiment.data.crop:
            shown = describe_crops(data.store.table, dataclasses.replace(self.experiment.data, masks=self._masks()))
            self.console.print(Text(f"images cropped to the lesion: {shown}"))
        if data.features:
            self._tell_features(data.features)
        if data.segmenter_saw:
            warn(
                self.console, "the segmenter has seen these images",
                f"{data.segmenter_saw} of them are of lesions that the segmenter behind their masks was trained or chosen on: these "
                "are better than those of new images.",
            )  # fmt: skip

    def _tell_features(self, features: FeatureTable) -> None:
        """Say in whose masks the features were measured, loudly where the run has learned from other masks."""
        settings = dataclasses.replace(self.experiment.data, masks=self._masks())
        self.console.print(
            Text(f"measured in: {describe_masks(features.table, settings, 'nothing could be measured')}")
        )
        here = set(features.table.loc[features.table["error"] == "", "masks"]) - {EMPTY}
        learned = self.evaluation.runs[0].mask_sources - {EMPTY}
        if {bool(segmenter_run(name)) or name for name in here} != {
            bool(segmenter_run(name)) or name for name in learned
        }:
            warn(
                self.console, "measured in other masks",
                f"the run learned from features measured in masks of {', '.join(sorted(learned))}, and here they are of "
                f"{', '.join(sorted(here))}: part of any difference to its own test figures is that of the masks.",
            )  # fmt: skip
        if empty := features.describe_empty(self.data.index["role"]):
            warn(self.console, "empty masks", empty)

    def _masks(self) -> str:
        """Return whose masks were taken: of a run's own copy of a segmenter, the name that the run knows it by."""
        run, masks = self.evaluation.runs[0], self.experiment.data.masks
        return str(run.settings["data.masks"]) if run.segmenter and masks == f"{RUN}{run.segmenter}" else masks

    def _excluded(self) -> dict[str, int]:
        return dict(sorted(Counter(self.evaluation.seen["reason"]).items()))

    @contextlib.contextmanager
    def start(self) -> Iterator[RunWriter]:
        """Start the run and log all that is known before predicting; at the end, tag the evaluated runs."""
        evaluation, data = self.evaluation, self.data
        tags = {
            "kind": "evaluate",
            EVALUATED: " ".join(run.id or run.name for run in evaluation.runs),
            **data_tags(data),
        }
        group = f"{data.entry.name}-{self.experiment.task}"
        ensemble = f"ensemble of {len(evaluation.runs)}: " if len(evaluation.runs) > 1 else ""
        with start_run(
            self.store, group, f"evaluate {ensemble}{self.name} {self.split}", tags, system_metrics=False
        ) as run:
            self.run_id, self.folder = run.run_id, run.folder
            self.console.print(f"run {run.run_id} in {group}")
            run.log_params(self._params())
            self._write_start(run)
            yield run
            self._link()

    def _params(self) -> dict[str, Any]:
        evaluation, data = self.evaluation, self.data
        settings, model = self.experiment.data, self.experiment.model
        rows = data.rows("test")
        excluded = self._excluded()
        several = {
            key: ", ".join(dict.fromkeys(str(value(experiment)) for experiment in evaluation.experiments))
            for key, value in {
                "backbone": lambda e: e.model.learner, "size": lambda e: e.data.size, "resize": lambda e: e.data.resize,
                "clean": lambda e: describe_clean(e.data.clean), "crop": lambda e: e.data.crop,
                "tta": lambda e: e.model.tta, "precision": lambda e: e.trainer.precision,
            }.items()
        }  # fmt: skip
        return {
            "experiment": self.name, "task": self.experiment.task, "dataset": data.entry.name, "split": self.split,
            "split_seed": settings.split_seed, "part": "all" if evaluation.whole else "test", "target": settings.target, **several,
            **({"masks": self._masks()} if settings.crop or model.is_hand_made else {}),
            **({"architecture": model.architecture} if model.architecture else {}),
            "evaluated_runs": len(evaluation.runs),
            **({"mapping": evaluation.mappings[0].describe(), "mapping_kind": evaluation.mappings[0].kind} if self.data.classes else {}),
            "excluded_images": len(evaluation.seen), **{f"excluded_by_{reason}": excluded.get(reason, 0) for reason in REASONS},
            "near_duplicates": "keep" if evaluation.keeps_similar else "exclude", "near_duplicate_images": len(evaluation.similar),
            "fingerprints": str(all(run.fingerprints is not None for run in evaluation.runs)).lower(),
            "digests": str(all(run.has_digests for run in evaluation.runs)).lower(), "dropped_images": len(data.dropped),
            "segmenter_saw_test_images": data.segmenter_saw,
            "test_images": len(rows), "test_lesions": rows["lesion_id"].nunique(),
        }  # fmt: skip

    def _write_start(self, run: RunWriter) -> None:
        data, seen = self.data, self.evaluation.seen
        for number, evaluated in enumerate(self.evaluation.runs):
            text = evaluated.file(artifacts.CONFIG_FILE).read_text(encoding="utf-8")
            run.write_text(artifacts.CONFIG_FILE if number == 0 else f"configs/{number}.yaml", text)
        malignant, split = tuple[str, ...](), data.split_table
        for mapping in self.evaluation.mappings[:1]:
            malignant = mapping.malignant(self.evaluation.runs[0].malignant)
            split = split.assign(label=mapping.data_label(split["label"].to_numpy(np.int64)))
        run.write_classes(data.classes, malignant)
        run.write_table(artifacts.SPLIT_FILE, split)
        dropped = pd.concat([data.dropped, seen.assign(reason=seen["reason"].map(REASONS))])
        run.write_table(artifacts.DROPPED_FILE, dropped)
        if len(self.evaluation.similar):
            run.write_table(artifacts.NEAR_DUPLICATES_FILE, self.evaluation.similar)
        run.write_text(artifacts.ENVIRONMENT_FILE, environment_text())
        log_dataset(data, "test", self.split)

    def _link(self) -> None:
        client = self.store.client
        for run_id in (run.id for run in self.evaluation.runs if run.id):
            before = client.get_run(run_id).data.tags.get(EVALUATED_BY, "").split()
            with uninterrupted():
                client.set_tag(run_id, EVALUATED_BY, " ".join([*before, self.run_id]))

    def finish(self, run: RunWriter, predictions: Any, task: Any) -> None:
        """Write the predictions; compute metrics, intervals, operating point, calibration and figures from the tables; log everything.

        Args:
            run: started.
            predictions: in the classes compared (`external.mapped_predictions`).
            task: the first run's, for its masks.
        """
        write_predictions(self.outcome.table(predictions), run.folder / artifacts.predictions_file("test"))
        intervals = self.outcome.test(run.folder)
        found = [(artifacts.INTERVALS_FILE, intervals)]
        metrics = _values(intervals)
        tested = pd.read_csv(run.folder / artifacts.predictions_file("test"), usecols=["lesion_id"], dtype=str)
        caption = f"{len(tested)} images, {tested['lesion_id'].nunique()} lesions; intervals: bootstrap over lesions, 2,000 resamples"
        self.tables.append((f"test: {self.title}", caption, intervals))
        drawn = list(self.outcome.figures(run.folder, task, f"{self.title} · test", self.note))
        if self.data.classes:
            self.validation = self._keep_validation(run)
            for name, table, values in (self._operate(run), *self._calibrate(run, drawn)):
                if len(table):
                    found.append((name, table))
                metrics |= values
            if subgroups := write_subgroups(run.folder):
                run.log_file(subgroups.name)
        for name, figure in drawn:
            save(figure, run.figure_path(name))
        for name, table in found:
            run.write_table(name, table)
        run.log_results(metrics)
        for name in (artifacts.PREDICTIONS, artifacts.FIGURES):
            run.log_folder(name)
        write_evaluation_report(run.folder, run.record, self.title, self.data.entry, self.tables, self.evaluation.notes)
        run.log_file(artifacts.REPORT_FILE)

    def _keep_validation(self, run: RunWriter) -> Validation | None:
        """Write the validation predictions in the classes compared: what threshold and temperature are chosen on."""
        found, why = mapped_validation(self.evaluation)
        if found is None:
            warn(
                self.console, "no operating point and no temperature",
                f"both are chosen on validation, and {why}.",
            )  # fmt: skip
            return None
        table = predictions_table(
            found.rows, found.label, found.logits.astype(np.float32), found.probability, self.data.classes
        )
        write_predictions(table, run.folder / artifacts.predictions_file("val"))
        return found

    def _test(self, run: RunWriter) -> tuple[pd.DataFrame, Any, Any]:
        table, label, probability = read_predictions(run.folder / artifacts.predictions_file("test"), self.data.classes)
        known = label >= 0
        return table[known], label[known], probability[known]

    def _operate(self, run: RunWriter) -> tuple[str, pd.DataFrame, dict[str, float]]:
        """Choose a threshold on validation and measure it on test."""
        name, nothing = artifacts.OPERATING_POINTS_FILE, pd.DataFrame()
        found, classes = self.validation, self.data.classes
        if found is None:
            return name, nothing, {}
        positions = [number for number, one in enumerate(classes) if one in self.positive]
        chosen = np.isin(found.label, positions)
        if not self.positive or not chosen.any():
            why = "validation has no image of them" if self.positive else "which classes are malignant is not known"
            self.console.print(Text(f"no operating point: {why} (--data.malignant or --map say more)"))
            return name, nothing, {}
        if chosen.sum() < FEW_POSITIVES:
            warn(
                self.console, "a threshold from few images",
                f"validation has {chosen.sum()} images of {' + '.join(self.positive)}: a threshold for {SENSITIVITY:.0%} sensitivity "
                "that is chosen on so few may have quite another on other images.",
            )  # fmt: skip
        threshold = sensitivity_threshold(chosen, found.probability[:, positions].sum(axis=1))
        table, label, probability = self._test(run)
        truth = np.isin(label, positions)
        measured = operating_point(
            truth, probability[:, positions].sum(axis=1), threshold, table["lesion_id"].to_numpy(), self.prevalence
        )
        prevalence = float(truth.mean()) if self.prevalence is None else self.prevalence
        source = "of these images" if self.prevalence is None else "given"
        run.log_params(
            {"positive": " + ".join(self.positive), "prevalence": f"{prevalence:.6g}", "prevalence_source": source}
        )
        head: dict[str, Any] = {
            "point": f"{SENSITIVITY:.0%} sensitivity on validation",
            "positive": " + ".join(self.positive),
            "threshold": threshold,
            "prevalence": prevalence,
            "prevalence_source": source,
        }
        title = f"operating point: {SENSITIVITY:.0%} sensitivity on validation ({chosen.sum()} positive images of {len(chosen)})"
        caption = (
            f"{head['positive']} is called from a probability of {threshold:.4f}; PPV, NPV and the number needed to biopsy at a "
            f"prevalence of {prevalence:.1%} ({source})"
        )
        self.tables.append((title, caption, measured))
        values = _values(measured, f"_{POINT}")
        return name, measured.assign(**head)[[*head, *measured.columns]], {f"threshold_{POINT}": threshold, **values}

    def _calibrate(
        self, run: RunWriter, drawn: list[tuple[str, Any]]
    ) -> list[tuple[str, pd.DataFrame, dict[str, float]]]:
        """Fit a temperature on validation and measure calibration on test, before and after."""
        found, classes = self.validation, self.data.classes
        if found is None or not len(found.label):
            return []
        temperature = calibration.fit_temperature(found.label, found.logits)
        table, label, before = self._test(run)
        logits = table[[f"logit_{name}" for name in classes]].to_numpy(dtype=np.float64)
        after = calibration.scale(logits, temperature)
        measured = calibration.calibration_table(label, before, after, table["lesion_id"].to_numpy(), classes)
        figure = reliability_change(
            label, before, after, classes, title=f"{self.title} · temperature {temperature:.3g}", note=self.note
        )
        drawn.append(("temperature", figure))
        shown = measured.assign(metric=measured["metric"] + " " + measured["stage"])
        bound = ", a bound of the search" if temperature in calibration.TEMPERATURES else ""
        caption = "fitted on validation; ece: 15 bins; brier: sum over classes, 0 to 2; nll: natural logarithm"
        self.tables.append((f"calibration: temperature {temperature:.4g}{bound}", caption, shown))
        after_rows = measured[measured["stage"] == "after"]
        values = _values(after_rows, "_after_temperature")
        before_rows = measured[measured["stage"] == "before"]
        values |= _values(before_rows[before_rows["metric"] != "ece"])  # which is a metric already
        values["temperature"] = temperature
        return [(artifacts.CALIBRATION_FILE, measured.assign(temperature=temperature), values)]

    def report(self) -> None:
        """Print the tables, the run id and the store."""
        for title, caption, table in self.tables:
            self.console.print(intervals_table(title, table, caption, bool(self.note)))
        self.console.print(f"run {self.run_id} in {self.store}", markup=False)


def _values(table: pd.DataFrame, suffix: str = "") -> dict[str, float]:
    """Return the metrics of a table with intervals, as the run logs them."""
    names = [f"test/{name}{suffix}" for name in table["metric"]]
    return dict(zip(names, table["value"].astype(float).tolist(), strict=True))
