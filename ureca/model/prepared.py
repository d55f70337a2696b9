"""Preparation of images and regions for the model: tiles and tokens, without the model and in other threads."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ureca.hashing import digest
from ureca.masks.mask import Mask
from ureca.masks.views import Box, Views
from ureca.model.processing import UrecaProcessor
from ureca.model.prompt import QUESTION, shares_image

Picture = Image.Image | npt.NDArray[np.uint8]

_MAX_TOKENIZED = 256
"""Prompts of different questions and numbers of tiles whose tokens are kept."""


def region_view(
    pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], region_prompt: str
) -> npt.NDArray[np.uint8]:
    """Draw the view of a region that a model is shown.

    Args:
        pixels: uint8 RGB [H, W, 3].
        mask: bool [H, W], with at least one pixel set.
        region_prompt: one of `ureca.model.prompt.RegionPrompt`.

    Returns:
        uint8 RGB [h, w, 3]; ``pixels`` itself for ``mask`` and ``none``.
    """
    if shares_image(region_prompt):
        return pixels
    region = Mask.from_array(0, mask)
    if region_prompt == "crop":
        return np.ascontiguousarray(pixels[Box.around([region]).rows_and_columns])
    return Views(pixels, {0: region}, max_side_px=max(pixels.shape[:2])).whole_with_contour(0)


@dataclass(frozen=True, eq=False)
class MaskTiles:
    """Tiles of a mask [N, S, S]; bool tiles take one bit a pixel."""

    values: npt.NDArray[np.uint8]
    shape: tuple[int, ...]
    is_packed: bool

    @classmethod
    def of(cls, tiles: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> "MaskTiles":
        """Pack tiles [N, S, S]."""
        is_packed = tiles.dtype == np.bool_
        return cls(np.packbits(tiles) if is_packed else tiles.astype(np.uint8), tiles.shape, is_packed)

    @property
    def num_tiles(self) -> int:
        """Number N of tiles."""
        return self.shape[0]

    @property
    def num_values(self) -> int:
        """Number of pixels of all tiles."""
        return int(np.prod(self.shape))

    def unpack(self) -> torch.Tensor:
        """Unpack the tiles, uint8 [N, 1, S, S]."""
        values = self.values
        if self.is_packed:
            values = np.unpackbits(self.values, count=self.num_values).reshape(self.shape)
        return torch.from_numpy(values).unsqueeze(1)


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image and some of its regions, prepared for the model.

    Attributes:
        views: tiles of the views, uint8 [N, S, S, 3]: one view for all regions, or one a region.
        masks: tiles of each region's mask; empty for region prompts without mask.
        num_regions: number of regions.
        prompts: tokens of the prompt up to and including each view, int64 [L]; empty: not tokenized yet.
        digests: keys of the views among the encoded images that are kept; empty: none are kept.
    """

    views: tuple[npt.NDArray[np.uint8], ...]
    masks: tuple[MaskTiles, ...]
    num_regions: int
    prompts: tuple[torch.Tensor, ...] = ()
    digests: tuple[bytes, ...] = ()

    def mask_of(self, index: int) -> MaskTiles | None:
        """Return the tiles of a region's mask; None for a region prompt without mask."""
        return self.masks[index] if self.masks else None

    @property
    def num_tiles(self) -> int:
        """Number of tiles of the first view, which decides the length of the prompt; 0 without regions."""
        return len(self.views[0]) if self.views else 0


@dataclass(frozen=True, eq=False)
class PreparedRegion:
    """The rest of a region's prompt, behind its image, as the model takes it.

    Attributes:
        before, after: tokens before and after the features of the mask, int64 [L] each.
        mask_values: tiles of the mask, [N, 1, S, S]; None for a region prompt without mask.
    """

    before: torch.Tensor
    after: torch.Tensor
    mask_values: torch.Tensor | None


Region = tuple[PreparedImage, int, str]
"""An image, the index of its region, and the question about it."""


class RegionPreparation:
    """Cuts, unpacks and tokenizes the input of a model, so that the model's thread does none of it; thread-safe.

    Regions are prepared in a thread of this object, which may begin with those that the model takes next while it is
    computing. A mask is kept as bits until then, so that only a few are in memory as the model takes them.

    Args:
        processor: processor of the model.
        dtype: type of the tiles of masks; None keeps uint8, which is faster to copy to a GPU.
        keeps_images: True if images are recognized by their digests.
        num_threads: number of threads; 0 prepares regions in the thread that takes them.
        max_ahead_regions: number of regions that are prepared and wait for the model at most.
        max_ahead_values: pixels of mask tiles that are unpacked and wait for the model, unless a single mask has more.
    """

    def __init__(
        self,
        processor: UrecaProcessor,
        *,
        dtype: torch.dtype | None = None,
        keeps_images: bool = False,
        num_threads: int = 1,
        max_ahead_regions: int = 64,
        max_ahead_values: int = 2**25,
    ) -> None:
        self._processor = processor
        self._dtype = dtype
        self._keeps_images = keeps_images
        self._threads = ThreadPoolExecutor(num_threads, "prepare") if num_threads else None
        self._max_ahead_regions = max_ahead_regions
        self._max_ahead_values = max_ahead_values
        self._tokenizing = threading.Lock()  # tokenizers are not thread-safe; guards the tokens, too
        self._tokens: OrderedDict[Hashable, tuple[torch.Tensor, ...]] = OrderedDict()
        self._lock = threading.Lock()  # guards the regions
        self._ahead: WeakKeyDictionary[PreparedImage, dict[tuple[int, str], Future[PreparedRegion]]] = (
            WeakKeyDictionary()
        )

    def image(self, image: Picture, masks: Iterable[npt.NDArray[np.bool_]]) -> PreparedImage:
        """Cut an image and its masks into tiles, one mask in memory at a time; in the caller's thread.

        Args:
            image: a PIL image, or RGB pixels, uint8 [H, W, 3].
            masks: bool [H, W] each, with at least one pixel set.
        """
        processor = self._processor
        shared = shares_image(processor.region_prompt)
        views, tiles, num_regions = [], [], 0
        for mask in masks:
            num_regions += 1
            if not shared:
                pixels = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
                views.append(processor.image_processor.cut(region_view(pixels, mask, processor.region_prompt)))
            if processor.region_prompt == "mask":
                tiles.append(MaskTiles.of(processor.cut_mask(mask, processor.image_processor.max_tiles)))
        if shared and num_regions:
            views.append(processor.image_processor.cut(image))
        return PreparedImage(
            tuple(views),
            tuple(tiles),
            num_regions,
            prompts=tuple(self.prompt(len(view)) for view in views),
            digests=tuple(digest([view]) for view in views) if self._keeps_images else (),
        )

    def prompt(self, num_tiles: int) -> torch.Tensor:
        """Tokenize the prompt up to and including an image of so many tiles, int64 [L]."""

        def tokenize() -> tuple[torch.Tensor, ...]:
            beginning, _ = processor.split_prompt(QUESTION)
            text = beginning.replace(processor.image_token, processor.image_placeholders(num_tiles))
            return (processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0],)

        processor = self._processor
        return self._kept_tokens((processor.region_prompt, num_tiles), tokenize)[0]

    def ahead(self, regions: Iterable[Region]) -> None:
        """Begin to prepare the regions that the model takes next, as many as may wait for it."""
        if self._threads is None:
            return
        with self._lock:
            held = [(image, index) for image, inputs in self._ahead.items() for index, _ in inputs]
            num_regions, num_values = len(held), sum(_num_values(*region) for region in held)
            for image, index, question in regions:
                inputs = self._ahead.setdefault(image, {})
                if (index, question) in inputs:
                    continue
                num_regions, num_values = num_regions + 1, num_values + _num_values(image, index)
                if num_regions > self._max_ahead_regions or (num_regions > 1 and num_values > self._max_ahead_values):
                    return
                inputs[index, question] = self._threads.submit(self._region, image.mask_of(index), question)

    def take(self, regions: Sequence[Region]) -> list[PreparedRegion]:
        """Return the input of the model for regions; waits for those that are not prepared yet.

        Raises:
            ValueError: a question has a placeholder of the mask.
        """
        if self._threads is None:
            return [self._region(image.mask_of(index), question) for image, index, question in regions]
        with self._lock:
            futures = []
            for image, index, question in regions:
                inputs = self._ahead.get(image)
                future = None if inputs is None else inputs.pop((index, question), None)
                futures.append(future or self._threads.submit(self._region, image.mask_of(index), question))
        return [future.result() for future in futures]

    def clear(self) -> None:
        """Drop the regions that wait for the model."""
        with self._lock:
            self._ahead.clear()

    def _region(self, mask: MaskTiles | None, question: str) -> PreparedRegion:
        before, after = self._region_tokens(0 if mask is None else mask.num_tiles, question)
        values = None if mask is None else mask.unpack()
        return PreparedRegion(
            before, after, values if values is None or self._dtype is None else values.to(self._dtype)
        )

    def _region_tokens(self, num_mask_tiles: int, question: str) -> tuple[torch.Tensor, ...]:
        """Tokenize the prompt before and after the placeholders of a mask, [L] each."""

        def tokenize() -> tuple[torch.Tensor, ...]:
            _, end = processor.split_prompt(question)
            text = processor.mask_placeholders(num_mask_tiles) + end if num_mask_tiles else end
            token_ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
            is_mask = token_ids == processor.mask_token_id
            num_placeholders = processor.num_mask_tokens * num_mask_tiles
            if int(is_mask.sum()) != num_placeholders:
                raise ValueError(
                    f"the prompt of a region has {int(is_mask.sum())} placeholders of the mask, whose tiles give "
                    f"{num_placeholders} features: its question must not contain {processor.mask_token}"
                )
            first = int(is_mask.int().argmax()) if num_mask_tiles else 0
            return token_ids[:first], token_ids[first + num_placeholders :]

        processor = self._processor
        return self._kept_tokens((processor.region_prompt, question, num_mask_tiles), tokenize)

    def _kept_tokens(self, key: Hashable, tokenize: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        """Return the tokens of a prompt that are kept, or tokenize it."""
        with self._tokenizing:
            if (kept := self._tokens.get(key)) is None:
                kept = self._tokens[key] = tokenize()
                if len(self._tokens) > _MAX_TOKENIZED:
                    self._tokens.popitem(last=False)
            self._tokens.move_to_end(key)
            return kept


def _num_values(image: PreparedImage, index: int) -> int:
    mask = image.mask_of(index)
    return 0 if mask is None else mask.num_values
