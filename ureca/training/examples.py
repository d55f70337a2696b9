"""From a place in the plan to a packed micro-batch: what a worker that prepares data does.

[from] From samples to what is packed: pixels, masks, questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from ureca.data.questions import QuestionSettings, choose_question
from ureca.data.reading import fetch
from ureca.data.samples import BadSample, TrainingImage, TrainingRegion
from ureca.errors import DataError, ImageError
from ureca.hashing import hash64
from ureca.images import ImageLimits, try_decode_image
from ureca.masks.rle import decode, from_coco
from ureca.model.processing import UrecaProcessor
from ureca.model.prompt import QUESTION
from ureca.training.augmentation import AugmentationSettings, draw_scale, resize_image, resize_mask, scaled_size
from ureca.training.index import TrainingIndex
from ureca.training.packing import ImageExample, PackedBatch, Packer, RegionExample, from_bytes, to_bytes
from ureca.training.sampler import MicroBatch, PlanSettings, RunPlan
from ureca.training.token_costs import costs_of

if TYPE_CHECKING:
    from ureca.training.packing import ImageExample


class ExampleSettings(BaseModel):
    """How samples become examples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    augmentation: AugmentationSettings = AugmentationSettings()
    questions: QuestionSettings = QuestionSettings()
    image_limits: ImageLimits = ImageLimits()


@dataclass(frozen=True, eq=False)
class Made:
    """What became of an image and some of its regions.

    Attributes:
        example: with the regions that are good; None: none is.
        region_numbers: of the example's regions, in its order.
        bad_samples: one for each region that is not good.
    """

    example: ImageExample | None
    region_numbers: tuple[int, ...]
    bad_samples: tuple[BadSample, ...]


def make_example(
    image: TrainingImage, region_numbers: Sequence[int], *, epoch: int, seed: int, settings: ExampleSettings
) -> Made:
    """Read an image, resize it and some of its masks as the epoch wants it, and choose questions.

    The same arguments give the same example. What cannot be read comes back as bad samples: all regions where it is
    the image (kinds as ``ureca.data.reading`` and ``ureca.images`` have them, and ``size_mismatch``), one where it is
    its mask (``malformed_mask``, ``empty_mask``).

    Args:
        image: from the index.
        region_numbers: indices into ``image.regions``.
        epoch: from 0.
        seed: of the run.
        settings: how examples are made.
    """
    from ureca.training.packing import ImageExample, RegionExample

    pixels = _read(image, settings.image_limits)
    if isinstance(pixels, DataError):
        bad = [_bad(image, number, pixels.kind, pixels.message) for number in region_numbers]
        return Made(None, (), tuple(bad))
    scale = draw_scale(image.image_id, settings.augmentation, epoch=epoch, seed=seed)
    height, width = scaled_size(image.height, image.width, scale, settings.augmentation)
    good: dict[int, RegionExample] = {}
    bad = []
    for number in region_numbers:
        region = image.regions[number]
        mask = _mask(image, region)
        if isinstance(mask, DataError):
            bad.append(_bad(image, number, mask.kind, mask.message))
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
        return Made(None, (), tuple(bad))
    return Made(ImageExample(resize_image(pixels, height, width), tuple(good.values())), tuple(good), tuple(bad))


def _read(image: TrainingImage, limits: ImageLimits) -> npt.NDArray[np.uint8] | DataError:
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


def _mask(image: TrainingImage, region: TrainingRegion) -> npt.NDArray[np.bool_] | DataError:
    try:
        size = [image.height, image.width]
        mask = decode(from_coco({"size": size, "counts": region.counts}, image.height, image.width))
    except ValueError as error:
        return DataError("malformed_mask", str(error))
    return mask if mask.any() else DataError("empty_mask", "no pixel of the mask is set")


def _bad(image: TrainingImage, number: int, kind: str, message: str) -> BadSample:
    return BadSample(image.image_id, image.regions[number].region_id, kind, message)


@dataclass(frozen=True, eq=False)
class MadeMicroBatch:
    """A packed micro-batch and what it holds. Where ``weight`` is 0, nothing of it is counted but ``num_tokens``.

    Attributes:
        data: the packed batch, as ``ureca.training.packing`` encodes it.
        weight: of its loss, 1 or 0: a filler, or nothing of it could be read.
        num_answer_tokens: on which loss is taken.
        num_tokens: of the packed row.
        num_regions: that are learned from.
        image_ids: one an image.
        samples: sum modulo 2^64 of the hashes of each region's image id and region id.
        bad_samples: regions that cannot be learned from.
    """

    data: bytes
    weight: float
    num_answer_tokens: int
    num_tokens: int
    num_regions: int
    image_ids: tuple[str, ...]
    samples: int
    bad_samples: tuple[BadSample, ...]


class MicroBatchMaker:
    """Makes the micro-batches of a run, each whenever it is asked for.

    Args:
        processor: of the model that is trained.
        index: of the samples.
        plan: of the run.
        examples: how samples become examples.
        seed: of the run.
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
        *,
        batch: PlanSettings,
        augmentation: AugmentationSettings,
        questions: QuestionSettings,
        image_limits: ImageLimits,
        seed: int,
        world_size: int,
        epochs: int,
        max_steps: int | None,
    ) -> Self:
        """Open an index with the processor of a checkpoint; both are paths."""
        processor = UrecaProcessor.from_pretrained(model)
        opened = TrainingIndex(index)
        plan = RunPlan(
            opened.counts(),
            costs_of(processor),
            batch,
            augmentation,
            seed=seed,
            world_size=world_size,
            epochs=epochs,
            max_steps=max_steps,
        )
        examples = ExampleSettings(augmentation=augmentation, questions=questions, image_limits=image_limits)
        return cls(processor, opened, plan, examples, seed=seed)

    def make(self, step: int, number: int, rank: int) -> MadeMicroBatch:
        """Micro-batch ``number`` of a rank in a step of the run."""
        micro_batch = self._plan.micro_batches(step, rank)[number]
        epoch = self._plan.position(step).epoch
        images = self._index.read([group.image_number for group in micro_batch.groups])
        examples: list[ImageExample] = []
        image_ids: list[str] = []
        bad: list[BadSample] = []
        samples = num_regions = 0
        for image, group in zip(images, micro_batch.groups, strict=True):
            made = make_example(image, group.region_numbers, epoch=epoch, seed=self._seed, settings=self._examples)
            bad += made.bad_samples
            if made.example is not None:
                examples.append(made.example)
                image_ids.append(image.image_id)
                num_regions += len(made.region_numbers)
                samples += sum(
                    hash64(image.image_id, image.regions[number].region_id, number) for number in made.region_numbers
                )
        if micro_batch.is_padding or not examples:
            return self._weightless(micro_batch, examples, bad)
        packed = self._packer.pack(examples)
        return MadeMicroBatch(
            data=to_bytes(packed, self._processor.image_processor),
            weight=1.0,
            num_answer_tokens=packed.num_answer_tokens,
            num_tokens=len(packed.input_ids),
            num_regions=num_regions,
            image_ids=tuple(image_ids),
            samples=samples % 2**64,
            bad_samples=tuple(bad),
        )

    def unpack(self, made: MadeMicroBatch) -> PackedBatch:
        """The packed batch of a micro-batch, on the CPU."""
        return from_bytes(made.data, self._processor.image_processor)

    def _weightless(
        self, micro_batch: MicroBatch, examples: list[ImageExample], bad: list[BadSample]
    ) -> MadeMicroBatch:
        """Something small that all ranks can work on together, with a loss that does not count."""
        packed = self._packer.pack(examples or [_blank(self._processor.image_processor.tile_size_px)])
        return MadeMicroBatch(
            data=to_bytes(packed, self._processor.image_processor),
            weight=0.0,
            num_answer_tokens=0,
            num_tokens=len(packed.input_ids),
            num_regions=0,
            image_ids=(),
            samples=0,
            # What a filler repeats is counted where it belongs.
            bad_samples=() if micro_batch.is_padding else tuple(bad),
        )


def _blank(size_px: int) -> ImageExample:
    region = RegionExample(np.ones((size_px, size_px), np.bool_), QUESTION, ".")
    return ImageExample(np.zeros((size_px, size_px, 3), np.uint8), (region,))
