"""From samples to what is packed: pixels, masks, questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from ureca.corpus.fetch import fetch
from ureca.errors import DataError, ImageError
from ureca.images import ImageLimits, decode_image
from ureca.regions.rle import decode, from_coco
from ureca.training.augmentation import AugmentationSettings, draw_scale, resize_image, resize_mask, scaled_size
from ureca.training.questions import QuestionSettings, choose_question
from ureca.training.samples import BadSample, TrainingImage, TrainingRegion

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
    the image (kinds as ``ureca.corpus.fetch`` and ``ureca.images`` have them, and ``size_mismatch``), one where it is
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
    if isinstance(fetched.image, DataError):
        return fetched.image
    try:
        pixels = decode_image(fetched.image, limits)
    except ImageError as error:
        return ImageError(error.kind, f"{image.entry.uri}: {error.message}")
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
