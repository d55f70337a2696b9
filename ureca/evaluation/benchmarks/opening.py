"""Which kind of benchmark a path is."""

from pathlib import Path

from ureca.corpus.storage import has_suffix
from ureca.dataset import Output
from ureca.errors import InputError
from ureca.evaluation.benchmarks.benchmark import Benchmark
from ureca.evaluation.benchmarks.jsonl import JsonlReader
from ureca.evaluation.benchmarks.refcoco import RefCocoReader, refs_files
from ureca.evaluation.benchmarks.regions import RegionsReader
from ureca.evaluation.benchmarks.settings import BenchmarkSettings
from ureca.evaluation.benchmarks.visual_genome import REGION_DESCRIPTIONS, VisualGenomeReader


def open_benchmark(path: str, settings: BenchmarkSettings) -> Benchmark:
    """The benchmark that a path or URI names; little of it is read yet.

    Raises:
        InputError: it is none, or files that belong to it are missing.
    """
    if has_suffix(path, ".jsonl"):
        return JsonlReader(path, settings.jsonl)
    if Output(path).exists():
        return RegionsReader(path, settings.regions)
    folder = Path(path)
    if refs_files(folder):
        return RefCocoReader(folder, settings.refcoco)
    if (folder / REGION_DESCRIPTIONS).is_file():
        return VisualGenomeReader(folder, settings.visual_genome)
    raise InputError(
        f"{path} is no benchmark: name a file of URECA's .jsonl; the output of `ureca curate` or `ureca scenes` (with "
        f"run.json); the folder of RefCOCO+ or RefCOCOg (with refs(unc).p or refs(umd).p); or of Visual Genome (with "
        f"{REGION_DESCRIPTIONS})"
    )
