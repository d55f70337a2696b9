"""``ureca bench tree``: the mask tree on run lengths, against decoding masks and comparing pixels.

``--nested N`` measures the tree of N masks of which each holds the next, against half as many, and against comparing
each mask with all that hold it.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ureca.masks.annotations import read_annotations
from ureca.masks.mask import Mask
from ureca.masks.rle import Runs, encode_box
from ureca.masks.tree import ROOT, MaskTree


def main(argv: Sequence[str]) -> int:
    """Measure both sides and print their times, the ratio, and the peak memory of the first.

    Returns:
        1 if the trees differ, else 0.
    """
    parser = argparse.ArgumentParser(prog="ureca bench tree", description=__doc__)
    parser.add_argument(
        "--masks", type=_positive, default=1028, help="number of random nested masks (default: %(default)s)"
    )
    parser.add_argument(
        "--height", type=_positive, default=1500, help="height of the image in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--width", type=_positive, default=2250, help="width of the image in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=_positive, default=5, help="repetitions of the fast side, of which the median counts"
    )
    parser.add_argument("--annotations", type=Path, help="SA-1B JSON file to use instead of random masks")
    parser.add_argument("--nested", type=_positive, metavar="N", help="number of nested masks instead of random ones")
    parser.add_argument("--skip-baseline", action="store_true", help="skip the slow side")
    options = parser.parse_args(argv)
    if options.nested:
        return _measure_nested(options.nested, options.height, options.width, options.repeats, options.skip_baseline)
    masks: Sequence[Mask] = (
        read_annotations(options.annotations)
        if options.annotations
        else random_masks(options.masks, options.height, options.width, seed=0)
    )
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tree, build_s = _built(masks, options.repeats)
    memory_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before) / 1024
    print(f"{len(masks)} masks of {masks[0].height_px} x {masks[0].width_px}, {tree.num_levels} levels")
    print(f"run lengths         {build_s:8.3f} CPU s, {memory_mib:.0f} MiB more at the peak")
    if not options.skip_baseline:
        started = time.process_time()
        parents = build_on_pixels(masks)
        baseline_s = time.process_time() - started
        print(f"decode and compare  {baseline_s:8.3f} CPU s")
        same = "equal" if parents == tree.parents else "DIFFERENT"
        print(f"ratio               {baseline_s / build_s:8.1f}, with {same} parents")
        return int(parents != tree.parents)
    return 0


def _built(masks: Sequence[Mask], repeats: int) -> tuple[MaskTree, float]:
    """Return the tree, and the median of the CPU seconds that building it takes."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        tree = MaskTree.build(masks)
        seconds.append(time.process_time() - started)
    return tree, statistics.median(seconds)


def _measure_nested(num_masks: int, height: int, width: int, repeats: int, skip_baseline: bool) -> int:
    masks = nested_masks(num_masks, height, width)
    _, half_s = _built(masks[::2], repeats)
    tree, build_s = _built(masks, repeats)
    started = time.process_time()
    ids = list(tree.walk())
    num_nested = sum(tree.is_nested(first, second) for first in ids for second in ids)
    nested_s = time.process_time() - started
    print(f"{num_masks} nested masks of {height} x {width}, {tree.num_levels} levels")
    print(f"run lengths         {build_s:8.3f} CPU s, {build_s / half_s:.1f} times as much as half as many masks")
    print(f"all pairs compared  {nested_s:8.3f} CPU s, {num_nested} of {len(ids) ** 2} nested")
    if skip_baseline:
        return 0
    started = time.process_time()
    parents = build_one_by_one(masks)
    baseline_s = time.process_time() - started
    same = "equal" if parents == tree.parents else "DIFFERENT"
    print(f"one by one          {baseline_s:8.3f} CPU s")
    print(f"ratio               {baseline_s / build_s:8.1f}, with {same} parents")
    return int(parents != tree.parents)


def nested_masks(num_masks: int, height: int, width: int) -> list[Mask]:
    """Boxes around the centre, of which each holds the next, as far as there are pixels."""
    masks = []
    for id in range(num_masks):
        left, top = id * (width // 2) // num_masks, id * (height // 2) // num_masks
        box_xywh = (left, top, width - 2 * left, height - 2 * top)
        rle = encode_box(*box_xywh, size=(height, width))
        masks.append(Mask(id, rle, bbox_xywh=box_xywh, area_px=box_xywh[2] * box_xywh[3]))
    return masks


def build_one_by_one(masks: Sequence[Mask], containment: float = 0.8) -> dict[int, int]:
    """Build the tree of masks in descending area on run lengths, comparing each with all that hold it."""
    runs = {mask.id: Runs(mask.rle) for mask in masks}
    parents: dict[int, int] = {}
    children: dict[int, list[int]] = {ROOT: []}
    for id, own in runs.items():
        node: int | None = ROOT
        while node is not None:
            parents[id] = node
            node = next((each for each in children[node] if own.containment_in(runs[each]) >= containment), None)
        children[parents[id]].append(id)
        children[id] = []
    return parents


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number above 0 is needed, not {text!r}")
    return int(text)


def random_masks(num_masks: int, height: int, width: int, seed: int) -> list[Mask]:
    """Ellipses of all sizes, two thirds of them inside an earlier one or partly outside it."""
    rng = np.random.default_rng(seed)
    ellipses: list[tuple[float, float, float, float]] = []
    masks = []
    for id in range(num_masks):
        if ellipses and rng.random() < 2 / 3:
            row, column, tall, wide = ellipses[rng.integers(len(ellipses))]
            scale = rng.uniform(0.2, 0.7)
            row += rng.uniform(-0.5, 0.5) * tall
            column += rng.uniform(-0.5, 0.5) * wide
            tall, wide = max(3.0, tall * scale), max(3.0, wide * scale)
        else:
            row, column = rng.uniform(0, height), rng.uniform(0, width)
            tall, wide = rng.uniform(0.02, 0.3) * height, rng.uniform(0.02, 0.3) * width
        ellipses.append((row, column, tall, wide))
        rows = (np.arange(height)[:, None] - row) / tall
        columns = (np.arange(width)[None, :] - column) / wide
        masks.append(Mask.from_array(id, rows**2 + columns**2 <= 1))
    return masks


def build_on_pixels(masks: Sequence[Mask], containment: float = 0.8) -> dict[int, int]:
    """Build the tree as the baseline does: decode every mask to full size and compare pairs pixel by pixel."""
    pixels = {mask.id: mask.decode() for mask in masks}
    areas = {id: int(mask.sum()) for id, mask in pixels.items()}
    parents: dict[int, int] = {}
    children: dict[int, list[int]] = {ROOT: []}
    for id in sorted(pixels, key=lambda id: -areas[id]):
        node = ROOT
        descending = True
        while descending:
            descending = False
            for child in children[node]:
                if areas[id] and np.logical_and(pixels[id], pixels[child]).sum() / areas[id] >= containment:
                    node, descending = child, True
                    break
        parents[id] = node
        children[node].append(id)
        children[id] = []
    return parents
