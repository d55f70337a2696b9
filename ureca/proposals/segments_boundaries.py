"""What a photograph's pixels look like, where it changes, and the small regions between the changes."""

import numpy as np
import numpy.typing as npt
from PIL import Image

FloatImage = npt.NDArray[np.float32]
"""float32 [H, W]"""

NUM_HISTOGRAMS = 5  # lightness, green-red, blue-yellow, and texture at two scales

_LAB_UNIT = 25.0  # a difference in Lab that counts as 1: between clearly different colours
_LAB_SCALES_PX = (1.0, 2.0)
_HISTOGRAM_SCALES_PX = (2.0, 4.0)
_TEXTURE_SCALES_PX = (1.0, 2.0)
_MAX_LOG_TEXTURE = 2.5  # log(1 + gradient of lightness a scale); the strongest textures of photographs reach it
_MINIMUM_WINDOW_PX = 5


def histogram_channels(lab: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Soft histograms of colour and texture at every pixel.

    Args:
        lab: CIE Lab [H, W, 3].

    Returns:
        [C, H, W] in 0 to 1; ``NUM_HISTOGRAMS`` groups of bins, each of which sums to 1 at every pixel.
    """
    from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

    lightness = lab[..., 0]
    groups = [
        _soft_bins(lightness, 0, 100, 6),
        _soft_bins(lab[..., 1], -40, 50, 6),
        _soft_bins(lab[..., 2], -40, 50, 6),
    ]
    for scale in _TEXTURE_SCALES_PX:
        energy = gaussian_filter(scale * gaussian_gradient_magnitude(lightness, scale), 2 * scale)
        groups.append(_soft_bins(np.log1p(energy), 0, _MAX_LOG_TEXTURE, 4))
    return np.concatenate(groups)


def boundary_strength(lab: npt.NDArray[np.float32], histograms: npt.NDArray[np.float32]) -> FloatImage:
    """How strongly colour and texture change at every pixel, averaged over two scales each, [H, W].

    Fine scales of colour place the boundary; coarse scales of the histograms tell boundaries from texture.
    """
    colours = np.moveaxis(lab, -1, 0) / np.float32(_LAB_UNIT)
    strength = np.mean([_gradient(colours, scale) for scale in _LAB_SCALES_PX], axis=0)
    strength += np.mean([_gradient(histograms, scale) for scale in _HISTOGRAM_SCALES_PX], axis=0)
    return np.asarray(strength, dtype=np.float32)


def superpixels(strength: FloatImage) -> npt.NDArray[np.int64]:
    """Regions [H, W] numbered from 0, 4-connected: the catchment basins of the boundary strength."""
    from scipy.ndimage import gaussian_filter, label, minimum_filter
    from skimage.segmentation import watershed

    smooth = gaussian_filter(strength, 0.7)
    markers, _ = label(minimum_filter(smooth, size=_MINIMUM_WINDOW_PX) == smooth)
    basins = watershed(smooth, markers)  # type: ignore[no-untyped-call]
    return np.asarray(basins - 1, dtype=np.int64)


def _soft_bins(values: FloatImage, low: float, high: float, num_bins: int) -> npt.NDArray[np.float32]:
    """Shares [num_bins, H, W] of each value in its two nearest bins; values outside count as the nearest bound."""
    positions = np.clip((values - low) / (high - low), 0, 1) * (num_bins - 1)
    bins = np.arange(num_bins, dtype=np.float32)[:, None, None]
    shares = np.clip(1 - np.abs(positions[None] - bins), 0, 1)
    return np.asarray(shares, dtype=np.float32)


def _gradient(channels: npt.NDArray[np.float32], scale_px: float) -> FloatImage:
    """Largest rate of change over all directions and channels together (Di Zenzo 1986), times the scale."""
    from scipy.ndimage import gaussian_filter

    height, width = channels.shape[1:]
    if scale_px > 2:  # a wide filter sees no more than half the resolution has, at a quarter of the cost
        half = ((width + 1) // 2, (height + 1) // 2)
        channels = np.stack([_resized(channel, half, Image.Resampling.BOX) for channel in channels])
        return _resized(_gradient(channels, scale_px / 2), (width, height), Image.Resampling.BILINEAR)
    xx, yy, xy = np.zeros((3, height, width), dtype=np.float32)
    for channel in channels:
        x = scale_px * gaussian_filter(channel, scale_px, order=(0, 1), truncate=3)
        y = scale_px * gaussian_filter(channel, scale_px, order=(1, 0), truncate=3)
        xx += x * x
        yy += y * y
        xy += x * y
    largest = (xx + yy + np.sqrt((xx - yy) ** 2 + 4 * xy * xy)) / 2
    return np.asarray(np.sqrt(largest), dtype=np.float32)


def _resized(channel: FloatImage, size: tuple[int, int], method: Image.Resampling) -> FloatImage:
    return np.asarray(Image.fromarray(channel).resize(size, method))
