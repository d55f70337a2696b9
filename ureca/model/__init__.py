"""URECA as a model of transformers; imported lazily.

``import ureca.model.auto`` registers the model with transformers' Auto classes, so that
``AutoModelForImageTextToText.from_pretrained`` and ``AutoProcessor.from_pretrained`` load its checkpoints.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
