"""Embedders of regions: a descriptor of colour, texture and shape without weights, and DINOv2 (paper) or DINOv3."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ureca.batching import DynamicBatcher
from ureca.curation.protocols import CurationImage, RegionCrop
from ureca.curation.rule_based.colours import Colours, colours_of_cells
from ureca.curation.rule_based.measurement import Appearance, measure_appearance, region_appearance
from ureca.curation.rule_based.shapes import Shape, Texture
from ureca.curation.settings import Dinov2Config
from ureca.devices import torch_device, torch_dtype
from ureca.errors import SettingsError
from ureca.extras import not_installed

if TYPE_CHECKING:
    import torch

_LIGHTNESS = np.linspace(0, 1, 4), 0.15
_CHROMA = np.linspace(-0.24, 0.24, 7), 0.035
_LOG_CONTRAST = np.array([-2.3, -1.5, -0.7]), 0.45
_LOG_AXIS_RATIO = np.array([0.0, 0.9, 1.8]), 0.4
_FILL = np.array([0.45, 0.70, 0.95]), 0.12
"""Samples of each quality, and the standard deviation with which a value spreads over the samples."""

_STRIPE_WEIGHT = 1.2


class DescriptorEmbedder:
    """Descriptor whose cosine is the product of the cosines of colour, texture and shape; a ``RegionEmbedder``.

    Two regions are similar only if they are similar in all three. The spreads are tuned for the paper's threshold of
    0.8: under slightly different light, noise or size a region keeps a cosine above 0.9 with itself; another plain
    colour, stripes instead of a plain surface, or a strip instead of a disc each reduce it below 0.6. Position, size
    and a rotation of the outline do not matter.

    The cosine of colour histograms is the Bhattacharyya coefficient. Values x and x' of a quality with the spread s
    multiply the cosine by about exp(-(x - x')^2 / 8 s^2).
    """

    name = "descriptor-3"

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        """Return embeddings of length 1, float32 [len(crops), 15876]; each depends on its own crop only."""
        factors = [_factors(measure_appearance(crop.pixels, crop.mask)) for crop in crops]
        vectors = [functools.reduce(np.multiply.outer, each).ravel() for each in factors]
        return np.stack(vectors) if vectors else np.zeros((0, _NUM_DIMENSIONS), np.float32)

    def embed_regions(self, image: CurationImage, region_ids: Sequence[int]) -> Sequence[npt.NDArray[np.float32]]:
        """Return colour, texture and shape of regions, float32 [len(region_ids), 196], [..., 9] and [..., 9].

        A crop would mix colours beyond the border of the mask into those of its pixels; here none is.
        """
        factors = [_factors(region_appearance(image, id)) for id in region_ids]
        return [np.stack(each) for each in zip(*factors, strict=True)]


def _factors(looks: Appearance) -> tuple[npt.NDArray[np.float32], ...]:
    """Return vectors of length 1 of which the embedding is the Kronecker product."""
    vectors = _colour_histogram(looks.colours), _texture(looks.texture), _shape(looks.shape)
    return tuple(vector.astype(np.float32) for vector in vectors)


def _colour_histogram(colours: Colours) -> npt.NDArray[np.float64]:
    """Return the square roots of a smoothed histogram of the colours, normalized to length 1."""
    lightness, a, b = (spread[:, colours.cells] for spread in _spread_of_cells())
    lightness_and_a = (lightness[:, None, :] * (a * colours.counts)).reshape(-1, len(colours.cells))
    # einsum: for so few numbers the threads of BLAS cost more than they give
    return _unit(np.sqrt(np.einsum("ic,jc->ij", lightness_and_a, b), dtype=np.float64).ravel())


@functools.cache
def _spread_of_cells() -> tuple[npt.NDArray[np.float32], ...]:
    """Return the spread of the lightness, a and b of each cell of the RGB cube over their samples, [S, NUM_CELLS]."""
    return tuple(
        _spread(values, samples.astype(np.float32), 2 * deviation**2)
        for values, (samples, deviation) in zip(
            colours_of_cells().T.astype(np.float32), (_LIGHTNESS, _CHROMA, _CHROMA), strict=True
        )
    )


def _texture(texture: Texture) -> npt.NDArray[np.float64]:
    """Return contrast and the direction of stripes as a vector of length 1."""
    contrast = np.log10(max(np.hypot(texture.fine, texture.coarse), 10 ** _LOG_CONTRAST[0][0]))
    # Without contrast, the direction is noise.
    marked = np.clip((contrast - _LOG_CONTRAST[0][0]) / 1.2, 0, 1)
    turn, stripes = 2 * np.radians(texture.stripe_angle_deg), _STRIPE_WEIGHT * marked * texture.coherence**2
    direction = _unit(np.array([1.0, stripes * np.cos(turn), stripes * np.sin(turn)]))
    return np.multiply.outer(_scalar(contrast, *_LOG_CONTRAST), direction).ravel()


def _shape(shape: Shape) -> npt.NDArray[np.float64]:
    """Return elongation, and the overlap with the ellipse of equal moments, as a vector of length 1."""
    elongation = min(-np.log(shape.axis_ratio), _LOG_AXIS_RATIO[0][-1])
    return np.multiply.outer(_scalar(elongation, *_LOG_AXIS_RATIO), _scalar(shape.ellipse_iou, *_FILL)).ravel()


def _scalar(value: float, samples: npt.NDArray[np.float64], deviation: float) -> npt.NDArray[np.float64]:
    return _unit(_spread(np.array([value]), samples, 4 * deviation**2)[:, 0])


def _spread(values: npt.NDArray[Any], samples: npt.NDArray[Any], width: float) -> npt.NDArray[Any]:
    """Return exp(-distance^2 / width) of values [N] to samples [S], as [S, N]."""
    distances = np.clip(values, samples[0], samples[-1]) - samples[:, None]
    return np.asarray(np.exp(distances * distances * (-1 / width)))


def _unit(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))


_NUM_DIMENSIONS = (
    len(_LIGHTNESS[0]) * len(_CHROMA[0]) ** 2 * len(_LOG_CONTRAST[0]) * 3 * len(_LOG_AXIS_RATIO[0]) * len(_FILL[0])
)


class Dinov2Embedder:
    """Normalized class token of a vision transformer; an ``Embedder``.

    Crops that several threads embed at the same time are batched together. Any checkpoint can be used that
    transformers' ``AutoModel`` loads and whose first token is the class token. Neither code nor pickled objects of a
    checkpoint are loaded.

    Args:
        settings: checkpoint, device, precision and batch size; None: the defaults.

    Raises:
        SettingsError: transformers or torch is not installed, the checkpoint cannot be loaded, or there is no such
            device.
    """

    def __init__(self, settings: Dinov2Config | None = None) -> None:
        self._settings = settings or Dinov2Config()
        self.name = f"dinov2 {self._settings.checkpoint}"
        self._processor, model = _load(self._settings.checkpoint)
        self._device = torch_device(self._settings.device)
        self.model = model.to(self._device, torch_dtype(self._settings.dtype, self._device)).eval()
        self._batcher: DynamicBatcher[RegionCrop, Sequence[RegionCrop], npt.NDArray[np.float32]] = DynamicBatcher(
            self._embed_batch, max_batch_size=self._settings.batch_size
        )

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        """Return embeddings of length 1, float32 [len(crops), hidden size]; masks are not used."""
        vectors = self._batcher.results(crops)
        return np.stack(vectors) if vectors else np.zeros((0, self.model.config.hidden_size), np.float32)

    def _embed_batch(
        self, crops: Sequence[RegionCrop], deliver: Callable[[int, npt.NDArray[np.float32]], None]
    ) -> None:
        import torch

        # Crops are padded, resized and normalized where the model is: a CPU takes longer for that than a GPU for both.
        squares = [_padded_to_square(torch.as_tensor(crop.pixels, device=self._device)) for crop in crops]
        images = self._processor(
            images=squares, return_tensors="pt", input_data_format="channels_first", device=self._device
        )
        with torch.inference_mode():
            values = images["pixel_values"].to(self._device, self.model.dtype)
            tokens = self.model(pixel_values=values).last_hidden_state
            vectors = torch.nn.functional.normalize(tokens[:, 0].float(), dim=-1)
        for index, vector in enumerate(vectors.cpu().numpy()):
            deliver(index, vector)


def pad_to_square(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Pad an image, uint8 RGB [h, w, 3], with its mean colour to a square.

    Image processors crop the central square: without a border, a long region would lose its ends.
    """
    height, width = pixels.shape[:2]
    side = max(height, width)
    mean_colour = tuple(int(channel) for channel in pixels.reshape(-1, 3).mean(axis=0))
    return ImageOps.pad(Image.fromarray(pixels), (side, side), color=mean_colour)


def _padded_to_square(pixels: torch.Tensor) -> torch.Tensor:
    """Pad an image, uint8 [h, w, 3], as ``pad_to_square`` does, on its device; returns [3, side, side]."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    top, left = round((side - height) / 2), round((side - width) / 2)
    square = pixels.reshape(-1, 3).double().mean(dim=0).to(pixels.dtype)[:, None, None].repeat(1, side, side)
    square[:, top : top + height, left : left + width] = pixels.permute(2, 0, 1)
    return square


def _load(checkpoint: str) -> tuple[Any, Any]:
    """Load the image processor and the model of a checkpoint."""
    try:
        from safetensors import SafetensorError
        from transformers import AutoImageProcessor, AutoModel
    except ImportError as error:
        raise not_installed("the embedder 'dinov2'", error, "model") from error
    try:
        processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
        model = AutoModel.from_pretrained(checkpoint, trust_remote_code=False, weights_only=True)
    except (OSError, ValueError, SafetensorError, UnpicklingError) as error:
        raise SettingsError(
            f"checkpoint '{checkpoint}' cannot be loaded: it must be a folder, or the name of a model on the hub, with "
            f"a network and an image processor that transformers knows ({error})"
        ) from error
    return processor, model
