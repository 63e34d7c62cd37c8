"""Evaluate a finished run on other data, or on another subset.

`python -m skincancer.evaluate --run RUN_ID --data.dataset NAME`
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from skincancer.config.cli import add_plugin_flag, flag_words, parse_flags
from skincancer.engines.resources import add_flags, parse_resources, refuse_resources, underscored
from skincancer.errors import ConfigError, RunError
from skincancer.schema.data import DataConfig
from skincancer.system.console import is_live, make_console, program, progress_bars, run_verb, warn
from skincancer.system.hardware import keep_freed_memory
from skincancer.system.interrupts import signals_as_interrupts

PARTS = ("all", "test")
NEAR_DUPLICATES = ("exclude", "keep")


def evaluate(
    runs: Sequence[str],
    data: Mapping[str, Any],
    *,
    part: str = "all",
    mapping: Mapping[str, Sequence[str]] | None = None,
    prevalence: float | None = None,
    near_duplicates: str = "exclude",
    uri: str | None = None,
) -> str:
    """Evaluate a finished run, or an ensemble, and return the new run id.

    Images are preprocessed as in training. Training and validation images of the runs are excluded: the same pixels, near-duplicates
    and, for the same data set, the same ids and lesions.

    Args:
        runs: ids of finished fits, folders of their artifacts, or registered models. Probabilities of several runs are averaged.
        data: dotted keys of the data section, such as {"data.dataset": "ph2"}. Defaults are the values of the first run.
        part: all images, or the test set of the split.
        mapping: target class to classes of the run and of the data (`class_mapping.map_classes`). None for a mapping by names.
        prevalence: share of positives in the target population. None for that of the images.
        near_duplicates: exclude or keep near-duplicates of training and validation images. They are counted in both cases.
        uri: MLflow store.

    Raises:
        ConfigError: an argument is invalid, or the classes cannot be mapped.
        DataError: the data cannot be used, or the runs have used all images.
        RunError: a run is unknown, not finished, of another kind, or lacks files.
        WeightsError: a checkpoint cannot be used.
    """
    _check(runs, data, part, prevalence, near_duplicates)
    from skincancer.evaluation.external import load_fit, mapped_predictions, predict_test, prepare_evaluation
    from skincancer.evaluation.recorder import EvaluationRecorder
    from skincancer.models.lightning import quiet_lightning
    from skincancer.runs.store import RunStore

    quiet_lightning()
    keep_freed_memory()
    console = make_console()
    store = RunStore(uri).open()
    finished = [load_fit(run, store) for run in runs]
    tasks = {run.task for run in finished}
    if len(finished) > 1 and tasks != {"classification"}:
        raise RunError(
            f"--run names {len(finished)} runs of the tasks {', '.join(sorted(tasks))}; expected classifiers. Evaluate them one by one."
        )
    if mapping is not None and tasks == {"segmentation"}:
        raise ConfigError("--map is for classes, and a segmenter has none; remove --map.")
    store.check_experiment(
        f"{data.get('data.name') or data.get('data.dataset') or finished[0].dataset.name}-{finished[0].task}"
    )
    with progress_bars(console) as bars:
        evaluation = prepare_evaluation(finished, data, part == "all", mapping, store, bars, near_duplicates == "keep")
    recorder = EvaluationRecorder(evaluation, store, console, prevalence)
    recorder.announce()
    for title, text in evaluation.notes:
        warn(console, title, text)
    with recorder.start() as run:
        results = [
            predict_test(*item, progress_bar=is_live(console))
            for item in zip(evaluation.runs, evaluation.experiments, evaluation.data, strict=True)
        ]
        predictions = mapped_predictions(evaluation, [predicted for _, predicted in results])
        recorder.finish(run, predictions, results[0][0])
    recorder.report()
    return recorder.run_id


def _check(
    runs: Sequence[str], data: Mapping[str, Any], part: str, prevalence: float | None, near_duplicates: str
) -> None:
    if not runs:
        raise ConfigError("--run is missing; use --run with ids of finished fits, and --data.dataset NAME.")
    repeated = [run for number, run in enumerate(runs) if run in runs[:number]]
    if repeated:
        raise ConfigError(f"--run names {repeated[0]} twice; use different runs for an ensemble.")
    if part not in PARTS:
        raise ConfigError(f"--part is {part!r}; use one of {', '.join(PARTS)}.")
    if near_duplicates not in NEAR_DUPLICATES:
        raise ConfigError(f"--near-duplicates is {near_duplicates!r}; use one of {', '.join(NEAR_DUPLICATES)}.")
    if part == "all":
        for key in ("data.split", "data.split_seed", "data.leaks"):
            if key in data:
                raise ConfigError(
                    f"--{key} requires --part test, because --part all uses every image; remove one of them."
                )
    if prevalence is not None and not 0 < prevalence < 1:
        raise ConfigError(f"--prevalence is {prevalence}; expected a share above 0 and below 1, such as 0.1.")


def make_parser() -> ArgumentParser:
    """Return the parser of the flags of evaluate."""
    parser = ArgumentParser(
        prog=program("evaluate"),
        usage="%(prog)s --run RUN_ID [RUN_ID …] [--each] --data.dataset NAME [--part all|test] [--data.KEY VALUE …]",
        description="Evaluate a finished run on other data: external validation, operating point, calibration, subgroups. Data keys "
        "default to the values of the run; data.size, resize, clean, crop and crop_margin cannot be changed.",
        exit_on_error=False, allow_abbrev=False, default_env=False,
    )  # fmt: skip
    parser.add_argument(
        "--run", type=str, nargs="+", metavar="RUN_ID", help="a finished fit or NAME@ALIAS; several form an ensemble"
    )
    parser.add_argument("--each", action="store_true", help="evaluate several runs one by one, at the same time")
    add_flags(parser, "evaluations")
    parser.add_argument(
        "--part", type=str, metavar="all|test", help="every image (default), or the test set of the split"
    )
    parser.add_argument(
        "--map", type=str, nargs="+", metavar="TARGET=CLASS+CLASS", help="common classes, or a YAML file of them"
    )
    parser.add_argument("--prevalence", type=float, metavar="0.1", help="share of positives (default: of the images)")
    parser.add_argument("--near_duplicates", type=str, metavar="exclude|keep", help="copies of training images")
    parser.add_argument("--tracking.uri", type=str, metavar="URI", help="MLflow tracking store of the runs")
    add_plugin_flag(parser)
    parser.add_class_arguments(DataConfig, "data", fail_untyped=True)
    return parser


def _evaluate_each(flags: dict[str, Any], own: Mapping[str, Any], uri: str | None) -> None:
    """Evaluate each run of `--run` in its own process."""
    from skincancer.evaluation.class_mapping import parse_map

    runs = own.get("run") or []
    part, near_duplicates = own.get("part") or "all", own.get("near_duplicates") or "exclude"
    _check(runs, flags, part, own.get("prevalence"), near_duplicates)
    resources = parse_resources(own)
    words = [f"--part={part}", f"--near_duplicates={near_duplicates}"]
    words += [f"--plugin={module}" for module in flags.pop("plugins", [])]
    words += flag_words(flags)
    words += [f"--prevalence={own['prevalence']}"] if own.get("prevalence") else []
    if own.get("map"):
        words += ["--map", *(f"{target}={'+'.join(names)}" for target, names in parse_map(own["map"]).items())]
    from skincancer.evaluation.each import evaluate_each

    with signals_as_interrupts():
        evaluate_each(runs, words, resources, uri)


def _verb(argv: Sequence[str]) -> None:
    from skincancer.evaluation.class_mapping import parse_map

    flags, own = parse_flags(make_parser(), underscored(argv, "near-duplicates"))
    uri = flags.pop("tracking.uri", None)
    words = own.get("map")
    if own.get("each"):
        _evaluate_each(flags, own, uri)
        return
    refuse_resources(own, "Add --each to evaluate several runs one by one, or remove the flag.")
    with signals_as_interrupts():
        evaluate(
            own.get("run") or [], flags, part=own.get("part") or "all", mapping=parse_map(words) if words else None,
            prevalence=own.get("prevalence"), near_duplicates=own.get("near_duplicates") or "exclude", uri=uri,
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
