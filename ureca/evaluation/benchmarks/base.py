"""Benchmarks: images with regions, each with its reference captions."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ureca.data.manifest import ManifestEntry
from ureca.errors import DataError
from ureca.hashing import digest
from ureca.masks import rle as rle_codec


@dataclass(frozen=True, slots=True)
class BenchmarkRegion:
    """A region to caption.

    Attributes:
        region_id: unique in its image.
        counts: COCO compressed RLE counts of its mask, valid for the image's size.
        references: reference captions; may be empty.
        parent_id: id of its parent in the mask tree, -1 at the top level; None where no tree is known.
        depth: depth in the mask tree, 0 at the top level; None where no tree is known.
        lookalike_ids: regions known to look like it, the most similar first.
    """

    region_id: int
    counts: str
    references: tuple[str, ...]
    parent_id: int | None = None
    depth: int | None = None
    lookalike_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BenchmarkImage:
    """An image with its regions to caption, at least one.

    Attributes:
        entry: location of the image; its annotation file is the scene if ``is_scene``.
        height_px, width_px: size of the upright image.
        regions: regions with distinct ids.
        is_scene: True if captions can be resolved in a scene.
    """

    entry: ManifestEntry
    height_px: int
    width_px: int
    regions: tuple[BenchmarkRegion, ...]
    is_scene: bool = False


@dataclass(frozen=True, slots=True)
class Exclusion:
    """An image or a region of a benchmark that cannot be used, with the reason.

    Attributes:
        image_id: id of the image; empty where it is not known.
        kind: snake_case kind of the defect, for counting.
        message: description of the defect.
        num_regions: number of regions excluded with it; 0 where it is not known.
    """

    image_id: str
    kind: str
    message: str
    num_regions: int = 1


@dataclass(frozen=True, slots=True)
class ImageSample:
    """A choice of images that does not depend on their order: all, or ``limit`` of them by ``seed``."""

    limit: int | None = None
    seed: int = 0

    def choose(self, ids: Iterable[str]) -> set[str]:
        """The chosen ids."""
        return set(ids) if self.limit is None else set(heapq.nsmallest(self.limit, set(ids), key=self.rank))

    def rank(self, id: str) -> bytes:
        """The rank of an id; ids of the lowest ranks are chosen."""
        return digest([f"{self.seed} {id}"])


class Benchmark(Protocol):
    """A readable benchmark.

    Attributes:
        description: title of its tables.
    """

    description: str

    def images(self, sample: ImageSample) -> Iterator[BenchmarkImage | Exclusion]:
        """Iterate over the chosen images in the benchmark's order, and over exclusions.

        Raises:
            InputError: a file is missing, too large or malformed.
        """
        ...

    def files(self) -> list[str]:
        """Paths or URIs of the files on which ``images`` depends."""
        ...


def checked_counts(segmentation: Any, height_px: int, width_px: int) -> str:
    """The compressed RLE counts of a COCO ``segmentation`` of any form.

    Raises:
        DataError: ``malformed``: it is no mask of an image of this size; ``empty_mask``: it has no pixel.
    """
    try:
        rle = rle_codec.from_coco(segmentation, height_px, width_px)
    except ValueError as error:
        raise DataError("malformed", str(error)) from error
    if not rle_codec.area_px(rle):
        raise DataError("empty_mask", "no pixel of the mask is set")
    return rle["counts"]


def clean_references(texts: Sequence[str]) -> tuple[str, ...]:
    """Distinct references in their order, without blank ones, with single spaces between words."""
    return tuple(dict.fromkeys(stripped for text in texts if (stripped := " ".join(text.split()))))
