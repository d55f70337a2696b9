"""What a source is, and what every region of a source must have."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from ureca.export.selection import Selection
from ureca.training.samples import BadSample, TrainingImage, TrainingRegion
from ureca.training.sources.settings import JsonlSource, RegionsSource

Sample = TrainingImage | BadSample


class Source(Protocol):
    """A source that can be read.

    Attributes:
        selection: regions and images that are left out on purpose, counted while ``samples`` runs.
    """

    selection: Selection

    def samples(self) -> Iterator[Sample]:
        """All images with their regions, and all that is bad, one by one, always in the same order.

        Raises:
            InputError, OutputError: the source as a whole cannot be read.
        """
        ...

    def files(self) -> list[str]:
        """The files, as paths or URIs, that decide what ``samples`` gives."""
        ...


def open_source(settings: RegionsSource | JsonlSource) -> Source:
    """The source that settings name; nothing is read yet."""
    from ureca.training.sources.jsonl import JsonlFile
    from ureca.training.sources.regions import RegionsDataset

    return RegionsDataset(settings) if isinstance(settings, RegionsSource) else JsonlFile(settings)


def checked(image_id: str, region: TrainingRegion, *, area_px: int) -> TrainingRegion | BadSample:
    """The region with its caption stripped of white space around it, or what keeps it from being learned.

    Args:
        image_id: of its image.
        region: its caption may be empty.
        area_px: of its mask.
    """
    region = replace(region, caption=region.caption.strip())
    if not region.caption:
        return BadSample(image_id, region.region_id, "empty_caption", "the region has no caption")
    if area_px == 0:
        return BadSample(image_id, region.region_id, "empty_mask", "no pixel of the mask is set")
    return region
