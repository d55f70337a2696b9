"""Where training samples come from: regions datasets, and URECA's JSONL with SA-1B files."""

from ureca.training.sources.settings import JsonlSource, RegionsSource, SourceSettings
from ureca.training.sources.source import Sample, Source, open_source

__all__ = ["JsonlSource", "RegionsSource", "Sample", "Source", "SourceSettings", "open_source"]
