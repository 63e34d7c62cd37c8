"""Train one experiment, test its best checkpoint, leave a complete run behind: `python -m skincancer.fit --experiment NAME`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skincancer.config.cli import build_parser, parse_flags
from skincancer.config.experiments import list_experiments
from skincancer.config.resolve import resolve
from skincancer.errors import ConfigError, RunError
from skincancer.runs import registry
from skincancer.runs.artifacts import config_to_keep
from skincancer.schema import TASKS, Experiment
from skincancer.system.console import make_console, make_table, program, progress_bars, run_verb, warn
from skincancer.system.hardware import keep_freed_memory
from skincancer.system.interrupts import signals_as_interrupts
from skincancer.system.yaml_files import dump_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from skincancer.runs.store import RunStore
    from skincancer.training.callbacks import EpochReporter
    from skincancer.training.recorder import FitRecorder


def fit(
    experiment: Experiment, resume: str | None = None, register: str | None = None, trial: EpochReporter | None = None
) -> str:
    """Train an experiment, or go on with an interrupted run of it; return the MLflow run id.

    Args:
        experiment: resolved, as `skincancer.config.resolve.resolve` makes it.
        resume: id of an interrupted run; its config must be `experiment`'s.
        register: NAME or NAME@ALIAS: register the model under it when the run has finished; a resumed run keeps what it was started
            with.
        trial: train as a trial of a sweep: it ends after the validation part, and never sees the test part.

    Raises:
        ConfigError: the experiment cannot run on this machine or these data.
        DataError: the data cannot be used.
        WeightsError: the first weights cannot be had.
        RunError: the run failed, or cannot be resumed.
    """
    # what can be wrong is told in the order of what it costs to find out
    target = registry.parse_target(register) if register is not None else None
    network = experiment.model.is_network
    if resume and not network:
        raise RunError(
            f"--resume {resume}: {experiment.model.classifier} is fitted at once and has no point to go on from. Start a new run: "
            f"python -m skincancer.fit --experiment {experiment.name} …"
        )
    from skincancer.models.factory import check_network

    check_network(experiment)
    from skincancer.models.lightning import quiet_lightning
    from skincancer.runs.lifecycle import reap
    from skincancer.runs.store import RunStore
    from skincancer.system.launcher import is_rank_zero
    from skincancer.training.launch import check_launcher, count_ranks
    from skincancer.training.trainer import check_devices

    quiet_lightning()
    check_devices(experiment.trainer)
    check_launcher(experiment.trainer)
    keep_freed_memory()
    console = make_console()
    console.quiet = not is_rank_zero()

    store = RunStore(experiment.tracking.uri)
    client = store.client
    if resume and not target and (before := registry.stored_target(client, resume)):
        target = registry.parse_target(before)
    if target:
        registry.check_registry(client)

    from skincancer.data.datamodule import check_shares
    from skincancer.data.prepare import prepare_data
    from skincancer.inference.model import mask_source
    from skincancer.training.recorder import FitRecorder

    with progress_bars(console) as bars:
        data = prepare_data(
            experiment.data,
            mask_source(experiment.data, store),
            bars,
            task=experiment.task,
            hand_made=experiment.model.is_hand_made,
        )
    if network:
        ranks = count_ranks(experiment.trainer)
        check_shares(data, experiment.data.batch_size, experiment.data.balance, ranks)
    # a trial's worker is about to write down why another one crashed, and its sweep has closed what was before
    for closed in reap(client) if is_rank_zero() and trial is None else []:
        console.print(f"closed run {closed} as KILLED: its process is gone")

    recorder = FitRecorder(experiment, data, store, console, trial)
    recorder.announce()
    tags = {registry.REGISTER_TAG: str(target)} if target else {}
    if network:
        _fit_network(experiment, data, recorder, store, resume, tags)
    else:
        _fit_classical(experiment, data, recorder, store, tags)
    if trial:
        return recorder.run_id
    recorder.report()
    if target and is_rank_zero():
        version = registry.register(client, recorder.run_id, target)
        console.print(f"registered as {target}, version {version}", markup=False)
    return recorder.run_id


def _fit_network(
    experiment: Experiment, data: Any, recorder: FitRecorder, store: RunStore, resume: str | None, tags: dict[str, str]
) -> None:
    """Train a network, or go on with it, and test its best checkpoint."""
    from skincancer.models.factory import build_task
    from skincancer.runs.artifacts import LAST_CHECKPOINT
    from skincancer.runs.finished import weights_file
    from skincancer.runs.lifecycle import has_checkpoint
    from skincancer.training.callbacks import ReportToSweep
    from skincancer.training.checkpoints import best_checkpoint, export_best
    from skincancer.training.distributed import Ranks

    trial = recorder.trial
    goes_on = has_checkpoint(store.client, resume)
    with weights_file("none" if goes_on else experiment.model.weights, store) as checkpoint:
        task, loaded = build_task(experiment, data, goes_on, checkpoint)
    if not goes_on:
        recorder.tell_weights(loaded)
    with recorder.start(loaded.source, resume) as run, Ranks(experiment.trainer, run, store.client) as ranks:
        if run:
            run.set_tags(tags)
        reports = [ReportToSweep(trial, experiment.training.monitor)] if trial else []
        trainer, datamodule, record = _assemble(experiment, data, recorder.folder, run, [ranks, *reports])
        last = recorder.folder / LAST_CHECKPOINT
        trainer.fit(task, datamodule, ckpt_path=last if last.is_file() else None, weights_only=True)
        if trial and trial.pruned:
            recorder.finish_trial(run, record)
            return
        best = best_checkpoint(trainer)
        best_epoch = export_best(best) if trainer.is_global_zero else 0
        trainer.strategy.barrier()
        which: dict[str, Any] = {"datamodule": datamodule, "ckpt_path": best, "weights_only": True, "verbose": False}
        if TASKS[experiment.task].has_masks:
            choose_threshold(experiment, data, task, trainer, which)
        for part, evaluate in (("val", trainer.validate), ("test", trainer.test))[: 1 if trial else 2]:
            evaluate(task, **which)
            assert task.predictions is not None
            recorder.keep(part, task.predictions)
        if trial:
            recorder.finish_trial(run, record, best_epoch)
        else:
            recorder.finish(run, record, best_epoch, task)


def _fit_classical(
    experiment: Experiment, data: Any, recorder: FitRecorder, store: RunStore, tags: dict[str, str]
) -> None:
    """Fit a classical classifier at once: a run without epochs."""
    from skincancer.inference.classical_model import predict_subset
    from skincancer.runs.finished import weights_file
    from skincancer.training.classical import find_inputs, fit_classifier

    with progress_bars(recorder.console) as bars, weights_file(experiment.model.weights, store) as checkpoint:
        inputs = find_inputs(experiment, data, bars, checkpoint)
    recorder.tell_features(inputs)
    with recorder.start(inputs.source) as run:
        assert run is not None, "there is one process"
        run.set_tags(tags)
        model = fit_classifier(experiment, data, inputs, recorder.folder)
        for part in ("val",) if recorder.trial else ("val", "test"):
            recorder.keep(part, predict_subset(model, data, inputs.features, part))
        if recorder.trial:
            recorder.finish_trial(run, None)
        else:
            recorder.finish(run, None, 0, model)


def choose_threshold(experiment: Experiment, data: Any, task: Any, trainer: Any, which: dict[str, Any]) -> None:
    """Have a segmenter score masks at their original size, and choose its threshold on the validation part where that is asked for.

    The checkpoint keeps the threshold among its hyper-parameters.
    """
    from skincancer.metrics.segmentation import ThresholdSearch
    from skincancer.models.factory import build_scorer
    from skincancer.training.checkpoints import export_best

    task.scorer = build_scorer(data, experiment)
    if experiment.model.mask.threshold == "auto":
        task.search = ThresholdSearch()
        trainer.validate(task, **which)
        if trainer.is_global_zero:
            export_best(which["ckpt_path"], threshold=task.threshold)
        trainer.strategy.barrier()


def _assemble(
    experiment: Experiment, data: Any, folder: Path, run: Any, callbacks: Sequence[Any]
) -> tuple[Any, Any, Any]:
    from skincancer.data.datamodule import LesionDataModule
    from skincancer.training.callbacks import EpochRecord, averaging_note
    from skincancer.training.launch import count_ranks
    from skincancer.training.trainer import build_trainer

    settings = experiment.data
    datamodule = LesionDataModule(
        data, batch_size=settings.batch_size, balance=settings.balance, balance_fixed=settings.balance_fixed,
        augment=experiment.augment, seed=experiment.seed, workers=settings.workers,
    )  # fmt: skip
    record = EpochRecord(run)
    batches = -(-datamodule.train_sampler().images // (settings.batch_size * count_ranks(experiment.trainer)))
    steps = batches * experiment.trainer.max_epochs // experiment.trainer.accumulate_grad_batches
    note = averaging_note(experiment.training.ema_decay, steps)
    if run is not None and note:
        warn(make_console(), "averaged weights", note)
    trainer = build_trainer(experiment, folder, [record, *callbacks], progress_bar=sys.stdout.isatty())
    return trainer, datamodule, record


def make_parser() -> ArgumentParser:
    """Return the parser of fit's flags."""
    parser = build_parser(
        program("fit"), "Train one experiment, test its best checkpoint, leave a complete run behind."
    )
    parser.add_argument("--resume", type=str, metavar="RUN_ID", help="go on with an interrupted run, in the same run")
    parser.add_argument(
        "--register", type=str, metavar="NAME[@ALIAS]", help="register the finished run's model; the alias is candidate"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--reap", action="store_true", help="close stale runs and stop")
    parser.add_argument(
        "--older_than", type=str, metavar="24h", help="with --reap: also runs of other hosts silent for so long"
    )
    return parser


def _verb(argv: Sequence[str]) -> None:
    console = make_console()
    argv = [re.sub(r"^--(dry|older)-", r"--\1_", flag) for flag in argv]
    parser = make_parser()
    flags, own = parse_flags(parser, argv)
    if own.get("list"):
        rows = list(list_experiments().items())
        console.print(make_table("experiments", ["name", "what it is, and where its recipe comes from"], rows))
        return
    if own.get("older_than") and not own.get("reap"):
        raise ConfigError("--older-than goes with --reap.")
    if own.get("reap"):
        from skincancer.runs.lifecycle import reap_runs
        from skincancer.runs.store import RunStore

        reap_runs(RunStore(flags.get("tracking.uri")), own.get("older_than"))
        return
    resume, notes = own.get("resume"), list[str]()
    if resume:
        from skincancer.runs.store import RunStore
        from skincancer.training.resume import load_resumed

        experiment = load_resumed(resume, own.get("experiment"), flags, parser, RunStore(flags.get("tracking.uri")))
    else:
        if not own.get("experiment"):
            raise ConfigError(f"give --experiment NAME; one of {', '.join(list_experiments())}, or a path.")
        experiment, notes = resolve(own["experiment"], flags, parser)
    for note in notes:
        console.print(note, markup=False)
    if experiment.data.groups and not resume:
        from skincancer.data.groups import read_groups

        read_groups(Path(experiment.data.groups))
    if own.get("dry_run"):
        console.print(dump_yaml(config_to_keep(experiment)), markup=False)
        return
    with signals_as_interrupts():
        fit(experiment, resume, own.get("register"))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
