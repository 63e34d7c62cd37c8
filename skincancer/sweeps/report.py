"""Report of a sweep: live table, MLflow run, trials, figures and best configuration."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from skincancer.data.catalog import SYNTHETIC_NOTE
from skincancer.data.prepare import PreparedData
from skincancer.metrics.names import best_name
from skincancer.runs.artifacts import BEST_FILE, TRIALS_FILE, config_to_keep, figure_file
from skincancer.runs.dataset_inputs import data_tags
from skincancer.runs.lifecycle import RunWriter, check_stopped, start_run
from skincancer.runs.store import RunStore
from skincancer.sweeps.study import Sweep
from skincancer.sweeps.trial_state import ENDED, PLACE, REASON, RUN_ID, THREADS, counts_towards_total
from skincancer.sweeps.trials import bury
from skincancer.system.console import clock, is_live, make_table, optional
from skincancer.system.credentials import mask_password
from skincancer.system.files import write_whole
from skincancer.system.yaml_files import dump_yaml
from skincancer.visualization.optuna_figures import sweep_figures
from skincancer.visualization.style import save

OWNER_FILE = "run_id"
_DRAW_SECONDS = 1.0
# Silence after which a driver on another machine is considered dead.
SILENT_SECONDS = 600.0


class SweepRecord:
    """Recorder and printer of one sweep.

    Args:
        sweep: Opened sweep.
        name: Name of the study.
        data: Prepared data.
        console: Console for printed lines.
        places: PLACE_KEYS of this machine, except the MLflow store.
        store: MLflow store.
    """

    def __init__(
        self, sweep: Sweep, name: str, data: PreparedData, console: Console, places: Mapping[str, Any], store: RunStore
    ) -> None:
        self.sweep, self.name, self.data, self.store = sweep, name, data, store
        self.console, self.places = console, places
        self.folder = own_folder(store.sweeps_folder / name, sweep.study.user_attrs.get("parent_run"))
        self.objective = best_name(sweep.base.training.monitor)
        self.note = SYNTHETIC_NOTE if data.entry.synthetic else ""
        self.run: RunWriter | None = None
        self._best = -1
        self._printed = {trial.number for trial in sweep.trials() if trial.state.is_finished()}

    @contextlib.contextmanager
    def start(self, trials: int) -> Iterator[RunWriter]:
        """Start or resume the MLflow run of the sweep, with `trials` in total.

        Raises:
            RunError: Another process runs the sweep, or its MLflow run is missing.
        """
        base, plan = self.sweep.base, self.sweep.plan
        before = self.sweep.study.user_attrs.get("parent_run")
        if before:
            check_stopped(self.store, before, f"sweep {self.name}", SILENT_SECONDS)
        dead = self.sweep.begin(trials)
        bury(
            self.store.client,
            [trial.user_attrs[RUN_ID] for trial in dead if RUN_ID in trial.user_attrs],
            "its sweep died",
        )
        tags = {"kind": "sweep", **data_tags(self.data), "trials": str(self.sweep.total)}
        group = f"{self.data.entry.name}-{base.task}"
        with start_run(self.store, group, f"sweep {self.name}", tags, system_metrics=False, resume=before) as run:
            self.run = run
            self.sweep.study.set_user_attr("parent_run", run.run_id)
            self.folder = own_folder(self.store.sweeps_folder / self.name, run.run_id)
            self.console.print(f"sweep {run.run_id} in {group}" + (" (resumed)" if before else ""))
            params = {
                "experiment": base.name, "task": base.task, "dataset": self.data.entry.name, "split": base.data.split,
                "split_seed": base.data.split_seed, "seed": base.seed, "study": self.name, "storage": mask_password(self.sweep.url),
                "objective": self.objective, "sampler": plan.sampler, "pruner": plan.pruner, "search": json.dumps(plan.search),
            }  # fmt: skip
            run.log_params(params)
            run.write_config(base)
            yield run

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def live(self) -> Iterator[Callable[[], None]]:
        """Yield a function that shows the progress of the sweep.

        It draws a table on a terminal, and prints one line per trial otherwise.
        """
        last = 0.0
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            live = None
            if is_live(self.console):
                live = stack.enter_context(Live(console=self.console, auto_refresh=False, transient=True))

            def tick() -> None:
                nonlocal last
                if time.monotonic() - last < _DRAW_SECONDS:
                    return
                last = time.monotonic()
                trials = self.sweep.trials()
                if live:
                    live.update(self.table(trials, time.monotonic() - started), refresh=True)
                self._print_ended(trials)
                # A later call repeats a failed write, and the last call raises its error.
                with contextlib.suppress(MlflowException, OSError):
                    self._keep_best()

            yield tick
            last = 0.0
            tick()

    def table(self, trials: list[FrozenTrial], seconds: float) -> Table:
        """Return the live table: counts, best trial, time left, running trials."""
        state = {name: sum(t.state == name and counts_towards_total(t) for t in trials) for name in TrialState}
        done = sum(state.values()) - state[TrialState.RUNNING]
        best = self.sweep.best()
        table = Table(title=Text(f"sweep {self.name}"), title_justify="left")
        for column in ("trials", "running", "pruned", "failed", self.objective, "elapsed", "time left"):
            table.add_column(column)
        table.add_row(
            f"{done} of {self.sweep.total}", str(state[TrialState.RUNNING]), str(state[TrialState.PRUNED]),
            str(state[TrialState.FAIL]), f"{best.value:.4f} (trial {best.number})" if best else "–", clock(seconds),
            clock(_seconds_left(trials, self.sweep.total - done, max(1, state[TrialState.RUNNING]))),
        )  # fmt: skip
        for trial in trials:
            if trial.state == TrialState.RUNNING and counts_towards_total(trial):
                epoch = max(trial.intermediate_values, default=0)
                value = f", {trial.intermediate_values[epoch]:.4f}" if epoch else ""
                table.add_row(
                    f"trial {trial.number}",
                    f"epoch {epoch}/{self.sweep.base.trainer.max_epochs}{value}",
                    Text(trial.user_attrs.get(PLACE, "")),
                    "",
                    Text(_point(trial)),
                )
        return table

    def _print_ended(self, trials: list[FrozenTrial]) -> None:
        for trial in trials:
            if not trial.state.is_finished() or trial.number in self._printed:
                continue
            self._printed.add(trial.number)
            if not counts_towards_total(trial):
                what = f"{trial.user_attrs.get(ENDED)}: does not count, is repeated"
            elif trial.state == TrialState.COMPLETE:
                what = f"{self.objective} {trial.value:.4f}"
            elif trial.state == TrialState.PRUNED:
                what = f"pruned after epoch {max(trial.intermediate_values, default=0)}"
            else:
                what = f"failed: {trial.user_attrs.get(REASON, '')}"
            self.console.print(Text(f"trial {trial.number}: {what} ({_point(trial)})"))

    def _keep_best(self) -> None:
        """Save the best configuration as soon as it is known."""
        best = self.sweep.best()
        if self.run is None or best is None or best.number == self._best:
            return
        text = self.best_yaml(best)
        write_whole(self.folder / BEST_FILE, text)
        self.run.write_text(BEST_FILE, text)
        # MLflow shows the value of the highest step, and trials do not end in the order of their numbers.
        ended = sum(trial.state.is_finished() for trial in self.sweep.trials())
        self.run.log_metrics({self.objective: float(best.value or 0)}, step=ended)
        self.run.set_tags({"best_trial": str(best.number), "best_run": str(best.user_attrs.get(RUN_ID, ""))})
        self._best = best.number

    def best_yaml(self, best: FrozenTrial) -> str:
        """Return an experiment file that repeats a trial, starting with the command."""
        experiment = self.sweep.plan.resolve(best.params, self.places)
        text = f"trial {best.number} of the sweep {self.name}: {self.objective} {best.value:.4f} with {_point(best)}"
        kept = config_to_keep(experiment, name=f"{self.sweep.base.name}_best", description=text, search={})
        return f"# repeat this trial with: {_fit_command(best, BEST_FILE)}\n{dump_yaml(kept)}"

    def finish(self, run: RunWriter) -> None:
        """Log the table of trials, the best configuration, and the figures."""
        self._keep_best()
        run.write_table(TRIALS_FILE, trials_table(self.sweep, self.objective))
        title = f"{self.name} · {self.objective}"
        for name, draw in sweep_figures(self.sweep.study, self.objective, title, self.note, counts_towards_total):
            with optional(self.console, f"the figure {name}"):
                save(draw(), run.figure_path(name))
                run.log_file(figure_file(name))

    def report(self) -> None:
        """Print the best trials and the next commands."""
        table = trials_table(self.sweep, self.objective)
        shown_columns = ["trial", "state", self.objective, "minutes", *self.sweep.plan.search]
        order = table.sort_values(
            self.objective, ascending=self.sweep.study.direction.name == "MINIMIZE", na_position="last"
        )
        rows = [[_cell(value) for value in row] for row in order[shown_columns].head(10).to_numpy()]
        self.console.print(make_table(f"sweep {self.name}: the best of {len(table)} trials", shown_columns, rows))
        over, best = self.sweep.is_over(), self.sweep.best()
        if not over:
            done = sum(counts_towards_total(trial) and trial.state.is_finished() for trial in self.sweep.trials())
            self.console.print(f"{done} of {self.sweep.total} trials have ended; rerun the same command to continue")
        if best:
            command = _fit_command(best, str(self.folder / BEST_FILE))
            self.console.print(f"best configuration, evaluated on the test set: {command}", markup=False)
        assert self.run is not None
        self.console.print(f"sweep {self.run.run_id} in {self.store}", markup=False)


def own_folder(folder: Path, run_id: str | None) -> Path:
    """Return the folder of a sweep on this machine.

    A sweep of the same name in another storage may already use `folder`. Then the run id is appended to the name.

    Args:
        folder: Folder with the name of the study.
        run_id: MLflow run id of the sweep, None before it starts.
    """
    if run_id is None:
        return folder
    owner = folder / OWNER_FILE
    if owner.is_file() and owner.read_text(encoding="utf-8") != run_id:
        return folder.with_name(f"{folder.name}-{run_id[:8]}")
    write_whole(owner, run_id)
    return folder


def _fit_command(best: FrozenTrial, path: str) -> str:
    """Return the command that repeats a trial.

    It contains the number of threads, because floating-point sums depend on this number.
    """
    threads = best.user_attrs.get(THREADS)
    prefix = f"OMP_NUM_THREADS={threads} " if threads else ""
    return f"{prefix}python -m skincancer.fit --experiment {path}"


def trials_table(sweep: Sweep, objective: str) -> pd.DataFrame:
    """Return one row per trial.

    Columns: trial state counts ended (reason why it does not count) objective start end minutes epochs last_epoch_value run_id place
    reason, and the keys of the search space. A pruned trial has no objective, but the monitored value of its last epoch. Start and end
    are local times of the driver.
    """
    rows = []
    for trial in sweep.trials():
        if trial.state == TrialState.WAITING:
            continue
        start, end = trial.datetime_start, trial.datetime_complete
        last = max(trial.intermediate_values, default=0)
        row = {
            "trial": trial.number, "state": trial.state.name, "counts": counts_towards_total(trial),
            "ended": trial.user_attrs.get(ENDED, ""),
            objective: trial.value if trial.state == TrialState.COMPLETE else None,
            "start": start, "end": end, "minutes": (end - start).total_seconds() / 60 if start and end else None,
            "epochs": last, "last_epoch_value": trial.intermediate_values.get(last),
            "run_id": trial.user_attrs.get(RUN_ID, ""), "place": trial.user_attrs.get(PLACE, ""),
            "reason": trial.user_attrs.get(REASON, ""),
        }  # fmt: skip
        rows.append(row | trial.params)
    columns = [
        "trial", "state", "counts", "ended", objective, "start", "end", "minutes", "epochs", "last_epoch_value", "run_id", "place",
        "reason",
        *sweep.plan.search,
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns).astype({objective: float})


def _seconds_left(trials: list[FrozenTrial], left: int, workers: int) -> float | None:
    took = [
        (trial.datetime_complete - trial.datetime_start).total_seconds()
        for trial in trials
        if counts_towards_total(trial) and trial.datetime_complete and trial.datetime_start
    ]
    if not took:
        return None
    running = sum(
        min((datetime.now() - trial.datetime_start).total_seconds(), sum(took) / len(took))
        for trial in trials
        if trial.state == TrialState.RUNNING and counts_towards_total(trial) and trial.datetime_start
    )
    return max(0.0, left * sum(took) / len(took) - running) / workers


def _point(trial: FrozenTrial) -> str:
    return ", ".join(f"{key} {_cell(value)}" for key, value in trial.params.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if pd.isna(value) else f"{value:.4g}"
    return str(value)
