"""An image under curation: what annotators and embedders look at."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ureca.regions.mask import Mask
from ureca.regions.tree import MaskTree
from ureca.regions.views import Views


@dataclass(frozen=True)
class CurationImage:
    """Pixels, masks, their tree, and the views of them.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: every mask of the image, by id.
        tree: over all of them.
        main_objects: ids of the top-level regions that are captioned.
        regions: ids of everything that is captioned, parents before children, in the order of the tree. The parent of
            a region that is no main object is a region too.
        views: renders what an MLLM is shown.
    """

    pixels: npt.NDArray[np.uint8]
    masks: Mapping[int, Mask]
    tree: MaskTree
    main_objects: tuple[int, ...]
    regions: tuple[int, ...]
    views: Views
