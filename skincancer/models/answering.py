"""Old place of `load_answerer`: models logged before 2026-12 import the function from here."""

from skincancer.inference.predictor import load_answerer as load_answerer
