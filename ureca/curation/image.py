"""Curation of a single image in this process."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from ureca.curation.curator import Curator, curate_regions
from ureca.data.reader import Region
from ureca.errors import InputError
from ureca.image_limits import ImageLimits
from ureca.images import decode_image
from ureca.masks.generators.base import MaskGenerator
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.generators.settings import SegmentsConfig
from ureca.masks.mask import Mask


def curate_image(
    image: str | PathLike[str] | Image | npt.NDArray[np.uint8],
    masks: Sequence[Mask] | Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_] | None = None,
    *,
    curator: Curator | None = None,
    mask_generator: MaskGenerator | None = None,
) -> list[Region]:
    """Caption the regions of one image, as ``ureca curate`` does for a corpus, without Ray.

    The default curator and mask generator need neither a GPU nor weights.

    Args:
        image: path of an image file, PIL image, or RGB pixels, uint8 [H, W, 3].
        masks: masks of the image: ``Mask`` objects with distinct ids, or bool arrays [H, W] or [N, H, W], whose ids are
            their positions. None: ``mask_generator`` makes them.
        curator: components and settings of the curation; None: ``Curator()``, which captions by rules.
        mask_generator: source of the masks where none are given; None: the ``segments`` generator, whose
            smallest mask is the curator's smallest region.

    Returns:
        A region for each mask, parents before children. Regions that are not captioned, for example because they are
        small, say why in ``status``.

    Raises:
        InputError: the file cannot be opened.
        ImageError: the file is not an image, or is damaged or too large.
        ValueError: a mask does not have the size of the image, or two masks have the same id.
        SettingsError: a chat model of the curator cannot be reached.

    Example:
        >>> import ureca
        >>> for region in ureca.curate_image("photo.png"):
        ...     if region.status == "ok":
        ...         print(region.mask.bbox_xywh, region.caption)
    """
    pixels, name = _read(image)
    curator = curator or Curator()
    if masks is None:
        matching = SegmentsConfig().with_smallest(curator.tree.min_area_fraction)
        made = (mask_generator or SegmentsMaskGenerator(matching)).generate(pixels)
    else:
        made = [mask if isinstance(mask, Mask) else Mask.from_array(id, mask) for id, mask in enumerate(masks)]
    curation = curate_regions(pixels, made, curator)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        regions = asyncio.run(curation)
    else:  # In a notebook, whose event loop this call must not wait on
        with ThreadPoolExecutor(1) as pool:
            regions = pool.submit(asyncio.run, curation).result()
    height, width = pixels.shape[:2]
    row = {"image_id": "image" if name is None else Path(name).stem, "uri": name, "height": height, "width": width}
    return [Region.from_row(row, region) for region in regions]


def _read(image: str | PathLike[str] | Image | npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], str | None]:
    """Return the pixels of an image, uint8 RGB [H, W, 3], and its path, if it has one."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"pixels must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        return image, None
    if isinstance(image, Image):
        return np.asarray(image.convert("RGB")), None
    path = fspath(image)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return decode_image(data, ImageLimits()), path
