"""Continuous batching of regions: one token of each at a time; regions are admitted at any time."""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ureca.errors import DataError
from ureca.memory import OUT_OF_MEMORY, first_line, is_out_of_memory, release_memory
from ureca.model.decoding import DecodedSequence, SequenceDecoder, SequenceInput
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.prepared import PreparedImage
from ureca.model.processing import UrecaProcessor
from ureca.model.prompt_encoder import EncodedImage, PromptEncoder
from ureca.model.settings import CaptionSettings

Key = TypeVar("Key", bound=Hashable)

_FINISHED_BEFORE_GROWTH = 8
"""Regions that a batch which ran out of memory finishes in each of its places, before it has one place more."""

_log = logging.getLogger(__name__)


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

    def __init__(self, model: UrecaForConditionalGeneration, processor: UrecaProcessor, encoder: PromptEncoder) -> None:
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

    def _encode_view(self, request: _RegionRequest[Key]) -> EncodedImage:
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
        self, requests: Sequence[_RegionRequest[Key]], images: Sequence[EncodedImage]
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
        num_dropped, dropped_bytes = self._encoder.num_cached, self._encoder.cached_bytes
        self._decoder = SequenceDecoder(self._model, self._end_token_ids)
        self._decoding, self._latest = {}, None
        self._encoder.clear()
        release_memory(error)
        self._max_together, self._num_finished = max(1, len(together) // 2), 0
        if len(together) > 1:
            _log.warning(
                "out of memory with %d regions, and %d encoded images of %d MiB kept; going on with %d at a time: %s",
                len(together),
                num_dropped,
                dropped_bytes >> 20,
                self._max_together,
                message,
            )
        elif together and together[0].failed_alone:
            lack = DataError(OUT_OF_MEMORY, f"one region needs more memory than there is: {message}")
            self._failed.append(FinishedRegion(together.pop().key, "", 0, "error", 0, lack))
        elif together:
            together[0].failed_alone = True  # encoded images were beside it; they have been dropped
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
