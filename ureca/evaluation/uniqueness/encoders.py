"""Image-text encoders: images and texts as vectors of one space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ureca.curation.embedders.dinov2 import squared
from ureca.errors import SettingsError
from ureca.evaluation.checkpoints import load_encoder

COLOUR_WORDS = "colour-words"

Vectors = npt.NDArray[np.float32]


class ImageTextEncoder(Protocol):
    """Encodes images and texts so that the cosine of two tells how well they fit."""

    name: str
    """What it is, with its version or checkpoint."""

    def encode_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> Vectors:
        """Vectors of length 1, [len(images), D], of uint8 RGB images [h, w, 3] of any size."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, [len(texts), D]."""
        ...


class DualEncoderSettings(BaseModel):
    """Which checkpoint encodes, and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str = Field(
        description="folder, or name on the hub, of a CLIP, SigLIP or the like in transformers' format; "
        f"{COLOUR_WORDS}: colours and the words for them, without weights"
    )
    batch_size: int = Field(default=32, ge=1, description="images, or texts, in one pass of the network")
    device: str = Field(default="auto", description="as torch names it (cpu, cuda:1); auto: a GPU if there is one")


class DualEncoder:
    """A checkpoint with ``get_image_features`` and ``get_text_features``; an ``ImageTextEncoder``.

    Images are padded to squares, so that nothing is cut off; texts longer than the network takes are cut.

    Raises:
        SettingsError: transformers or torch is not installed, the checkpoint cannot be loaded or encodes no images or
            no texts, or there is no such device.
    """

    def __init__(self, settings: DualEncoderSettings) -> None:
        self.name = settings.checkpoint
        self._batch_size = settings.batch_size
        self._network, self._processor, self._device = load_encoder(
            settings.checkpoint, "AutoProcessor", settings.device
        )
        if not all(hasattr(self._network, f"get_{kind}_features") for kind in ("image", "text")):
            raise SettingsError(
                f"checkpoint '{settings.checkpoint}' is a {type(self._network).__name__}; an encoder of images and "
                "texts is needed, such as CLIP or SigLIP"
            )
        # SigLIP has learned from texts padded to full length, and reads others badly.
        self._padding = "max_length" if "siglip" in self._network.config.model_type else "longest"
        self._max_tokens = int(self._network.config.text_config.max_position_embeddings)

    def encode_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> Vectors:
        """Vectors of length 1, [len(images), D], of uint8 RGB images [h, w, 3] of any size."""

        def encode(batch: Sequence[npt.NDArray[np.uint8]]) -> Any:
            inputs = self._processor(images=[squared(pixels) for pixels in batch], return_tensors="pt")
            return self._network.get_image_features(**inputs.to(self._device))

        return self._in_batches(images, encode)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, [len(texts), D]."""

        def encode(batch: Sequence[str]) -> Any:
            inputs = self._processor(
                text=list(batch),
                padding=self._padding,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            )
            return self._network.get_text_features(**inputs.to(self._device))

        return self._in_batches(texts, encode)

    def _in_batches(self, items: Sequence[Any], encode: Callable[[Sequence[Any]], Any]) -> Vectors:
        import torch

        batches = []
        with torch.inference_mode():
            for start in range(0, len(items), self._batch_size):
                encoded = encode(items[start : start + self._batch_size])
                features = encoded if isinstance(encoded, torch.Tensor) else encoded.pooler_output
                batches.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy())
        return np.concatenate(batches) if batches else np.zeros((0, 0), np.float32)
