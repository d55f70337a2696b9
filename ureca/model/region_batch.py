"""A batch of regions that others may join while it is being written."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ureca.model.decoding import Row, Writer
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.prepared import PreparedImage
from ureca.model.processing import UrecaProcessor
from ureca.model.region_prompts import EncodedImage, RegionPrompts
from ureca.settings.captioner import CaptionSettings

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
    def join(self, regions: Iterable[tuple[Key, PreparedImage, int, CaptionSettings]]) -> None:
        """Add regions.

        Args:
            regions: of each its key, its image, the index of its mask, and how its caption is written (but for
                ``batch_size``; it is drawn with the seed ``seed`` + the index); those of an image next to each other.
        """
        self._writer.join(list(self._rows(regions)))

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

    def _rows(self, regions: Iterable[tuple[Key, PreparedImage, int, CaptionSettings]]) -> Iterator[tuple[Key, Row]]:
        for key, image, mask_index, settings in regions:
            view = image.views[0 if len(image.views) == 1 else mask_index]
            if self._latest is None or view is not self._latest[0]:
                self._latest = view, self._prompts.encode(view)
            mask = image.masks[mask_index] if image.masks else None
            yield key, self._prompts.row(self._latest[1], mask, settings, seed=settings.seed + mask_index)
