"""A batch of regions that others may join while it is being written.

[from] The two halves of a region's prompt: what all regions of an image share, and what is a region's own."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ureca.errors import DataError
from ureca.hashing import digest
from ureca.model.attention import Prefix
from ureca.model.decoding import DecodedSequence, Writer
from ureca.model.mask_encoder import FusedMaskEncoder, ShownTiles
from ureca.model.modeling import UrecaForConditionalGeneration, fill_placeholders
from ureca.model.prepared import MaskTiles, Picture, PreparedImage
from ureca.model.processing import UrecaProcessor
from ureca.model.prompt import QUESTION
from ureca.model.settings import CaptionSettings

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
        key = digest([tiles])
        encoded = self._encoded.pop(key, None) or self._encode(tiles)
        self._encoded[key] = encoded
        if len(self._encoded) > self.cached_images:
            self._encoded.popitem(last=False)
        return encoded

    def row(
        self, image: EncodedImage, mask: MaskTiles | None, settings: CaptionSettings, *, seed: int
    ) -> DecodedSequence:
        """A region as a row of a batch.

        Args:
            image: what `encode` made of the region's view.
            mask: tiles of the region's mask; None where it is not told by a mask.
            settings: what is asked, and how it is answered.
            seed: of the row, if tokens are drawn.
        """
        suffix = self._suffix(image, mask, settings.question)
        return DecodedSequence(
            image.prefix, suffix, settings.max_new_tokens, settings.temperature, settings.top_p, seed
        )

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


Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class FinishedRegion(Generic[Key]):
    """A region with its caption.

    Args:
        key: of the region.
        text: the caption.
        num_tokens: tokens written, the end token not counted.
        finish_reason: "stop" (the model ended it) or "length" (``max_new_tokens`` did).
    """

    key: Key
    text: str
    num_tokens: int
    finish_reason: str


class RegionBatch(Generic[Key]):
    """Regions that are captioned together, each in its own way, a token each at a time.

    Captions are those that each region gets alone, whoever is in the batch and whenever it joined (in float32).

    Args:
        model: that writes.
        processor: its processor.
        prompts: that make rows of regions for it.
    """

    def __init__(self, model: UrecaForConditionalGeneration, processor: UrecaProcessor, prompts: RegionPrompts) -> None:
        end = model.generation_config.eos_token_id
        if end is None:
            end = processor.tokenizer.eos_token_id
        self._writer: Writer[Key] = Writer(model, end if isinstance(end, list) else [end])
        self._processor = processor
        self._prompts = prompts
        self._latest: tuple[npt.NDArray[np.uint8], EncodedImage] | None = None

    def __len__(self) -> int:
        """Regions whose captions are not finished."""
        return len(self._writer)

    @torch.inference_mode()
    def admit(self, regions: Iterable[tuple[Key, PreparedImage, int, CaptionSettings]]) -> None:
        """Add regions.

        Args:
            regions: of each its key, its image, the index of its mask, and how its caption is written (but for
                ``batch_size``; it is drawn with the seed ``seed`` + the index); those of an image next to each other.
        """
        self._writer.admit(list(self._rows(regions)))

    def step(self, is_wanted: Callable[[Key], bool] | None = None) -> Iterator[FinishedRegion[Key]]:
        """Write one more token of each region.

        Args:
            is_wanted: asked of each region that goes on; one that is not wanted leaves.

        Yields:
            those that are finished.
        """
        for completion in self._writer.step(is_wanted):
            text = self._processor.decode(completion.token_ids, skip_special_tokens=True).strip()
            yield FinishedRegion(completion.key, text, len(completion.token_ids), completion.finish_reason)

    def _rows(
        self, regions: Iterable[tuple[Key, PreparedImage, int, CaptionSettings]]
    ) -> Iterator[tuple[Key, DecodedSequence]]:
        for key, image, mask_index, settings in regions:
            view = image.views[0 if len(image.views) == 1 else mask_index]
            if self._latest is None or view is not self._latest[0]:
                self._latest = view, self._prompts.encode(view)
            mask = image.masks[mask_index] if image.masks else None
            yield key, self._prompts.row(self._latest[1], mask, settings, seed=settings.seed + mask_index)
