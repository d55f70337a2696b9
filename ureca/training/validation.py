"""What is looked at while a model trains: captions of the same few regions, beside their references."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ureca.errors import SettingsError
from ureca.hashing import hash64
from ureca.images import ImageLimits
from ureca.model.captioner import RegionCaptioner
from ureca.training.index import TrainingIndex
from ureca.training.packing import ExampleSettings, read_example


@dataclass(frozen=True, eq=False)
class ShownRegion:
    """A region that is captioned for people.

    Attributes:
        image_id, region_id: which it is.
        pixels: uint8 RGB [H, W, 3].
        mask: bool [H, W].
        reference: the caption that the data have.
    """

    image_id: str
    region_id: int
    pixels: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    reference: str


def shown_regions(index: TrainingIndex, count: int, limits: ImageLimits) -> list[ShownRegion]:
    """At most so many regions, each of another image, always the same; bad samples are left out."""
    total = index.info.num_images
    numbers = sorted({number * total // count for number in range(count)}) if count else []
    shown = []
    for image in index.read(numbers):
        region_number = hash64("shown", image.image_id) % len(image.regions)
        made = read_example(image, (region_number,), epoch=0, seed=0, settings=ExampleSettings(image_limits=limits))
        if made.example is not None:
            region = made.example.regions[0]
            shown.append(
                ShownRegion(
                    image.image_id,
                    image.regions[region_number].region_id,
                    made.example.pixels,
                    region.mask,
                    region.answer,
                )
            )
    return shown


def caption_shown(captioner: RegionCaptioner, shown: Sequence[ShownRegion], max_new_tokens: int) -> list[str]:
    """A caption of each region, the likeliest."""
    captions = captioner.caption_many(
        [region.pixels for region in shown], [[region.mask] for region in shown], max_new_tokens=max_new_tokens
    )
    return [caption for (caption,) in captions]


def score_captions(captions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """``exact`` (share of captions that are their references) and the metrics that take no model and little time.

    What cannot be computed here is left out, and ``missing`` says why.
    """
    from ureca.evaluation.metrics.references import score

    exact = float(np.mean([mine == theirs for mine, theirs in zip(captions, references, strict=True)]))
    try:
        scores = score(captions, [[reference] for reference in references], metrics=("BLEU", "ROUGE", "CIDEr"))
    except SettingsError as error:
        return {"exact": exact, "missing": str(error)}
    known = {name: value for name, value in scores.items() if isinstance(value, float)}
    return {"exact": exact, **known} | ({"missing": scores["missing"]} if scores["missing"] else {})
