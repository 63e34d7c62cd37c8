"""Run a verb by its name, as in `skincancer fit --experiment NAME`."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from collections.abc import Sequence

import skincancer
from skincancer.errors import ConfigError, nearest
from skincancer.system.console import make_console, make_table, run_verb

# Verb: summary and example.
VERBS = {
    "prepare": ("Prepare, download or audit a data set", "skincancer prepare demo"),
    "fit": ("Train one experiment and test its best checkpoint", "skincancer fit --experiment efficientnet_lite0"),
    "sweep": ("Search hyper-parameters", "skincancer sweep --experiment efficientnet_lite0 --trials 20"),
    "evaluate": ("Evaluate a finished run on other data", "skincancer evaluate --run RUN_ID --data.dataset ph2"),
    "predict": ("Predict classes or masks of image files", "skincancer predict --run RUN_ID --out answers photos/"),
    "compare": ("Compare finished runs", "skincancer compare --experiments resnet50 vit_small --splits 80:20 70:30"),
    "ui": ("Show the runs in the browser", "skincancer ui"),
}
_COMPLETION = "--print-completion"
_NOTES = f"""Flags and values of a verb: skincancer VERB --help
Version: skincancer --version
Completion (bash, zsh, fish or tcsh): skincancer {_COMPLETION} bash"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb of a command line. Return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in VERBS:
        # A fit starts its other processes by the command line of `python -m`, so the verb runs in the same way.
        sys.argv[1:] = words[1:]
        runpy.run_module(f"skincancer.{words[0]}", run_name="__main__", alter_sys=True)
    return run_verb(_print, words)


def _print(words: Sequence[str]) -> None:
    console, (word, *rest) = make_console(), words or ["--help"]
    if word in ("--help", "-h"):
        rows = [[verb, summary, example] for verb, (summary, example) in VERBS.items()]
        console.print(make_table("skincancer VERB [--KEY VALUE …]", ["verb", "what it does", "example"], rows))
        console.print(_NOTES, markup=False)
    elif word == "--version":
        console.print(f"skincancer {skincancer.__version__}", markup=False)
    elif word == _COMPLETION:
        _print_completion(rest)
    else:
        kind = "flag of skincancer" if word.startswith("-") else "verb"
        allowed = [*VERBS, "--help", "--version", _COMPLETION]
        raise ConfigError(f"{word} is not a known {kind}.{nearest(word, allowed)} Use one of {', '.join(allowed)}.")


def _print_completion(rest: Sequence[str]) -> None:
    try:
        import shtab
    except ImportError as error:
        raise ConfigError(
            f"{_COMPLETION} needs the package shtab. Install it: pip install 'skincancer[completion]'"
        ) from error
    if len(rest) != 1 or rest[0] not in shtab.SUPPORTED_SHELLS:
        raise ConfigError(f"{_COMPLETION} takes the name of a shell: {', '.join(shtab.SUPPORTED_SHELLS)}.")
    print(shtab.complete(_parser_of_all(), rest[0]))


def _parser_of_all() -> argparse.ArgumentParser:
    """Return a parser with all verbs, and known names as choices."""
    from skincancer.config.experiments import list_experiments
    from skincancer.config.names import known_names
    from skincancer.schema.dotted_keys import SECTIONS

    experiments = list(list_experiments())
    choices = known_names() | {"experiment": experiments, "experiments": experiments}
    parser = argparse.ArgumentParser(prog="skincancer")
    for flag in ("--version", _COMPLETION):
        parser.add_argument(flag)
    subcommands = parser.add_subparsers()
    for verb, (summary, _) in VERBS.items():
        subparser = subcommands.add_parser(verb, help=summary, add_help=False)
        for action in importlib.import_module(f"skincancer.{verb}").make_parser()._actions:
            if action.help != argparse.SUPPRESS and action.dest not in SECTIONS:
                action.choices = choices.get(action.dest)
                subparser._add_action(action)
    return parser


if __name__ == "__main__":
    sys.exit(main())
