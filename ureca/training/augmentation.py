"""Size augmentation (paper): an image and its masks are resized together by a random scale."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.hashing import hash64
from ureca.rng import IndexedRng
from ureca.training.settings import AugmentationSettings


def draw_scales(
    image_keys: npt.NDArray[np.uint64], settings: AugmentationSettings, *, epoch: int, seed: int
) -> npt.NDArray[np.uint8]:
    """Draw the index into ``settings.scales`` of each image in an epoch; uint8 of the shape of ``image_keys``."""
    random = IndexedRng(hash64(seed, epoch, "scale")).words(image_keys)
    return (random % np.uint64(len(settings.scales))).astype(np.uint8)


def draw_scale(image_id: str, settings: AugmentationSettings, *, epoch: int, seed: int) -> float:
    """Draw the scale of one image in an epoch; agrees with `draw_scales`."""
    (number,) = draw_scales(np.array([image_key(image_id)], np.uint64), settings, epoch=epoch, seed=seed)
    return settings.scales[int(number)]


def image_key(image_id: str) -> int:
    """Hash an image id to a number below 2^64, which seeds the random draws for the image."""
    return hash64("image", image_id)


def scaled_size(height: int, width: int, scale: float, settings: AugmentationSettings) -> tuple[int, int]:
    """Compute height and width in pixels of a resized image, at least 1 each."""
    if scale > 1:
        scale = max(1.0, min(scale, (settings.max_pixels / (height * width)) ** 0.5))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize uint8 RGB [H, W, 3] bicubically to [height, width, 3]."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def resize_mask(mask: npt.NDArray[np.bool_], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Resize bool [H, W] to [height, width] by nearest neighbour; a mask with a pixel set keeps one."""
    from ureca.model.image_processing import resize_mask as resize

    return mask if mask.shape == (height, width) else resize(mask, height, width)
