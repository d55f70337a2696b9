"""DINOv2's view of a region (the paper's embedder)."""

from __future__ import annotations

from collections.abc import Sequence
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from ureca.curation.embedder import RegionCrop
from ureca.curation.embedders.common_batches import CommonBatches
from ureca.errors import SettingsError

if TYPE_CHECKING:
    import torch


class Dinov2Settings(BaseModel):
    """Which checkpoint embeds, and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str = Field(
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
        self._batches: CommonBatches[RegionCrop, npt.NDArray[np.float32]] = CommonBatches(
            self._embed_batch, self._settings.batch_size
        )

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        """Vectors of length 1, float32 [len(crops), width of the network]; the mask of a crop is not looked at."""
        vectors = self._batches.results(crops)
        return np.stack(vectors) if vectors else np.zeros((0, self._model.config.hidden_size), np.float32)

    def _embed_batch(self, crops: Sequence[RegionCrop]) -> list[npt.NDArray[np.float32]]:
        import torch

        images = self._processor(images=[squared(crop.pixels) for crop in crops], return_tensors="pt")
        with torch.inference_mode():
            tokens = self._model(pixel_values=images["pixel_values"].to(self._device)).last_hidden_state
            vectors = torch.nn.functional.normalize(tokens[:, 0].float(), dim=-1)
        return list(vectors.cpu().numpy())


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
