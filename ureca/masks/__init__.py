"""Masks as data: run-length encoding, annotation formats, the mask tree, views and mask generators."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
