"""Captions without weights: what the pixels and masks of an image prove."""

from ureca.curation.describer.describer import Describer

__all__ = ["Describer"]
