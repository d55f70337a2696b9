"""How many tokens each image and each region costs, without reading any."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, NonNegativeInt

Numbers = npt.NDArray[np.int64]


class TokenCosts(BaseModel):
    """Tokens that a packed row spends, apart from the texts of questions and answers.

    ``ureca.training.tokens.costs_of`` has those of a processor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: NonNegativeInt
    """Of a prefix apart from its image tiles: system message, start and end of the image."""
    image_tile: NonNegativeInt
    """Of a tile of the image."""
    region: NonNegativeInt
    """Of a segment apart from mask tiles, question and answer."""
    mask_tile: NonNegativeInt
    """Of a tile of the mask."""
    one_mask_tile: bool = False
    """A mask is one tile, whatever the image is; otherwise it has as many as the image."""
    shared: bool = True
    """Regions share the image's tokens; otherwise each region pays for an image of its own."""
    tiles: NonNegativeInt | None = None
    """Tiles of every image that a region is shown as, where that does not follow from the image; None: it does."""

    def of_images(self, num_tiles: npt.NDArray[np.integer]) -> Numbers:
        """Tokens of the prefixes of images with so many tiles."""
        tiles = num_tiles.astype(np.int64) if self.tiles is None else np.full(num_tiles.shape, self.tiles, np.int64)
        return self.image + self.image_tile * tiles

    def of_segments(self, text_tokens: npt.NDArray[np.integer], num_tiles: npt.NDArray[np.integer]) -> Numbers:
        """Tokens of the segments of regions, whose images have so many tiles."""
        mask_tiles = np.ones_like(num_tiles, np.int64) if self.one_mask_tile else num_tiles.astype(np.int64)
        return self.region + self.mask_tile * mask_tiles + text_tokens


@dataclass(frozen=True, eq=False)
class SampleCounts:
    """What a plan needs to know of an index: numbers only, 4 bytes a region and about 16 an image.

    Attributes:
        first_regions: int64 [images + 1]: where the regions of each image begin in ``text_tokens``, and its length.
        text_tokens: int32 [regions]: tokens of the longest question that may be asked, and of the answer.
        num_tiles: uint8 [images, scales]: tiles at each scale of the size augmentation, thumbnail included.
        image_keys: uint64 [images]: hash of the image id, by which chance is drawn for an image.
    """

    first_regions: npt.NDArray[np.int64]
    text_tokens: npt.NDArray[np.int32]
    num_tiles: npt.NDArray[np.uint8]
    image_keys: npt.NDArray[np.uint64]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.image_keys)

    @property
    def num_regions(self) -> int:
        """Number of regions of all images."""
        return len(self.text_tokens)

    @property
    def regions_of_images(self) -> npt.NDArray[np.int64]:
        """Number of regions by image."""
        return np.diff(self.first_regions)
