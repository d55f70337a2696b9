"""The two halves of a region's prompt: what all regions of an image share, and what is a region's own."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ureca.errors import DataError
from ureca.model.decoding import Row
from ureca.model.mask_encoder import FusedMaskEncoder
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.placeholders import fill_placeholders
from ureca.model.processing import QUESTION, UrecaProcessor
from ureca.model.shared_prefix import Prefix

Picture = Image.Image | npt.NDArray[np.uint8]
Masks = Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_]


class RegionError(DataError):
    """A mask cannot be captioned; the message says which one and why."""


@dataclass(frozen=True)
class EncodedImage:
    """An image after its one pass through the model.

    Args:
        prefix: keys and values of the prompt up to and including the image.
        features: [tiles, image_seq_length, D], only if the mask encoder needs them.
    """

    prefix: Prefix
    features: torch.Tensor | None


class RegionPrompts:
    """Turns images and masks into rows of a batch.

    Args:
        model: the model that will read the prompts.
        processor: its processor.
        cached_images: how many encoded images are kept, the latest used; 0 keeps none.
    """

    def __init__(self, model: UrecaForConditionalGeneration, processor: UrecaProcessor, *, cached_images: int) -> None:
        self.model = model
        self.processor = processor
        self.cached_images = cached_images
        self._encoded: OrderedDict[bytes, EncodedImage] = OrderedDict()

    def encode(self, image: Picture) -> EncodedImage:
        """The pass of an image through vision encoder and language model, or its kept result."""
        if self.cached_images == 0:
            return self._encode(image)
        key = _fingerprint(image)
        encoded = self._encoded.pop(key, None) or self._encode(image)
        self._encoded[key] = encoded
        if len(self._encoded) > self.cached_images:
            self._encoded.popitem(last=False)
        return encoded

    def row(self, image: EncodedImage, mask: npt.NDArray[np.bool_], question: str, *, seed: int) -> Row:
        """A region as a row of a batch.

        Args:
            image: what `encode` made of `view` of this mask.
            mask: bool [H, W] of the image's size.
            question: what is asked.
            seed: of the row, if tokens are drawn.
        """
        _, end = self.processor.split_prompt(question)
        if self.processor.region_prompt != "mask":
            return Row(image.prefix, self._embeddings(self._tokens(end))[0], seed)
        tiles = self.processor.tile_mask(mask, self.processor.image_processor.max_tiles)
        token_ids = self._tokens(self.processor.mask_placeholders(len(tiles)) + end)
        features = self.model.model.get_mask_features(tiles, image.features)
        filled = fill_placeholders(
            self._embeddings(token_ids), token_ids, self.processor.mask_token_id, features, "mask"
        )
        return Row(image.prefix, filled[0], seed)

    def _encode(self, image: Picture) -> EncodedImage:
        beginning, _ = self.processor.split_prompt(QUESTION)
        inputs = self.processor(images=image, text=beginning, return_tensors="pt").to(self.model.device)
        outputs = self.model.model(**inputs, use_cache=True)
        fused = isinstance(self.model.model.mask_encoder, FusedMaskEncoder)
        return EncodedImage(Prefix.from_cache(outputs.past_key_values), outputs.image_hidden_states if fused else None)

    def _tokens(self, text: str) -> torch.Tensor:
        token_ids = self.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        on_device: torch.Tensor = token_ids.to(self.model.device)
        return on_device

    def _embeddings(self, token_ids: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.model.get_input_embeddings()(token_ids)
        return embeddings


def check_masks(image: Picture, masks: Masks, image_index: int) -> None:
    """Refuse what cannot be captioned.

    Raises:
        RegionError: kind "not_a_mask" if a mask is not bool [H, W], "size_mismatch" if it is not of the image's
            size, "empty_mask" if no pixel is set.
    """
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
    for index, mask in enumerate(masks):
        name = f"mask {index} of image {image_index}"
        if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.bool_:
            found = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise RegionError("not_a_mask", f"{name} must be a bool array [H, W], it is {found}")
        if mask.shape != (height, width):
            raise RegionError(
                "size_mismatch", f"{name} is {list(mask.shape)} (height, width), its image [{height}, {width}]"
            )
        if not mask.any():
            raise RegionError("empty_mask", f"{name} has no pixel set: there is nothing to caption")


def _fingerprint(image: Picture) -> bytes:
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    digest = hashlib.blake2b(str(pixels.shape).encode())
    digest.update(pixels.tobytes())
    return digest.digest()
