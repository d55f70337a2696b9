"""Settings of each kind of benchmark; which kind a path is, ``benchmark.open_benchmark`` sees.

[from] What a benchmark is: images with regions, each with its references."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from ureca.data.manifest import ManifestEntry
from ureca.data.samples import JsonlOptions
from ureca.errors import DataError
from ureca.hashing import digest
from ureca.masks import rle as rle_codec


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
        return digest([f"{self.seed} {id}"])


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


class RegionsBenchmark(BaseModel):
    """Of the output of ``ureca curate`` or ``ureca scenes``, whose captions are the references."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    references: Literal["unique", "short", "detailed"] = Field(
        default="unique", description="which of its captions a model's are compared with"
    )
    include_rejected: bool = Field(default=False, description="also regions whose caption verification rejected")


class RefCocoBenchmark(BaseModel):
    """Of a folder of RefCOCO, RefCOCO+ or RefCOCOg: refs(...).p and instances.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str = Field(default="val", description="val, test (RefCOCOg, umd), testA, testB (RefCOCO+) or train")
    refs: str | None = Field(
        default=None, description="the pickle in the folder, such as refs(umd).p; None: the only one there"
    )
    images: str | None = Field(
        default=None, description="COCO's images; None: train2014 within the folder, or where it is usually beside it"
    )


class VisualGenomeBenchmark(BaseModel):
    """Of a folder of Visual Genome: region_descriptions.json and image_data.json; its regions are boxes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: str | None = Field(default=None, description="the images; None: VG_100K and VG_100K_2 in the folder")
    image_ids: str | None = Field(default=None, description="file with the ids of the split's images, one a line")


class BenchmarkSettings(BaseModel):
    """How a benchmark is read; only the part for its kind is used.

    Attributes:
        regions: of outputs of ``ureca curate`` and ``ureca scenes``.
        jsonl: of files that end in .jsonl.
        refcoco: of folders with refs(...).p.
        visual_genome: of folders with region_descriptions.json.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    regions: RegionsBenchmark = RegionsBenchmark()
    jsonl: JsonlOptions = JsonlOptions()
    refcoco: RefCocoBenchmark = RefCocoBenchmark()
    visual_genome: VisualGenomeBenchmark = VisualGenomeBenchmark()
