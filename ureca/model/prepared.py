"""What the model needs of an image and its regions: tiles. They are cut apart from the model, in any thread.

[from] What a model is shown of a region."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ureca.masks.mask import Mask
from ureca.masks.views import Box, Views
from ureca.model.processing import UrecaProcessor
from ureca.model.prompt import shares_image


def region_view(
    pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], region_prompt: str
) -> npt.NDArray[np.uint8]:
    """What a model is shown of a region.

    Args:
        pixels: uint8 RGB [H, W, 3].
        mask: bool [H, W], with at least one pixel.
        region_prompt: see `ureca.model.prompt.RegionPrompt`.

    Returns:
        uint8 RGB [h, w, 3]; the pixels themselves for ``mask`` and ``none``.
    """
    if shares_image(region_prompt):
        return pixels
    region = Mask.from_array(0, mask)
    if region_prompt == "crop":
        return np.ascontiguousarray(pixels[Box.around([region]).rows_and_columns])
    return Views(pixels, {0: region}, max_side_px=max(pixels.shape[:2])).whole_with_contour(0)


Picture = Image.Image | npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class MaskTiles:
    """The tiles of a mask [N, S, S], one bit a pixel where they are bool."""

    values: npt.NDArray[np.uint8]
    shape: tuple[int, ...]
    is_packed: bool

    @classmethod
    def of(cls, tiles: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> "MaskTiles":
        """Keep tiles [N, S, S]."""
        is_packed = tiles.dtype == np.bool_
        return cls(np.packbits(tiles) if is_packed else tiles.astype(np.uint8), tiles.shape, is_packed)

    @property
    def num_tiles(self) -> int:
        """N."""
        return self.shape[0]

    def unpack(self) -> torch.Tensor:
        """The model's input: float32 [N, 1, S, S]."""
        size = int(np.prod(self.shape))
        values = np.unpackbits(self.values, count=size).reshape(self.shape) if self.is_packed else self.values
        return torch.from_numpy(values.astype(np.float32)).unsqueeze(1)


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image and some of its regions, ready for the model.

    Attributes:
        views: tiles of what is shown, uint8 [N, S, S, 3]: one for all regions, or one a region.
        masks: tiles of each region's mask; none where the region is not told by a mask.
        num_regions: regions.
    """

    views: tuple[npt.NDArray[np.uint8], ...]
    masks: tuple[MaskTiles, ...]
    num_regions: int

    @property
    def num_tiles(self) -> int:
        """Tiles of the (first) view, which the length of its prompt goes by; 0 without regions."""
        return len(self.views[0]) if self.views else 0


def prepare(processor: UrecaProcessor, image: Picture, masks: Iterable[npt.NDArray[np.bool_]]) -> PreparedImage:
    """Cut an image and its masks, each mask as it comes, so that only one of them need be in memory.

    Args:
        processor: of the model.
        image: a PIL image, or RGB pixels, uint8 [H, W, 3].
        masks: bool [H, W] each, with at least one pixel.
    """
    shared = shares_image(processor.region_prompt)
    views, tiles, num_regions = [], [], 0
    for mask in masks:
        num_regions += 1
        if not shared:
            views.append(processor.image_processor.cut(region_view(_pixels(image), mask, processor.region_prompt)))
        if processor.region_prompt == "mask":
            tiles.append(MaskTiles.of(processor.cut_mask(mask, processor.image_processor.max_tiles)))
    if shared and num_regions:
        views.append(processor.image_processor.cut(image))
    return PreparedImage(tuple(views), tuple(tiles), num_regions)


def _pixels(image: Picture) -> npt.NDArray[np.uint8]:
    return np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
