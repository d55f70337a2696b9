"""Experiments with models trained from scratch; not part of the wheel."""
