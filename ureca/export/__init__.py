"""A run's captions in the formats of others: URECA's training JSONL, flat Parquet, COCO captions."""

from ureca.export.coco import export_coco
from ureca.export.flat import export_parquet
from ureca.export.jsonl import export_jsonl
from ureca.export.selection import Selection

__all__ = ["Selection", "export_coco", "export_jsonl", "export_parquet"]
