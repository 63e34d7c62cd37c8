"""Old interface of `inference.predictor`: models logged before 2026-12 hold code that imports it."""

from typing import Any

from skincancer.inference.predictor import load_predictor


def load_answerer(run: str, masks: str | None = None) -> Any:
    """Load a predictor that also has the old name of its method `predict`."""
    predictor: Any = load_predictor(run, masks=masks)
    predictor.answers = predictor.predict
    return predictor
