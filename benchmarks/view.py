"""``ureca bench view``: pages and filters of ``ureca view``, against a scan of the files for each filter."""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ureca.data.manifest import MANIFEST
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.masks.mask import Mask
from ureca.parquet import read_table
from ureca.report.view_index import Query, ViewIndex, open_index
from ureca.schema import REGION, REGIONS, REGIONS_DATASET

_SIDE_PX = 512
_NUM_MASKS = 200
_IMAGES_PER_PARTITION = 64
_NOUNS = ("mug", "sheep", "window", "tree", "roof", "car", "leaf", "hand", "wheel", "stone")
_COLORS = ("red", "blue", "green", "white", "grey", "brown", "yellow", "black")
_PLACES = ("left", "right", "middle", "top left", "bottom right", "front", "background")
_QUERIES = {
    "all regions": Query(),
    "rejected": Query(states=("rejected",)),
    "small, deep": Query(max_size=0.01, min_depth=2),
    "text": Query(text="yellow wheel"),
    "longest first": Query(sort="words", descending=True),
    "caption, A to Z": Query(sort="caption"),
}


def main(argv: Sequence[str]) -> int:
    """Write a synthetic run, and print the CPU seconds of each side and their ratio.

    Returns:
        1 if both sides find different numbers of regions, else 0.
    """
    parser = argparse.ArgumentParser(prog="ureca bench view", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000, help="number of images (default: %(default)s)")
    parser.add_argument("--regions", type=int, default=20, help="regions per image (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions, of which the median counts")
    parser.add_argument("--folder", type=Path, help="folder for the run and the index; default: a temporary one")
    options = parser.parse_args(argv)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="ureca-view-"))
    try:
        output = write_run(folder / "run", options.images, options.regions)
        return compare(output, folder / "cache", options.repeats)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def write_run(folder: Path, num_images: int, num_regions: int) -> Output:
    """Write a run of random captions over a few hundred masks, quickly; an existing one is kept."""
    output = Output(str(folder))
    if output.exists():
        return output
    rng = np.random.default_rng(0)
    masks = [_random_mask(rng) for _ in range(_NUM_MASKS)]
    rles, areas = pa.array([mask.rle["counts"] for mask in masks]), np.array([mask.area_px for mask in masks])
    words = [pa.array(texts) for texts in (_COLORS, _NOUNS, _PLACES)]
    ids = pa.array([f"image-{number:07d}" for number in range(num_images)])
    paths = pa.array([f"{folder}/images/{number}.jpg" for number in range(num_images)])
    columns = {"image_id": ids, "uri": paths, "path": paths}
    nulls = {field.name: pa.nulls(num_images, field.type) for field in MANIFEST if field.name not in columns}
    output.add_images(pa.table({**columns, **nulls}, schema=MANIFEST), _IMAGES_PER_PARTITION)
    for partition, first in enumerate(range(0, num_images, _IMAGES_PER_PARTITION)):
        size = min(_IMAGES_PER_PARTITION, num_images - first)
        count = size * num_regions
        chosen = rng.integers(0, _NUM_MASKS, count)
        color, noun, place = (texts.take(pa.array(rng.integers(0, len(texts), count))) for texts in words)
        caption = pc.binary_join_element_wise("the", color, noun, "at the", place, "of the image", " ")
        verdict = pa.array(["accepted", "rejected", "unchecked"]).take(pa.array(rng.integers(0, 3, count)))
        known: dict[str, Any] = {
            "region_id": pa.array(np.tile(np.arange(num_regions), size)),
            "rle": rles.take(pa.array(chosen)),
            "bbox_xywh": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * count, np.float32)), 4),
            "area_px": pa.array(areas[chosen]),
            "parent_id": pa.array(np.full(count, -1)),
            "depth": pa.array(rng.integers(0, 5, count), pa.int16()),
            "short_caption": noun,
            "detailed_caption": caption,
            "caption": caption,
            "lookalike_ids": pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], pa.int64())),
            "verdict": verdict,
            "status": pa.array(["ok"] * count),
        }
        fields = [known[field.name] if field.name in known else pa.nulls(count, field.type) for field in REGION]
        regions = pa.StructArray.from_arrays(fields, fields=list(REGION))
        offsets = pa.array(np.arange(0, count + 1, num_regions), pa.int32())
        rows: dict[str, Any] = {
            "image_id": ids.slice(first, size),
            "uri": paths.slice(first, size),
            "height": pa.array(np.full(size, _SIDE_PX), pa.int32()),
            "width": pa.array(np.full(size, _SIDE_PX), pa.int32()),
            "regions": pa.ListArray.from_arrays(offsets, regions, type=REGIONS.field("regions").type),
        }
        # Nulls of a struct whose fields cannot be null need valid values below them.
        others = {field.name: pa.array([None] * size, field.type) for field in REGIONS if field.name not in rows}
        report = PartitionReport(num_images=size, num_regions=count)
        output.write_chunks(partition, [pa.table({**rows, **others}, schema=REGIONS)], report)
    output.write_run({"command": "curate", "dataset": REGIONS_DATASET.name, "state": "finished"})
    return output


def compare(output: Output, cache: Path, repeats: int) -> int:
    """Print the seconds of opening, and those of each filter with its first page against a scan; 1 if they differ."""
    shutil.rmtree(cache, ignore_errors=True)
    built_s, index = _measured(lambda: open_index(output, cache))
    opened_s, index = _measured(lambda: open_index(output, cache))
    print(f"{index.num_images:,} images, {index.num_regions:,} regions")
    print(f"open, first time   {built_s:8.2f} CPU s")
    print(f"open, again        {opened_s:8.2f} CPU s")
    scan_s, num_scanned = _measured(lambda: _scan_rejected(output))
    print(f"scan of the files  {scan_s:8.2f} CPU s for the rejected regions")
    status = 0
    for version, (name, query) in enumerate(_QUERIES.items(), start=1):
        seconds = []
        for repeat in range(repeats):
            first_s, found = _measured(lambda: _first_page(index, query, 100 * version + repeat))  # noqa: B023
            seconds.append(first_s)
        again_s, _ = _measured(lambda: _first_page(index, query, 100 * version + repeats - 1, 60))  # noqa: B023
        page_s = statistics.median(seconds)
        ratio = f"{scan_s / page_s:7.0f} x the scan's speed"
        print(f"{name:<18} {1000 * page_s:8.1f} CPU ms, next page {1000 * again_s:6.1f}; {found:>9,} found, {ratio}")
        if name == "rejected" and found != num_scanned:
            print(f"the scan found {num_scanned:,}")
            status = 1
    return status


def _first_page(index: ViewIndex, query: Query, version: int, offset: int = 0) -> int:
    """Find, count and show, as the page does after a change of its filters; returns the number of found regions."""
    found = index.find(query, version)
    index.regions(found[offset : offset + 60])
    if offset == 0:
        index.histograms(query, version)
    return len(found)


def _scan_rejected(output: Output) -> int:
    count = 0
    for path in output.part_files():
        table = read_table(output.filesystem, path, ["regions.list.element.verdict", "regions.list.element.caption"])
        verdicts = pc.struct_field(pc.list_flatten(table["regions"].combine_chunks()), "verdict")
        count += pc.sum(pc.equal(verdicts, "rejected")).as_py() or 0
    return count


def _measured(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def _random_mask(rng: np.random.Generator) -> Mask:
    pixels = np.zeros((_SIDE_PX, _SIDE_PX), np.bool_)
    top, left = rng.integers(0, _SIDE_PX - 8, 2)
    height, width = np.exp(rng.uniform(2, 5.5, 2)).astype(int)
    pixels[top : top + height, left : left + width] = True
    return Mask.from_array(0, pixels)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
