"""Evaluate several runs, each by itself and in its own process."""

from __future__ import annotations

from collections.abc import Sequence

from skincancer.engines.orders import Order
from skincancer.engines.resources import Resources
from skincancer.engines.run_orders import raise_failures, run_orders
from skincancer.evaluation.external import load_fit
from skincancer.runs.store import RunStore
from skincancer.system.console import make_console


def evaluate_each(runs: Sequence[str], words: Sequence[str], resources: Resources, uri: str | None) -> list[str]:
    """Evaluate several runs, each by itself.

    Args:
        runs: ids of finished fits, folders of their artifacts, or registered models.
        words: command line of evaluate without `--run`.
        resources: machines, GPUs and cores.
        uri: MLflow store.

    Returns:
        MLflow run ids of the evaluations.

    Raises:
        RunError: a run is unknown, the store or the cluster cannot be used, or an evaluation failed.
    """
    console = make_console()
    store = RunStore(uri).open()
    names = {run: load_fit(run, store).settings["name"] for run in runs}
    orders = [
        Order(number, "evaluate", f"evaluate_{number:03d}", argv=("--run", run, *words))
        for number, run in enumerate(runs)
    ]
    finished = run_orders(
        orders, [f"evaluation of {names[run]} ({run})" for run in runs], resources, store, "auto",
        lambda text: console.print(text, markup=False),
    )  # fmt: skip
    raise_failures(finished, "evaluations")
    return [done.run_id for done in finished]
