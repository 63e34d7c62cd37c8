"""A finished run on other data, or on another part of its own: `python -m skincancer.evaluate --run RUN_ID --data.dataset NAME`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skincancer.config.cli import add_plugin_flag, parse_flags
from skincancer.errors import ConfigError, RunError
from skincancer.schema import DataConfig
from skincancer.system.console import is_live, make_console, program, progress_bars, run_verb, warn
from skincancer.system.hardware import keep_freed_memory
from skincancer.system.interrupts import signals_as_interrupts

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


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
    """Evaluate a finished run, or an ensemble of classifiers, without any training; return the id of the new MLflow run.

    The data come to the model by the run's own recipe (size, resize, cleaning, crop, views). Images that a run was trained or chosen on are
    left out: by their pixels, as near-duplicates, and where the data set is the same by id and lesion.

    Args:
        runs: ids of finished fits, folders of their artifacts, or registered models; of several the probabilities are averaged.
        data: dotted keys of the data section, such as {"data.dataset": "ph2"}; what is not given is the first run's.
        part: all images, or the test part of the split.
        mapping: target class to classes of the run and of the data (`class_mapping.map_classes`); None finds one by the names.
        prevalence: share of positives where a threshold would be used; None for that of the images.
        near_duplicates: exclude images that are nearly the same picture as one that a run was trained or chosen on, or keep them; they are
            counted either way.
        uri: the tracking store.

    Raises:
        ConfigError: something was asked wrongly, or the classes cannot be mapped.
        DataError: the data cannot be used, or all of it has been seen.
        RunError: a run is unknown, unfinished, of another kind, or lacks files.
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
            f"several runs are an ensemble of classifiers; the tasks of these are {', '.join(sorted(tasks))}. Evaluate them one by one."
        )
    if mapping is not None and tasks == {"segmentation"}:
        raise ConfigError("--map is for classes, and a segmenter has none. Leave it out.")
    with progress_bars(console) as bars:
        evaluation = prepare_evaluation(finished, data, part == "all", mapping, store, bars, near_duplicates == "keep")
    recorder = EvaluationRecorder(evaluation, store, console, prevalence)
    recorder.announce()
    for title, text in evaluation.notes:
        warn(console, title, text)
    with recorder.start() as run:
        found = [
            predict_test(*one, progress_bar=is_live(make_console()))
            for one in zip(evaluation.runs, evaluation.experiments, evaluation.data, strict=True)
        ]
        predictions = mapped_predictions(evaluation, [predicted for _, predicted in found])
        recorder.finish(run, predictions, found[0][0])
    recorder.report()
    return recorder.run_id


def _check(
    runs: Sequence[str], data: Mapping[str, Any], part: str, prevalence: float | None, near_duplicates: str
) -> None:
    if not runs:
        raise ConfigError(
            "give --run RUN_ID, the run of a finished fit (or several: an ensemble), and --data.dataset NAME."
        )
    twice = [run for number, run in enumerate(runs) if run in runs[:number]]
    if twice:
        raise ConfigError(f"--run names {twice[0]} twice; an ensemble needs different runs.")
    if part not in PARTS:
        raise ConfigError(f"--part is {part!r}; choose one of {', '.join(PARTS)}.")
    if near_duplicates not in NEAR_DUPLICATES:
        raise ConfigError(f"--near-duplicates is {near_duplicates!r}; choose one of {', '.join(NEAR_DUPLICATES)}.")
    if part == "all":
        for key in ("data.split", "data.split_seed", "data.leaks"):
            if key in data:
                raise ConfigError(f"--{key} goes with --part test; --part all takes every image.")
    if prevalence is not None and not 0 < prevalence < 1:
        raise ConfigError(f"--prevalence is {prevalence}; it is a share, above 0 and below 1, such as 0.1.")


def make_parser() -> ArgumentParser:
    """Return the parser of evaluate's flags."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=program("evaluate"),
        usage="%(prog)s --run RUN_ID [RUN_ID …] --data.dataset NAME [--part all|test] [--data.KEY VALUE …]",
        description="A finished run on other data: external validation, operating point, calibration, subgroups. What is not said of the "
        "data is as the run had it; data.size, resize, clean, crop and crop_margin always are.",
        exit_on_error=False, allow_abbrev=False, default_env=False,
    )  # fmt: skip
    parser.add_argument(
        "--run", type=str, nargs="+", metavar="RUN_ID", help="a finished fit or NAME@ALIAS; several: their ensemble"
    )
    parser.add_argument("--part", type=str, metavar="all|test", help="every image (default), or the split's test part")
    parser.add_argument(
        "--map", type=str, nargs="+", metavar="TARGET=CLASS+CLASS", help="classes to compare in, or a YAML file of them"
    )
    parser.add_argument(
        "--prevalence", type=float, metavar="0.1", help="of the positive class (default: of the images themselves)"
    )
    parser.add_argument(
        "--near_duplicates", type=str, metavar="exclude|keep", help="nearly the same pictures as the run was trained on"
    )
    parser.add_argument("--tracking.uri", type=str, metavar="URI", help="the tracking store of the runs")
    add_plugin_flag(parser)
    parser.add_class_arguments(DataConfig, "data", fail_untyped=True)
    return parser


def _verb(argv: Sequence[str]) -> None:
    from skincancer.evaluation.class_mapping import parse_map

    argv = [re.sub(r"^--near-duplicates(?==|$)", "--near_duplicates", flag) for flag in argv]
    flags, own = parse_flags(make_parser(), argv)
    uri = flags.pop("tracking.uri", None)
    given = own.get("map")
    with signals_as_interrupts():
        evaluate(
            own.get("run") or [], flags, part=own.get("part") or "all", mapping=parse_map(given) if given else None,
            prevalence=own.get("prevalence"), near_duplicates=own.get("near_duplicates") or "exclude", uri=uri,
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
