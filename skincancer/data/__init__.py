"""Data sets: readers, catalog, splits, balance and the prepared store."""
