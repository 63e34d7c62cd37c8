"""Metrics, statistics and figures over stored predictions."""
