"""Image processor of URECA: images and masks cut into the same grid of square tiles (InternVL's dynamic resolution)."""

from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, make_flat_list_of_images
from transformers.processing_utils import ImagesKwargs

Value = TypeVar("Value", bound=np.generic)


@lru_cache(maxsize=4096)
def choose_grid(height: int, width: int, *, size: int, max_tiles: int) -> tuple[int, int]:
    """Choose the grid (columns, rows) of at most ``max_tiles`` tiles whose aspect ratio is nearest to the image's.

    Of equally near grids a larger one wins if the image has more than half of its pixels (InternVL 1.5, section 3).

    Args:
        height: image height in pixels, at least 1.
        width: image width in pixels, at least 1.
        size: side of a tile in pixels, at least 1.
        max_tiles: most tiles of a grid, at least 1; the thumbnail is not counted.

    Raises:
        ValueError: if an argument is below 1.
    """
    if min(height, width, size, max_tiles) < 1:
        raise ValueError(
            f"tiling needs positive sizes, got an image of {height} x {width} px (height x width), "
            f"size={size} and max_tiles={max_tiles}"
        )
    grids = [(columns, rows) for columns in range(1, max_tiles + 1) for rows in range(1, max_tiles // columns + 1)]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    best, best_difference = grids[0], float("inf")
    for columns, rows in grids:
        difference = abs(width / height - columns / rows)
        fills_grid = height * width > 0.5 * size * size * columns * rows
        if difference < best_difference or (difference == best_difference and fills_grid):
            best, best_difference = (columns, rows), difference
    return best


def num_tiles(height: int, width: int, *, size: int, max_tiles: int, thumbnail: bool = True) -> int:
    """Count the tiles of an image or mask, its thumbnail included; arguments as `choose_grid`."""
    columns, rows = choose_grid(height, width, size=size, max_tiles=max_tiles)
    return columns * rows + (thumbnail and columns * rows > 1)


def tile_image(
    image: Image.Image | npt.NDArray[np.uint8], *, size: int, max_tiles: int, thumbnail: bool = True
) -> npt.NDArray[np.uint8]:
    """Cut an image into tiles, resized bicubically to fill the grid exactly (the aspect ratio is not kept).

    Args:
        image: a PIL image of any mode, or RGB pixels, uint8 [H, W, 3].
        size: side S of a tile in pixels.
        max_tiles: most tiles of the grid.
        thumbnail: add the whole image as a last tile when the grid has more than one tile.

    Returns:
        uint8 RGB [N, S, S, 3]: the grid row by row, then the thumbnail.

    Raises:
        ValueError: if an array is not uint8 [H, W, 3], or a size is below 1.
    """
    if isinstance(image, Image.Image):
        picture = image.convert("RGB")
    elif image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
        picture = Image.fromarray(image)
    else:
        raise ValueError(
            f"an image must be a PIL image or a uint8 array [H, W, 3], got {image.dtype} {list(image.shape)}"
        )
    columns, rows = choose_grid(picture.height, picture.width, size=size, max_tiles=max_tiles)
    canvas = np.asarray(picture.resize((columns * size, rows * size), Image.Resampling.BICUBIC))
    tiles = _cut(canvas, columns, rows, size)
    if thumbnail and columns * rows > 1:
        whole = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
        tiles = np.concatenate([tiles, whole[None]])
    return tiles


def tile_mask(
    mask: npt.NDArray[np.bool_], *, size: int, max_tiles: int, thumbnail: bool = True
) -> npt.NDArray[np.bool_]:
    """Cut a mask into the same tiles as `tile_image` cuts an image of its size, by nearest neighbour.

    A mask too thin to be sampled is not lost: the tile pixels that contain its pixels are set.

    Args:
        mask: bool [H, W].
        size: side S of a tile in pixels.
        max_tiles: most tiles of the grid; 1 keeps the whole mask as one tile.
        thumbnail: add the whole mask as a last tile when the grid has more than one tile.

    Returns:
        bool [N, S, S] in the order of `tile_image`.

    Raises:
        ValueError: if the mask is not bool [H, W], or a size is below 1.
    """
    columns, rows = _mask_grid(mask, size, max_tiles)
    tiles = _cut(resize_mask(mask, rows * size, columns * size), columns, rows, size)
    if thumbnail and columns * rows > 1:
        tiles = np.concatenate([tiles, resize_mask(mask, size, size)[None]])
    return tiles


def tile_mask_as_released(
    mask: npt.NDArray[np.bool_], *, size: int, max_tiles: int, thumbnail: bool = True
) -> npt.NDArray[np.uint8]:
    """Cut a mask like the inputs of the released weights: values 0 and 255, and a thumbnail that wraps.

    The grid is sampled by nearest neighbour, but the thumbnail is resized bicubically in floating point and cast to
    uint8, so that overshoot wraps around (-3 becomes 253). The bicubic kernel is Pillow's, as for images. Only for
    weights that were trained on such inputs.

    Args:
        mask: bool [H, W]; the other arguments as `tile_mask`.

    Returns:
        uint8 [N, S, S] in the order of `tile_image`.

    Raises:
        ValueError: if the mask is not bool [H, W], or a size is below 1.
    """
    columns, rows = _mask_grid(mask, size, max_tiles)
    tiles = _cut(_sample_nearest(mask, rows * size, columns * size), columns, rows, size).astype(np.uint8) * 255
    if thumbnail and columns * rows > 1:
        values = Image.fromarray(mask.astype(np.float32) * 255)
        resized = np.asarray(values.resize((size, size), Image.Resampling.BICUBIC))
        wrapped = resized.astype(np.int64).astype(np.uint8)
        tiles = np.concatenate([tiles, wrapped[None]])
    return tiles


def _mask_grid(mask: npt.NDArray[np.bool_], size: int, max_tiles: int) -> tuple[int, int]:
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"a mask must be a bool array [H, W], got {mask.dtype} {list(mask.shape)}")
    return choose_grid(mask.shape[0], mask.shape[1], size=size, max_tiles=max_tiles)


def resize_mask(mask: npt.NDArray[np.bool_], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Resize a mask bool [H, W] to [height, width] by nearest neighbour; a mask with a pixel set keeps one."""
    resized = _sample_nearest(mask, height, width)
    if not resized.any():
        y, x = np.nonzero(mask)
        resized[y * height // mask.shape[0], x * width // mask.shape[1]] = True
    return resized


def _sample_nearest(mask: npt.NDArray[np.bool_], height: int, width: int) -> npt.NDArray[np.bool_]:
    pixels = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.array(pixels, dtype=np.bool_)


def _cut(canvas: npt.NDArray[Value], columns: int, rows: int, size: int) -> npt.NDArray[Value]:
    tiles = canvas.reshape(rows, size, columns, size, *canvas.shape[2:]).swapaxes(1, 2)
    return tiles.reshape(rows * columns, size, size, *canvas.shape[2:])


class UrecaImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict, which mypy cannot see
    """Keyword arguments of a call besides the images."""

    max_tiles: int


class UrecaImageProcessor(BaseImageProcessor):
    """Cuts images into tiles (`tile_image`) and normalises them.

    Args:
        tile_size_px: side S of a tile.
        max_tiles: most tiles of an image, without its thumbnail. Released URECA: 6; InternVL-2.5: 12.
        image_mean: mean of each RGB channel for values in [0, 1]; None for ImageNet's.
        image_std: standard deviation of each channel; None for ImageNet's.
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
        """Cut and normalise one image or many.

        Args:
            images: PIL images, or RGB pixels, uint8 [H, W, 3]; one, a list, or a list of lists.
            max_tiles: most tiles of an image, overriding the processor's.
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

    def cut(self, image: Any, max_tiles: int | None = None) -> npt.NDArray[np.uint8]:
        """Cut one image to tiles uint8 [N, S, S, 3]; arguments as `preprocess`."""
        return tile_image(image, size=self.tile_size_px, max_tiles=self.max_tiles if max_tiles is None else max_tiles)

    def normalise(self, tiles: torch.Tensor) -> torch.Tensor:
        """Convert tiles uint8 [N, S, S, 3] to the vision encoder's input, float32 [N, 3, S, S] on their device."""
        mean = torch.tensor(self.image_mean, device=tiles.device).view(3, 1, 1)
        std = torch.tensor(self.image_std, device=tiles.device).view(3, 1, 1)
        return (tiles.permute(0, 3, 1, 2) / 255 - mean) / std
