"""Captions for all regions of an image at once: one vision pass, one prefix, all regions in a batch."""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ureca.errors import DataError
from ureca.hashing import digest
from ureca.memory import (
    OUT_OF_MEMORY,
    first_line,
    free_device_bytes,
    in_parts_that_fit,
    is_out_of_memory,
    release_memory,
)
from ureca.model.attention import Prefix, enable_prefix_attention
from ureca.model.checkpoints import load_checkpoint
from ureca.model.decoding import DecodedSequence, SequenceDecoder, SequenceInput
from ureca.model.mask_encoder import ShownTiles
from ureca.model.modeling import UrecaForConditionalGeneration, maps_of, sees_image
from ureca.model.prepared import Picture, PreparedImage, Region, RegionPreparation
from ureca.model.processing import UrecaProcessor
from ureca.model.region_memory import RegionMemory, values_per_token
from ureca.model.settings import MIN_FREE_FRACTION, CaptionSettings

Masks = Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_]
Key = TypeVar("Key", bound=Hashable)

_MAX_MASK_VALUES = 2**25
"""Pixels of mask tiles that are encoded in one call of the mask encoder; regions with more take several calls."""

_FINISHED_BEFORE_GROWTH = 8
"""Regions that a batch which ran out of memory finishes in each of its places, before it has one place more."""

_log = logging.getLogger(__name__)


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
        finish_reason: "stop" (the model ended the caption), "length" (``max_new_tokens`` did) or "error".
        error: reason why there is no caption, ``out_of_memory`` for this region alone; None: there is one.
    """

    image_index: int
    mask_index: int
    text: str
    num_tokens: int
    finish_reason: str
    error: DataError | None = None


class RegionCaptioner:
    """Captions regions; an image is encoded once for all its regions.

    Args:
        model: on its device and in its data type.
        processor: processor of the model's checkpoint.
        cached_images: number of encoded images to keep for later calls (the most recently used), so that more regions
            of the same pixels need no further vision pass. Each holds the keys and values of its prompt's beginning.
        max_cached_bytes: bytes that they may take on the model's device; None: bounded by their number only.
        preparation_threads: threads that unpack masks and tokenize questions while the model is running; 0: the thread
            of the model does it.

    Raises:
        ValueError: if a layer of the language model has other than full attention.
    """

    def __init__(
        self,
        model: UrecaForConditionalGeneration,
        processor: UrecaProcessor,
        *,
        cached_images: int = 0,
        max_cached_bytes: int | None = None,
        preparation_threads: int = 1,
    ) -> None:
        enable_prefix_attention(model.model.language_model.config)
        self.model = model.eval()
        self.processor = processor
        self.preparation = RegionPreparation(
            processor,
            dtype=model.dtype if model.device.type == "cpu" else None,
            keeps_images=cached_images > 0,
            num_threads=preparation_threads,
        )
        self._encoder = PromptEncoder(
            model, processor, self.preparation, cached_images=cached_images, max_cached_bytes=max_cached_bytes
        )

    @classmethod
    def from_pretrained(
        cls,
        directory: Path | str,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
        cached_images: int = 0,
        max_cached_bytes: int | None = None,
    ) -> "RegionCaptioner":
        """Load a checkpoint.

        Args:
            directory: a checkpoint written by `save_pretrained` of model and processor, or the name of one that is part
                of this package: "scenes", a small model of drawn scenes.
            device: device to run on; None for a GPU if there is one, else the CPU.
            dtype: data type of the weights; "auto" for the checkpoint's.
            cached_images, max_cached_bytes: see the class.

        Raises:
            CheckpointError: if the directory is not a complete URECA checkpoint.
        """
        model, processor = load_checkpoint(directory, dtype=dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), processor, cached_images=cached_images, max_cached_bytes=max_cached_bytes)

    def limit_cache(self, fraction: float) -> None:
        """Bound the bytes of cached images by a fraction, 0 to 1, of the memory that is free on the model's device."""
        self._encoder.max_cached_bytes = int(fraction * free_device_bytes(self.model.device))

    def choose_batch_size(self, settings: CaptionSettings, memory_fraction: float = 1.0) -> int:
        """Return the number of regions to decode together: that of the settings, or else one for the free memory.

        Half of the free memory of the model's device is for regions. If the estimate is too low, batches are halved as
        they run out of memory.

        Args:
            settings: generation of the captions.
            memory_fraction: fraction, 0 to 1, of the free memory that this captioner may use.

        Returns:
            Without a number in the settings, 4 to 32 on a CPU and 4 to 256 on a GPU.
        """
        if settings.batch_size is not None:
            return settings.batch_size
        device, dtype = self.model.device, self.model.dtype
        free_bytes = memory_fraction * free_device_bytes(device)
        memory = RegionMemory.estimate(self.model.config, self.processor, settings, dtype.itemsize)
        return memory.num_regions(free_bytes, device.type)

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
            DataError: ``out_of_memory``: there is not enough memory for a region alone.
        """
        if len(images) != len(masks):
            raise ValueError(f"each image needs its masks: got {len(images)} images and masks for {len(masks)}")
        for index, image in enumerate(images):
            check_masks(image, masks[index], index)
        for region in self.stream_prepared(map(self.prepare, images, masks), settings):
            if region.error is not None:
                raise region.error
            yield region

    def prepare(self, image: Picture, masks: Iterable[npt.NDArray[np.bool_]]) -> PreparedImage:
        """Cut an image and its masks into tiles, without the model and in any thread; see `RegionPreparation.image`.

        Masks are not checked: each must be bool [H, W] of the image's size, with at least one pixel set.
        """
        return self.preparation.image(image, masks)

    @torch.inference_mode()
    def stream_prepared(self, images: Iterable[PreparedImage], settings: CaptionSettings) -> Iterator[RegionCaption]:
        """Caption prepared images like `stream`; regions are admitted as others finish, and images taken as needed.

        A region for which there is not enough memory alone is yielded with its error.
        """
        batch: RegionBatch[tuple[int, int]] = self.open_batch()
        keyed = (
            ((image_index, mask_index), image)
            for image_index, image in enumerate(images)
            for mask_index in range(image.num_regions)
        )
        batch_size = self.choose_batch_size(settings)
        min_free = max(1, round(MIN_FREE_FRACTION * batch_size))
        while True:
            num_free = batch_size - len(batch)
            if not batch or num_free >= min_free:
                admitted = list(islice(keyed, num_free))
                batch.admit((key, image, key[1], settings) for key, image in admitted)
                for (_, mask_index), image in admitted[-1:]:
                    others = range(mask_index + 1, image.num_regions)
                    self.preparation.ahead((image, other, settings.question) for other in others)
            if not batch:
                return
            for region in batch.step():
                lack = region.error if isinstance(region.error, DataError) else None
                if region.error is not None and lack is None:
                    raise region.error
                yield RegionCaption(*region.key, region.text, region.num_tokens, region.finish_reason, lack)

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


@dataclass(eq=False)
class _RegionRequest(Generic[Key]):
    """A region to caption; it is encoded anew if memory runs out."""

    key: Key
    image: PreparedImage
    mask_index: int
    settings: CaptionSettings
    failed_alone: bool = False


class RegionBatch(Generic[Key]):
    """Regions that are captioned together, each with its own settings, one token of each at a time.

    A caption does not depend on the other regions of the batch, nor on the time of admission (in float32).

    If memory runs out, the encoded images and the tokens so far are dropped, and half as many regions are decoded
    together, the others after them; their number grows again slowly. A region for which there is not enough memory even
    alone fails with ``out_of_memory``.

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
        self._model = model
        self._end_token_ids = end if isinstance(end, list) else [end]
        self._decoder: SequenceDecoder[Key] = SequenceDecoder(model, self._end_token_ids)
        self._processor = processor
        self._encoder = encoder
        self._latest: tuple[npt.NDArray[np.uint8], EncodedImage] | None = None
        self._failed: list[FinishedRegion[Key]] = []
        self._decoding: dict[Key, _RegionRequest[Key]] = {}
        self._deferred: deque[_RegionRequest[Key]] = deque()
        self._max_together: int | None = None  # since memory ran out
        self._num_finished = 0  # since the bound above was changed

    @property
    def num_forward_passes(self) -> int:
        """Number of passes of regions through the language model so far, of prefills and of decoding steps."""
        return self._decoder.num_forward_passes

    def __len__(self) -> int:
        """Number of regions that are unfinished, or whose error ``step`` has not yielded yet."""
        return len(self._decoder) + len(self._deferred) + len(self._failed)

    @torch.inference_mode()
    def admit(self, regions: Iterable[tuple[Key, PreparedImage, int, CaptionSettings]]) -> None:
        """Add regions. One whose prompt cannot be encoded is yielded with its error by the next step.

        Args:
            regions: key, image, index of the mask and settings of each (``batch_size`` is ignored; the seed is
                ``seed`` + the index); regions of an image should be adjacent.
        """
        self._deferred += [_RegionRequest(*region) for region in regions]
        self._admit_deferred(lambda key: True)

    def step(self, is_wanted: Callable[[Key], bool] | None = None) -> Iterator[FinishedRegion[Key]]:
        """Decode one more token of each region.

        Args:
            is_wanted: called with the key of each unfinished region; the region is dropped on false.

        Yields:
            The finished regions, and those that failed.
        """
        failed, self._failed = self._failed, []
        yield from failed
        self._admit_deferred(is_wanted or (lambda key: True))
        finished = self._decoder.step(is_wanted)
        while True:
            try:
                decoded = next(finished)
            except StopIteration:
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink([], error)
                return
            self._num_finished += 1
            if self._max_together is not None and self._num_finished >= _FINISHED_BEFORE_GROWTH * self._max_together:
                self._max_together, self._num_finished = self._max_together + 1, 0
            yield self._region(decoded)

    @torch.inference_mode()
    def _admit_deferred(self, is_wanted: Callable[[Key], bool]) -> None:
        """Encode deferred regions and let them join the decoding, as many as may be decoded together."""
        if not self._deferred:
            return
        requests: list[_RegionRequest[Key]] = []
        images: list[EncodedImage] = []
        sequences: list[tuple[Key, SequenceInput]] = []
        try:
            while self._deferred:
                if self._max_together is not None and len(self._decoder) + len(requests) >= self._max_together:
                    break
                request = self._deferred.popleft()
                if not is_wanted(request.key):
                    continue
                requests.append(request)
                try:
                    images.append(self._encode_view(request))
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    requests.pop()
                    self._failed.append(FinishedRegion(request.key, "", 0, "error", 0, error))
            sequences = self._sequences(requests, images)
            encoded = {key for key, _ in sequences}
            requests = [request for request in requests if request.key in encoded]
            self._decoder.admit(sequences)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            images.clear()
            sequences.clear()
            self._shrink(requests, error)
            return
        unfinished = {decoded.key for decoded in self._decoder.unfinished()}
        self._decoding |= {request.key: request for request in requests}
        self._decoding = {key: request for key, request in self._decoding.items() if key in unfinished}

    def _encode_view(self, request: _RegionRequest[Key]) -> "EncodedImage":
        image = request.image
        index = 0 if len(image.views) == 1 else request.mask_index
        view = image.views[index]
        if self._latest is None or view is not self._latest[0]:
            self._latest = None  # it may be the last to hold its image, whose memory the next one needs
            prompt = image.prompts[index] if image.prompts else None
            key = image.digests[index] if image.digests else None
            self._latest = view, self._encoder.encode_image(view, prompt, key)
        return self._latest[1]

    def _sequences(
        self, requests: Sequence[_RegionRequest[Key]], images: Sequence["EncodedImage"]
    ) -> list[tuple[Key, SequenceInput]]:
        """Encode the masks of regions together; if that fails, one by one, so that only those fail that must."""
        try:
            suffixes = self._encoder.encode_regions(
                [(request.image, request.mask_index, request.settings.question) for request in requests], images
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if len(requests) == 1:
                self._failed.append(FinishedRegion(requests[0].key, "", 0, "error", 0, error))
                return []
            alone = [self._sequences([request], [image]) for request, image in zip(requests, images, strict=True)]
            return list(chain.from_iterable(alone))
        return [
            (
                request.key,
                SequenceInput(
                    prefix=image.prefix,
                    suffix=suffix,
                    max_new_tokens=request.settings.max_new_tokens,
                    temperature=request.settings.temperature,
                    top_p=request.settings.top_p,
                    seed=request.settings.seed + request.mask_index,
                ),
            )
            for request, image, suffix in zip(requests, images, suffixes, strict=True)
        ]

    def _shrink(self, admitted: list[_RegionRequest[Key]], error: Exception) -> None:
        """Release all memory of the batch, and let half as many regions be decoded together; one alone fails."""
        unfinished = {decoded.key for decoded in self._decoder.unfinished()}
        unfinished -= {request.key for request in admitted}
        together = [request for key, request in self._decoding.items() if key in unfinished] + admitted
        message = first_line(error)
        self._decoder = SequenceDecoder(self._model, self._end_token_ids)
        self._decoding, self._latest = {}, None
        self._encoder.clear()
        release_memory(error)
        self._max_together, self._num_finished = max(1, len(together) // 2), 0
        if len(together) > 1:
            _log.warning(
                "out of memory with %d regions; going on with %d at a time: %s",
                len(together),
                self._max_together,
                message,
            )
        elif together and together[0].failed_alone:
            lack = DataError(OUT_OF_MEMORY, f"one region needs more memory than there is: {message}")
            self._failed.append(FinishedRegion(together.pop().key, "", 0, "error", 0, lack))
        elif together:
            together[0].failed_alone = True  # beside encoded images, which have been dropped
        self._deferred.extendleft(reversed(together))

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

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        shown = () if self.shown is None else (self.shown.features, self.shown.pixels, *self.shown.maps)
        return sum(map(_num_bytes, (*self.prefix.keys, *self.prefix.values, *shown)))


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _concatenated(parts: Sequence[BaseModelOutputWithPooling]) -> BaseModelOutputWithPooling:
    """Concatenate the outputs of the vision encoder for some tiles each."""
    if len(parts) == 1:
        return parts[0]
    together: dict[str, Any] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if isinstance(first, torch.Tensor):
            together[name] = torch.cat(values)
        else:
            maps = zip(*values, strict=True)  # those of an encoder that keeps none are None
            together[name] = tuple(None if each[0] is None else torch.cat(each) for each in maps)
    return type(parts[0])(**together)


class PromptEncoder:
    """Encodes the prompts of regions in two parts: a prefix for each image and a suffix for each region.

    Args:
        model: model that the prompts are for.
        processor: processor of the model.
        preparation: preparation of the regions.
        cached_images: number of encoded images to keep, the most recently used; 0 keeps none.
        max_cached_bytes: bytes that the kept images may take together with the one that is being encoded; None: any.
    """

    def __init__(
        self,
        model: UrecaForConditionalGeneration,
        processor: UrecaProcessor,
        preparation: RegionPreparation,
        *,
        cached_images: int,
        max_cached_bytes: int | None = None,
    ) -> None:
        self._model = model
        self._processor = processor
        self._preparation = preparation
        self._max_cached = cached_images
        self.max_cached_bytes = max_cached_bytes
        self._cached: OrderedDict[bytes, EncodedImage] = OrderedDict()
        self._cached_bytes = 0
        self._shown_bytes_per_tile = 0  # of the last image
        self._bytes_per_token = values_per_token(model.config.text_config) * model.dtype.itemsize

    @property
    def num_cached(self) -> int:
        """Number of images that are kept."""
        return len(self._cached)

    @property
    def cached_bytes(self) -> int:
        """Bytes of the images that are kept."""
        return self._cached_bytes

    def clear(self) -> None:
        """Drop the images that are kept, and the regions that are prepared."""
        self._preparation.clear()
        self._cached.clear()
        self._cached_bytes = 0

    def encode_image(
        self, tiles: npt.NDArray[np.uint8], prompt: torch.Tensor | None = None, key: bytes | None = None
    ) -> EncodedImage:
        """Run vision encoder and language model on an image, or return a cached result.

        Images are dropped before one is encoded that would not fit beside them.

        Args:
            tiles: tiles of the image, uint8 [N, S, S, 3].
            prompt: tokens of the prompt up to and including the image, int64 [L], if they are known.
            key: digest of the tiles, if it is known.
        """
        if key is None:
            key = digest([tiles]) if self._max_cached else b""
        if encoded := self._cached.get(key):
            self._cached.move_to_end(key)
            return encoded
        token_ids = self._preparation.prompt(len(tiles)) if prompt is None else prompt
        token_ids = token_ids[None].to(self._model.device)
        expected_bytes = token_ids.shape[1] * self._bytes_per_token + len(tiles) * self._shown_bytes_per_tile
        self._make_room(expected_bytes)
        pixel_values = self._processor.image_processor.normalise(torch.tensor(tiles, device=self._model.device))
        parts = in_parts_that_fit(
            lambda part: self._model.get_image_features(part, return_dict=True),
            pixel_values,
            len(pixel_values),
            "the vision encoder with one tile",
        )
        image_outputs = _concatenated([outputs for _, outputs in parts])
        outputs = self._model.model(input_ids=token_ids, mm_encoder_outputs={"image": image_outputs}, use_cache=True)
        shown = None
        if sees_image(self._model.model.mask_encoder):
            shown = ShownTiles.one_by_one(
                image_outputs.pooler_output, pixel_values.to(self._model.dtype), maps_of(image_outputs)
            )
            shown_bytes = sum(map(_num_bytes, (shown.features, shown.pixels, *shown.maps)))
            self._shown_bytes_per_tile = shown_bytes // len(tiles)
        encoded = EncodedImage(Prefix.from_cache(outputs.cache), shown)
        num_bytes = encoded.num_bytes
        if self._max_cached and (self.max_cached_bytes is None or num_bytes <= self.max_cached_bytes):
            self._make_room(num_bytes)
            self._cached[key] = encoded
            self._cached_bytes += num_bytes
        return encoded

    def _make_room(self, num_bytes: int) -> None:
        """Drop the images that were used longest ago, until one more of a number of bytes may be kept."""
        while self._cached and (
            len(self._cached) >= self._max_cached
            or (self.max_cached_bytes is not None and self._cached_bytes + num_bytes > self.max_cached_bytes)
        ):
            _, dropped = self._cached.popitem(last=False)
            self._cached_bytes -= dropped.num_bytes

    def encode_regions(self, regions: Sequence[Region], images: Sequence[EncodedImage]) -> list[torch.Tensor]:
        """Embed the rest of the prompts of regions; the mask encoder is called once for all that fit into a call.

        Args:
            regions: the regions.
            images: result of `encode_image` for the view of each.

        Returns:
            [L_i, D] for each.

        Raises:
            ValueError: a mask has another number of tiles than one and than its image.
        """
        parts: list[slice] = []
        start = 0
        while start < len(regions):
            end, num_values = start, 0
            while end < len(regions) and (end == start or num_values < _MAX_MASK_VALUES):
                image, index, _ = regions[end]
                tiles = image.mask_of(index)
                num_values += 0 if tiles is None else tiles.num_values
                end += 1
            parts.append(slice(start, end))
            start = end
        suffixes: list[torch.Tensor] = []
        for part in parts:
            inputs = self._preparation.take(regions[part])
            self._preparation.ahead(regions[part.stop :])  # while the model encodes these
            masks = [each.mask_values for each in inputs]
            features = self._encode_masks(
                [(image, mask) for image, mask in zip(images[part], masks, strict=True) if mask is not None]
            )
            texts = [ids for each in inputs for ids in (each.before, each.after)]
            embedded = self._model.get_input_embeddings()(torch.cat(texts).to(self._model.device))
            pieces = iter(embedded.split([len(ids) for ids in texts]))
            for mask in masks:
                before, after = next(pieces), next(pieces)
                middle = [] if mask is None else [next(features).flatten(0, 1).to(self._model.dtype)]
                suffixes.append(torch.cat([before, *middle, after]))
        return suffixes

    def _encode_masks(self, masks: Sequence[tuple[EncodedImage, torch.Tensor]]) -> Iterator[torch.Tensor]:
        """Encode the tiles of masks, [N_i, 1, S, S] each, in one call; returns the features [N_i, T, D] of each."""
        if not masks:
            return iter(())
        images = {id(image): image for image, _ in masks}
        all_shown = [image.shown for image in images.values() if image.shown is not None]
        shown = None
        if all_shown:
            num_tiles = [len(each.features) for each in all_shown]
            first_tiles = dict(zip(images, accumulate([0, *num_tiles]), strict=False))
            tiles: list[int] = []
            for image, mask in masks:
                first, count = first_tiles[id(image)], len(image.shown.features) if image.shown else 0
                if len(mask) not in {1, count}:
                    raise ValueError(f"a mask of {len(mask)} tiles does not fit its image of {count}")
                # The last tile shows the whole image, as a mask's only tile does.
                tiles += range(first + count - len(mask), first + count)
            shown = ShownTiles(
                _joined([each.features for each in all_shown]),
                _joined([each.pixels for each in all_shown]),
                torch.tensor(tiles, device=self._model.device),
                tuple(map(_joined, zip(*(each.maps for each in all_shown), strict=True))),
            )
        values = torch.cat([mask for _, mask in masks]).to(self._model.device)
        features: torch.Tensor = self._model.model.get_mask_features(values, shown)
        ends = accumulate(len(mask) for _, mask in masks)
        return (features[end - len(mask) : end] for end, (_, mask) in zip(ends, masks, strict=True))
