"""Mapping of the classes of runs and data sets to common classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from skincancer.errors import ConfigError, nearest
from skincancer.system.paths import user_path
from skincancer.system.yaml_files import load_yaml

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BENIGN, MALIGNANT = TWO = ("benign", "malignant")
# All classes that an explicit mapping does not name.
REST = "*"
HOW_TO_MAP = (
    "Use --map TARGET=CLASS+CLASS …, such as --map melanoma=mel+melanoma other=* (* is every class that is not named), or --map "
    "FILE.yaml; for malignant against benign, use --data.target malignancy."
)


@dataclass(frozen=True)
class ClassMapping:
    """Mapping from classes of a run and a data set to compared classes.

    Attributes:
        kind: same (equal names), subset (the data set lacks classes of the run), malignancy, or given.
        classes: compared classes. The second of two is the positive one.
        positive: positive (malignant) classes among `classes`, empty if unknown.
        run_classes, data_classes: class names in label order.
        of_run, of_data: position in `classes` of each of `run_classes` and `data_classes`.
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
        """Whether the compared classes are those of the run."""
        return self.classes == self.run_classes

    def probability(self, probability: Floats) -> Floats:
        """Sum probabilities (N, R) of the run to (N, C) of the compared classes."""
        return probability if self.identity else probability @ np.eye(len(self.classes))[list(self.of_run)]

    def logits(self, logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Return logits (N, C) of the compared classes, consistent with `probability`."""
        if self.identity:
            return logits
        of_run = np.array(self.of_run)
        return np.stack([logsumexp(logits[:, of_run == c], axis=1) for c in range(len(self.classes))], axis=1)

    def run_label(self, label: Ints) -> Ints:
        """Map labels (N,) of the run to the compared classes. −1 is unchanged."""
        return np.array([*self.of_run, -1], dtype=np.int64)[label]

    def data_label(self, label: Ints) -> Ints:
        """Map labels (N,) of the data set to the compared classes. −1 is unchanged."""
        return np.array([*self.of_data, -1], dtype=np.int64)[label]

    def malignant(self, run_malignant: Sequence[str]) -> tuple[str, ...]:
        """Return the compared classes that consist of malignant classes of the run only."""
        benign = {to for name, to in zip(self.run_classes, self.of_run, strict=True) if name not in run_malignant}
        return tuple(name for number, name in enumerate(self.classes) if number not in benign)

    def describe(self) -> str:
        """Describe the mapping in one line."""
        if self.kind == "same":
            return f"the same classes: {', '.join(self.classes)}"
        if self.kind == "subset":
            return (
                f"the run's classes: {', '.join(self.classes)}; the data set has only {', '.join(self.data_classes)}. Probabilities "
                "are not renormalised: a prediction of a class that the data set lacks is wrong"
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
    explicit: Mapping[str, Sequence[str]] | None = None,
) -> ClassMapping:
    """Map the classes of a run and of a data set to common classes.

    An explicit mapping has priority. Otherwise names count as equal if only their case differs. Equal sets of names, and a data set that
    lacks some classes of the run, are compared in the classes of the run. If one of the two has benign and malignant, and the malignant
    classes of the other are known, both are compared in these two.

    Args:
        run_classes: classes of the run in label order.
        run_malignant: malignant classes of the run, empty if unknown.
        data_classes: classes of the data set in label order.
        data_malignant: malignant classes of the data set, empty if unknown.
        explicit: explicit mapping from target to classes of the run or the data set, or `*` for the rest. A class with the name of a
            target belongs to it. Of two targets, the positive one is that of malignant classes of the run, otherwise the second.

    Raises:
        ConfigError: the explicit mapping is invalid, or the classes cannot be mapped.
    """
    run, data = tuple(run_classes), tuple(data_classes)
    if explicit is not None:
        return _map_explicitly(run, tuple(run_malignant), data, explicit)
    folded_run, folded_data = _folded(run), _folded(data)
    if set(folded_data) <= set(folded_run):
        positive = tuple(name for name in run if name in run_malignant) or (run[1:] if len(run) == 2 else ())
        kind: Literal["same", "subset"] = "same" if len(data) == len(run) else "subset"
        of_data = tuple(folded_run.index(name) for name in folded_data)
        return ClassMapping(kind, run, positive, run, data, tuple(range(len(run))), of_data)
    if set(TWO) in (set(folded_run), set(folded_data)):
        known = [_malignant_of(run, run_malignant), _malignant_of(data, data_malignant)]
        if all(known):
            of_run, of_data = (
                tuple(int(name in malignant) for name in names)
                for names, malignant in zip((run, data), known, strict=True)
            )
            return ClassMapping("malignancy", TWO, (MALIGNANT,), run, data, of_run, of_data)
    raise ConfigError(f"{_both(run, data)} They cannot be mapped by their names. {HOW_TO_MAP}")


def _folded(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in lower case, unchanged if two would become equal."""
    folded = tuple(name.casefold() for name in classes)
    return folded if len(set(folded)) == len(classes) else classes


def _malignant_of(classes: tuple[str, ...], malignant: Sequence[str]) -> tuple[str, ...]:
    folded = _folded(classes)
    return (classes[folded.index(MALIGNANT)],) if set(folded) == set(TWO) else tuple(malignant)


def _both(run: tuple[str, ...], data: tuple[str, ...]) -> str:
    return f"the run's classes are {', '.join(run)}; those of the data set are {', '.join(data)}."


def _map_explicitly(
    run: tuple[str, ...], run_malignant: tuple[str, ...], data: tuple[str, ...], explicit: Mapping[str, Sequence[str]]
) -> ClassMapping:
    targets = list(explicit)
    known = list(dict.fromkeys([*run, *data]))
    place: dict[str, str] = {}
    rest = [target for target, names in explicit.items() if REST in names]
    if len(targets) < 2 or len(rest) > 1:
        problem = f"names {len(targets)} target" if len(targets) < 2 else f"assigns {REST} to {' and to '.join(rest)}"
        raise ConfigError(f"--map {problem}; use at least two targets, and {REST} once at most. {_both(run, data)}")
    for target, names in explicit.items():
        for name in names:
            if name != REST and name not in known:
                raise ConfigError(
                    f"--map {target}: {name!r} is not a class of the run or data set.{nearest(name, known)} {_both(run, data)}"
                )
            if name != REST and place.setdefault(name, target) != target:
                raise ConfigError(f"--map assigns {name!r} to {place[name]!r} and to {target!r}; use it once.")
    for name in known:
        if name not in place and (name in explicit or rest):
            place[name] = name if name in explicit else rest[0]
    missing = [name for name in known if name not in place]
    if missing:
        raise ConfigError(
            f"--map does not contain {', '.join(missing)}; add them, or assign {REST} to a target. {_both(run, data)}"
        )
    for target in targets:
        if target not in {place[name] for name in run}:
            raise ConfigError(
                f"--map {target} contains no class of the run, so it could never be predicted; add one. {_both(run, data)}"
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
    """Parse `--map`: `target=class+class` words, or a YAML file with lists of classes.

    Raises:
        ConfigError: the words or the file are malformed.
    """
    if len(words) == 1 and words[0].endswith((".yaml", ".yml")):
        content = load_yaml(user_path(words[0], "--map"))
        pairs = [(str(target), names) for target, names in content.items()]
    else:
        pairs = []
        for word in words:
            target, equals, names = word.partition("=")
            if not (target and equals and names):
                raise ConfigError(
                    f"--map is {word}; expected TARGET=CLASS+CLASS, such as melanoma=mel, or one YAML file."
                )
            if target in dict(pairs):
                raise ConfigError(f"--map names the target {target!r} twice; join its classes by +.")
            pairs.append((target, names))
    mapping: dict[str, list[str]] = {}
    for target, names in pairs:
        members = names.split("+") if isinstance(names, str) else names
        if not isinstance(members, list) or not members or not all(isinstance(name, str) and name for name in members):
            raise ConfigError(f"--map {target} is {names!r}; expected a list of class names, or names joined by +.")
        mapping[target] = members
    return mapping
