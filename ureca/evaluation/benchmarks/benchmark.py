"""What a benchmark is: images with regions, each with its references."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ureca.corpus.manifest import ManifestEntry
from ureca.errors import DataError
from ureca.regions import rle as rle_codec


@dataclass(frozen=True, slots=True)
class BenchmarkRegion:
    """A region that is captioned.

    Attributes:
        region_id: unique in its image.
        counts: COCO compressed RLE counts of its mask, which has the image's size; they have been checked.
        references: what is said of it; may be none.
        parent_id: of the region that it is a part of, -1 at the top level; None where no tree is known.
        depth: in the mask tree, 0 at the top level; None where no tree is known.
        lookalike_ids: regions known to look like it, the likest first.
    """

    region_id: int
    counts: str
    references: tuple[str, ...]
    parent_id: int | None = None
    depth: int | None = None
    lookalike_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BenchmarkImage:
    """An image with those of its regions that are captioned, at least one.

    Attributes:
        entry: where the bytes are; its annotation is the scene, if ``is_scene``.
        height_px, width_px: upright.
        regions: with distinct ids.
        is_scene: whether captions can be resolved.
    """

    entry: ManifestEntry
    height_px: int
    width_px: int
    regions: tuple[BenchmarkRegion, ...]
    is_scene: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a benchmark names and cannot be used, with the reason.

    Attributes:
        image_id: of the image; empty where it is not known.
        kind: of what is wrong, in a few snake_case letters, for counting.
        message: the particulars.
        num_regions: how many regions are lost by it; 0 where that is not known.
    """

    image_id: str
    kind: str
    message: str
    num_regions: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """Which images are taken: all, or ``limit`` of them by ``seed``, whatever their order."""

    limit: int | None = None
    seed: int = 0

    def of(self, ids: Iterable[str]) -> set[str]:
        """The ids that are taken."""
        return set(ids) if self.limit is None else set(heapq.nsmallest(self.limit, set(ids), key=self.rank))

    def rank(self, id: str) -> bytes:
        """The lowest are taken."""
        return hashlib.blake2b(f"{self.seed} {id}".encode(errors="surrogatepass"), digest_size=16).digest()


class Benchmark(Protocol):
    """A benchmark that can be read.

    Attributes:
        description: what it is, for the title of a table.
    """

    description: str

    def images(self, sample: Sample) -> Iterator[BenchmarkImage | LeftOut]:
        """Images in the benchmark's order, one by one, and what is left out of them.

        Raises:
            InputError: a file is missing, too large or not what it should be.
        """
        ...

    def files(self) -> list[str]:
        """The files, as paths or URIs, that decide what ``images`` gives."""
        ...


def checked_counts(segmentation: Any, height_px: int, width_px: int) -> str:
    """The compressed counts of a COCO ``segmentation`` of any form.

    Raises:
        DataError: ``malformed``: it is no mask of an image of that size; ``empty_mask``: no pixel is set.
    """
    try:
        rle = rle_codec.from_coco(segmentation, height_px, width_px)
    except ValueError as error:
        raise DataError("malformed", str(error)) from error
    if not rle_codec.area_px(rle):
        raise DataError("empty_mask", "no pixel of the mask is set")
    return rle["counts"]


def sentences(texts: Sequence[str]) -> tuple[str, ...]:
    """References without what is blank or said twice."""
    return tuple(dict.fromkeys(stripped for text in texts if (stripped := " ".join(text.split()))))
