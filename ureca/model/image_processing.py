"""The image half of the processor: tiles, normalised as InternVL's vision encoder wants them."""

from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, make_flat_list_of_images
from transformers.processing_utils import ImagesKwargs

from .tiling import Tiles, tile_image


class UrecaImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict, which mypy cannot see
    """What a call may set besides the images."""

    max_tiles: int


class UrecaImageProcessor(BaseImageProcessor):
    """Cuts images into tiles (`tile_image`) and normalises them.

    Args:
        tile_size_px: side S of a tile.
        max_tiles: the most tiles of an image, its thumbnail not counted. Released URECA: 6; InternVL-2.5: 12.
        image_mean: mean of each RGB channel at a value range of [0, 1].
        image_std: standard deviation of each channel.
    """

    valid_kwargs = UrecaImagesKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        tile_size_px: int = 448,
        max_tiles: int = 6,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tile_size_px = tile_size_px
        self.max_tiles = max_tiles
        self.image_mean = IMAGENET_DEFAULT_MEAN if image_mean is None else image_mean
        self.image_std = IMAGENET_DEFAULT_STD if image_std is None else image_std

    def preprocess(
        self, images: Any, max_tiles: int | None = None, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Tiles of one image or many.

        Args:
            images: PIL images, or RGB pixels, uint8 [H, W, 3]; one, a list, or a list of lists.
            max_tiles: for this call instead of the processor's own.
            return_tensors: "pt" for tensors.

        Returns:
            ``pixel_values`` float32 [tiles of all images, 3, S, S] and ``num_tiles``, a count for each image.

        Raises:
            ValueError: if an array is not uint8 [H, W, 3].
        """
        tiles = [self.cut(image, max_tiles) for image in make_flat_list_of_images(images)]
        pixel_values = self.normalise(torch.from_numpy(np.concatenate(tiles)))
        return BatchFeature(
            {"pixel_values": pixel_values, "num_tiles": [len(image) for image in tiles]}, tensor_type=return_tensors
        )

    def cut(self, image: Any, max_tiles: int | None = None) -> Tiles:
        """Tiles of one image as they are, uint8 [N, S, S, 3]; arguments as `preprocess`."""
        return tile_image(image, size=self.tile_size_px, max_tiles=self.max_tiles if max_tiles is None else max_tiles)

    def normalise(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tiles uint8 [N, S, S, 3] as the vision encoder's input, float32 [N, 3, S, S] on their device."""
        mean = torch.tensor(self.image_mean, device=tiles.device).view(3, 1, 1)
        std = torch.tensor(self.image_std, device=tiles.device).view(3, 1, 1)
        return (tiles.permute(0, 3, 1, 2) / 255 - mean) / std
