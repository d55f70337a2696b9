"""Colour, texture and shape of a region as one vector, without weights."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ureca.curation.describer.colours import to_oklab
from ureca.curation.describer.measurement import look_at
from ureca.curation.describer.shapes import measure_shape
from ureca.curation.describer.texture import measure_texture
from ureca.curation.embedder import RegionCrop

_LIGHTNESS = np.linspace(0, 1, 4), 0.15
_CHROMA = np.linspace(-0.24, 0.24, 7), 0.035
_LOG_CONTRAST = np.array([-2.3, -1.5, -0.7]), 0.45
_LOG_AXIS_RATIO = np.array([0.0, 0.9, 1.8]), 0.4
_FILL = np.array([0.45, 0.70, 0.95]), 0.12
"""Where each quality is sampled, and the standard deviation with which a value spreads over the samples."""

_STRIPE_WEIGHT = 1.2


class DescriptorEmbedder:
    """Vectors whose cosine is the product of three: of colours, of texture, and of shape; an ``Embedder``.

    So two regions look alike only if all three do. The spreads are set for the paper's threshold of 0.8: a region
    under slightly other light, noise or size keeps a cosine above 0.9 with itself; another plain colour, stripes for
    a plain surface, or a strip for a disc each bring it below 0.6. Place, size and a turned outline do not matter.

    A colour histogram's cosine is the Bhattacharyya coefficient. A quality x with the spread s of one region and x'
    of another multiply the cosine by about exp(-(x - x')^2 / 8 s^2).
    """

    name = "descriptor-1"

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        """Vectors of length 1, float32 [len(crops), 15876]; the vector of a crop does not depend on the others."""
        return np.stack([_embed_one(crop) for crop in crops]) if crops else np.zeros((0, _NUM_DIMENSIONS), np.float32)


def _embed_one(crop: RegionCrop) -> npt.NDArray[np.float32]:
    pixels, mask, _ = look_at(crop.pixels, crop.mask)
    oklab = to_oklab(pixels / 255)
    colour = _colour_histogram(oklab[mask])
    texture = _texture(oklab[..., 0], mask)
    shape = _shape(mask)
    return _products(colour, texture, shape).astype(np.float32)


def _colour_histogram(oklab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Square roots of a smoothed histogram of pixels [N, 3], length 1."""
    # Most of the time goes here; single precision halves it, and sums of 16384 pixels keep five digits.
    lightness, a, b = (
        _spread(values, samples.astype(np.float32), 2 * deviation**2)
        for values, (samples, deviation) in zip(oklab.T.astype(np.float32), (_LIGHTNESS, _CHROMA, _CHROMA), strict=True)
    )
    lightness_and_a = (lightness[:, None, :] * a).reshape(-1, oklab.shape[0])
    return _unit(np.sqrt(lightness_and_a @ b.T, dtype=np.float64).ravel())


def _texture(lightness: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Contrast, with the direction of stripes where there are any; length 1."""
    texture = measure_texture(lightness, mask)
    contrast = np.log10(max(np.hypot(texture.fine, texture.coarse), 10 ** _LOG_CONTRAST[0][0]))
    # Without contrast, the direction of its change is noise.
    marked = np.clip((contrast - _LOG_CONTRAST[0][0]) / 1.2, 0, 1)
    turn, stripes = 2 * np.radians(texture.stripe_angle_deg), _STRIPE_WEIGHT * marked * texture.coherence**2
    direction = _unit(np.array([1.0, stripes * np.cos(turn), stripes * np.sin(turn)]))
    return _products(_scalar(contrast, *_LOG_CONTRAST), direction)


def _shape(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Elongation, and how well the outline fills an ellipse of its moments; length 1."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    shape = measure_shape(box, int(box.sum()), float(mask.mean()))
    elongation = min(-np.log(shape.axis_ratio), _LOG_AXIS_RATIO[0][-1])
    return _products(_scalar(elongation, *_LOG_AXIS_RATIO), _scalar(shape.ellipse_iou, *_FILL))


def _scalar(value: float, samples: npt.NDArray[np.float64], deviation: float) -> npt.NDArray[np.float64]:
    return _unit(_spread(np.array([value]), samples, 4 * deviation**2)[:, 0])


def _spread(values: npt.NDArray[Any], samples: npt.NDArray[Any], width: float) -> npt.NDArray[Any]:
    """exp(-distance^2 / width) of values [N] to samples [S], [S, N]."""
    distances = np.clip(values, samples[0], samples[-1]) - samples[:, None]
    return np.asarray(np.exp(distances * distances * (-1 / width)))


def _products(*vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """All products of one value of each vector (their Kronecker product)."""
    return np.asarray(functools.reduce(np.multiply.outer, vectors).ravel())


def _unit(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))


_NUM_DIMENSIONS = (
    len(_LIGHTNESS[0]) * len(_CHROMA[0]) ** 2 * len(_LOG_CONTRAST[0]) * 3 * len(_LOG_AXIS_RATIO[0]) * len(_FILL[0])
)
