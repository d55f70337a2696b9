"""Synthetic scenes with exact nested masks and captions whose truth and uniqueness are decidable."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
