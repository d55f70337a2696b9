"""Packed micro-batches: from the samples of an index to rows of tokens, tiles and labels.

`MicroBatchPacker` reads the samples of a micro-batch (`read_example`), packs them (`Packer`) and serializes the result.
A packed row holds the tokens of an image once, followed by a segment for each of its regions; see
`ureca.model.packed_attention.PackedLayout`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load, save

from ureca.data.questions import QuestionSettings, choose_question
from ureca.data.reading import fetch
from ureca.data.samples import BadSample, TrainingImage, TrainingRegion
from ureca.errors import DataError, ImageError
from ureca.hashing import digest, hash64
from ureca.image_limits import ImageLimits
from ureca.images import try_decode_image
from ureca.masks.rle import decode, from_coco
from ureca.model.auto import UrecaProcessor
from ureca.model.image_processing import UrecaImageProcessor
from ureca.model.packed_attention import PackedLayout
from ureca.model.prepared import region_view
from ureca.model.processing import MASK_TOKENS
from ureca.model.prompt import QUESTION, shares_image
from ureca.training.augmentation import draw_scale, resize_image, resize_mask, scaled_size
from ureca.training.index import TrainingIndex
from ureca.training.sampler import RunPlan
from ureca.training.settings import AugmentationSettings

IGNORED = -100
"""Label of tokens without loss."""


class ExampleSettings(BaseModel):
    """Conversion of samples to training examples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    augmentation: AugmentationSettings = AugmentationSettings()
    questions: QuestionSettings = QuestionSettings()
    image_limits: ImageLimits = ImageLimits()


@dataclass(frozen=True, eq=False)
class PackedMicroBatch:
    """A serialized packed micro-batch and its counts. If ``weight`` is 0, all counts but ``num_tokens`` are 0.

    Attributes:
        data: the packed batch, serialized by `to_bytes`.
        weight: weight of its loss: 1, or 0 for a padding batch and for one without readable samples.
        num_answer_tokens: number of tokens with loss.
        num_tokens: length of the packed row.
        num_regions: number of regions that are trained on.
        image_ids: ids of the images that are trained on.
        samples: sum modulo 2^64 of the hashes of each region's image id and region id.
        bad_samples: regions that could not be read.
    """

    data: bytes
    weight: float
    num_answer_tokens: int
    num_tokens: int
    num_regions: int
    image_ids: tuple[str, ...]
    samples: int
    bad_samples: tuple[BadSample, ...]


class MicroBatchPacker:
    """Packs the micro-batches of a run, in any order.

    Args:
        processor: processor of the model to train.
        index: index of the samples.
        plan: plan of the run.
        examples: conversion of samples to examples.
        seed: seed of the run.
    """

    def __init__(
        self, processor: UrecaProcessor, index: TrainingIndex, plan: RunPlan, examples: ExampleSettings, *, seed: int
    ) -> None:
        self._processor, self._index, self._plan = processor, index, plan
        self._examples, self._seed = examples, seed
        self._packer = Packer(processor)

    @classmethod
    def open(
        cls,
        model: str,
        index: str,
        plan: Path,
        *,
        augmentation: AugmentationSettings,
        questions: QuestionSettings,
        image_limits: ImageLimits,
        seed: int,
        world_size: int,
    ) -> Self:
        """Open an index and the stored plan of its run with the processor of a checkpoint; all are paths."""
        processor = UrecaProcessor.from_pretrained(model)
        examples = ExampleSettings(augmentation=augmentation, questions=questions, image_limits=image_limits)
        return cls(processor, TrainingIndex(index), RunPlan.open(plan, world_size), examples, seed=seed)

    @property
    def num_micro_batches_per_step(self) -> int:
        """Micro-batches of a rank in a step, padding batches included."""
        return self._plan.num_micro_batches_per_rank

    def pack(self, step: int, number: int, rank: int) -> PackedMicroBatch:
        """Pack micro-batch ``number`` of a rank in a step of the run."""
        micro_batch = self._plan.micro_batches(step, rank)[number]
        epoch = self._plan.position(step).epoch
        images = self._index.read([group.image_number for group in micro_batch.groups])
        examples: list[ImageExample] = []
        image_ids: list[str] = []
        bad: list[BadSample] = []
        samples = num_regions = 0
        for image, group in zip(images, micro_batch.groups, strict=True):
            found = read_example(image, group.region_numbers, epoch=epoch, seed=self._seed, settings=self._examples)
            bad += found.bad_samples
            if found.example is not None:
                examples.append(found.example)
                image_ids.append(image.image_id)
                num_regions += len(found.region_numbers)
                samples += sum(
                    hash64(image.image_id, image.regions[region].region_id, region) for region in found.region_numbers
                )
        has_weight = bool(examples) and not micro_batch.is_padding
        # Without examples a blank one takes part, since all ranks must run the same number of passes.
        packed = self._packer.pack(examples or [_blank_example(self._processor.image_processor.tile_size_px)])
        return PackedMicroBatch(
            data=to_bytes(packed, self._processor.image_processor),
            weight=1.0 if has_weight else 0.0,
            num_answer_tokens=packed.num_answer_tokens if has_weight else 0,
            num_tokens=len(packed.input_ids),
            num_regions=num_regions if has_weight else 0,
            image_ids=tuple(image_ids) if has_weight else (),
            samples=samples % 2**64 if has_weight else 0,
            # The bad samples of a padding batch are counted in the micro-batch that it repeats.
            bad_samples=() if micro_batch.is_padding else tuple(bad),
        )

    def unpack(self, packed: PackedMicroBatch) -> "PackedBatch":
        """Deserialize a micro-batch, on the CPU."""
        return from_bytes(packed.data, self._processor.image_processor)


# Samples to examples


@dataclass(frozen=True, eq=False)
class RegionExample:
    """A region to train on.

    Args:
        mask: bool [H, W] of the image's size, with at least one pixel set.
        question: the question of the prompt.
        answer: the answer to learn.
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
class ReadExample:
    """The example of an image and some of its regions.

    Attributes:
        example: the readable regions; None if there are none.
        region_numbers: numbers of the example's regions, in its order.
        bad_samples: one for each region that could not be read.
    """

    example: ImageExample | None
    region_numbers: tuple[int, ...]
    bad_samples: tuple[BadSample, ...]


def read_example(
    image: TrainingImage, region_numbers: Sequence[int], *, epoch: int, seed: int, settings: ExampleSettings
) -> ReadExample:
    """Read an image, resize it and some of its masks for an epoch, and draw the questions.

    Deterministic in its arguments. Unreadable data come back as bad samples: all regions if the image is unreadable
    (kinds of ``ureca.data.reading`` and ``ureca.images``, and ``size_mismatch``), else one for each unreadable mask
    (``malformed_mask``, ``empty_mask``).

    Args:
        image: image of the index.
        region_numbers: indices into ``image.regions``.
        epoch: from 0.
        seed: seed of the run.
        settings: conversion of samples to examples.
    """

    def bad_sample(number: int, error: DataError) -> BadSample:
        return BadSample(image.image_id, image.regions[number].region_id, error.kind, error.message)

    pixels = _read_pixels(image, settings.image_limits)
    if isinstance(pixels, DataError):
        return ReadExample(None, (), tuple(bad_sample(number, pixels) for number in region_numbers))
    scale = draw_scale(image.image_id, settings.augmentation, epoch=epoch, seed=seed)
    height, width = scaled_size(image.height, image.width, scale, settings.augmentation)
    good: dict[int, RegionExample] = {}
    bad: list[BadSample] = []
    for number in region_numbers:
        region = image.regions[number]
        mask = _read_mask(image, region)
        if isinstance(mask, DataError):
            bad.append(bad_sample(number, mask))
            continue
        question = region.question or choose_question(
            image.image_id,
            region.region_id,
            detailed=region.detailed,
            settings=settings.questions,
            epoch=epoch,
            seed=seed,
        )
        good[number] = RegionExample(resize_mask(mask, height, width), question, region.caption)
    if not good:
        return ReadExample(None, (), tuple(bad))
    example = ImageExample(resize_image(pixels, height, width), tuple(good.values()))
    return ReadExample(example, tuple(good), tuple(bad))


def _read_pixels(image: TrainingImage, limits: ImageLimits) -> npt.NDArray[np.uint8] | DataError:
    (fetched,) = fetch([image.entry], limits)
    pixels = try_decode_image(fetched.image, limits)
    if isinstance(pixels, ImageError):
        return ImageError(pixels.kind, f"{image.entry.uri}: {pixels.message}")
    if isinstance(pixels, DataError):
        return pixels
    if pixels.shape[:2] != (image.height, image.width):
        return ImageError(
            "size_mismatch",
            f"{image.entry.uri} is {list(pixels.shape[:2])} (height, width), its masks {[image.height, image.width]}",
        )
    return pixels


def _read_mask(image: TrainingImage, region: TrainingRegion) -> npt.NDArray[np.bool_] | DataError:
    try:
        size = [image.height, image.width]
        mask = decode(from_coco({"size": size, "counts": region.counts}, image.height, image.width))
    except ValueError as error:
        return DataError("malformed_mask", str(error))
    return mask if mask.any() else DataError("empty_mask", "no pixel of the mask is set")


def _blank_example(size_px: int) -> ImageExample:
    region = RegionExample(np.ones((size_px, size_px), np.bool_), QUESTION, ".")
    return ImageExample(np.zeros((size_px, size_px, 3), np.uint8), (region,))


# Examples to packed batches


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Images packed into one row of L tokens.

    Args:
        input_ids: int64 [L].
        position_ids: int64 [L]: the positions of a segment continue those of its prefix.
        labels: int64 [L]: the token to predict at each position, `IGNORED` where there is no loss.
        prefix_lengths: int64 [images].
        num_segments: int64 [images].
        segment_lengths: int64 [segments].
        num_tiles: int64 [images].
        pixel_values: float [image tiles, 3, S, S].
        mask_values: uint8 [mask tiles, 1, S, S].
        mask_tile_images: int64 [mask tiles]: index of the image tile that a mask tile covers, for the fused encoder.
        image_digests: uint8 [images, 16]: hash of each image's tiles, of a serialized batch; else None.
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
    image_digests: torch.Tensor | None = None

    @property
    def num_answer_tokens(self) -> int:
        """Number of tokens with loss."""
        return int((self.labels != IGNORED).sum())

    def layout(self) -> PackedLayout:
        """Return the positions of prefixes and segments in the row."""
        segments = iter(self.segment_lengths.tolist())
        lengths = [
            (prefix, [next(segments) for _ in range(count)])
            for prefix, count in zip(self.prefix_lengths.tolist(), self.num_segments.tolist(), strict=True)
        ]
        return PackedLayout.of_lengths(lengths)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name, without missing ones; ``PackedBatch(**tensors)`` is the inverse."""
        tensors = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: tensor for name, tensor in tensors if tensor is not None}

    def to(self, device: torch.device | str) -> Self:
        """Move the batch to a device; lengths stay on the CPU, where they are read."""
        return type(self)(**_moved(self.tensors(), torch.device(device)))


class _Segment(NamedTuple):
    token_ids: list[int]
    num_prompt_tokens: int
    mask_tiles: torch.Tensor


class _Prefix(NamedTuple):
    token_ids: list[int]
    pixel_values: torch.Tensor


class Packer:
    """Packs examples.

    Args:
        processor: processor of the model to train.
    """

    def __init__(self, processor: UrecaProcessor) -> None:
        self._processor = processor
        tokenizer = processor.tokenizer
        self._mask_start, self._mask_context, self._mask_end = tokenizer.convert_tokens_to_ids(list(MASK_TOKENS))
        self._tokens_of = lru_cache(maxsize=4096)(
            lambda text: tuple(tokenizer(text, add_special_tokens=False).input_ids)
        )
        self._end_of_prompt = lru_cache(maxsize=256)(lambda question: processor.split_prompt(question)[1])
        self._end_of_turn = self._tokens_of(processor.end_of_turn)

    def pack(self, examples: Sequence[ImageExample]) -> PackedBatch:
        """Pack at least one image; if regions are shown with different pixels, each region becomes an image.

        Raises:
            ValueError: there is no image, an image has no region, or a mask has another size than its image.
        """
        if not examples or not all(example.regions for example in examples):
            raise ValueError("a batch needs an image, and every image a region")
        images = [
            (self._prefix(pixels), [self._segment(region) for region in regions])
            for example in examples
            for pixels, regions in self._views(example)
        ]
        input_ids: list[int] = []
        position_ids: list[int] = []
        labels: list[int] = []
        mask_tiles, mask_tile_images, first_tile = [], [], 0
        for prefix, segments in images:
            length, num_tiles = len(prefix.token_ids), len(prefix.pixel_values)
            input_ids += prefix.token_ids
            position_ids += range(length)
            labels += [IGNORED] * length
            for segment in segments:
                input_ids += segment.token_ids
                position_ids += range(length, length + len(segment.token_ids))
                # Each position predicts the next token; only the tokens of the answer count.
                answer = segment.token_ids[segment.num_prompt_tokens :]
                labels += [IGNORED] * (segment.num_prompt_tokens - 1) + answer + [IGNORED]
                mask_tiles.append(segment.mask_tiles)
                # A mask of one tile covers the whole image, as the image's last tile does.
                first = first_tile + (num_tiles - 1 if len(segment.mask_tiles) == 1 else 0)
                mask_tile_images.append(torch.arange(first, first + len(segment.mask_tiles)))
            first_tile += num_tiles
        return PackedBatch(
            input_ids=torch.tensor(input_ids),
            position_ids=torch.tensor(position_ids),
            labels=torch.tensor(labels),
            prefix_lengths=torch.tensor([len(prefix.token_ids) for prefix, _ in images]),
            num_segments=torch.tensor([len(segments) for _, segments in images]),
            segment_lengths=torch.tensor([len(segment.token_ids) for _, segments in images for segment in segments]),
            num_tiles=torch.tensor([len(prefix.pixel_values) for prefix, _ in images]),
            pixel_values=torch.cat([prefix.pixel_values for prefix, _ in images]),
            mask_values=torch.cat(mask_tiles),
            mask_tile_images=torch.cat(mask_tile_images),
        )

    def _views(self, example: ImageExample) -> Iterator[tuple[npt.NDArray[np.uint8], tuple[RegionExample, ...]]]:
        """Yield pixels, and the regions that are shown with them."""
        for region in example.regions:
            if region.mask.shape != example.pixels.shape[:2]:
                raise ValueError(f"a mask is {list(region.mask.shape)}, its image {list(example.pixels.shape[:2])}")
        if shares_image(self._processor.region_prompt):
            yield example.pixels, example.regions
            return
        for region in example.regions:
            yield region_view(example.pixels, region.mask, self._processor.region_prompt), (region,)

    def _prefix(self, pixels: npt.NDArray[np.uint8]) -> _Prefix:
        image = self._processor.image_processor(pixels, return_tensors="pt")
        beginning, _ = self._processor.split_prompt(QUESTION)
        placeholders = self._processor.image_placeholders(int(image["num_tiles"][0]))
        token_ids = self._tokens_of(beginning.replace(self._processor.image_token, placeholders))
        return _Prefix(list(token_ids), image["pixel_values"])

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


# Serialization: pixels as uint8 and masks as bits, lossless for batches of `Packer`

_MASK_BITS, _MASK_SHAPE = "mask_bits", "mask_shape"
_READ_ON_CPU = frozenset(
    {"prefix_lengths", "num_segments", "segment_lengths", "num_tiles", "image_digests", _MASK_SHAPE}
)


def to_bytes(batch: PackedBatch, image_processor: UrecaImageProcessor) -> bytes:
    """Serialize a batch whose pixels are normalised by the image processor, with the digests of its images."""
    tensors = batch.tensors()
    mean, std = _pixel_statistics(image_processor, torch.device("cpu"))
    pixels = (tensors["pixel_values"] * std + mean) * 255
    tensors["pixel_values"] = pixels.round().clamp(0, 255).to(torch.uint8)
    tensors["image_digests"] = _digests(tensors["pixel_values"], batch.num_tiles)
    masks = tensors["mask_values"]
    if masks.dtype == torch.uint8 and not (masks > 1).any():
        del tensors["mask_values"]
        tensors[_MASK_BITS] = torch.from_numpy(np.packbits(masks.numpy()))
        tensors[_MASK_SHAPE] = torch.tensor(masks.shape)
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def from_bytes(data: bytes, image_processor: UrecaImageProcessor, device: torch.device | str = "cpu") -> PackedBatch:
    """Deserialize a batch to a device; see `HostBatch`."""
    device = torch.device(device)
    return HostBatch.read(data, pin=device.type == "cuda").to(image_processor, device)


@dataclass(frozen=True, eq=False)
class HostBatch:
    """A deserialized batch in the host's memory, with pixels as uint8 and masks as bits.

    Attributes:
        tensors: the tensors of a `PackedBatch` by name, as `to_bytes` stores them.
    """

    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def read(cls, data: bytes, *, pin: bool = False) -> Self:
        """Deserialize what `to_bytes` wrote.

        Args:
            data: the serialized batch.
            pin: copy what moves to a GPU to page-locked memory, from which the GPU copies while the processor goes on.
        """
        tensors = load(data)
        if pin:
            tensors = {
                name: tensor if name in _READ_ON_CPU else tensor.pin_memory() for name, tensor in tensors.items()
            }
        return cls(tensors)

    def to(self, image_processor: UrecaImageProcessor, device: torch.device) -> PackedBatch:
        """Copy the batch to a device, and normalise pixels and unpack masks there, so that few bytes move."""
        tensors = _moved(self.tensors, device)
        if _MASK_BITS in tensors:
            shape = tensors.pop(_MASK_SHAPE).tolist()
            shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
            bits = (tensors.pop(_MASK_BITS)[:, None] >> shifts) & 1
            tensors["mask_values"] = bits.flatten()[: math.prod(shape)].view(shape)
        mean, std = _pixel_statistics(image_processor, device)
        tensors["pixel_values"] = (tensors["pixel_values"] / 255 - mean) / std
        return PackedBatch(**tensors)


def _moved(tensors: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Move tensors to a device, without waiting for it, but those that are read on the CPU."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()  # a copy from other memory makes the processor wait
        return tensor.to(device, non_blocking=True)

    return {name: tensor if name in _READ_ON_CPU else move(tensor) for name, tensor in tensors.items()}


def _digests(tiles: torch.Tensor, num_tiles: torch.Tensor) -> torch.Tensor:
    """Hash the tiles of each image, uint8 [N, 3, S, S]: uint8 [images, 16]."""
    images = torch.split(tiles, num_tiles.tolist())
    hashes = [digest([f"{list(image.shape)}", image.contiguous().numpy()], num_bytes=16) for image in images]
    return torch.tensor([list(each) for each in hashes], dtype=torch.uint8)


def _pixel_statistics(image_processor: UrecaImageProcessor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.tensor(image_processor.image_mean, device=device).view(3, 1, 1)
    return mean, torch.tensor(image_processor.image_std, device=device).view(3, 1, 1)
