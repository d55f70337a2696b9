"""`ureca bench local`: a small curation in one process, against the same on Ray that is started for it.

Both sides curate the same photographs with the same masks, which are given, and their rows are compared. CPU seconds
are those of all processes of a side, so that other programs on the machine hardly affect the ratio.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from benchmarks.processes import ProcessTree
from ureca.data.output import Output
from ureca.masks.annotations import Annotations, write_annotations
from ureca.masks.generators.segments import SegmentsMaskGenerator

_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
_SIDE_PX = 320
_WORKERS, _DRIVER = "ray::", "ureca.jobs.curate"
_SECONDS_BETWEEN_SAMPLES = 0.1


@dataclass(frozen=True)
class RunCost:
    """Cost of a run: seconds by the clock until the first written partition and the end, and CPU seconds by role."""

    first_s: float
    wall_s: float
    driver_cpu_s: float
    total_cpu_s: float
    work_s: float


def main(argv: list[str]) -> int:
    """Run both sides and print the comparison.

    Returns:
        0, or 1 if their rows differ.
    """
    parser = argparse.ArgumentParser(prog="ureca bench local", description=__doc__)
    parser.add_argument("--images", type=int, default=48, help="number of photographs (default 48)")
    parser.add_argument("--masks", type=int, default=3, help="number of masks of each (default 3)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        _write_photographs(Path(folder, "images"), arguments.images, arguments.masks)
        costs, rows = {}, {}
        for executor in ("local", "ray"):
            output = Path(folder, executor)
            costs[executor] = _run(Path(folder, "images"), output, executor)
            rows[executor] = list(Output(str(output)).rows())
        one = Path(folder, "one")
        _write_photographs(one, 1, arguments.masks)
        (one / "photograph-000.json").unlink()
        single = _run(one, Path(folder, "single"), "auto", has_masks=False)
    print(f"{arguments.images} photographs with {arguments.masks} masks each")
    print(f"{'':12} {'first s':>8} {'wall s':>8} {'driver CPU s':>13} {'all CPU s':>10} {'stages s':>9}")
    for name, cost in (*costs.items(), ("one, segments", single)):
        print(
            f"{name:13} {cost.first_s:7.1f} {cost.wall_s:8.1f} {cost.driver_cpu_s:13.1f} {cost.total_cpu_s:10.1f} "
            f"{cost.work_s:9.1f}"
        )
    local, ray = costs["local"], costs["ray"]
    ratios = [ray.wall_s / local.wall_s, ray.driver_cpu_s / local.driver_cpu_s, ray.total_cpu_s / local.total_cpu_s]
    print(
        "ray / local: {:.1f} times the time, {:.1f} times the driver's and {:.1f} times all CPU seconds".format(*ratios)
    )
    if rows["local"] != rows["ray"]:
        print("the rows of the two sides differ", file=sys.stderr)
        return 1
    return 0


def _write_photographs(folder: Path, num_images: int, num_masks: int) -> None:
    """Write crops of scikit-image's photographs, each with its largest segments as masks in a file beside it."""
    folder.mkdir()
    generator = SegmentsMaskGenerator()
    rng = np.random.default_rng(0)
    data = Path(skimage.__file__).parent / "data"
    for index in range(num_images):
        with Image.open(data / _PHOTOGRAPHS[index % len(_PHOTOGRAPHS)]) as photograph:
            pixels = np.asarray(photograph.convert("RGB"))
        height, width = (min(_SIDE_PX, side) for side in pixels.shape[:2])
        top, left = (
            int(rng.integers(0, side - cut + 1)) for side, cut in zip(pixels.shape, (height, width), strict=False)
        )
        crop = np.ascontiguousarray(pixels[top : top + height, left : left + width])
        path = folder / f"photograph-{index:03}.png"
        Image.fromarray(crop).save(path)
        masks = sorted(generator.generate(crop, None), key=lambda mask: -mask.area_px)[:num_masks]
        write_annotations(path.with_suffix(".json"), Annotations(tuple(masks), height, width, file_name=path.name))


def _run(images: Path, output: Path, executor: str, has_masks: bool = True) -> RunCost:
    command = [sys.executable, "-m", _DRIVER, str(images), str(output), "--executor", executor]
    if has_masks:
        command += ["--masks.kind", "annotations", "--listing.annotations", "beside"]
    started = time.monotonic()
    first_s = None
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    tree = ProcessTree(process.pid, (_WORKERS, _DRIVER))
    used: dict[str, float] = {}
    while process.poll() is None:
        used = tree.sample()
        if first_s is None and any((output / "regions").glob("part-*")):
            first_s = time.monotonic() - started
        time.sleep(_SECONDS_BETWEEN_SAMPLES)
    wall_s = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with status {process.returncode}")
    work_s = sum(Output(str(output)).run()["totals"]["seconds"].values())
    return RunCost(first_s or wall_s, wall_s, used.get(_DRIVER, 0.0), sum(used.values()), work_s)
