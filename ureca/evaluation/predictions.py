"""What every measure works on: a region, what was said of it, and what should have been."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ureca.errors import DataError


@dataclass(frozen=True, slots=True)
class Prediction:
    """The caption of one region, with the references it is compared with.

    Attributes:
        image_id: of the image; regions of an image are never taken for independent.
        region_id: unique in its image.
        caption: what the model said. Blank where it said nothing, or where the region failed: the region is then
            counted in every measure, as a caption that matches nothing and singles out nothing.
        references: what people, or the language of scenes, say of the region; none where there are none, and then
            measures that compare with references leave it out.
        depth: of the region in the mask tree, 0 at the top level; None where no tree is known.
        area_fraction: pixels of its mask / pixels of the image, 0 to 1.
        failure: why there is no caption, in a few words that can be counted; None where there is one.
    """

    image_id: str
    region_id: int
    caption: str
    references: tuple[str, ...]
    depth: int | None
    area_fraction: float
    failure: str | None = None

    def __post_init__(self) -> None:
        where = f"region {self.region_id} of image {self.image_id!r}"
        if not 0 <= self.area_fraction <= 1:
            raise ValueError(f"{where}: area_fraction is 0 to 1, not {self.area_fraction}")
        if self.depth is not None and self.depth < 0:
            raise ValueError(f"{where}: depth is at least 0, not {self.depth}")
        if self.failure is not None and not self.is_blank:
            raise ValueError(f"{where} has a caption and a failure ({self.failure})")

    @property
    def is_blank(self) -> bool:
        """Whether there is no caption to speak of."""
        return not self.caption.strip()


def by_image(predictions: Sequence[Prediction]) -> dict[str, list[int]]:
    """Places of the regions of each image within ``predictions``, images and regions in their order.

    Raises:
        DataError: ``duplicate_region``: an image has a region twice.
    """
    places: dict[str, list[int]] = {}
    seen: set[tuple[str, int]] = set()
    for place, prediction in enumerate(predictions):
        key = (prediction.image_id, prediction.region_id)
        if key in seen:
            raise DataError(
                "duplicate_region", f"region {key[1]} of image {key[0]!r} is there twice; keep one caption a region"
            )
        seen.add(key)
        places.setdefault(prediction.image_id, []).append(place)
    return places


def failures(predictions: Iterable[Prediction]) -> Counter[str]:
    """How many regions have no caption, by the reason."""
    return Counter(prediction.failure or "the model said nothing" for prediction in predictions if prediction.is_blank)
