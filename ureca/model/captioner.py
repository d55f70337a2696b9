"""Captions for all regions of an image at once: one vision pass, one prefix, all regions in a batch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ureca.model.attention import enable_prefix_attention
from ureca.model.checkpoints import load_checkpoint
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.prepared import Picture, PreparedImage, prepare
from ureca.model.processing import UrecaProcessor
from ureca.model.region_batch import Masks, RegionBatch, RegionPrompts, check_masks
from ureca.model.settings import CaptionSettings

__all__ = ["CaptionSettings", "RegionCaption", "RegionCaptioner"]


@dataclass(frozen=True)
class RegionCaption:
    """A caption and how it ended.

    Args:
        image_index: which of the images given.
        mask_index: which of its image's masks.
        text: the caption.
        num_tokens: tokens written, the end token not counted.
        finish_reason: "stop" (the model ended it) or "length" (``max_new_tokens`` did).
    """

    image_index: int
    mask_index: int
    text: str
    num_tokens: int
    finish_reason: str


class RegionCaptioner:
    """Captions regions; an image is encoded once for all its regions.

    Args:
        model: on the device and of the type it shall run with.
        processor: the processor of its checkpoint.
        cached_images: how many images stay encoded for later calls (the latest used), so that more regions of the
            same pixels need no further vision pass. Each holds the keys and values of its prompt's beginning.

    Raises:
        ValueError: if a layer of the language model has no full attention.
    """

    def __init__(
        self, model: UrecaForConditionalGeneration, processor: UrecaProcessor, *, cached_images: int = 0
    ) -> None:
        enable_prefix_attention(model.model.language_model.config)
        self.model = model.eval()
        self.processor = processor
        self._prompts = RegionPrompts(model, processor, cached_images=cached_images)

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
            directory: a checkpoint as `save_pretrained` of model and processor write it.
            device: where to run; a GPU if there is one, unless given.
            dtype: type of the weights; "auto" takes the checkpoint's.
            cached_images: see the class.

        Raises:
            CheckpointError: if the directory is not a complete URECA checkpoint.
        """
        model, processor = load_checkpoint(directory, dtype=dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), processor, cached_images=cached_images)

    def caption(self, image: Picture, masks: Masks, **settings: Any) -> list[str]:
        """Captions of regions of one image, in the order of the masks.

        Args:
            image: a PIL image, or RGB pixels, uint8 [H, W, 3].
            masks: bool [H, W] each, or [N, H, W]; may be none.
            settings: fields of `CaptionSettings`.

        Raises:
            RegionError: if a mask is empty, not bool, or of another size than the image.
        """
        return self.caption_many([image], [masks], **settings)[0]

    def caption_many(self, images: Sequence[Picture], masks: Sequence[Masks], **settings: Any) -> list[list[str]]:
        """Captions of regions of several images, written in common batches; ``masks`` holds each image's masks."""
        regions = self.describe(images, masks, CaptionSettings(**settings))
        return [[region.text for region in of_image] for of_image in regions]

    def describe(
        self, images: Sequence[Picture], masks: Sequence[Masks], settings: CaptionSettings
    ) -> list[list[RegionCaption]]:
        """As `caption_many`, with the number of tokens and the reason for the end of each caption."""
        regions: list[dict[int, RegionCaption]] = [{} for _ in images]
        for region in self.stream(images, masks, settings):
            regions[region.image_index][region.mask_index] = region
        return [[of_image[index] for index in sorted(of_image)] for of_image in regions]

    @torch.inference_mode()
    def stream(
        self, images: Sequence[Picture], masks: Sequence[Masks], settings: CaptionSettings
    ) -> Iterator[RegionCaption]:
        """As `describe`, but each caption as soon as it is finished; those of a batch in any order.

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

        Masks are not checked here: each must be bool [H, W] of the image's size, with at least one pixel.
        """
        return prepare(self.processor, image, masks)

    @torch.inference_mode()
    def stream_prepared(self, images: Iterable[PreparedImage], settings: CaptionSettings) -> Iterator[RegionCaption]:
        """As `stream`, for images that are prepared; each is taken when its turn comes."""
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
                    yield RegionCaption(*region.key, region.text, region.num_tokens, region.finish_reason)

    def open_batch(self) -> RegionBatch[Any]:
        """An empty batch, for who has regions to caption at any time; see `RegionBatch`."""
        return RegionBatch(self.model, self.processor, self._prompts)
