"""What tells look-alikes: a vector a region."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RegionCrop:
    """The crop of a region's box.

    Attributes:
        pixels: uint8 RGB [h, w, 3], everything outside the mask blurred.
        mask: bool [h, w], at least one pixel inside.
    """

    pixels: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]


class Embedder(Protocol):
    """Embeds regions so that the cosine of two tells how alike they look. Built once an actor."""

    name: str
    """What it is, with its version or checkpoint, for the provenance of a row."""

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        """Vectors of length 1, float32 [len(crops), D]; the vector of a crop does not depend on the others."""
        ...
