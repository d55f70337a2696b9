"""Benchmarks: regions of images with reference captions, in the formats they are published in."""
