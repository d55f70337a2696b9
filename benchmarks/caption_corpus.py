"""`ureca bench caption-corpus`: captioning a corpus with `ureca caption`, against a plain loop over images and regions.

Both sides run the same random model on the same files. The plain loop uses transformers alone: it decodes an image and
calls `generate` for each of its regions. The job is measured between two of its writes, so that the start of Ray and
the loading of weights do not count; CPU seconds are those of its captioning processes, so that other programs on the
machine hardly affect the ratio.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.caption import TILE_SIZE_PX, build_captioner, generate, make_scene
from benchmarks.cost import Cost, measure
from benchmarks.processes import ProcessTree
from ureca.data.output import Output
from ureca.image_limits import ImageLimits
from ureca.images import decode_image
from ureca.masks.annotations import Annotations, read_annotations, write_annotations
from ureca.masks.mask import Mask

_CAPTION, _MASKS = "CaptionActor", "MaskActor"
_SECONDS_BETWEEN_SAMPLES = 0.2


@dataclass(frozen=True)
class JobProgress:
    """Progress of a running job: time, images written so far, and CPU seconds by role."""

    time_s: float
    num_images: int
    cpu_s: Mapping[str, float]


@dataclass(frozen=True)
class JobCost:
    """A job between its first and its last write.

    Args:
        num_actors: number of captioning actors.
        num_images: number of images written in between.
        wall_s: wall-clock seconds in between.
        cpu_s: CPU seconds in between, by role.
        stage_s: seconds of the whole job by stage, from its run.json.
        captions: captions by image and region.
    """

    num_actors: int
    num_images: int
    wall_s: float
    cpu_s: Mapping[str, float]
    stage_s: Mapping[str, float]
    captions: Mapping[tuple[str, int], str]


def main(argv: list[str]) -> int:
    """Run the benchmark and print its tables.

    Returns:
        0, or 1 if the two sides disagree on a caption.
    """
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        return _run(Path(folder), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ureca bench caption-corpus", description=__doc__)
    parser.add_argument("--images", type=int, default=16, help="number of images of the corpus (default 16)")
    parser.add_argument("--regions", type=int, default=32, help="number of regions of each image (default 32)")
    parser.add_argument("--new-tokens", type=int, default=32, help="number of tokens of each caption (default 32)")
    parser.add_argument(
        "--image-tokens",
        type=int,
        default=832,
        choices=sorted(TILE_SIZE_PX),
        help="image tokens of a prompt (default 832)",
    )
    parser.add_argument("--baseline-images", type=int, default=2, help="number of images in the plain loop (default 2)")
    parser.add_argument("--baseline-regions", type=int, default=4, help="number of regions of each of them (default 4)")
    parser.add_argument(
        "--actors", type=int, nargs="+", default=[1, 2], help="numbers of captioning actors, a job each (default 1 2)"
    )
    parser.add_argument(
        "--gpus-per-actor", type=float, default=0.0, help="GPUs of each captioning actor; 0 runs on the CPU"
    )
    return parser


def _run(folder: Path, arguments: argparse.Namespace) -> int:
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    device = "cuda" if arguments.gpus_per_actor else "cpu"
    captioner = build_captioner(arguments.image_tokens, _mask_tokens(arguments.image_tokens), device)
    captioner.model.save_pretrained(folder / "model")
    captioner.processor.save_pretrained(folder / "model")
    _write_corpus(folder / "images", arguments)
    print(
        f"{arguments.images} images of {arguments.regions} regions, {arguments.image_tokens} image tokens, "
        f"{arguments.new_tokens} new tokens a caption, {device}, one thread a process, {os.cpu_count()} cores",
        flush=True,
    )
    generate(captioner, *make_scene(TILE_SIZE_PX[arguments.image_tokens], 1), 2)  # warm-up: the first call is slower
    expected, cost = measure(lambda: _plain_loop(captioner, folder / "images", arguments))
    jobs = [_measure_job(folder, num_actors, arguments) for num_actors in arguments.actors]
    _print_rates(cost, len(expected), jobs, arguments.regions)
    _print_shares(jobs)
    agree = True
    for job in jobs:
        equal = sum(job.captions[key] == text for key, text in expected)
        print(f"captions of {job.num_actors} actors equal to the plain loop's: {equal} of {len(expected)}")
        agree = agree and equal == len(expected)
    return 0 if agree else 1


def _mask_tokens(image_tokens: int) -> int:
    from benchmarks.caption import IMAGE_TOKENS_PER_MASK_TOKEN, NUM_TILES

    return max(1, image_tokens // NUM_TILES // IMAGE_TOKENS_PER_MASK_TOKEN)


def _write_corpus(folder: Path, arguments: argparse.Namespace) -> None:
    folder.mkdir()
    for number in range(arguments.images):
        pixels, masks = make_scene(TILE_SIZE_PX[arguments.image_tokens], arguments.regions, seed=number)
        path = folder / f"image_{number:05d}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        height, width = pixels.shape[:2]
        annotated = tuple(Mask.from_array(id, mask) for id, mask in enumerate(masks))
        write_annotations(path.with_suffix(".json"), Annotations(annotated, height, width))


def _plain_loop(captioner: Any, folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[tuple[str, int], str]]:
    """Captions of some regions of some images, by image and mask id."""
    per_image = min(arguments.regions, arguments.baseline_regions)
    paths = sorted(folder.glob("*.jpg"))[: arguments.baseline_images]
    for path in paths:
        pixels = decode_image(path.read_bytes(), ImageLimits())
        for mask in read_annotations(path.with_suffix(".json"))[:per_image]:
            yield (path.stem, mask.id), generate(captioner, pixels, [mask.decode()], arguments.new_tokens)[0]


def _measure_job(folder: Path, num_actors: int, arguments: argparse.Namespace) -> JobCost:
    output = folder / f"captions-{num_actors}"
    command = [
        *(
            sys.executable,
            "-m",
            "ureca.jobs.caption",
            str(folder / "images"),
            str(output),
            "--model",
            str(folder / "model"),
        ),
        *("--masks.kind", "annotations", "--listing.annotations", "beside", "--images-per-partition", "1"),
        *("--captioner.max-new-tokens", str(arguments.new_tokens)),
        *("--captioner.batch-size", str(arguments.regions)),
        *("--resources.caption.num-actors", str(num_actors), "--resources.caption.num-cpus", "0.25"),
        *("--resources.caption.num-gpus", str(arguments.gpus_per_actor)),
        # One image is prepared while another is captioned: more would be under way when the clock starts.
        *("--resources.masks.num-actors", "1", "--resources.caption.partitions-in-flight", "2"),
    ]
    with (folder / "log").open("wb") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 (our own command)
        samples = list(_watch(job, output / "captions"))
    if job.returncode:
        raise RuntimeError(f"the job failed:\n{(folder / 'log').read_text()}")
    # Every actor has written: until then one may still be loading.
    first = next(sample for sample in samples if sample.num_images >= 2 * num_actors)
    last = next(sample for sample in samples if sample.num_images == arguments.images)
    rows = Output.of_run(str(output)).rows()
    return JobCost(
        num_actors,
        last.num_images - first.num_images,
        last.time_s - first.time_s,
        {role: last.cpu_s[role] - first.cpu_s.get(role, 0.0) for role in last.cpu_s},
        json.loads((output / "run.json").read_text())["totals"]["seconds"],
        {(row["image_id"], region["region_id"]): region["caption"] for row in rows for region in row["captions"]},
    )


def _watch(job: "subprocess.Popen[bytes]", parts: Path) -> Iterator[JobProgress]:
    processes = ProcessTree(job.pid, (_CAPTION, _MASKS))
    while job.poll() is None:
        num_images = len(list(parts.glob("part-*.parquet"))) if parts.is_dir() else 0
        yield JobProgress(time.monotonic(), num_images, processes.sample())
        time.sleep(_SECONDS_BETWEEN_SAMPLES)


def _print_rates(plain: Cost, num_plain: int, jobs: list[JobCost], num_regions: int) -> None:
    plain_cpu_s, plain_wall_s = plain.cpu_s / num_plain, plain.wall_s / num_plain
    print("\n| way | images/s | regions/s | times plain | CPU s a region | plain / this |\n|---|---|---|---|---|---|")
    regions_per_s = 1 / plain_wall_s
    print(f"| plain loop | {regions_per_s / num_regions:.3f} | {regions_per_s:.2f} | 1.0 | {plain_cpu_s:.3f} | 1.0 |")
    for job in jobs:
        images_per_s = job.num_images / job.wall_s
        cpu_s = job.cpu_s[_CAPTION] / (job.num_images * num_regions)
        print(
            f"| {job.num_actors} actors | {images_per_s:.3f} | {images_per_s * num_regions:.2f} | "
            f"{images_per_s * num_regions * plain_wall_s:.1f} | {cpu_s:.3f} | {plain_cpu_s / cpu_s:.1f} |"
        )
    first = jobs[0].num_images / jobs[0].wall_s
    for job in jobs[1:]:
        growth = job.num_images / job.wall_s / first
        print(f"{jobs[0].num_actors} to {job.num_actors} actors: {growth:.2f} times the images/s")


def _print_shares(jobs: list[JobCost]) -> None:
    print(
        "\n| job | seconds by stage | CPU s of captioners | of mask generators | of Ray and the rest | cores in use |"
    )
    print("|---|---|---|---|---|---|")
    for job in jobs:
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in sorted(job.stage_s.items()))
        used = [job.cpu_s.get(role, 0.0) for role in (_CAPTION, _MASKS, "other")]
        cells = " | ".join(f"{used_s:.1f}" for used_s in used)
        print(f"| {job.num_actors} actors | {stages} | {cells} | {sum(used) / job.wall_s:.2f} |")
