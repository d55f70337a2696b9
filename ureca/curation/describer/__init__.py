"""Captions without weights: what the pixels and masks of an image prove."""

from ureca.curation.describer.describer import Describer
from ureca.curation.describer.listening import DescribingListener

__all__ = ["Describer", "DescribingListener"]
