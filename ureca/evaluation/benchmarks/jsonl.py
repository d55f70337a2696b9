"""URECA's JSONL as a benchmark: one line a reference of a region."""

import heapq
from collections.abc import Iterator
from itertools import count

from ureca.corpus.storage import parent
from ureca.errors import DataError
from ureca.evaluation.benchmarks.benchmark import (
    BenchmarkImage,
    BenchmarkRegion,
    LeftOut,
    Sample,
    checked_counts,
    sentences,
)
from ureca.regions.mask import Mask
from ureca.regions.rle import Rle, area_px, inclusive_box_xywh
from ureca.regions.tree import MaskTree
from ureca.training.samples import BadSample, TrainingImage
from ureca.training.sources.jsonl import JsonlFile
from ureca.training.sources.settings import JsonlOptions, JsonlSource


class JsonlReader:
    """Reads lines as training does. Depths are those in the tree of the masks that the file names.

    Images are looked for beside the file, unless settings say where else.
    """

    def __init__(self, path: str, settings: JsonlOptions) -> None:
        folder = parent(path)
        options = settings.model_dump() | {"images": settings.images or folder}
        self._source = JsonlFile(JsonlSource(path=path, **options))
        self.description = "/".join(path.partition("?")[0].split("/")[-2:])

    def files(self) -> list[str]:
        """The JSONL file."""
        return self._source.files()

    def images(self, sample: Sample) -> Iterator[BenchmarkImage | LeftOut]:
        """Images with the regions that lines name; bad lines are left out."""
        found = self._source.samples()
        if sample.limit is not None:
            numbered = ((number, item) for number, item in zip(count(), found, strict=False) if _is_good(item))
            taken = heapq.nsmallest(sample.limit, numbered, key=lambda pair: sample.rank(pair[1].image_id))
            found = (item for _, item in sorted(taken, key=lambda pair: pair[0]))
        for item in found:
            yield from _converted(item)


def _is_good(found: TrainingImage | BadSample) -> bool:
    return isinstance(found, TrainingImage)


def _converted(found: TrainingImage | BadSample) -> Iterator[BenchmarkImage | LeftOut]:
    if isinstance(found, BadSample):
        yield LeftOut(found.image_id, found.kind, found.message)
        return
    texts: dict[int, list[str]] = {}
    counts: dict[int, str] = {}
    for region in found.regions:
        texts.setdefault(region.region_id, []).append(region.caption)
        counts[region.region_id] = region.counts
    masks = []
    for id, said in texts.items():
        try:
            checked = checked_counts(
                {"size": [found.height, found.width], "counts": counts[id]}, found.height, found.width
            )
        except DataError as error:
            yield LeftOut(found.image_id, error.kind, f"mask {id}: {error.message}", len(said))
            continue
        rle = Rle(size=[found.height, found.width], counts=checked)
        masks.append(Mask(id, rle, inclusive_box_xywh(rle), area_px(rle)))
    if masks:
        tree = MaskTree.plant(masks)
        regions = [
            BenchmarkRegion(
                mask.id, mask.rle["counts"], sentences(texts[mask.id]), tree.parents[mask.id], tree.depth(mask.id)
            )
            for mask in masks
        ]
        yield BenchmarkImage(found.entry, found.height, found.width, tuple(regions))
