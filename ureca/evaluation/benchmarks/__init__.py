"""Benchmarks: which regions of which images are captioned, and what people say of them."""

from ureca.evaluation.benchmarks.benchmark import Benchmark, BenchmarkImage, BenchmarkRegion, LeftOut, Sample
from ureca.evaluation.benchmarks.opening import open_benchmark
from ureca.evaluation.benchmarks.settings import BenchmarkSettings
from ureca.evaluation.benchmarks.stored import StoredBenchmark

__all__ = [
    "Benchmark",
    "BenchmarkImage",
    "BenchmarkRegion",
    "BenchmarkSettings",
    "LeftOut",
    "Sample",
    "StoredBenchmark",
    "open_benchmark",
]
