"""`ureca bench plan`: the duration that `ureca plan` predicts from a smaller run, against the measured duration.

Both runs curate scenes with given masks by a simulated endpoint, which has a fixed number of slots and a fixed time per
answer. The larger run has more images and more slots than the one from which it is predicted. Durations are those of
the sessions in run.json, including the start of Ray and of the actors. Most of both runs is waiting for the endpoint,
so that other programs on the machine hardly matter.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chat_endpoint import endpoint_process
from benchmarks.scene_corpus import write_scene_corpus
from ureca.ops.measured import measure_run

_SIDE_PX = 224


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print durations.

    Returns:
        1 if the prediction differs from the measured duration by more than the tolerance, else 0.
    """
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        return _run(Path(folder), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ureca bench plan", description=__doc__)
    parser.add_argument(
        "--images", type=int, nargs=2, default=[40, 200], help="numbers of images of both runs (default 40 200)"
    )
    parser.add_argument(
        "--slots",
        type=int,
        nargs=2,
        default=[16, 32],
        help="numbers of the endpoint's slots in both runs (default 16 32)",
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds per answer (default 0.5)")
    parser.add_argument(
        "--tolerance", type=float, default=0.15, help="largest relative error of the duration (default 0.15)"
    )
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="settings of the larger run of `ureca curate`")
    return parser


def _run(folder: Path, arguments: argparse.Namespace) -> int:
    (few, many), (narrow, wide) = arguments.images, arguments.slots
    print(f"scenes of {_SIDE_PX} px, {arguments.seconds:g} s an answer, {os.cpu_count()} cores", flush=True)
    small, large = folder / "small", folder / "large"
    _curate(folder, small, few, narrow, arguments.seconds)
    print(f"measured, {few} images, {narrow} answers at a time: {measure_run(str(small)).wall_s:.0f} s", flush=True)
    changes = ["--mllm.max-concurrency", str(wide), *arguments.options]
    predicted = _predict(small, many, changes)
    print(f"predicted, {many} images, {wide} at a time: {predicted['duration_s']:.0f} s", flush=True)
    _curate(folder, large, many, wide, arguments.seconds, *arguments.options)
    taken = measure_run(str(large))
    error = predicted["duration_s"] / taken.wall_s - 1
    print(f"measured, {many} images, {wide} at a time: {taken.wall_s:.0f} s; the prediction is {error:+.1%} off")
    print(f"calls: {predicted['num_calls']:.0f} predicted, {taken.num_calls} measured")
    return int(abs(error) > arguments.tolerance)


def _curate(folder: Path, output: Path, num_images: int, slots: int, seconds: float, *options: str) -> None:
    images = folder / f"images-{output.name}"
    write_scene_corpus(images, num_images, _SIDE_PX)
    with endpoint_process(slots=slots, seconds=seconds) as url:
        command = [
            *(sys.executable, "-m", "ureca.jobs.curate", str(images), str(output)),
            *("--masks.kind", "annotations", "--listing.annotations", "beside", "--annotator.kind", "prompted"),
            *("--mllm.kind", "openai", "--mllm.model", "stand-in", "--mllm.base-urls", f"{url}/v1"),
            *("--mllm.max-concurrency", str(slots)),
            *("--resources.masks.num-actors", "1", "--resources.curate.num-actors", "1", *options),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603


def _predict(measured_output: Path, num_images: int, changes: Sequence[str]) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "ureca.jobs.plan",
        str(measured_output),
        "--images",
        str(num_images),
        "--json",
        *changes,
    ]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    predicted: dict[str, Any] = json.loads(finished.stdout)
    return predicted
