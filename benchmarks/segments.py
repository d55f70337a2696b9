"""``ureca bench segments``: recall and speed of ``segments``, and of the rule-based captions of its masks.

Recall is the share of given masks that a generated one overlaps with an IoU of 0.5 or more, by size. The other side is
the graph segmentation of Felzenszwalb and Huttenlocher at several scales (OpenCV's, if opencv-contrib is installed,
else scikit-image's), with as many masks, the largest first. ``--before CHECKOUT`` also measures another checkout of
this repository, image by image in turn: with the default number of masks of each, per mask, and with 80 masks each.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from ureca.curation.curator import Curator, curate_regions
from ureca.masks import rle as rle_codec
from ureca.masks.annotations import read_annotations
from ureca.masks.generators.base import distinct
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.generators.settings import SegmentsConfig
from ureca.masks.rle import Rle

_SIZES = {"small": (0.0, 0.01), "medium": (0.01, 0.1), "large": (0.1, 1.01)}
_GRAPH_SIDE_PX = 500
_GRAPH_SCALES = (100, 200, 300, 500, 800)
_GRAPH_SIGMAS = (0.5, 0.8)


def main(argv: Sequence[str]) -> int:
    """Measure and print both sides; returns 0."""
    parser = argparse.ArgumentParser(
        prog="ureca bench segments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders of photographs NAME.jpg with masks NAME.json")
    parser.add_argument("--before", type=Path, help="another checkout of this repository to compare with")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    paths = [path for folder in options.folders for path in sorted(folder.glob("*.jpg"))]
    if options.worker:
        for line in sys.stdin:
            print(json.dumps(measure(Path(line.strip()))), flush=True)
        return 0
    sides: dict[str, list[dict[str, Any]]] = defaultdict(list)
    worker = _worker(options.before.resolve()) if options.before else None
    measure(paths[0])  # imports and tables
    for path in paths:
        if worker is not None and worker.stdin is not None and worker.stdout is not None:
            for _ in range(2 if path == paths[0] else 1):
                print(path.resolve(), file=worker.stdin, flush=True)
                row = json.loads(worker.stdout.readline())
            sides["before"].append(row)
        sides["now"].append(measure(path))
        sides["graph segmentation"].append(measure_graph(path, sides["now"][-1]["num_masks"]))
    if worker is not None and worker.stdin is not None:
        worker.stdin.close()
        worker.wait()
    print(f"{len(paths)} photographs; recall at an IoU of 0.5")
    recalls = {}
    for name, rows in sides.items():
        best = [tuple(pair) for row in rows for pair in row["best"]]
        recalls[name] = _recall([iou for _, iou in best])
        by_size = "  ".join(
            f"{size} {_recall([iou for area, iou in best if low <= area < high]):.3f}"
            for size, (low, high) in _SIZES.items()
        )
        masks = np.mean([row["num_masks"] for row in rows])
        seconds = np.mean([row["segments_s"] for row in rows])
        print(f"{name:<20} all {recalls[name]:.3f}  {by_size}  {masks:5.0f} masks  {seconds:.3f} CPU s an image")
    print(f"recall, over graph segmentation: {recalls['now'] / max(recalls['graph segmentation'], 1e-9):.2f}")
    if worker is not None:
        print("CPU seconds of all photographs; ms per mask")
        for key in ("segments_s", "segments_of_80_s", "captions_s", "captions_of_80_s"):
            before, now = (sum(row[key] for row in sides[name]) for name in ("before", "now"))
            line = f"{key:<18} before {before:7.2f}  now {now:7.2f}  ratio {before / now:.2f}"
            if "80" not in key:
                per_mask = [
                    1000 * seconds / max(1, sum(row["num_masks"] for row in sides[name]))
                    for seconds, name in ((before, "before"), (now, "now"))
                ]
                line += f"; per mask {per_mask[0]:.2f} and {per_mask[1]:.2f}, ratio {per_mask[0] / per_mask[1]:.2f}"
            print(line)
    return 0


def measure(path: Path) -> dict[str, Any]:
    """Generate and caption the masks of a photograph.

    Returns:
        Number of masks, CPU seconds of both, the same of 80 masks, and for each given mask its share of the image and
        its largest IoU.
    """
    pixels = np.asarray(Image.open(path).convert("RGB"))
    started = time.process_time()
    masks = SegmentsMaskGenerator().generate(pixels)
    segmented = time.process_time()
    asyncio.run(curate_regions(pixels, masks, Curator()))
    captioned = time.process_time()
    asyncio.run(curate_regions(pixels, masks[:80], Curator()))
    captioned_80 = time.process_time()
    SegmentsMaskGenerator(SegmentsConfig(max_masks=80)).generate(pixels)
    return {
        "num_masks": len(masks),
        "segments_s": segmented - started,
        "captions_s": captioned - segmented,
        "captions_of_80_s": captioned_80 - captioned,
        "segments_of_80_s": time.process_time() - captioned_80,
        "best": _best(path, [mask.rle for mask in masks]),
    }


def measure_graph(path: Path, num_masks: int) -> dict[str, Any]:
    """Segment a photograph by graphs of several scales; see ``measure``."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    height, width = pixels.shape[:2]
    scale = min(1.0, _GRAPH_SIDE_PX / max(height, width))
    small = np.asarray(Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), 4))
    started = time.process_time()
    rles = []
    for labels in _graph_labels(small):
        large = np.asarray(Image.fromarray(labels.astype(np.int32)).resize((width, height), 0))
        shares = np.bincount(large.ravel()) / large.size
        rles += [rle_codec.encode(large == label) for label in np.flatnonzero((shares >= 0.001) & (shares <= 0.5))]
    # Of equal number: the largest, without duplicates and without the whole image.
    rles.sort(key=lambda rle: -rle_codec.area_px(rle))
    kept = [rles[position] for position in distinct(rles, 0.8, num_masks)] if rles else []
    seconds = time.process_time() - started
    return {"num_masks": len(kept), "segments_s": seconds, "best": _best(path, kept)}


def _graph_labels(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.int64]]:
    import cv2

    labels = []
    for sigma in _GRAPH_SIGMAS:
        for scale in _GRAPH_SCALES:
            if hasattr(cv2, "ximgproc"):
                graph = cv2.ximgproc.segmentation.createGraphSegmentation(sigma, scale, 50)
                labels.append(np.asarray(graph.processImage(np.ascontiguousarray(pixels[..., ::-1])), np.int64))
            else:
                from skimage.segmentation import felzenszwalb

                labels.append(felzenszwalb(pixels, scale=scale, sigma=sigma, min_size=50))
    return labels


def _best(path: Path, rles: list[Rle]) -> list[tuple[float, float]]:
    given = list(read_annotations(path.with_suffix(".json")))
    if not rles:
        return [(0.0, 0.0) for _ in given]
    ious = coco_mask.iou([mask.rle for mask in given], rles, [0] * len(rles))
    areas = [mask.area_px / (mask.height_px * mask.width_px) for mask in given]
    return [(area, float(row.max())) for area, row in zip(areas, ious, strict=True)]


def _recall(ious: Sequence[float]) -> float:
    return float(np.mean([iou >= 0.5 for iou in ious])) if ious else float("nan")


def _worker(checkout: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - the user names the checkout
        [sys.executable, Path(__file__).resolve(), "--worker", "."],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=checkout,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
