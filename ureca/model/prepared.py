"""Preparation of an image and its regions for the model: views and tiles, cut without the model in any thread."""

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

Picture = Image.Image | npt.NDArray[np.uint8]


def region_view(
    pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], region_prompt: str
) -> npt.NDArray[np.uint8]:
    """Draw the view of a region that a model is shown.

    Args:
        pixels: uint8 RGB [H, W, 3].
        mask: bool [H, W], with at least one pixel set.
        region_prompt: one of `ureca.model.prompt.RegionPrompt`.

    Returns:
        uint8 RGB [h, w, 3]; ``pixels`` itself for ``mask`` and ``none``.
    """
    if shares_image(region_prompt):
        return pixels
    region = Mask.from_array(0, mask)
    if region_prompt == "crop":
        return np.ascontiguousarray(pixels[Box.around([region]).rows_and_columns])
    return Views(pixels, {0: region}, max_side_px=max(pixels.shape[:2])).whole_with_contour(0)


@dataclass(frozen=True, eq=False)
class MaskTiles:
    """Tiles of a mask [N, S, S]; bool tiles take one bit a pixel."""

    values: npt.NDArray[np.uint8]
    shape: tuple[int, ...]
    is_packed: bool

    @classmethod
    def of(cls, tiles: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> "MaskTiles":
        """Pack tiles [N, S, S]."""
        is_packed = tiles.dtype == np.bool_
        return cls(np.packbits(tiles) if is_packed else tiles.astype(np.uint8), tiles.shape, is_packed)

    @property
    def num_tiles(self) -> int:
        """Number N of tiles."""
        return self.shape[0]

    def unpack(self) -> torch.Tensor:
        """Unpack the tiles to the model's input, float32 [N, 1, S, S]."""
        size = int(np.prod(self.shape))
        values = np.unpackbits(self.values, count=size).reshape(self.shape) if self.is_packed else self.values
        return torch.from_numpy(values.astype(np.float32)).unsqueeze(1)


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image and some of its regions, prepared for the model.

    Attributes:
        views: tiles of the views, uint8 [N, S, S, 3]: one view for all regions, or one a region.
        masks: tiles of each region's mask; empty for region prompts without mask.
        num_regions: number of regions.
    """

    views: tuple[npt.NDArray[np.uint8], ...]
    masks: tuple[MaskTiles, ...]
    num_regions: int

    @property
    def num_tiles(self) -> int:
        """Number of tiles of the first view, which decides the length of the prompt; 0 without regions."""
        return len(self.views[0]) if self.views else 0


def prepare(processor: UrecaProcessor, image: Picture, masks: Iterable[npt.NDArray[np.bool_]]) -> PreparedImage:
    """Cut an image and its masks into tiles, one mask in memory at a time.

    Args:
        processor: processor of the model.
        image: a PIL image, or RGB pixels, uint8 [H, W, 3].
        masks: bool [H, W] each, with at least one pixel set.
    """
    shared = shares_image(processor.region_prompt)
    views, tiles, num_regions = [], [], 0
    for mask in masks:
        num_regions += 1
        if not shared:
            pixels = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
            views.append(processor.image_processor.cut(region_view(pixels, mask, processor.region_prompt)))
        if processor.region_prompt == "mask":
            tiles.append(MaskTiles.of(processor.cut_mask(mask, processor.image_processor.max_tiles)))
    if shared and num_regions:
        views.append(processor.image_processor.cut(image))
    return PreparedImage(tuple(views), tuple(tiles), num_regions)
