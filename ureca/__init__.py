"""URECA: captions that fit one region of an image and no other.

The public names are listed in ``docs/api.md``. They are imported on first use, so ``import ureca`` loads neither NumPy
nor torch. The library never imports Ray: ``ureca.pipelines`` runs it on clusters, ``ureca.jobs`` are the commands.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
