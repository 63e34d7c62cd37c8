"""Process of an engine, which runs trials, fits and evaluations (`skincancer.engines.process`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from skincancer import evaluate, fit
from skincancer.config.resolve import resolve
from skincancer.engines import process
from skincancer.engines.machine_check import data_facts, store_facts
from skincancer.engines.process import OrderLink
from skincancer.runs.store import RunStore


def _trial(config: str, argv: Sequence[str], link: OrderLink) -> int:
    experiment, _ = resolve(config, {})
    fit.fit(experiment, trial=link)
    return 0


def _check(config: str, argv: Sequence[str], link: OrderLink) -> int:
    experiment = resolve(config, {})[0] if config else None
    store = RunStore(experiment.tracking.uri if experiment else None)
    facts = store_facts(store)
    if experiment:
        facts |= data_facts(experiment, store, link.parent)
    link.send(facts=facts)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run orders until standard input ends. Return the exit code."""
    handlers: dict[str, process.Handler] = {
        "trial": _trial,
        "fit": lambda config, argv, link: fit.main(argv),
        "evaluate": lambda config, argv, link: evaluate.main(argv),
        "check": _check,
    }
    return process.main(sys.argv[1:] if argv is None else argv, handlers)


if __name__ == "__main__":
    sys.exit(main())
