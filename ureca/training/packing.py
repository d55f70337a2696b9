"""Packed batches as bytes: pixels as uint8 and masks as bits, from which the same batch comes back, bit for bit.

[from] From images and their regions to packed rows: an image's tokens once, then each region's own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save

from ureca.model.attention import PackedLayout
from ureca.model.image_processing import UrecaImageProcessor
from ureca.model.prepared import region_view
from ureca.model.processing import MASK_TOKENS, UrecaProcessor, region_conversation
from ureca.model.prompt import QUESTION, shares_image

IGNORED = -100
"""Label of tokens on which no loss is taken."""


@dataclass(frozen=True, eq=False)
class RegionExample:
    """A region to learn from.

    Args:
        mask: bool [H, W] of the image's size, with at least one pixel.
        question: what is asked.
        answer: what the model shall answer.
    """

    mask: npt.NDArray[np.bool_]
    question: str
    answer: str


@dataclass(frozen=True, eq=False)
class ImageExample:
    """An image and some of its regions.

    Args:
        pixels: uint8 RGB [H, W, 3].
        regions: at least one.
    """

    pixels: npt.NDArray[np.uint8]
    regions: tuple[RegionExample, ...]


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Images packed into one row of L tokens.

    Args:
        input_ids: int64 [L].
        position_ids: int64 [L]: a segment goes on where its prefix ends.
        labels: int64 [L]: the token to be predicted at each place, `IGNORED` where no loss is taken.
        prefix_lengths: int64 [images].
        num_segments: int64 [images].
        segment_lengths: int64 [segments].
        num_tiles: int64 [images].
        pixel_values: float [image tiles, 3, S, S].
        mask_values: uint8 [mask tiles, 1, S, S].
        mask_tile_images: int64 [mask tiles]: the image tile that shows what a mask tile covers, for the fused encoder.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    prefix_lengths: torch.Tensor
    num_segments: torch.Tensor
    segment_lengths: torch.Tensor
    num_tiles: torch.Tensor
    pixel_values: torch.Tensor
    mask_values: torch.Tensor
    mask_tile_images: torch.Tensor

    @property
    def num_answer_tokens(self) -> int:
        """Tokens on which loss is taken."""
        return int((self.labels != IGNORED).sum())

    def layout(self) -> PackedLayout:
        """What stands where in the row."""
        segments = iter(self.segment_lengths.tolist())
        lengths = [
            (prefix, [next(segments) for _ in range(count)])
            for prefix, count in zip(self.prefix_lengths.tolist(), self.num_segments.tolist(), strict=True)
        ]
        return PackedLayout.of_lengths(lengths)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, to be stored or sent; ``PackedBatch(**tensors)`` is the way back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device | str) -> Self:
        """The batch on a device; the lengths, which the host reads, stay where they are."""
        lengths = ("prefix_lengths", "num_segments", "segment_lengths", "num_tiles")
        moved = {
            name: tensor if name in lengths else tensor.to(device, non_blocking=True)
            for name, tensor in self.tensors().items()
        }
        return type(self)(**moved)


@dataclass(frozen=True)
class _Segment:
    token_ids: list[int]
    num_asked: int
    mask_tiles: torch.Tensor


class Packer:
    """Makes packed batches.

    Args:
        processor: of the model that is trained.
    """

    def __init__(self, processor: UrecaProcessor) -> None:
        self._processor = processor
        tokenizer = processor.tokenizer
        self._mask_start, self._mask_context, self._mask_end = tokenizer.convert_tokens_to_ids(list(MASK_TOKENS))
        self._tokens_of = lru_cache(maxsize=4096)(
            lambda text: tuple(tokenizer(text, add_special_tokens=False).input_ids)
        )
        self._end_of_prompt = lru_cache(maxsize=256)(lambda question: processor.split_prompt(question)[1])
        self._end_of_turn = self._tokens_of(end_of_turn(processor))

    def pack(self, examples: Sequence[ImageExample]) -> PackedBatch:
        """Pack images, at least one; where each region is shown other pixels, each becomes an image of its own.

        Raises:
            ValueError: there is no image, one has no region, or a mask is not of its image's size.
        """
        if not examples or not all(example.regions for example in examples):
            raise ValueError("a batch needs an image, and every image a region")
        rows = [self._row(pixels, regions) for example in examples for pixels, regions in self._shown(example)]
        first_tiles = np.cumsum([0, *(len(tiles) for tiles, _, _ in rows)])
        input_ids: list[int] = []
        position_ids: list[int] = []
        labels: list[int] = []
        mask_tiles, mask_tile_images = [], []
        for (tiles, prefix, segments), first_tile in zip(rows, first_tiles, strict=False):
            input_ids += prefix
            position_ids += range(len(prefix))
            labels += [IGNORED] * len(prefix)
            for segment in segments:
                input_ids += segment.token_ids
                position_ids += range(len(prefix), len(prefix) + len(segment.token_ids))
                labels += _labels(segment)
                mask_tiles.append(segment.mask_tiles)
                # A mask of one tile covers the whole image, as the image's last tile does.
                first = int(first_tile) + (len(tiles) - 1 if len(segment.mask_tiles) == 1 else 0)
                mask_tile_images.append(torch.arange(first, first + len(segment.mask_tiles)))
        return PackedBatch(
            input_ids=torch.tensor(input_ids),
            position_ids=torch.tensor(position_ids),
            labels=torch.tensor(labels),
            prefix_lengths=torch.tensor([len(prefix) for _, prefix, _ in rows]),
            num_segments=torch.tensor([len(segments) for _, _, segments in rows]),
            segment_lengths=torch.tensor([len(segment.token_ids) for _, _, segments in rows for segment in segments]),
            num_tiles=torch.tensor([len(tiles) for tiles, _, _ in rows]),
            pixel_values=torch.cat([tiles for tiles, _, _ in rows]),
            mask_values=torch.cat(mask_tiles),
            mask_tile_images=torch.cat(mask_tile_images),
        )

    def _shown(self, example: ImageExample) -> Iterator[tuple[npt.NDArray[np.uint8], tuple[RegionExample, ...]]]:
        """Pixels, and the regions that are asked about with them."""
        for region in example.regions:
            if region.mask.shape != example.pixels.shape[:2]:
                raise ValueError(f"a mask is {list(region.mask.shape)}, its image {list(example.pixels.shape[:2])}")
        if shares_image(self._processor.region_prompt):
            yield example.pixels, example.regions
            return
        for region in example.regions:
            yield region_view(example.pixels, region.mask, self._processor.region_prompt), (region,)

    def _row(
        self, pixels: npt.NDArray[np.uint8], regions: Sequence[RegionExample]
    ) -> tuple[torch.Tensor, list[int], list[_Segment]]:
        """Image tiles, tokens of the prefix, segments."""
        image = self._processor.image_processor(pixels, return_tensors="pt")
        beginning, _ = self._processor.split_prompt(QUESTION)
        placeholders = self._processor.image_placeholders(int(image["num_tiles"][0]))
        prefix = list(self._tokens_of(beginning.replace(self._processor.image_token, placeholders)))
        return image["pixel_values"], prefix, [self._segment(region) for region in regions]

    def _segment(self, region: RegionExample) -> _Segment:
        token_ids: list[int] = []
        size = self._processor.image_processor.tile_size_px
        tiles = torch.zeros(0, 1, size, size, dtype=torch.uint8)
        if self._processor.region_prompt == "mask":
            tiles = self._processor.tile_mask(region.mask, self._processor.image_processor.max_tiles).to(torch.uint8)
            num_tokens = self._processor.num_mask_tokens * len(tiles)
            token_ids = [self._mask_start, *[self._mask_context] * num_tokens, self._mask_end]
        token_ids += self._tokens_of(self._end_of_prompt(region.question))
        answer = self._tokens_of(region.answer)
        return _Segment([*token_ids, *answer, *self._end_of_turn], len(token_ids), tiles)


def _labels(segment: _Segment) -> list[int]:
    """Each place of a segment predicts the next token; only tokens of the answer count."""
    answer = segment.token_ids[segment.num_asked :]
    return [IGNORED] * (segment.num_asked - 1) + answer + [IGNORED]


def end_of_turn(processor: UrecaProcessor) -> str:
    """What the chat template puts after an answer, which the model must learn to write."""
    answer = "Answer."
    conversation = processor.apply_chat_template(region_conversation(QUESTION, answer))
    return str(conversation.rpartition(answer)[2].strip())


_BITS, _BIT_SHAPE = "mask_bits", "mask_shape"


def to_bytes(batch: PackedBatch, image_processor: UrecaImageProcessor) -> bytes:
    """Encode a batch whose pixels that image processor has normalised."""
    tensors = batch.tensors()
    mean, std = _statistics(image_processor)
    pixels = (tensors["pixel_values"] * std + mean) * 255
    tensors["pixel_values"] = pixels.round().clamp(0, 255).to(torch.uint8)
    masks = tensors["mask_values"]
    if masks.dtype == torch.uint8 and not (masks > 1).any():
        del tensors["mask_values"]
        tensors[_BITS] = torch.from_numpy(np.packbits(masks.numpy()))
        tensors[_BIT_SHAPE] = torch.tensor(masks.shape)
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def from_bytes(data: bytes, image_processor: UrecaImageProcessor) -> PackedBatch:
    """Decode a batch, on the CPU."""
    tensors = load(data)
    if _BITS in tensors:
        shape = tensors.pop(_BIT_SHAPE).tolist()
        bits = np.unpackbits(tensors.pop(_BITS).numpy(), count=int(np.prod(shape)))
        tensors["mask_values"] = torch.from_numpy(bits).view(shape)
    mean, std = _statistics(image_processor)
    tensors["pixel_values"] = (tensors["pixel_values"] / 255 - mean) / std
    return PackedBatch(**tensors)


def _statistics(image_processor: UrecaImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.tensor(image_processor.image_mean).view(3, 1, 1)
    return mean, torch.tensor(image_processor.image_std).view(3, 1, 1)
