"""Figures of an Optuna study: history, learning curves, slices, parallel coordinates, importance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from skincancer.visualization.style import INK, PALETTE, finish_axes, legend_of_panels, new_figure

_PRUNED, _BEST = "#b8b8b8", PALETTE[1]
# The scale starts at grey and not at white, so that the worst trials are visible.
_SCALE = LinearSegmentedColormap.from_list("worse to better", ["#c9c9c9", "#9ecae1", "#3182bd", "#08306b"])


def sweep_figures(
    study: optuna.Study, objective: str, title: str, note: str, counts: Callable[[FrozenTrial], bool]
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Yield names and drawing functions of the figures of the complete trials.

    Args:
        study: Study with its trials.
        objective: Name of the objective, such as best/auroc_macro.
        title: Title of each figure.
        note: Small text below the title.
        counts: Returns whether a trial is shown if it failed.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return
    yield "history", partial(history, study, complete, objective, title, note, counts)
    yield "learning_curves", partial(learning_curves, study, title, note)
    yield "slice", partial(slices, study, complete, objective, title, note)
    if len(complete) > 1:
        yield "parallel_coordinate", partial(parallel_coordinate, study, complete, objective, title, note)
    if len({trial.value for trial in complete}) > 1:
        yield "importance", partial(importance, study, objective, title, note)


def history(
    study: optuna.Study,
    complete: Sequence[FrozenTrial],
    objective: str,
    title: str,
    note: str,
    counts: Callable[[FrozenTrial], bool],
) -> Figure:
    """Plot the objective of each trial, and the best so far."""
    figure = new_figure((8, 4.2), title, note)
    axes = figure.subplots()
    numbers, values = [trial.number for trial in complete], _values(complete)
    best = np.minimum.accumulate(values) if _minimizes(study) else np.maximum.accumulate(values)
    axes.step(numbers, best, where="post", color=_BEST, linewidth=1.6, label="best so far")
    axes.plot(numbers, values, "o", color=PALETTE[0], markersize=5, label="complete")
    for state, mark in ((TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed")):
        ended = study.get_trials(deepcopy=False, states=(state,))
        where = [trial.number for trial in ended if counts(trial)]
        if where:
            low = np.full(len(where), axes.get_ylim()[0])
            axes.plot(where, low, "|" if mark == "pruned" else "x", color=INK, markersize=7, label=f"{mark} (no value)")
    axes.set_xlabel("trial")
    axes.set_ylabel(objective)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, [axes])
    return figure


def learning_curves(study: optuna.Study, title: str, note: str) -> Figure:
    """Plot the monitored value of each epoch of each trial, with the best highlighted."""
    figure = new_figure((8, 4.2), title, note)
    axes = figure.subplots()
    best = study.best_trial.number
    for trial in study.get_trials(deepcopy=False):
        if not trial.intermediate_values or trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            continue
        epochs = sorted(trial.intermediate_values)
        values = [trial.intermediate_values[epoch] for epoch in epochs]
        if trial.number == best:
            axes.plot(epochs, values, color=_BEST, linewidth=2.2, zorder=3, label=f"best: trial {best}")
        elif trial.state == TrialState.PRUNED:
            axes.plot(epochs, values, color=_PRUNED, linewidth=0.9, label="pruned")
            axes.plot(epochs[-1], values[-1], "x", color=_PRUNED, markersize=5)
        else:
            axes.plot(epochs, values, color=PALETTE[0], linewidth=0.9, alpha=0.7, label="complete")
    axes.set_xlabel("epoch")
    axes.set_ylabel("monitored value")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, [axes])
    return figure


def slices(study: optuna.Study, complete: Sequence[FrozenTrial], objective: str, title: str, note: str) -> Figure:
    """Plot the objective against each key."""
    keys = _keys(complete)
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = new_figure((3.4 * columns + 1.2, 3.0 * rows + 0.8), title, note)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(keys) :]:
        axes.set_visible(False)
    for number, (axes, (key, kind)) in enumerate(zip(grid.flat, keys.items(), strict=False)):
        chosen = [trial.params[key] for trial in complete]
        if isinstance(kind, CategoricalDistribution):
            places: Any = [kind.choices.index(value) for value in chosen]
            axes.set_xticks(range(len(kind.choices)), [str(choice) for choice in kind.choices], fontsize=8)
            axes.set_xlim(-0.5, len(kind.choices) - 0.5)
        else:
            places = chosen
            if getattr(kind, "log", False):
                axes.set_xscale("log")
                # Labels of minor ticks would overlap.
                axes.xaxis.set_minor_locator(NullLocator())
                ends = [kind.low, np.sqrt(kind.low * kind.high), kind.high]
                axes.set_xticks(ends, [f"{end:.2g}" for end in ends])
        axes.plot(places, _values(complete), "o", color=PALETTE[0], markersize=4.5, alpha=0.8)
        best = complete.index(next(trial for trial in complete if trial.number == study.best_trial.number))
        axes.plot(places[best], _values(complete)[best], "o", color=_BEST, markersize=7, label="best")
        axes.set_xlabel(key, fontsize=9)
        if number % columns == 0:
            axes.set_ylabel(objective)
        finish_axes(axes)
    legend_of_panels(figure)
    return figure


def parallel_coordinate(
    study: optuna.Study, complete: Sequence[FrozenTrial], objective: str, title: str, note: str
) -> Figure:
    """Plot each complete trial as a line over all keys, darker for better objectives."""
    keys, values = _keys(complete), _values(complete)
    figure = new_figure((max(8.0, 1.7 * len(keys) + 2), 4.6), title, note)
    axes = figure.subplots()
    scale = Normalize(values.min(), values.max() if values.max() > values.min() else values.min() + 1e-9)
    colours = _SCALE.reversed() if _minimizes(study) else _SCALE
    places = np.stack([_places(kind, [trial.params[key] for trial in complete]) for key, kind in keys.items()])
    order = np.argsort(values)[:: -1 if _minimizes(study) else 1]
    # The best trial is plotted last, on top.
    for index in order:
        axes.plot(range(len(keys)), places[:, index], color=colours(scale(values[index])), linewidth=1.3)
    for number, kind in enumerate(keys.values()):
        axes.axvline(number, color=INK, linewidth=0.8)
        for place, label in _marks(kind):
            axes.annotate(
                label, (number, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8, color=INK,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )  # fmt: skip
    axes.set_xticks(range(len(keys)), list(keys), fontsize=8, rotation=18, ha="right")
    axes.set_yticks([])
    axes.set_xlim(-0.05, len(keys) - 0.6)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    figure.colorbar(ScalarMappable(scale, colours), ax=axes, label=objective, fraction=0.04)
    return figure


def importance(study: optuna.Study, objective: str, title: str, note: str) -> Figure:
    """Plot the importance of each key for the objective.

    The evaluator is the default of Optuna (PED-ANOVA, Watanabe et al. 2023).
    """
    shares = optuna.importance.get_param_importances(study)
    figure = new_figure((8, 0.42 * len(shares) + 1.7), title, note)
    axes = figure.subplots()
    names = list(shares)[::-1]
    axes.barh(names, [shares[name] for name in names], color=PALETTE[0], height=0.6)
    for place, name in enumerate(names):
        axes.annotate(
            f"{shares[name]:.2f}", (shares[name], place), xytext=(4, 0), textcoords="offset points", va="center"
        )
    axes.set_xlabel(f"importance for {objective}")
    axes.set_xlim(0, max(shares.values()) * 1.12)
    finish_axes(axes)
    return figure


def _minimizes(study: optuna.Study) -> bool:
    return study.direction == optuna.study.StudyDirection.MINIMIZE


def _values(trials: Sequence[FrozenTrial]) -> npt.NDArray[np.float64]:
    return np.array([trial.value for trial in trials], dtype=np.float64)


def _keys(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    return dict(trials[0].distributions)


def _place(kind: Any) -> Callable[[Any], float]:
    """Return a function that scales values of a key to [0, 1]."""
    if isinstance(kind, CategoricalDistribution):
        return lambda value: (kind.choices.index(value) + 0.5) / len(kind.choices)
    change = np.log if kind.log else float
    low, high = change(kind.low), change(kind.high)
    return lambda value: float((change(value) - low) / (high - low))


def _places(kind: BaseDistribution, values: Sequence[Any]) -> npt.NDArray[np.float64]:
    return np.array([_place(kind)(value) for value in values])


def _marks(kind: Any) -> list[tuple[float, str]]:
    if isinstance(kind, CategoricalDistribution):
        marked = list(kind.choices)
    else:
        middle = np.sqrt(kind.low * kind.high) if kind.log else (kind.low + kind.high) / 2
        marked = [kind.low, middle, kind.high]
    return [(_place(kind)(value), f"{value:.3g}" if isinstance(value, float) else str(value)) for value in marked]


def _finish(figure: Figure, panels: Sequence[Axes]) -> None:
    for axes in panels:
        finish_axes(axes)
    legend_of_panels(figure)
