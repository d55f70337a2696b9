"""Captions for all regions of an image at once: one vision pass, one prefix, all regions in a batch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ureca.errors import DataError
from ureca.memory import free_device_bytes
from ureca.model.attention import enable_prefix_attention
from ureca.model.checkpoints import load_checkpoint
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.prepared import Picture, PreparedImage, RegionPreparation
from ureca.model.processing import UrecaProcessor
from ureca.model.prompt_encoder import PromptEncoder
from ureca.model.region_batch import RegionBatch
from ureca.model.region_memory import RegionMemory
from ureca.model.settings import MIN_FREE_FRACTION, CaptionSettings

Masks = Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_]


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

    Attributes:
        encoder: encoder of the prompts, which holds the encoded images.

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
        self.encoder = PromptEncoder(
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
        self.encoder.max_cached_bytes = int(fraction * free_device_bytes(self.model.device))

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

    def open_batch(self) -> RegionBatch[Any]:
        """Create an empty batch, which admits regions at any time; see `RegionBatch`."""
        return RegionBatch(self.model, self.processor, self.encoder)


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
