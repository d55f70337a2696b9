"""Captions for all regions of an image at once: one vision pass, one prefix, all regions in a batch."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ureca.errors import DataError
from ureca.hashing import digest
from ureca.model.attention import Prefix, enable_prefix_attention
from ureca.model.checkpoints import load_checkpoint
from ureca.model.decoding import DecodedSequence, SequenceDecoder, SequenceInput
from ureca.model.mask_encoder import ShownTiles
from ureca.model.modeling import UrecaForConditionalGeneration, fill_placeholders, maps_of, sees_image
from ureca.model.prepared import MaskTiles, Picture, PreparedImage, prepare
from ureca.model.processing import UrecaProcessor
from ureca.model.prompt import QUESTION
from ureca.model.settings import CaptionSettings

Masks = Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_]
Key = TypeVar("Key", bound=Hashable)


class RegionError(DataError):
    """A mask cannot be captioned; the message names it and the reason."""


@dataclass(frozen=True)
class RegionCaption:
    """The caption of a region.

    Args:
        image_index: index of the image in the call.
        mask_index: index of the mask within its image.
        text: the caption.
        num_tokens: number of new tokens, without the end token.
        finish_reason: "stop" (the model ended the caption) or "length" (``max_new_tokens`` did).
    """

    image_index: int
    mask_index: int
    text: str
    num_tokens: int
    finish_reason: str


class RegionCaptioner:
    """Captions regions; an image is encoded once for all its regions.

    Args:
        model: on its device and in its data type.
        processor: processor of the model's checkpoint.
        cached_images: number of encoded images to keep for later calls (the most recently used), so that more regions
            of the same pixels need no further vision pass. Each holds the keys and values of its prompt's beginning.

    Raises:
        ValueError: if a layer of the language model has other than full attention.
    """

    def __init__(
        self, model: UrecaForConditionalGeneration, processor: UrecaProcessor, *, cached_images: int = 0
    ) -> None:
        enable_prefix_attention(model.model.language_model.config)
        self.model = model.eval()
        self.processor = processor
        self._encoder = PromptEncoder(model, processor, cached_images=cached_images)

    @classmethod
    def from_pretrained(
        cls,
        directory: Path | str,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
        cached_images: int = 0,
    ) -> "RegionCaptioner":
        """Load a checkpoint.

        Args:
            directory: a checkpoint written by `save_pretrained` of model and processor, or the name of one that is part
                of this package: "scenes", a small model of drawn scenes.
            device: device to run on; None for a GPU if there is one, else the CPU.
            dtype: data type of the weights; "auto" for the checkpoint's.
            cached_images: see the class.

        Raises:
            CheckpointError: if the directory is not a complete URECA checkpoint.
        """
        model, processor = load_checkpoint(directory, dtype=dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), processor, cached_images=cached_images)

    def caption(self, image: Picture, masks: Masks, **settings: Any) -> list[str]:
        """Caption regions of one image, in the order of the masks.

        Args:
            image: a PIL image, or RGB pixels, uint8 [H, W, 3].
            masks: bool [H, W] each, or [N, H, W]; may be empty.
            settings: fields of `CaptionSettings`.

        Raises:
            RegionError: if a mask is empty, not bool, or of another size than the image.
        """
        return self.caption_many([image], [masks], **settings)[0]

    def caption_many(self, images: Sequence[Picture], masks: Sequence[Masks], **settings: Any) -> list[list[str]]:
        """Caption regions of several images in common batches; ``masks`` contains the masks of each image."""
        regions = self.describe(images, masks, CaptionSettings(**settings))
        return [[region.text for region in of_image] for of_image in regions]

    def describe(
        self, images: Sequence[Picture], masks: Sequence[Masks], settings: CaptionSettings
    ) -> list[list[RegionCaption]]:
        """Caption regions like `caption_many`, and return the number of tokens and the finish reason with each."""
        regions: list[dict[int, RegionCaption]] = [{} for _ in images]
        for region in self.stream(images, masks, settings):
            regions[region.image_index][region.mask_index] = region
        return [[of_image[index] for index in sorted(of_image)] for of_image in regions]

    @torch.inference_mode()
    def stream(
        self, images: Sequence[Picture], masks: Sequence[Masks], settings: CaptionSettings
    ) -> Iterator[RegionCaption]:
        """Caption regions like `describe`, and yield each as soon as it is finished, in any order within a batch.

        Raises:
            RegionError: before anything is computed, if a mask cannot be captioned.
        """
        if len(images) != len(masks):
            raise ValueError(f"each image needs its masks: got {len(images)} images and masks for {len(masks)}")
        for index, image in enumerate(images):
            check_masks(image, masks[index], index)
        yield from self.stream_prepared(map(self.prepare, images, masks), settings)

    def prepare(self, image: Picture, masks: Iterable[npt.NDArray[np.bool_]]) -> PreparedImage:
        """Cut an image and its masks into tiles, without the model and in any thread; see `ureca.model.prepared`.

        Masks are not checked: each must be bool [H, W] of the image's size, with at least one pixel set.
        """
        return prepare(self.processor, image, masks)

    @torch.inference_mode()
    def stream_prepared(self, images: Iterable[PreparedImage], settings: CaptionSettings) -> Iterator[RegionCaption]:
        """Caption prepared images like `stream`; the iterable is consumed batch by batch."""
        batch: RegionBatch[tuple[int, int]] = self.open_batch()
        keyed = (
            ((image_index, mask_index), image)
            for image_index, image in enumerate(images)
            for mask_index in range(image.num_regions)
        )
        while regions := list(islice(keyed, settings.batch_size)):
            batch.admit((key, image, key[1], settings) for key, image in regions)
            while batch:
                for region in batch.step():
                    if region.error is not None:
                        raise region.error
                    yield RegionCaption(*region.key, region.text, region.num_tokens, region.finish_reason)

    def open_batch(self) -> "RegionBatch[Any]":
        """Create an empty batch, which admits regions at any time; see `RegionBatch`."""
        return RegionBatch(self.model, self.processor, self._encoder)


def check_masks(image: Picture, masks: Masks, image_index: int) -> None:
    """Check that masks can be captioned.

    Raises:
        RegionError: kind "not_a_mask" if a mask is not bool [H, W], "size_mismatch" if it has another size than the
            image, "empty_mask" if no pixel is set.
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


@dataclass(frozen=True)
class FinishedRegion(Generic[Key]):
    """A region of a batch with its caption, or with its text so far.

    Args:
        key: key of the region.
        text: the caption.
        num_tokens: number of new tokens, without the end token.
        finish_reason: "stop" (the model ended the caption), "length" (``max_new_tokens`` did) or "error"; empty while
            the caption is unfinished.
        num_prompt_tokens: number of tokens of the region's prompt, those of the image included.
        error: error of this region alone, for which it has no caption; None otherwise.
    """

    key: Key
    text: str
    num_tokens: int
    finish_reason: str
    num_prompt_tokens: int
    error: Exception | None = None


class RegionBatch(Generic[Key]):
    """Regions that are captioned together, each with its own settings, one token of each at a time.

    A caption does not depend on the other regions of the batch, nor on the time of admission (in float32).

    Args:
        model: model that writes the captions.
        processor: processor of the model.
        encoder: encoder of the regions' prompts.
    """

    def __init__(
        self, model: UrecaForConditionalGeneration, processor: UrecaProcessor, encoder: "PromptEncoder"
    ) -> None:
        end = model.generation_config.eos_token_id
        if end is None:
            end = processor.tokenizer.eos_token_id
        self._decoder: SequenceDecoder[Key] = SequenceDecoder(model, end if isinstance(end, list) else [end])
        self._processor = processor
        self._encoder = encoder
        self._latest: tuple[npt.NDArray[np.uint8], EncodedImage] | None = None
        self._not_encoded: list[FinishedRegion[Key]] = []

    def __len__(self) -> int:
        """Number of regions that are unfinished, or whose error ``step`` has not yielded yet."""
        return len(self._decoder) + len(self._not_encoded)

    @torch.inference_mode()
    def admit(self, regions: Iterable[tuple[Key, PreparedImage, int, CaptionSettings]]) -> None:
        """Add regions. One whose prompt cannot be encoded is yielded with its error by the next step.

        Args:
            regions: key, image, index of the mask and settings of each (``batch_size`` is ignored; the seed is
                ``seed`` + the index); regions of an image should be adjacent.
        """
        sequences = []
        for key, image, mask_index, settings in regions:
            try:
                view = image.views[0 if len(image.views) == 1 else mask_index]
                if self._latest is None or view is not self._latest[0]:
                    self._latest = view, self._encoder.encode_image(view)
                mask = image.masks[mask_index] if image.masks else None
                sequence = SequenceInput(
                    prefix=self._latest[1].prefix,
                    suffix=self._encoder.encode_region(self._latest[1], mask, settings.question),
                    max_new_tokens=settings.max_new_tokens,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    seed=settings.seed + mask_index,
                )
            except Exception as error:
                self._not_encoded.append(FinishedRegion(key, "", 0, "error", 0, error))
                continue
            sequences.append((key, sequence))
        self._decoder.admit(sequences)

    def step(self, is_wanted: Callable[[Key], bool] | None = None) -> Iterator[FinishedRegion[Key]]:
        """Decode one more token of each region.

        Args:
            is_wanted: called with the key of each unfinished region; the region is dropped on false.

        Yields:
            The finished regions, and those that failed.
        """
        not_encoded, self._not_encoded = self._not_encoded, []
        yield from not_encoded
        for decoded in self._decoder.step(is_wanted):
            yield self._region(decoded)

    def unfinished(self, is_wanted: Callable[[Key], bool]) -> Iterator[FinishedRegion[Key]]:
        """Yield each unfinished region that is wanted, with its text so far and an empty finish reason."""
        for decoded in self._decoder.unfinished():
            if is_wanted(decoded.key):
                yield self._region(decoded)

    def _region(self, decoded: DecodedSequence[Key]) -> FinishedRegion[Key]:
        text = self._processor.decode(decoded.token_ids, skip_special_tokens=True).strip()
        return FinishedRegion(
            decoded.key, text, len(decoded.token_ids), decoded.finish_reason, decoded.num_prompt_tokens, decoded.error
        )


@dataclass(frozen=True)
class EncodedImage:
    """An image after its forward pass.

    Args:
        prefix: keys and values of the prompt up to and including the image.
        shown: its tiles, for a mask encoder that uses them; else None.
    """

    prefix: Prefix
    shown: ShownTiles | None


class PromptEncoder:
    """Encodes the prompts of regions in two parts: a prefix for each image and a suffix for each region.

    Args:
        model: model that the prompts are for.
        processor: processor of the model.
        cached_images: number of encoded images to keep, the most recently used; 0 keeps none.
    """

    def __init__(self, model: UrecaForConditionalGeneration, processor: UrecaProcessor, *, cached_images: int) -> None:
        self._model = model
        self._processor = processor
        self._max_cached = cached_images
        self._cached: OrderedDict[bytes, EncodedImage] = OrderedDict()

    def encode_image(self, tiles: npt.NDArray[np.uint8]) -> EncodedImage:
        """Run vision encoder and language model on an image's tiles, uint8 [N, S, S, 3], or return a cached result."""
        key = digest([tiles]) if self._max_cached else b""
        if encoded := self._cached.pop(key, None):
            self._cached[key] = encoded
            return encoded
        processor = self._processor
        beginning, _ = processor.split_prompt(QUESTION)
        text = beginning.replace(processor.image_token, processor.image_placeholders(len(tiles)))
        pixel_values = processor.image_processor.normalise(torch.tensor(tiles, device=self._model.device))
        outputs = self._model.model(input_ids=self._tokenize(text), pixel_values=pixel_values, use_cache=True)
        shown = None
        if sees_image(self._model.model.mask_encoder):
            encoded_tiles = outputs.image_outputs
            shown = ShownTiles.one_by_one(
                encoded_tiles.pooler_output, pixel_values.to(self._model.dtype), maps_of(encoded_tiles)
            )
        encoded = EncodedImage(Prefix.from_cache(outputs.cache), shown)
        if self._max_cached:
            self._cached[key] = encoded
            if len(self._cached) > self._max_cached:
                self._cached.popitem(last=False)
        return encoded

    def encode_region(self, image: EncodedImage, mask: MaskTiles | None, question: str) -> torch.Tensor:
        """Embed the rest of a region's prompt.

        Args:
            image: result of `encode_image` for the region's view.
            mask: tiles of the region's mask; None for a region prompt without mask.
            question: question about the region.

        Returns:
            [L, D].
        """
        _, end = self._processor.split_prompt(question)
        embed = self._model.get_input_embeddings()
        if mask is None:
            embeddings: torch.Tensor = embed(self._tokenize(end))
            return embeddings[0]
        token_ids = self._tokenize(self._processor.mask_placeholders(mask.num_tiles) + end)
        shown = image.shown
        if shown is not None and mask.num_tiles == 1:
            shown = shown.of(shown.tiles[-1:])  # the last tile shows the whole image, as the mask's only tile does
        features = self._model.model.get_mask_features(mask.unpack(), shown)
        return fill_placeholders(embed(token_ids), token_ids, self._processor.mask_token_id, features, "mask")[0]

    def _tokenize(self, text: str) -> torch.Tensor:
        token_ids = self._processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        on_device: torch.Tensor = token_ids.to(self._model.device)
        return on_device
