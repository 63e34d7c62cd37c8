"""Recorder of an evaluation: MLflow run, files, report and console output."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from skincancer.data.catalog import SYNTHETIC_NOTE
from skincancer.data.feature_table import FeatureTable
from skincancer.data.groups import count_images
from skincancer.data.mask_sources import describe_crops, describe_masks
from skincancer.data.overlap import REASONS
from skincancer.evaluation.external import Evaluation, mapped_validation
from skincancer.imaging.cleaning.steps import describe_clean
from skincancer.imaging.crop import EMPTY
from skincancer.metrics import calibration
from skincancer.metrics.names import positive_of
from skincancer.metrics.operating_point import FEW_POSITIVES, SENSITIVITY, operating_point, sensitivity_threshold
from skincancer.metrics.prediction_files import predictions_table, read_predictions, write_predictions
from skincancer.reports.evaluation_report import write_evaluation_report
from skincancer.reports.task_outputs import OUTCOMES, Drawing, write_subgroups
from skincancer.runs import artifacts
from skincancer.runs.dataset_inputs import data_tags, log_dataset
from skincancer.runs.finished import Validation
from skincancer.runs.lifecycle import RunWriter, start_run
from skincancer.runs.store import RunStore
from skincancer.schema.data import RUN, segmenter_run
from skincancer.system.console import optional, warn
from skincancer.system.interrupts import uninterrupted
from skincancer.system.provenance import environment_text
from skincancer.visualization.classification import reliability_change
from skincancer.visualization.style import save
from skincancer.visualization.tables import intervals_table, with_titles

# Tags of the evaluation and of the evaluated runs.
EVALUATED, EVALUATED_BY = "evaluated_run", "evaluated_by"
POINT = f"at_{SENSITIVITY * 100:.0f}_sensitivity"


class EvaluationRecorder:
    """Recorder of one evaluation.

    Args:
        evaluation: prepared evaluation.
        store: MLflow store.
        console: console for tables and warnings.
        prevalence: share of positives in the target population. None for that of the evaluated images.
    """

    def __init__(self, evaluation: Evaluation, store: RunStore, console: Console, prevalence: float | None) -> None:
        self.evaluation, self.store, self.console, self.prevalence = evaluation, store, console, prevalence
        self.experiment = evaluation.experiments[0]
        # The metrics use the compared classes.
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
        # Title, caption, and metrics with intervals.
        self.tables: list[tuple[str, str, pd.DataFrame]] = []
        self.validation: Validation | None = None
        self.run_id, self.folder = "", Path()

    def _print(self, text: str) -> None:
        # Text keeps square brackets, which the console would take for markup.
        self.console.print(Text(text))

    def announce(self) -> None:
        """Print the evaluated images, excluded images and warnings."""
        evaluation, data = self.evaluation, self.data
        rows = data.rows("test")
        subset = "every image" if evaluation.whole else f"test set of {self.split}"
        self._print(f"{data.entry.title}, {subset}: {count_images(rows, ' of ')}")
        data.reading.report(self.console)
        if evaluation.mappings:
            self._print(f"classes: {evaluation.mappings[0].describe()}")
            if len(evaluation.classes) == 2:
                self._print(f"the positive class is {evaluation.classes[1]}")
        for reason, count in self._excluded().items():
            self._print(f"left out: {count} images ({REASONS[reason]})")
        if unusable := len(data.dropped) - data.flagged:
            self._print(f"left out: {unusable} images that cannot be used ({artifacts.DROPPED_FILE})")
        if data.flagged:
            self._print(
                f"left out: {data.flagged} images that data.quality flags ({artifacts.DROPPED_FILE} contains the reasons)"
            )
        similar = len(evaluation.similar)
        if similar and evaluation.keeps_similar:
            warn(
                self.console, "near-duplicates of training images are evaluated",
                f"{similar} images are near-duplicates of training or validation images of the run; they are kept as requested.",
            )  # fmt: skip
        older = [run.name for run in evaluation.runs if run.fingerprints is not None and not run.fingerprints.trimmed]
        if similar and older:
            warn(
                self.console, "near-duplicates may be other lesions",
                f"the fingerprints of run {', '.join(older)} contain dark surroundings (slide frame, black ground), as in older versions: "
                f"other lesions in the same surroundings count as near-duplicates. Check the images in {artifacts.NEAR_DUPLICATES_FILE}.",
            )  # fmt: skip
        if without := [run.name for run in evaluation.runs if run.fingerprints is None]:
            warn(
                self.console, "near-duplicates are not recognised",
                f"run {', '.join(without)} has no {artifacts.FINGERPRINTS_FILE}: copies of its training images in another encoding, size "
                "or position are not excluded.",
            )  # fmt: skip
        if without := [run.name for run in evaluation.runs if not run.has_digests]:
            warn(
                self.console, "pixels cannot be compared",
                f"run {', '.join(without)} has no {artifacts.DIGESTS_FILE}: training images are excluded if they have the same id "
                "or lesion in the same data set (or in the ISIC archive), but copies under other names are not.",
            )  # fmt: skip
        if self.experiment.data.crop:
            crops = describe_crops(data.store.table, dataclasses.replace(self.experiment.data, masks=self._masks()))
            self._print(f"images cropped to the lesion: {crops}")
        if data.features:
            self._print_features(data.features)
        if data.segmenter_saw:
            warn(
                self.console, "the segmenter was trained on these images",
                f"{data.segmenter_saw} of them show lesions of the training or validation set of the segmenter: their masks are better "
                "than those of new images.",
            )  # fmt: skip

    def _print_features(self, features: FeatureTable) -> None:
        """Print the mask sources of the features, and warn if they differ from training."""
        settings = dataclasses.replace(self.experiment.data, masks=self._masks())
        self._print(f"measured in: {describe_masks(features.table, settings, 'nothing could be measured')}")
        sources = set(features.table.loc[features.table["error"] == "", "masks"]) - {EMPTY}
        training_sources = self.evaluation.runs[0].mask_sources - {EMPTY}
        # All segmenters count as one source.
        kinds = [{bool(segmenter_run(name)) or name for name in names} for names in (sources, training_sources)]
        if kinds[0] != kinds[1]:
            warn(
                self.console, "measured in other masks",
                f"the run was trained on features measured in masks of {', '.join(sorted(training_sources))}, but here they are of "
                f"{', '.join(sorted(sources))}: the masks cause some of the difference to its own test metrics.",
            )  # fmt: skip
        if empty := features.describe_empty(self.data.index["role"]):
            warn(self.console, "empty masks", empty)

    def _masks(self) -> str:
        """Return the mask source, for the run's copy of a segmenter its original name."""
        run, masks = self.evaluation.runs[0], self.experiment.data.masks
        return str(run.settings["data.masks"]) if run.segmenter and masks == f"{RUN}{run.segmenter}" else masks

    def _excluded(self) -> dict[str, int]:
        return dict(sorted(Counter(self.evaluation.seen["reason"]).items()))

    @contextlib.contextmanager
    def start(self) -> Iterator[RunWriter]:
        """Start the run, log params and data, and finally tag the evaluated runs."""
        evaluation, data = self.evaluation, self.data
        tags = {
            "kind": "evaluate", EVALUATED: " ".join(run.id or run.name for run in evaluation.runs), **data_tags(data),
        }  # fmt: skip
        group = f"{data.entry.name}-{self.experiment.task}"
        ensemble = f"ensemble of {len(evaluation.runs)}: " if len(evaluation.runs) > 1 else ""
        name = f"evaluate {ensemble}{self.name} {self.split}"
        with start_run(self.store, group, name, tags, system_metrics=False) as run:
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
            **({"where": settings.where} if settings.where else {}),
            **({"masks": self._masks()} if settings.crop or model.is_hand_crafted else {}),
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
        log_dataset(run, data, "test", self.split)

    def _link(self) -> None:
        client = self.store.client
        for run_id in (run.id for run in self.evaluation.runs if run.id):
            before = client.get_run(run_id).data.tags.get(EVALUATED_BY, "").split()
            with uninterrupted():
                client.set_tag(run_id, EVALUATED_BY, " ".join([*before, self.run_id]))

    def finish(self, run: RunWriter, predictions: Any, task: Any) -> None:
        """Write predictions, metrics, intervals, operating point, calibration, figures and report.

        Args:
            run: started run.
            predictions: predictions in the compared classes (`external.mapped_predictions`).
            task: task of the first run, for its masks.
        """
        write_predictions(self.outcome.table(predictions), run.folder / artifacts.predictions_file("test"))
        intervals = self.outcome.test(run.folder)
        tables = [(artifacts.INTERVALS_FILE, intervals)]
        metrics = _values(intervals)
        tested = pd.read_csv(
            run.folder / artifacts.predictions_file("test"),
            usecols=["image_id", "lesion_id"],
            dtype=str,
            keep_default_na=False,
        )
        caption = f"{count_images(tested)}; 95 % intervals over lesions"
        self.tables.append((f"test: {self.title}", caption, with_titles(intervals, positive_of(self.data.classes))))
        figures = list(self.outcome.figures(run.folder, task, f"{self.title} · test", self.note))
        if self.data.classes:
            self.validation = self._keep_validation(run)
            for name, table, values in (self._operate(run), *self._calibrate(run, figures)):
                if len(table):
                    tables.append((name, table))
                metrics |= values
            if subgroups := write_subgroups(run.folder):
                run.log_file(subgroups.name)
        (run.folder / artifacts.FIGURES).mkdir(exist_ok=True)
        for name, draw in figures:
            with optional(self.console, f"the figure {name}"):
                save(draw(), run.figure_path(name))
        for name, table in tables:
            run.write_table(name, table)
        run.log_results(metrics)
        for name in (artifacts.PREDICTIONS, artifacts.FIGURES):
            run.log_folder(name)
        with optional(self.console, artifacts.REPORT_FILE):
            write_evaluation_report(
                run.folder, run.record, self.title, self.data.entry, self.tables, self.evaluation.notes
            )
            run.log_file(artifacts.REPORT_FILE)

    def _keep_validation(self, run: RunWriter) -> Validation | None:
        """Write the validation predictions in the compared classes, for threshold and temperature."""
        validation, reason = mapped_validation(self.evaluation)
        if validation is None:
            warn(
                self.console, "no operating point and no temperature",
                f"both are selected on validation images, and {reason}.",
            )  # fmt: skip
            return None
        table = predictions_table(
            validation.rows, validation.label, validation.logits.astype(np.float32), validation.probability, self.data.classes,
        )  # fmt: skip
        write_predictions(table, run.folder / artifacts.predictions_file("val"))
        return validation

    def _test(self, run: RunWriter) -> tuple[pd.DataFrame, Any, Any]:
        table, label, probability = read_predictions(run.folder / artifacts.predictions_file("test"), self.data.classes)
        known = label >= 0
        return table[known], label[known], probability[known]

    def _operate(self, run: RunWriter) -> tuple[str, pd.DataFrame, dict[str, float]]:
        """Select a threshold on validation images and evaluate it on test images."""
        name, nothing = artifacts.OPERATING_POINTS_FILE, pd.DataFrame()
        validation, classes = self.validation, self.data.classes
        if validation is None:
            return name, nothing, {}
        positions = [number for number, name in enumerate(classes) if name in self.positive]
        is_positive = np.isin(validation.label, positions)
        if not self.positive or not is_positive.any():
            reason = "validation has no positive image" if self.positive else "the malignant classes are unknown"
            self._print(f"no operating point: {reason} (use --data.malignant or --map)")
            return name, nothing, {}
        if is_positive.sum() < FEW_POSITIVES:
            warn(
                self.console, "a threshold from few images",
                f"the threshold for {SENSITIVITY:.0%} sensitivity was selected on only {is_positive.sum()} validation images of "
                f"{' + '.join(self.positive)}; its sensitivity on new images is uncertain.",
            )  # fmt: skip
        threshold = sensitivity_threshold(is_positive, validation.probability[:, positions].sum(axis=1))
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
            "point": f"{SENSITIVITY:.0%} sensitivity on validation", "positive": " + ".join(self.positive), "threshold": threshold,
            "prevalence": prevalence, "prevalence_source": source,
        }  # fmt: skip
        title = f"operating point: {SENSITIVITY:.0%} sensitivity on validation ({is_positive.sum()} positive images of {len(is_positive)})"
        caption = (
            f"{head['positive']} is predicted from a probability of {threshold:.4f}; PPV, NPV and the number needed to biopsy at a "
            f"prevalence of {prevalence:.1%} ({source})"
        )
        self.tables.append((title, caption, with_titles(measured, head["positive"])))
        values = _values(measured, f"_{POINT}")
        return name, measured.assign(**head)[[*head, *measured.columns]], {f"threshold_{POINT}": threshold, **values}

    def _calibrate(self, run: RunWriter, figures: list[Drawing]) -> list[tuple[str, pd.DataFrame, dict[str, float]]]:
        """Fit a temperature on validation images and evaluate it on test images."""
        validation, classes = self.validation, self.data.classes
        if validation is None or not len(validation.label):
            return []
        temperature = calibration.fit_temperature(validation.label, validation.logits)
        table, label, before = self._test(run)
        logits = table[[f"logit_{name}" for name in classes]].to_numpy(dtype=np.float64)
        after = calibration.scale(logits, temperature)
        measured = calibration.calibration_table(label, before, after, table["lesion_id"].to_numpy(), classes)
        title = f"{self.title} · temperature {temperature:.3g}"
        figures.append(
            ("temperature", partial(reliability_change, label, before, after, classes, title=title, note=self.note))
        )
        rows = measured.assign(metric=measured["metric"] + " " + measured["stage"])
        bound = ", a limit of the search" if temperature in calibration.TEMPERATURES else ""
        caption = "fitted on validation; ece: 15 bins; brier: sum over classes, 0 to 2; nll: natural logarithm"
        self.tables.append((f"calibration: temperature {temperature:.4g}{bound}", caption, rows))
        after_rows = measured[measured["stage"] == "after"]
        values = _values(after_rows, "_after_temperature")
        before_rows = measured[measured["stage"] == "before"]
        # The test metrics already contain the ece.
        values |= _values(before_rows[before_rows["metric"] != "ece"])
        values["temperature"] = temperature
        return [(artifacts.CALIBRATION_FILE, measured.assign(temperature=temperature), values)]

    def report(self) -> None:
        """Print the tables, the run id and the store."""
        for title, caption, table in self.tables:
            self.console.print(intervals_table(title, table, caption, bool(self.note)))
        self.console.print(f"run {self.run_id} in {self.store}", markup=False)


def _values(table: pd.DataFrame, suffix: str = "") -> dict[str, float]:
    """Return the metrics of a table with intervals, by their MLflow names."""
    names = [f"test/{name}{suffix}" for name in table["metric"]]
    return dict(zip(names, table["value"].astype(float).tolist(), strict=True))
