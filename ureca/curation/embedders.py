"""DINOv2's view of a region (the paper's embedder).

[from] Common batches for threads that want something computed by one device.
[from] Colour, texture and shape of a region as one vector, without weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from ureca.batching import DynamicBatcher
from ureca.config import MAY_CHANGE
from ureca.curation.protocols import RegionCrop
from ureca.curation.rule_based.colours import to_oklab
from ureca.curation.rule_based.measurement import look_at
from ureca.curation.rule_based.shapes import measure_shape, measure_texture
from ureca.errors import SettingsError

if TYPE_CHECKING:
    import torch

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


class Dinov2Settings(BaseModel):
    """Which checkpoint embeds, and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        default="facebook/dinov2-base", description="folder or hub name of a vision transformer in transformers' format"
    )
    batch_size: int = Field(default=32, ge=1, description="crops in one pass of the network")
    device: str = Field(default="auto", description="as torch names it (cpu, cuda:1); auto: a GPU if there is one")


class Dinov2Embedder:
    """The class token of a vision transformer, of length 1; an ``Embedder``.

    Crops of images that are embedded at the same time, on several threads, make common batches.

    Any checkpoint will do that transformers' ``AutoModel`` reads and whose first token stands for the image. No code
    from a checkpoint is run, and no pickled object in it.

    Raises:
        SettingsError: transformers or torch is not installed, the checkpoint cannot be loaded, or there is no such
            device.
    """

    def __init__(self, settings: Dinov2Settings | None = None) -> None:
        self._settings = settings or Dinov2Settings()
        self.name = f"dinov2 {self._settings.checkpoint}"
        self._device = _device(self._settings.device)
        self._processor, model = _load(self._settings.checkpoint)
        self._model = model.to(self._device).eval()
        self._batcher: DynamicBatcher[RegionCrop, Sequence[RegionCrop], npt.NDArray[np.float32]] = DynamicBatcher(
            self._embed_batch, max_batch_size=self._settings.batch_size
        )

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        """Vectors of length 1, float32 [len(crops), width of the network]; the mask of a crop is not looked at."""
        vectors = self._batcher.results(crops)
        return np.stack(vectors) if vectors else np.zeros((0, self._model.config.hidden_size), np.float32)

    def _embed_batch(
        self, crops: Sequence[RegionCrop], deliver: Callable[[int, npt.NDArray[np.float32]], None]
    ) -> None:
        import torch

        images = self._processor(images=[squared(crop.pixels) for crop in crops], return_tensors="pt")
        with torch.inference_mode():
            tokens = self._model(pixel_values=images["pixel_values"].to(self._device)).last_hidden_state
            vectors = torch.nn.functional.normalize(tokens[:, 0].float(), dim=-1)
        for index, vector in enumerate(vectors.cpu().numpy()):
            deliver(index, vector)


def squared(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Processors cut a square out of the middle: without a border, a long region would lose its ends."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    mean_colour = tuple(int(channel) for channel in pixels.reshape(-1, 3).mean(axis=0))
    return ImageOps.pad(Image.fromarray(pixels), (side, side), color=mean_colour)


def _load(checkpoint: str) -> tuple[Any, Any]:
    """Image processor and network of a checkpoint."""
    try:
        from safetensors import SafetensorError
        from transformers import AutoImageProcessor, AutoModel
    except ImportError as error:
        raise _not_installed(error) from error
    try:
        processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
        model = AutoModel.from_pretrained(checkpoint, trust_remote_code=False, weights_only=True)
    except (OSError, ValueError, SafetensorError, UnpicklingError) as error:
        raise SettingsError(
            f"checkpoint '{checkpoint}' cannot be loaded: it must be a folder, or the name of a model on the hub, with "
            f"a network and an image processor that transformers knows ({error})"
        ) from error
    return processor, model


def _device(name: str) -> torch.device:
    try:
        import torch
    except ImportError as error:
        raise _not_installed(error) from error
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device '{name}' cannot be used: {error}") from error


def _not_installed(error: ImportError) -> SettingsError:
    return SettingsError(
        f"the embedder 'dinov2' needs the package '{error.name}', which is not installed: "
        "pip install 'ureca-ray[model]'"
    )
