"""`ureca bench caption`: captioning all regions of an image over a shared prefix, against the two usual methods.

CPU seconds of the process are compared instead of wall-clock time, so that other programs on the machine hardly matter.
All methods run the same random model on the same regions in one process, and their captions are compared, too. The
model is one whose captions differ by mask, so that captions of swapped masks would be unequal.

A second comparison is that of the batch job, continuous batching, with batches that run until their longest caption is
finished, for captions of lognormal lengths; and with continuous batching in which the thread of the model also unpacks
masks and tokenizes questions.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.cost import Cost, measure

if TYPE_CHECKING:
    from ureca.model.captioner import RegionCaptioner
    from ureca.model.region_batch import RegionBatch

NUM_TILES = 13
TILE_SIZE_PX = {208: 112, 832: 224, 2548: 392}
"""Side of a tile for a number of image tokens: 13 tiles of 16, 64 and 196 tokens."""

IMAGE_TOKENS_PER_MASK_TOKEN = 32
"""The released model's proportion: a tile is 256 image tokens and 8 mask tokens."""

_SHARPNESS = 3.0
"""Factor of the queries' and keys' weights, at which a random model's captions differ by mask: without it, all tokens
of a prompt get nearly equal attention, and the few of a mask do not count."""

_MIN_DISTINCT_FRACTION = 0.9
"""Fraction of distinct captions from which a swap of masks would be seen."""

_LENGTH_SIGMA = 0.9
"""Deviation of the logarithms of the captions' lengths; the median is half of --new-tokens."""

Masks = list[npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class CaptionMeasurement:
    """The cost of one method of captioning the regions of one image.

    Args:
        way: name of the method: "shared prefix", "one call a region" or "plain batch".
        image_tokens: number of the image's tokens in the prompt.
        captions: captions of the measured regions in their order.
        cost: cost of the measured regions.
        num_forward_passes: passes of regions through the language model; 0 where they are not counted.
        preparation_s: CPU seconds that the thread of the model spent on the preparation of regions.
        scale: number of all regions divided by that of the measured regions.
    """

    way: str
    image_tokens: int
    captions: list[str]
    cost: Cost
    scale: float = 1.0
    num_forward_passes: int = 0
    preparation_s: float = 0.0


def main(argv: list[str]) -> int:
    """Run the benchmark and print its table.

    Returns:
        0, or 1 if the methods disagree on a caption, or too many captions are equal to show a swap.
    """
    arguments = _parser().parse_args(argv)
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    results: list[CaptionMeasurement] = []
    agree = True
    for image_tokens in arguments.image_tokens:
        mask_tokens = arguments.mask_tokens or max(1, image_tokens // NUM_TILES // IMAGE_TOKENS_PER_MASK_TOKEN)
        captioner = build_captioner(image_tokens, mask_tokens, device)
        parameters = sum(parameter.numel() for parameter in captioner.model.parameters())
        image, masks = make_scene(TILE_SIZE_PX[image_tokens], arguments.regions)
        print(
            f"\n{image_tokens} image tokens, {mask_tokens * NUM_TILES} mask tokens a region, "
            f"{arguments.regions} regions, {arguments.new_tokens} new tokens each; "
            f"model of {parameters / 1e6:.1f} M parameters, float32, {device}, {arguments.threads} threads",
            flush=True,
        )
        measurements = _measure_ways(captioner, image, masks, image_tokens, arguments)
        _print_table(measurements, arguments.regions)
        agree = _print_agreement(measurements) and agree
        results.extend(measurements)
        if arguments.batching_images:
            batching = measure_batching(captioner, image_tokens, arguments)
            _print_batching(batching, arguments)
            agree = agree and all(each.captions == batching[0].captions for each in batching)
            results.extend(batching)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    return 0 if agree else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ureca bench caption", description=__doc__)
    parser.add_argument("--regions", type=int, default=32, help="number of regions of the image (default 32)")
    parser.add_argument("--new-tokens", type=int, default=32, help="number of tokens of each caption (default 32)")
    parser.add_argument(
        "--image-tokens",
        type=int,
        nargs="+",
        default=[832],
        choices=sorted(TILE_SIZE_PX),
        help="numbers of image tokens in the prompt (default 832)",
    )
    parser.add_argument(
        "--mask-tokens",
        type=int,
        help="number of tokens of a mask tile (default: 1 per 32 tokens of an image tile, as in the released model)",
    )
    parser.add_argument(
        "--baseline-regions",
        type=int,
        help="number of regions captioned by the two other methods, whose costs are scaled up (default: all)",
    )
    parser.add_argument(
        "--batching-images",
        type=int,
        default=4,
        help="number of images, each with --regions regions, that are captioned in batches (default 4; 0: none)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="sequences that decode together (default 64)")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="number of torch threads (default 1: with more, waiting threads add CPU seconds)",
    )
    parser.add_argument("--device", help="torch device (default: a GPU if available)")
    parser.add_argument("--json", type=Path, help="file to which the measurements are also written")
    return parser


def build_captioner(image_tokens: int, mask_tokens: int, device: str) -> "RegionCaptioner":
    """Build a random model with a number of image tokens per prompt and of mask tokens per tile, on a device."""
    import torch

    from ureca.model.captioner import RegionCaptioner
    from ureca.model.initialization import build_tiny
    from ureca.model.settings import TinySizes

    sizes = TinySizes(
        image_size=TILE_SIZE_PX[image_tokens],
        max_tiles=NUM_TILES - 1,
        vision_width=256,
        vision_layers=6,
        vision_heads=4,
        width=512,
        layers=8,
        heads=8,
        key_value_heads=2,
        mlp_width=1408,
        vocab_size=8000,
        num_mask_tokens=mask_tokens,
    )
    model, processor = build_tiny(sizes)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(_SHARPNESS)
            layer.self_attn.k_proj.weight.mul_(_SHARPNESS)
    # The end token is never generated: all captions have the same length, so all methods do the same work.
    model.generation_config.eos_token_id = sizes.vocab_size - 1
    return RegionCaptioner(model.to(device), processor)


def make_scene(tile_size_px: int, num_regions: int, seed: int = 0) -> tuple[npt.NDArray[np.uint8], Masks]:
    """An image of noise of 4 x 3 tiles, with elliptic masks."""
    random = np.random.default_rng(seed)
    height, width = 3 * tile_size_px, 4 * tile_size_px
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    masks = []
    for _ in range(num_regions):
        centre_y, centre_x = random.uniform(0.2, 0.8, 2) * (height, width)
        radius_y, radius_x = random.uniform(0.05, 0.3, 2) * (height, width)
        masks.append(((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1)
    return image, masks


def _measure_ways(
    captioner: "RegionCaptioner",
    image: npt.NDArray[np.uint8],
    masks: Masks,
    image_tokens: int,
    arguments: argparse.Namespace,
) -> list[CaptionMeasurement]:
    from ureca.model.settings import CaptionSettings

    settings = CaptionSettings(max_new_tokens=arguments.new_tokens, batch_size=arguments.regions)
    baseline_masks = masks[: arguments.baseline_regions]

    def shared_prefix() -> Iterator[tuple[int, str]]:
        for region in captioner.stream([image], [masks], settings):
            yield region.mask_index, region.text

    def one_call_a_region() -> Iterator[tuple[int, str]]:
        for index, mask in enumerate(baseline_masks):
            yield index, generate(captioner, image, [mask], arguments.new_tokens)[0]

    def plain_batch() -> Iterator[tuple[int, str]]:
        yield from enumerate(generate(captioner, image, baseline_masks, arguments.new_tokens))

    generate(captioner, image, masks[:1], 2)  # warm-up: the first call of a process is slower
    return [
        _measure("shared prefix", image_tokens, shared_prefix, len(masks)),
        _measure("one call a region", image_tokens, one_call_a_region, len(masks)),
        _measure("plain batch", image_tokens, plain_batch, len(masks)),
    ]


def _measure(
    way: str, image_tokens: int, run: Callable[[], Iterator[tuple[int, str]]], num_regions: int
) -> CaptionMeasurement:
    captions, cost = measure(run)
    in_order = [text for _, text in sorted(captions)]
    return CaptionMeasurement(way, image_tokens, in_order, cost, scale=num_regions / len(captions))


def generate(captioner: "RegionCaptioner", image: npt.NDArray[np.uint8], masks: Masks, new_tokens: int) -> list[str]:
    """Caption by ``transformers.generate`` alone, with the whole image in each prompt."""
    from ureca.model.processing import region_conversation

    model, processor = captioner.model, captioner.processor
    prompt = processor.apply_chat_template(region_conversation(), add_generation_prompt=True)
    inputs = processor(images=[image] * len(masks), text=[prompt] * len(masks), masks=masks, return_tensors="pt").to(
        model.device
    )
    tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _print_table(measurements: Sequence[CaptionMeasurement], num_regions: int) -> None:
    print("| way | regions measured | CPU s | times shared | captions/s (wall) | first caption s | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    shared_cpu_s = measurements[0].cost.cpu_s
    for row in measurements:
        cpu_s, wall_s = row.cost.cpu_s * row.scale, row.cost.wall_s * row.scale
        print(
            f"| {row.way} | {len(row.captions)} | {cpu_s:.1f} | {cpu_s / shared_cpu_s:.1f} | "
            f"{num_regions / wall_s:.2f} | {row.cost.first_result_s:.1f} | {row.cost.peak_mib:.0f} |"
        )


def measure_batching(
    captioner: "RegionCaptioner", image_tokens: int, arguments: argparse.Namespace
) -> list[CaptionMeasurement]:
    """Caption the regions of several images with given lengths: in static batches, with continuous batching, and with
    continuous batching whose regions are prepared by the thread of the model."""
    from ureca.captioning.continuous import CaptionEngine
    from ureca.captioning.engine import CaptionJob, PreparedJob
    from ureca.model.captioner import RegionCaptioner
    from ureca.model.prepared import PreparedImage
    from ureca.model.settings import CaptionSettings

    random = np.random.default_rng(1)
    regions: list[tuple[PreparedImage, CaptionSettings]] = []
    for seed in range(arguments.batching_images):
        pixels, masks = make_scene(TILE_SIZE_PX[image_tokens], arguments.regions, seed)
        prepared = captioner.prepare(pixels, masks)
        lengths = random.lognormal(np.log(arguments.new_tokens / 2), _LENGTH_SIGMA, len(masks))
        for tiles, length in zip(prepared.masks, lengths, strict=True):
            limit = int(np.clip(round(length), 1, 8 * arguments.new_tokens))
            image = replace(prepared, masks=(tiles,), num_regions=1)
            regions.append((image, CaptionSettings(max_new_tokens=limit)))

    def static() -> Iterator[tuple[int, str]]:
        for start in range(0, len(regions), arguments.batch_size):
            batch = current.open_batch()
            of_batch = enumerate(regions[start : start + arguments.batch_size], start)
            batch.admit((index, image, 0, settings) for index, (image, settings) in of_batch)
            while batch:
                for region in batch.step():
                    yield region.key, region.text

    def continuous() -> Iterator[tuple[int, str]]:
        engine = CaptionEngine(current, arguments.batch_size, serves_requests=False)
        nothing = np.zeros((1, 1, 3), np.uint8)  # the tiles are cut already

        async def caption(image: PreparedImage, settings: CaptionSettings) -> str:
            job = PreparedJob(CaptionJob(nothing, (), settings), image)
            return "".join([caption.text async for caption in engine.stream_prepared(job)])

        async def all_captions() -> list[str]:
            return await asyncio.gather(*(caption(*region) for region in regions))

        yield from enumerate(asyncio.run(all_captions()))
        engine.close()

    measurements = []
    for way, run, num_threads in (
        ("static batches", static, 1),
        ("continuous batching", continuous, 1),
        ("continuous batching, preparation by the model's thread", continuous, 0),
    ):
        current = RegionCaptioner(captioner.model, captioner.processor, preparation_threads=num_threads)
        open_batch, take = current.open_batch, current.preparation.take
        batches: list[RegionBatch[Any]] = []
        taking_s: list[float] = []

        def counted_batch() -> "RegionBatch[Any]":
            batches.append(open_batch())  # noqa: B023 - called before the next way
            return batches[-1]  # noqa: B023

        def timed(taken: Any) -> Any:
            started = time.thread_time()
            inputs = take(taken)  # noqa: B023
            taking_s.append(time.thread_time() - started)  # noqa: B023
            return inputs

        current.open_batch = counted_batch  # type: ignore[method-assign]
        current.preparation.take = timed  # type: ignore[method-assign,assignment]
        measured = _measure(way, image_tokens, run, len(regions))
        num_passes = sum(batch.num_forward_passes for batch in batches)
        measurements.append(replace(measured, num_forward_passes=num_passes, preparation_s=sum(taking_s)))
    return measurements


def _print_batching(measurements: Sequence[CaptionMeasurement], arguments: argparse.Namespace) -> None:
    static = measurements[0]
    equal = sum(len({*captions}) == 1 for captions in zip(*(each.captions for each in measurements), strict=True))
    print(
        f"\n{len(static.captions)} regions of {arguments.batching_images} images, lognormal lengths of captions, "
        f"batches of {arguments.batch_size}"
    )
    preparation = "preparation by the model's thread, ms a region"
    print(f"| way | passes through the language model | CPU s | captions/s (wall) | {preparation} |")
    print("|---|---|---|---|---|")
    for row in measurements:
        rate = len(row.captions) / row.cost.wall_s
        preparation_ms = 1000 * row.preparation_s / len(row.captions)
        print(f"| {row.way} | {row.num_forward_passes} | {row.cost.cpu_s:.1f} | {rate:.2f} | {preparation_ms:.2f} |")
    print(f"captions equal: {equal} of {len(static.captions)}")


def check_agreement(shared: Sequence[str], other: Sequence[str]) -> tuple[int, bool]:
    """Compare captions of the same regions by two methods.

    Args:
        shared: captions of all regions by the shared prefix, in order.
        other: captions of the first of them by another method.

    Returns:
        Number of equal captions, and True if all are equal and enough are distinct for a swap to be seen.
    """
    equal = sum(ours == theirs for ours, theirs in zip(shared, other, strict=False))
    is_telling = len(set(shared)) >= _MIN_DISTINCT_FRACTION * len(shared)
    return equal, is_telling and equal == len(other)


def _print_agreement(measurements: Sequence[CaptionMeasurement]) -> bool:
    shared, *others = measurements
    agree = True
    print(f"distinct captions: {len(set(shared.captions))} of {len(shared.captions)}")
    for other in others:
        equal, all_agree = check_agreement(shared.captions, other.captions)
        agree = agree and all_agree
        print(f"captions equal to {other.way}: {equal} of {len(other.captions)}")
    return agree
