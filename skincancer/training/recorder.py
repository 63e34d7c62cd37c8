"""What a fit writes down and prints: params, tags, inputs, artifacts, the model, and the table at the end (design: the run contract)."""

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
from skincancer.data.index import image_root
from skincancer.data.mask_sources import describe_crops, describe_masks
from skincancer.data.overlap import digest_table, open_whole, write_fingerprints
from skincancer.data.prepare import ROLES, PreparedData
from skincancer.data.splits import parse_split
from skincancer.data.store import CROP_COLUMNS
from skincancer.errors import RunError
from skincancer.inference import serving
from skincancer.metrics.names import best_name, epoch_columns
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
from skincancer.schema import TASKS, Experiment, segmenter_run
from skincancer.system.console import make_table, progress_bars, warn
from skincancer.system.hardware import device_name
from skincancer.system.interrupts import uninterrupted
from skincancer.system.launcher import is_rank_zero
from skincancer.system.provenance import environment_text, model_requirements
from skincancer.training.callbacks import EpochRecord, EpochReporter
from skincancer.training.classical import ClassicalInputs
from skincancer.training.params import fit_params
from skincancer.visualization.classification import learning_curves
from skincancer.visualization.style import save
from skincancer.visualization.tables import intervals_table

EMPTY_MASKS = "nothing could be measured"


class FitRecorder:
    """Writes one fit down, and tells the user about it. On ranks above 0 it does nothing.

    Args:
        experiment: resolved.
        data: prepared.
        store: MLflow store.
        console: quiet on ranks above 0.
        trial: the run is a trial of a sweep.
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
        self.tested = (0, 0)
        self.epochs = pd.DataFrame()
        self.inputs: ClassicalInputs | None = None  # of a classical classifier

    @cached_property
    def audited(self) -> str:
        """The line of the last audit's verdict on the data; "" without one."""
        return verdict_line(self.data.index, image_root(self.data.root), bool(self.experiment.data.groups))

    def announce(self) -> None:
        """Print what is about to be trained on what."""
        data, settings = self.data, self.experiment.data
        classes, masks = self.outcome.classes, self.experiment.task == "joint"
        counts = {role: data.rows(role) for role in ROLES}
        rows = [
            [
                role,
                len(part),
                part["lesion_id"].nunique(),
                *(int((part["label"] == label).sum()) for label in range(len(classes))),
                *([int(part["mask"].notna().sum())] if masks else []),
            ]
            for role, part in counts.items()
        ]
        title = f"{data.entry.title}, {settings.split}, split seed {settings.split_seed}"
        caption = f"balance of the training part: {settings.balance}" if settings.balance != "none" else ""
        self.console.print(
            make_table(title, ["role", "images", "lesions", *classes, *(["masks"] if masks else [])], rows, caption)
        )
        split = parse_split(settings.split)
        if split.kind == "ratio":
            self.console.print(
                f"{settings.split}: of the lesions {split.test} % test, 10 % validate and {90 - split.test} % train; none is on two sides"
            )
        if data.left_out:
            self.console.print(Text(f"left out: {data.left_out}"))
        if data.leaking_groups:
            told = f"{data.leaking_groups} lesions or patients ({data.leaking_images} images) stand on two sides of the publisher's parts; "
            if settings.leaks == "allow":
                warn(self.console, "leaking lesions", f"{told}data.leaks is allow")
            else:
                self.console.print(Text(f"{told}data.leaks {settings.leaks} has left them out of the earlier role"))
        if self.audited:
            self.console.print(Text(self.audited))
        if settings.crop:
            self.console.print(Text(f"images cropped to the lesion: {describe_crops(data.store.table, settings)}"))
        if data.segmenter_saw:
            warn(
                self.console, "the segmenter has seen test images",
                f"{data.segmenter_saw} test images are of lesions that the segmenter behind the masks was trained or chosen on: "
                "these masks are better than those of new images. Train it on the same --data.split and --data.split_seed.",
            )  # fmt: skip

    def tell_features(self, inputs: ClassicalInputs) -> None:
        """Say what a classical classifier learns from, and whose masks its features were measured in."""
        self.inputs, model = inputs, self.experiment.model
        learned = f"{model.classifier} on {inputs.features.shape[1]} features"
        if inputs.loaded:
            self.tell_weights(inputs.loaded, f"{learned} of a frozen {model.backbone}")
            return
        assert inputs.measured is not None
        masks = describe_masks(inputs.measured.table, self.experiment.data, EMPTY_MASKS)
        self.console.print(Text(f"{learned}: {', '.join(model.classical.features)}; measured in: {masks}"))
        if empty := inputs.measured.describe_empty(self.data.index["role"]):
            warn(self.console, "empty masks", empty)
        if unlikely := inputs.measured.describe_unlikely():
            self.console.print(Text(unlikely))

    def tell_weights(self, loaded: LoadedWeights, network: str = "") -> None:
        """Say where the weights came from; loudly where ImageNet's could not be had.

        Args:
            loaded: the weights.
            network: what they are of, where it is not the network that is trained.
        """
        model = self.experiment.model
        trained = (
            f"{model.architecture}, encoder {model.backbone}" if model.architecture else f"backbone {model.backbone}"
        )
        self.console.print(Text(f"{network or trained}, weights: {loaded.source}"))
        if loaded.source == "random" and self.experiment.model.weights == "auto":
            warn(self.console, "RANDOM WEIGHTS: this is not transfer learning", loaded.note)
        elif loaded.note:
            self.console.print(Text(loaded.note))

    @contextlib.contextmanager
    def start(self, weights: str, resume: str | None = None) -> Iterator[RunWriter | None]:
        """Start the run and log all that is known before training; yield None on ranks above 0."""
        client = self.store.client
        if not is_rank_zero():
            # the folder itself is broadcast by the checkpoint callbacks
            with tempfile.TemporaryDirectory() as folder:
                self.folder = Path(client.get_run(resume).data.tags["work_folder"]) if resume else Path(folder)
                yield None
            return
        experiment, data = self.experiment, self.data
        goes_on = has_checkpoint(client, resume)
        if resume:
            before = check_resumable(client, resume)
            for name, now in (
                ("index_hash", data.index_hash),
                ("split_hash", data.split_hash),
                ("groups_hash", data.groups_hash),
            ):
                then = before.data.tags.get(name, "")
                if then != now:
                    raise RunError(
                        f"--resume {resume}: the data have changed: {name} of the run is {then or '(none)'}, now it is "
                        f"{now or '(none)'}. Restore the data, or start a new run."
                    )
            first = before.data.params.get("weights", weights)
            if not goes_on and first != weights:
                raise RunError(
                    f"--resume {resume}: it stopped before its first epoch ended, so it starts again, but its first weights were "
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
            if self.trial:
                self.trial.run_started(run.run_id)
            if not goes_on:
                self._write_start(run)
            yield run

    def _write_start(self, run: RunWriter) -> None:
        data = self.data
        run.write_config(self.experiment)
        settings = self.experiment.data
        malignant = malignant_classes(data.entry, data.classes, settings.target, tuple(settings.malignant))
        run.write_classes(data.classes, malignant)
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
        named = segmenter_run(settings.masks)
        if named and (settings.crop or self.experiment.model.is_hand_made):
            # Keep a copy that `predict --run` and `data.masks` accept, for machines that do not have the segmenter's run.
            segmenter = FinishedRun(named, self.store)
            for name in artifacts.SEGMENTER_FILES:
                copy = run.folder / artifacts.SEGMENTER / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(segmenter.file(name), copy)
                run.log_file(f"{artifacts.SEGMENTER}/{name}")
        for role in ROLES:
            log_dataset(data, role, settings.split)

    def keep(self, part: str, predictions: Any) -> None:
        """Write the table of predictions of a part into the run's folder."""
        if self.run_id:
            write_predictions(self.outcome.table(predictions), self.folder / artifacts.predictions_file(part))

    def finish(self, run: RunWriter | None, record: EpochRecord | None, best_epoch: int, task: Any) -> None:
        """Compute metrics, intervals and figures from the written tables, and log everything.

        Args:
            run: None on ranks above 0.
            record: of the epochs; None of a classifier that is fitted at once.
            best_epoch: from 1.
            task: with the best weights; or the fitted classifier.
        """
        if run is None:
            return
        best = self._best(record, best_epoch)
        tested = pd.read_csv(self.folder / artifacts.predictions_file("test"), usecols=["lesion_id"], dtype=str)
        self.tested = len(tested), tested["lesion_id"].nunique()
        self.intervals = self.outcome.test(self.folder)
        self.intervals.to_csv(self.folder / artifacts.INTERVALS_FILE, index=False)
        values = self.intervals.set_index("metric")["value"].astype(float)
        test = {f"test/{name}": float(value) for name, value in values.items()}
        chosen = self.outcome.selected(task)
        run.log_results({**best, **test, **chosen})
        if record:
            curves = learning_curves(self.epochs, best_epoch, title=self.title, note=self.note)
            save(curves, run.figure_path("learning_curves"))
        for name, figure in self.outcome.figures(self.folder, task, f"{self.title} · test", self.note):
            save(figure, run.figure_path(name))
        if not self.experiment.model.is_network:
            write_errors(self.folder, self.data.classes)
            run.log_file(artifacts.ERRORS_FILE)
        elif self.outcome.classes:
            self._explain(run, task)
        files = artifacts.model_files(self.experiment.to_dict())[1:]
        for name in (artifacts.INTERVALS_FILE, *([artifacts.EPOCHS_FILE] if record else []), *files):
            run.log_file(name)
        if self.outcome.classes and (subgroups := write_subgroups(self.folder)):
            run.log_file(subgroups.name)
        for name in (artifacts.PREDICTIONS, artifacts.FIGURES):
            run.log_folder(name)
        write_report(self.folder, run.record, store_thumbnails(self.data))
        run.log_file(artifacts.REPORT_FILE)
        self._log_model()

    def finish_trial(self, run: RunWriter | None, record: EpochRecord | None, best_epoch: int = 0) -> None:
        """Log what a trial of a sweep leaves: its epochs and, unless it was pruned (no best epoch), the validation part."""
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
        """Return what is logged of the best checkpoint on the validation part, the epoch (from 1) among it."""
        best = {f"best/{name}": value for name, value in self.outcome.best(self.folder).items()}
        if not record:
            return best
        self.epochs = record.table()
        monitor = self.experiment.training.monitor
        # the loss is no metric of the table of predictions
        at_best = self.epochs.loc[self.epochs["epoch"] == best_epoch, monitor]
        return {best_name(monitor): float(at_best.iloc[0]), **best, "best_epoch": best_epoch}

    def _explain(self, run: RunWriter, task: Any) -> None:
        settings = self.experiment.data
        missing = explain_run(
            self.folder, self.data, task, resize=settings.resize, batch_size=settings.batch_size,
            title=f"{self.title} · worst errors of the test", note=self.note,
        )  # fmt: skip
        if missing:
            self.console.print(Text(missing))
        run.log_file(artifacts.ERRORS_FILE)
        if (self.folder / artifacts.ATTENTION_FILE).is_file():
            run.log_file(artifacts.ATTENTION_FILE)
            means = attention_means(read_attention(self.folder / artifacts.ATTENTION_FILE))
            run.log_metrics({f"test/{row['metric']}": float(row["value"]) for row in means.to_dict("records")})

    def _log_model(self) -> None:
        experiment = self.experiment
        takes_masks = experiment.data.crop or experiment.model.is_hand_made
        signature = serving.signature(self.outcome.classes, TASKS[experiment.task].has_masks, takes_masks)
        more = () if experiment.model.is_network else ("scikit-learn", "scikit-image", "skops")
        with uninterrupted():
            serving.log_model(self.folder, signature, model_requirements(*more))

    def report(self) -> None:
        """Print the epochs, the test metrics with their intervals, where the run is, and what to do next."""
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
        caption = (
            f"{self.tested[0]} images, {self.tested[1]} lesions; intervals: bootstrap over lesions, 2,000 resamples"
        )
        self.console.print(intervals_table(f"test: {self.title}", self.intervals, caption, bool(self.note)))
        uri = f" --tracking.uri {self.store}" if self.experiment.tracking.uri else ""
        self.console.print(f"run {self.run_id} in {self.store}\nbrowse it: python -m skincancer.ui{uri}", markup=False)
        if self.data.entry.synthetic:
            self.console.print(
                "These images are synthetic. For real ones: python -m skincancer.prepare ham10000 says how to get them; then "
                f"python -m skincancer.fit --experiment {self.experiment.name} --data.dataset ham10000 --data.root FOLDER",
                markup=False,
            )
