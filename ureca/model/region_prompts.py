"""The two halves of a region's prompt: what all regions of an image share, and what is a region's own."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ureca.errors import DataError
from ureca.model.decoding import Row
from ureca.model.mask_encoder import FusedMaskEncoder, ShownTiles
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.placeholders import fill_placeholders
from ureca.model.prepared import MaskTiles, Picture
from ureca.model.processing import QUESTION, UrecaProcessor
from ureca.model.shared_prefix import Prefix
from ureca.settings.captioner import CaptionSettings

Masks = Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_]


class RegionError(DataError):
    """A mask cannot be captioned; the message says which one and why."""


@dataclass(frozen=True)
class EncodedImage:
    """An image after its one pass through the model.

    Args:
        prefix: keys and values of the prompt up to and including the image.
        shown: its tiles, only if the mask encoder looks at them.
    """

    prefix: Prefix
    shown: ShownTiles | None


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

    def encode(self, tiles: npt.NDArray[np.uint8]) -> EncodedImage:
        """The pass of an image, cut into tiles uint8 [N, S, S, 3], through vision encoder and language model, or its
        kept result."""
        if self.cached_images == 0:
            return self._encode(tiles)
        key = _fingerprint(tiles)
        encoded = self._encoded.pop(key, None) or self._encode(tiles)
        self._encoded[key] = encoded
        if len(self._encoded) > self.cached_images:
            self._encoded.popitem(last=False)
        return encoded

    def row(self, image: EncodedImage, mask: MaskTiles | None, settings: CaptionSettings, *, seed: int) -> Row:
        """A region as a row of a batch.

        Args:
            image: what `encode` made of the region's view.
            mask: tiles of the region's mask; None where it is not told by a mask.
            settings: what is asked, and how it is answered.
            seed: of the row, if tokens are drawn.
        """
        suffix = self._suffix(image, mask, settings.question)
        return Row(image.prefix, suffix, settings.max_new_tokens, settings.temperature, settings.top_p, seed)

    def _suffix(self, image: EncodedImage, mask: MaskTiles | None, question: str) -> torch.Tensor:
        _, end = self.processor.split_prompt(question)
        if mask is None:
            return self._embeddings(self._tokens(end))[0]
        token_ids = self._tokens(self.processor.mask_placeholders(mask.num_tiles) + end)
        shown = image.shown
        if shown is not None and mask.num_tiles == 1:
            shown = shown.of(shown.tiles[-1:])  # which shows the whole image, as the mask's only tile does
        features = self.model.model.get_mask_features(mask.unpack(), shown)
        filled = fill_placeholders(
            self._embeddings(token_ids), token_ids, self.processor.mask_token_id, features, "mask"
        )
        return filled[0]

    def _encode(self, tiles: npt.NDArray[np.uint8]) -> EncodedImage:
        beginning, _ = self.processor.split_prompt(QUESTION)
        text = beginning.replace(self.processor.image_token, self.processor.image_placeholders(len(tiles)))
        pixel_values = self.processor.image_processor.normalise(torch.tensor(tiles, device=self.model.device))
        outputs = self.model.model(input_ids=self._tokens(text), pixel_values=pixel_values, use_cache=True)
        shown = None
        if isinstance(self.model.model.mask_encoder, FusedMaskEncoder):
            shown = ShownTiles.one_by_one(outputs.image_outputs.pooler_output, pixel_values.to(self.model.dtype))
        return EncodedImage(Prefix.from_cache(outputs.cache), shown)

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


def _fingerprint(tiles: npt.NDArray[np.uint8]) -> bytes:
    digest = hashlib.blake2b(str(tiles.shape).encode())
    digest.update(np.ascontiguousarray(tiles).data)
    return digest.digest()
