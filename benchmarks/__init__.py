"""Benchmarks that measure both sides of a claim in one run and print the ratio: ``ureca bench NAME``."""
