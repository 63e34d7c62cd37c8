"""Record a fit: params, tags, dataset inputs, artifacts, the model, and the printed results."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from skincancer.audit.verdict import verdict_line
from skincancer.data.catalog import SYNTHETIC_NOTE, malignant_classes
from skincancer.data.groups import count_images, describe_unknown_lesions, group_noun, known_lesions
from skincancer.data.index import image_root
from skincancer.data.mask_sources import describe_crops, describe_masks
from skincancer.data.overlap import digest_table, open_whole, write_fingerprints
from skincancer.data.positive_class import find_positive
from skincancer.data.prepare import ROLES, PreparedData
from skincancer.data.splits import parse_split
from skincancer.data.store import CROP_COLUMNS
from skincancer.errors import RunError
from skincancer.inference import serving
from skincancer.metrics.names import best_name, epoch_columns, positive_of
from skincancer.metrics.prediction_files import write_predictions
from skincancer.models.weights import LoadedWeights
from skincancer.reports.error_analysis import attention_means, explain_run, read_attention, write_errors
from skincancer.reports.fit_report import write_report
from skincancer.reports.task_outputs import OUTCOMES, Outcome, write_subgroups
from skincancer.reports.thumbnails import store_thumbnails
from skincancer.runs import artifacts
from skincancer.runs.dataset_inputs import data_tags, log_dataset
from skincancer.runs.finished import FinishedRun
from skincancer.runs.lifecycle import STATE_TAG, RunWriter, check_resumable, has_checkpoint, start_run
from skincancer.runs.store import RunStore
from skincancer.schema.data import segmenter_run
from skincancer.schema.experiment import Experiment
from skincancer.schema.tasks import TASKS
from skincancer.system.console import make_table, optional, progress_bars, warn
from skincancer.system.hardware import device_name
from skincancer.system.interrupts import uninterrupted
from skincancer.system.launcher import is_rank_zero
from skincancer.system.provenance import environment_text, model_requirements
from skincancer.training.callbacks import EpochRecord, EpochReporter
from skincancer.training.classical import ClassicalInputs
from skincancer.training.launch import count_ranks
from skincancer.training.params import fit_params
from skincancer.visualization.classification import learning_curves
from skincancer.visualization.style import MOST_CLASSES, save
from skincancer.visualization.tables import intervals_table, with_titles

EMPTY_MASKS = "nothing could be measured"


class FitRecorder:
    """Record one fit and print its results, on rank 0 only.

    Args:
        experiment: the experiment.
        data: its images.
        store: MLflow store of the run.
        console: quiet on ranks above 0.
        trial: receiver of the progress of a sweep's trial.
    """

    def __init__(
        self, experiment: Experiment, data: PreparedData, store: RunStore, console: Console, trial: EpochReporter | None = None,
    ) -> None:  # fmt: skip
        self.experiment, self.data, self.store, self.console, self.trial = experiment, data, store, console, trial
        self.run_id = ""
        self.folder = Path()
        self.note = SYNTHETIC_NOTE if data.entry.synthetic else ""
        self.title = f"{experiment.name} · {data.entry.name} · {experiment.data.split} · seed {experiment.seed}"
        self.outcome: Outcome = OUTCOMES[experiment.task](data)
        self.intervals = pd.DataFrame()
        self.tested = ""
        self.epochs = pd.DataFrame()
        self.inputs: ClassicalInputs | None = None

    @cached_property
    def audited(self) -> str:
        """Verdict of the last audit on the data, "" without an audit."""
        return verdict_line(self.data.index, image_root(self.data.root), bool(self.experiment.data.groups))

    @property
    def _malignant(self) -> tuple[str, ...]:
        settings = self.experiment.data
        return malignant_classes(self.data.entry, self.data.classes, settings.target, settings.malignant_names)

    def announce(self) -> None:
        """Print the subsets of the images, and what was excluded."""
        data, settings = self.data, self.experiment.data
        classes, masks = self.outcome.classes, self.experiment.task == "joint"
        counts = {
            role: [int((data.rows(role)["label"] == label).sum()) for label in range(len(classes))] for role in ROLES
        }
        columns = classes if len(classes) <= MOST_CLASSES else (f"images of each of {len(classes)} classes",)
        rows = [
            [
                role, len(subset), subset["lesion_id"].nunique(),
                *(counts[role] if len(classes) <= MOST_CLASSES else [f"{min(counts[role])}–{max(counts[role])}"]),
                *([int(subset["mask"].notna().sum())] if masks else []),
            ]
            for role, subset in ((role, data.rows(role)) for role in ROLES)
        ]  # fmt: skip
        title = f"{data.entry.title}, {settings.split}, split seed {settings.split_seed}"
        caption = f"balance of the training set: {settings.balance}" if settings.balance != "none" else ""
        head = ["role", "images", group_noun(data.index), *columns, *(["masks"] if masks else [])]
        self.console.print(make_table(title, head, rows, caption))
        if len(classes) == 2:
            positive, reason = find_positive(classes, self._malignant, settings.positive_name)
            if positive:
                self.console.print(Text(f"positive class: {positive} ({reason})"))
        split, unknown = parse_split(settings.split), describe_unknown_lesions(data.index)
        if split.kind == "ratio":
            claim = f"no {'known ' if unknown else ''}{group_noun(data.index, plural=False)} is in two subsets"
            units = group_noun(data.index)
            self.console.print(
                f"{settings.split}: {90 - split.test} % of the {units} for training, 10 % for validation, {split.test} % for testing"
                + (f"; {claim}" if known_lesions(data.index).any() else "")
            )
        if unknown:
            self.console.print(Text(unknown))
        data.reading.report(self.console)
        if data.left_out:
            self.console.print(Text(f"left out: {data.left_out}"))
        if data.leaking_groups:
            leaks = f"{data.leaking_groups} lesions or patients ({data.leaking_images} images) are in two subsets of the official split; "
            if settings.leaks == "allow":
                warn(self.console, "leaking lesions", f"{leaks}data.leaks is allow")
            else:
                self.console.print(Text(f"{leaks}data.leaks {settings.leaks} left them out of the earlier subset"))
        if self.audited:
            self.console.print(Text(self.audited))
        if settings.crop:
            self.console.print(Text(f"images cropped to the lesion: {describe_crops(data.store.table, settings)}"))
        if data.segmenter_saw:
            warn(
                self.console, "the segmenter was trained on test images",
                f"{data.segmenter_saw} test images show lesions of the segmenter's training or validation images: their masks are "
                "better than masks of new images. Train the segmenter on the same --data.split and --data.split_seed.",
            )  # fmt: skip

    def print_features(self, inputs: ClassicalInputs) -> None:
        """Print the features of a classical classifier, and their mask sources."""
        self.inputs, model = inputs, self.experiment.model
        classifier = f"{model.classifier} on {inputs.features.shape[1]} features"
        if inputs.loaded:
            self.print_weights(inputs.loaded, f"{classifier} of a frozen {model.backbone}")
            return
        assert inputs.measured is not None
        masks = describe_masks(inputs.measured.table, self.experiment.data, EMPTY_MASKS)
        self.console.print(Text(f"{classifier}: {', '.join(model.classical.features)}; measured in: {masks}"))
        if empty := inputs.measured.describe_empty(self.data.index["role"]):
            warn(self.console, "empty masks", empty)
        if unlikely := inputs.measured.describe_unlikely():
            self.console.print(Text(unlikely))

    def print_weights(self, loaded: LoadedWeights, network: str = "") -> None:
        """Print the source of the weights, and warn of random weights.

        Args:
            loaded: the weights.
            network: description of the network of the weights (default: the trained network).
        """
        model = self.experiment.model
        trained = f"{model.architecture}, encoder" if model.architecture else "backbone"
        self.console.print(Text(f"{network or f'{trained} {model.backbone}'}, weights: {loaded.source}"))
        if loaded.source == "random" and model.weights == "auto":
            warn(self.console, "RANDOM WEIGHTS: this is not transfer learning", loaded.note)
        elif loaded.note:
            self.console.print(Text(loaded.note))
        if loaded.missing:
            warn(self.console, f"NOT LOADED: tensors that start at random ({len(loaded.missing)})", loaded.warning)

    @contextlib.contextmanager
    def start(self, weights: str, resume: str | None = None) -> Iterator[RunWriter | None]:
        """Start the run and log its data. Yield None on ranks above 0."""
        client = self.store.client
        if not is_rank_zero(count_ranks(self.experiment.trainer)):
            # The checkpoint callbacks broadcast the real folder of rank 0.
            with tempfile.TemporaryDirectory() as folder:
                self.folder = Path(client.get_run(resume).data.tags["work_folder"]) if resume else Path(folder)
                yield None
            return
        experiment, data = self.experiment, self.data
        continues = has_checkpoint(client, resume)
        if resume:
            before = check_resumable(client, resume)
            for name in ("index_hash", "split_hash", "groups_hash"):
                then, now = before.data.tags.get(name, ""), getattr(data, name)
                if then != now:
                    raise RunError(
                        f"--resume {resume}: the data have changed: {name} of the run is {then or '(none)'}, now it is "
                        f"{now or '(none)'}. Restore the data, or start a new run."
                    )
            classes = FinishedRun(resume, self.store, before).classes if continues else data.classes
            if classes != data.classes:
                raise RunError(
                    f"--resume {resume}: the classes of the run are {', '.join(classes)}, and now they are {', '.join(data.classes)}, of "
                    "which the last is positive. An earlier version ordered them by name. Start a new run."
                )
            first = before.data.params.get("weights", weights)
            if not continues and first != weights:
                raise RunError(
                    f"--resume {resume}: the run stopped in its first epoch and must start again, but its first weights were "
                    f"{first!r} and now they are {weights!r}. Start a new run."
                )
        device = device_name(experiment.trainer.accelerator)
        tags = {"kind": "fit", **data_tags(data), "device": device}
        name = f"{experiment.name} {experiment.data.split} s{experiment.seed}"
        if self.trial:
            tags |= self.trial.tags()
            name = f"trial {self.trial.number} of {name}"
        group = f"{data.entry.name}-{experiment.task}"
        with start_run(
            self.store, group, name, tags, system_metrics=experiment.tracking.system_metrics, resume=resume,
            keep=self.trial is None,
        ) as run:  # fmt: skip
            self.run_id, self.folder = run.run_id, run.folder
            self.console.print(f"run {run.run_id} in {group}" + (" (resumed)" if resume else ""))
            run.log_params(
                fit_params(experiment, data, self.outcome, self.inputs, weights)
                | (self.trial.log_params() if self.trial else {})
            )
            if not continues:
                self._write_start(run)
            yield run

    def _write_start(self, run: RunWriter) -> None:
        data, settings = self.data, self.experiment.data
        run.write_config(self.experiment)
        run.write_classes(data.classes, self._malignant)
        run.write_table(artifacts.SPLIT_FILE, data.split_table)
        run.write_table(artifacts.DROPPED_FILE, data.dropped)
        if self.audited:
            run.write_text(artifacts.AUDIT_FILE, f"{self.audited}\n")
        run.write_table(artifacts.DIGESTS_FILE, digest_table(data.index, data.store.images))
        with progress_bars(self.console) as bars:
            whole = open_whole(data.index, image_root(data.root), data.store, settings, bars)
        write_fingerprints(run.folder / artifacts.FINGERPRINTS_FILE, data.index, *whole)
        run.log_file(artifacts.FINGERPRINTS_FILE)
        run.write_text(artifacts.ENVIRONMENT_FILE, environment_text())
        if settings.crop:
            run.write_table(artifacts.CROPS_FILE, data.store.table[["image_id", *CROP_COLUMNS]])
        if self.inputs and self.inputs.measured:
            run.write_table(artifacts.MASKS_FILE, self.inputs.measured.table[["image_id", "masks"]])
        segmenter_id = segmenter_run(settings.masks)
        if segmenter_id and (settings.crop or self.experiment.model.is_hand_crafted):
            # The copy serves `predict --run` and `data.masks` on machines without the run of the segmenter.
            segmenter = FinishedRun(segmenter_id, self.store)
            for name in artifacts.SEGMENTER_FILES:
                copy = run.folder / artifacts.SEGMENTER / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(segmenter.file(name), copy)
                run.log_file(f"{artifacts.SEGMENTER}/{name}")
        for role in ROLES:
            log_dataset(run, data, role, settings.split)

    def save_predictions(self, role: str, predictions: Any) -> None:
        """Save the table of predictions of a subset, val or test."""
        if self.run_id:
            write_predictions(self.outcome.table(predictions), self.folder / artifacts.predictions_file(role))

    def finish(self, run: RunWriter | None, record: EpochRecord | None, best_epoch: int, task: Any) -> None:
        """Compute metrics, intervals and figures from the saved predictions, and log all results.

        Args:
            run: the run. None on ranks above 0.
            record: rows of the epochs. None for a classical classifier.
            best_epoch: epoch of the best checkpoint, from 1.
            task: task with the best weights, or the fitted classical classifier.
        """
        if run is None:
            return
        best = self._best(record, best_epoch)
        tested = pd.read_csv(
            self.folder / artifacts.predictions_file("test"),
            usecols=["image_id", "lesion_id"],
            dtype=str,
            keep_default_na=False,
        )
        self.tested = count_images(tested)
        self.intervals = self.outcome.test(self.folder)
        self.intervals.to_csv(self.folder / artifacts.INTERVALS_FILE, index=False)
        test = {f"test/{row['metric']}": float(row["value"]) for row in self.intervals.to_dict("records")}
        run.log_results({**best, **test, **self.outcome.selected(task)})
        if record:
            with optional(self.console, "the figure learning_curves"):
                curves = learning_curves(self.epochs, best_epoch, title=self.title, note=self.note)
                save(curves, run.figure_path("learning_curves"))
        for name, draw in self.outcome.figures(self.folder, task, f"{self.title} · test", self.note):
            with optional(self.console, f"the figure {name}"):
                save(draw(), run.figure_path(name))
        if not self.experiment.model.is_network:
            write_errors(self.folder, self.data.classes)
            run.log_file(artifacts.ERRORS_FILE)
        elif self.outcome.classes:
            self._explain(run, task)
        files = artifacts.model_files(self.experiment.to_dict())[1:]
        for name in (artifacts.INTERVALS_FILE, *([artifacts.EPOCHS_FILE] if record else []), *files):
            run.log_file(name)
        (self.folder / artifacts.FIGURES).mkdir(exist_ok=True)
        if self.outcome.classes and (subgroups := write_subgroups(self.folder)):
            run.log_file(subgroups.name)
        for name in (artifacts.PREDICTIONS, artifacts.FIGURES):
            run.log_folder(name)
        with optional(self.console, artifacts.REPORT_FILE):
            write_report(self.folder, run.record, store_thumbnails(self.data))
            run.log_file(artifacts.REPORT_FILE)
        self._log_model(run)

    def finish_trial(self, run: RunWriter | None, record: EpochRecord | None, best_epoch: int = 0) -> None:
        """Log the epochs of a trial and, unless it was pruned, its validation results.

        A pruned trial has a record, but no best epoch.
        """
        assert run is not None
        assert self.trial is not None
        objective = None
        if best_epoch or not record:
            best = self._best(record, best_epoch)
            run.log_results(best)
            run.log_file(artifacts.predictions_file("val"))
            objective = best[best_name(self.experiment.training.monitor)]
        if record:
            run.log_file(artifacts.EPOCHS_FILE)
        run.set_tags({STATE_TAG: "PRUNED" if objective is None else "COMPLETE"})
        self.trial.ended(objective)

    def _best(self, record: EpochRecord | None, best_epoch: int) -> dict[str, float]:
        """Return the validation metrics of the best checkpoint, and its epoch (from 1)."""
        best = {f"best/{name}": value for name, value in self.outcome.best(self.folder).items()}
        if not record:
            return best
        self.epochs = record.table()
        monitor = self.experiment.training.monitor
        # The loss cannot be computed from the table of predictions.
        at_best = self.epochs.loc[self.epochs["epoch"] == best_epoch, monitor]
        return {best_name(monitor): float(at_best.iloc[0]), **best, "best_epoch": best_epoch}

    def _explain(self, run: RunWriter, task: Any) -> None:
        settings = self.experiment.data
        with optional(self.console, "the figure errors"):
            missing = explain_run(
                self.folder, self.data, task, resize=settings.resize, batch_size=settings.batch_size,
                title=f"{self.title} · worst errors of the test set", note=self.note,
            )  # fmt: skip
            if missing:
                self.console.print(Text(missing))
        run.log_file(artifacts.ERRORS_FILE)
        attention = self.folder / artifacts.ATTENTION_FILE
        if attention.is_file():
            run.log_file(artifacts.ATTENTION_FILE)
            means = attention_means(read_attention(attention))
            run.log_metrics({f"test/{row['metric']}": float(row["value"]) for row in means.to_dict("records")})

    def _log_model(self, run: RunWriter) -> None:
        experiment = self.experiment
        takes_masks = experiment.data.crop or experiment.model.is_hand_crafted
        signature = serving.signature(self.outcome.classes, TASKS[experiment.task].has_masks, takes_masks)
        more = () if experiment.model.is_network else ("scikit-learn", "scikit-image", "skops")
        with uninterrupted():
            serving.log_model(run, signature, model_requirements(*more))

    def report(self) -> None:
        """Print the epochs, the test metrics with intervals, and the commands to continue."""
        if not self.run_id:
            return
        columns = epoch_columns(self.experiment.task)
        rows = [
            [
                f"{value:.0f}" if name == "epoch" else f"{value:.1f}" if name == "epoch_seconds" else f"{value:.4f}"
                for name, value in row.items()
            ]
            for row in self.epochs.reindex(columns=list(columns)).to_dict("records")
        ]
        if rows:
            self.console.print(make_table("epochs", list(columns.values()), rows))
        caption = f"{self.tested}; 95 % intervals over lesions"
        titled = with_titles(self.intervals, positive_of(self.outcome.classes))
        self.console.print(intervals_table(f"test: {self.title}", titled, caption, bool(self.note)))
        uri = f" --tracking.uri {self.store}" if self.experiment.tracking.uri else ""
        self.console.print(f"run {self.run_id} in {self.store}\nbrowse it: python -m skincancer.ui{uri}", markup=False)
        if self.data.entry.synthetic:
            self.console.print(
                "These images are synthetic. For real images run python -m skincancer.prepare ham10000, which prints how to get "
                f"them; then python -m skincancer.fit --experiment {self.experiment.name} --data.dataset ham10000 --data.root FOLDER",
                markup=False,
            )
