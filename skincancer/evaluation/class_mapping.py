"""The classes that a run is evaluated in, on data whose classes differ from its own: whose probabilities are summed, which labels merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from skincancer.errors import ConfigError, nearest

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BENIGN, MALIGNANT = TWO = ("benign", "malignant")
REST = "*"  # in a given mapping: every class that is named nowhere
HOW_TO_MAP = (
    "Say which belong together with --map TARGET=CLASS+CLASS …, such as --map melanoma=mel+melanoma other=* (* is every class that "
    "is not named), or with --map FILE.yaml; of malignant against benign with --data.target malignancy."
)


@dataclass(frozen=True)
class ClassMapping:
    """From a run's classes, and from a data set's, to those that both are compared in.

    Attributes:
        kind: same (names), subset (the data set lacks classes of the run), malignancy, or given.
        classes: what is compared; of two the second is the positive one.
        positive: those of `classes` that count as malignant, or positive; empty where nobody knows.
        run_classes, data_classes: in their orders.
        of_run: a position in `classes` for each of `run_classes`.
        of_data: a position in `classes` for each of `data_classes`.
    """

    kind: Literal["same", "subset", "malignancy", "given"]
    classes: tuple[str, ...]
    positive: tuple[str, ...]
    run_classes: tuple[str, ...]
    data_classes: tuple[str, ...]
    of_run: tuple[int, ...]
    of_data: tuple[int, ...]

    @property
    def identity(self) -> bool:
        """Whether the run's classes stay as they are."""
        return self.classes == self.run_classes

    def probability(self, probability: Floats) -> Floats:
        """Return probabilities (N, C) of the classes compared: sums of the run's (N, R). Nothing is renormalised."""
        return probability if self.identity else probability @ np.eye(len(self.classes))[list(self.of_run)]

    def logits(self, logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Return logits (N, C) whose softmax is `probability` of the softmax of the run's (N, R): log of sums of exponentials."""
        if self.identity:
            return logits
        from scipy.special import logsumexp

        of_run = np.array(self.of_run)
        return np.stack([logsumexp(logits[:, of_run == c], axis=1) for c in range(len(self.classes))], axis=1)

    def run_label(self, label: Ints) -> Ints:
        """Return labels (N,) in the classes compared of labels in the run's; −1 stays."""
        return np.array([*self.of_run, -1], dtype=np.int64)[label]

    def data_label(self, label: Ints) -> Ints:
        """Return labels (N,) in the classes compared of labels in the data set's; −1 stays."""
        return np.array([*self.of_data, -1], dtype=np.int64)[label]

    def malignant(self, run_malignant: Sequence[str]) -> tuple[str, ...]:
        """Return those of `classes` whose classes of the run all are known to be malignant."""
        benign = {to for name, to in zip(self.run_classes, self.of_run, strict=True) if name not in run_malignant}
        return tuple(name for number, name in enumerate(self.classes) if number not in benign)

    def describe(self) -> str:
        """Say in one line what becomes what."""
        if self.kind == "same":
            return f"the same classes: {', '.join(self.classes)}"
        if self.kind == "subset":
            return (
                f"the run's classes: {', '.join(self.classes)}; the data set has {', '.join(self.data_classes)} alone. Nothing is "
                "renormalised: a prediction of a class that the data set does not have is wrong"
            )
        parts = []
        for number, name in enumerate(self.classes):
            run = [c for c, to in zip(self.run_classes, self.of_run, strict=True) if to == number]
            data = [c for c, to in zip(self.data_classes, self.of_data, strict=True) if to == number]
            parts.append(f"{name} = {' + '.join(run)} of the run, {' + '.join(data) or 'no class'} of the data set")
        return "; ".join(parts)


def map_classes(
    run_classes: Sequence[str],
    run_malignant: Sequence[str],
    data_classes: Sequence[str],
    data_malignant: Sequence[str],
    given: Mapping[str, Sequence[str]] | None = None,
) -> ClassMapping:
    """Find the classes that a run and a data set are compared in.

    What is given goes first. The same names, in any order, are the same classes, in the run's order. A data set that lacks some
    of the run's classes is compared in the run's. Where one side has benign and malignant, and of the other it is known which classes
    are malignant, both are compared in those two.

    Args:
        run_classes: of the run, in the order of its probabilities.
        run_malignant: those that count as malignant; empty where unknown.
        data_classes: of the data set, in the order of its labels.
        data_malignant: those that count as malignant; empty where unknown.
        given: target to the classes, of either side, that belong to it, or `*` for the rest; a class that is itself a target needs
            no mention. Of two targets the one whose classes of the run are all malignant, and those of the other not, is the positive
            one, else the second.

    Raises:
        ConfigError: what is given does not fit, or the classes cannot be mapped; shows both.
    """
    run, data = tuple(run_classes), tuple(data_classes)
    if given is not None:
        return _given(run, tuple(run_malignant), data, given)
    if set(data) <= set(run):
        positive = tuple(name for name in run if name in run_malignant) or (run[1:] if len(run) == 2 else ())
        kind: Literal["same", "subset"] = "same" if len(data) == len(run) else "subset"
        own = tuple(range(len(run)))
        return ClassMapping(kind, run, positive, run, data, own, tuple(run.index(name) for name in data))
    if set(TWO) in (set(run), set(data)):
        known = [_malignant_of(run, run_malignant), _malignant_of(data, data_malignant)]
        if all(known):
            of_run, of_data = (
                tuple(int(name in malignant) for name in names)
                for names, malignant in zip((run, data), known, strict=True)
            )
            return ClassMapping("malignancy", TWO, (MALIGNANT,), run, data, of_run, of_data)
    raise ConfigError(f"{_both(run, data)} They cannot be mapped by their names. {HOW_TO_MAP}")


def _malignant_of(classes: tuple[str, ...], malignant: Sequence[str]) -> tuple[str, ...]:
    return (MALIGNANT,) if set(classes) == set(TWO) else tuple(malignant)


def _both(run: tuple[str, ...], data: tuple[str, ...]) -> str:
    return f"the run's classes are {', '.join(run)}; those of the data set are {', '.join(data)}."


def _given(
    run: tuple[str, ...], run_malignant: tuple[str, ...], data: tuple[str, ...], given: Mapping[str, Sequence[str]]
) -> ClassMapping:
    targets = list(given)
    known = list(dict.fromkeys([*run, *data]))
    place: dict[str, str] = {}
    rest = [target for target, names in given.items() if REST in names]
    if len(targets) < 2 or len(rest) > 1:
        what = f"names {len(targets)} target" if len(targets) < 2 else f"gives {REST} to {' and to '.join(rest)}"
        raise ConfigError(f"--map {what}; give at least two targets, and {REST} to one at most. {_both(run, data)}")
    for target, names in given.items():
        for name in names:
            if name != REST and name not in known:
                raise ConfigError(
                    f"--map {target}: {name!r} is no class of either.{nearest(name, known)} {_both(run, data)}"
                )
            if name != REST and place.setdefault(name, target) != target:
                raise ConfigError(f"--map gives {name!r} to {place[name]!r} and to {target!r}; give it to one.")
    for name in known:
        if name not in place and (name in given or rest):
            place[name] = name if name in given else rest[0]
    missing = [name for name in known if name not in place]
    if missing:
        raise ConfigError(
            f"--map says nothing of {', '.join(missing)}; name them, or give {REST} to a target. {_both(run, data)}"
        )
    for target in targets:
        if target not in {place[name] for name in run}:
            raise ConfigError(
                f"--map {target}: none of the run's classes belongs to it, so it could never be predicted. {_both(run, data)}"
            )
    members = {target: {name for name in run if place[name] == target} for target in targets}
    positive = tuple(target for target in targets if members[target] <= set(run_malignant))
    if len(targets) == 2:
        if len(positive) != 1:
            positive = (targets[1],)
        targets.sort(key=lambda target: target in positive)
    of_run, of_data = (tuple(targets.index(place[name]) for name in names) for names in (run, data))
    return ClassMapping("given", tuple(targets), positive, run, data, of_run, of_data)


def parse_map(words: Sequence[str]) -> dict[str, list[str]]:
    """Read `--map`: `target=class+class` words, or one YAML file of `target: [class, class]` (or `class+class`).

    Raises:
        ConfigError: neither of them.
    """
    if len(words) == 1 and words[0].endswith((".yaml", ".yml")):
        from skincancer.system.yaml_files import load_yaml

        content = load_yaml(Path(words[0]).expanduser())
        pairs = [(str(target), names) for target, names in content.items()]
    else:
        pairs = []
        for word in words:
            target, equals, names = word.partition("=")
            if not (target and equals and names):
                raise ConfigError(f"--map {word}: give TARGET=CLASS+CLASS, such as melanoma=mel, or one YAML file.")
            if target in dict(pairs):
                raise ConfigError(f"--map names the target {target!r} twice; give its classes once, joined by +.")
            pairs.append((target, names))
    found: dict[str, list[str]] = {}
    for target, names in pairs:
        members = names.split("+") if isinstance(names, str) else names
        if not isinstance(members, list) or not members or not all(isinstance(name, str) and name for name in members):
            raise ConfigError(f"--map {target}: {names!r} must be names of classes: a list, or joined by +.")
        found[target] = members
    return found
