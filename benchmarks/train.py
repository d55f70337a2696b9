"""`ureca bench train`: training on all regions of an image in one packed row, against one region per pass.

A pass computes the loss and the gradients of all weights that the phase trains. CPU seconds of the process are
compared, of which the minimum of the repeats counts, so that other programs on the machine hardly matter. All methods
run the same random model on the same regions in one process, and their gradients are compared, too.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cost import measure
from benchmarks.train_padding import print_padding, print_waiting

if TYPE_CHECKING:
    import torch

    from ureca.model.modeling import UrecaForConditionalGeneration
    from ureca.model.processing import UrecaProcessor
    from ureca.training.packing import ImageExample, PackedBatch

TILES = (4, 3)
"""Columns and rows of tiles: with the thumbnail 13 tiles of 64 tokens, 832 tokens in all."""

TILE_SIZE_PX = 224
ANSWER = "The red car with round headlights that is parked on the left side of the quiet street near the old tree."
PHASES = ("full", "tune", "align")
LIMIT = 4.0
"""Least speedup by sharing the image for exit status 0."""

TOLERANCE = 1e-4
"""Largest difference of gradients, relative to the largest gradient, from another order of float32 sums."""

Passes = Callable[[], None]


@dataclass(frozen=True)
class TrainingMeasurement:
    """The cost of one method of training on the regions of one image.

    Args:
        phase: training phase.
        way: name of the method.
        cpu_s: CPU seconds for all regions, the minimum of the repeats.
        times: CPU seconds divided by those of the packed row.
        gradient_difference: largest difference from the packed row's gradients, relative to the largest gradient.
    """

    phase: str
    way: str
    cpu_s: float
    times: float
    gradient_difference: float


def main(argv: list[str]) -> int:
    """Run the benchmark and print its tables.

    Returns:
        0, or 1 if gradients differ or the speedup is too small.
    """
    arguments = _parser().parse_args(argv)
    if arguments.run is not None:
        print_waiting(arguments.run)
        return 0
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    results = [result for phase in arguments.phases for result in _measure_phase(phase, arguments)]
    print_padding()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    agree = all(result.gradient_difference <= TOLERANCE for result in results)
    gains = [result.times for result in results if result.way == "one region a pass"]
    print(f"gradients agree: {'yes' if agree else 'NO'}; least gain over one region a pass: {min(gains):.1f}x")
    return 0 if agree and min(gains) >= LIMIT else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ureca bench train", description=__doc__)
    parser.add_argument("--regions", type=int, default=8, help="number of regions of the image (default 8)")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES, help="training phases (default: all)")
    parser.add_argument("--repeats", type=int, default=2, help="repetitions, of which the minimum counts (default 2)")
    parser.add_argument(
        "--width", type=int, default=256, help="width of the language model, a multiple of 128 (default 256)"
    )
    parser.add_argument("--layers", type=int, default=4, help="number of layers of the language model (default 4)")
    parser.add_argument("--tile-size-px", type=int, default=TILE_SIZE_PX, help="side of a tile (default 224)")
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="recompute activations in the backward pass"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="number of torch threads (default 1: with more, waiting threads add CPU seconds)",
    )
    parser.add_argument(
        "--run", type=Path, help="folder of a run of `ureca train`: only print the time it waited for data"
    )
    parser.add_argument("--json", type=Path, help="file to which the measurements are also written")
    return parser


def _measure_phase(phase: str, arguments: argparse.Namespace) -> list[TrainingMeasurement]:
    from ureca.training.feature_cache import FeatureCache
    from ureca.training.loss import PackedLoss
    from ureca.training.packing import ImageExample, Packer, from_bytes, to_bytes

    model, processor = _build(phase, arguments)
    example = _example(arguments.regions, arguments.tile_size_px)
    packer, training = Packer(processor), PackedLoss(model)
    # Through the stored form, as `ureca train` reads it: that has the digests by which features are cached.
    packed = from_bytes(to_bytes(packer.pack([example]), processor.image_processor), processor.image_processor)
    alone = [packer.pack([ImageExample(example.pixels, (region,))]) for region in example.regions]
    prompts = [_prompt(processor, example, number) for number in range(len(example.regions))]
    _print_setting(phase, model, packed, arguments)

    def of_batches(batches: Sequence["PackedBatch"], features: "FeatureCache | None" = None) -> Passes:
        def run() -> None:
            for batch in batches:
                training(batch, None if features is None else features.features(batch)).backward()

        return run

    def of_transformers() -> None:
        for prompt in prompts:
            num_answer_tokens = int((prompt["labels"] != -100).sum())
            # transformers computes the mean; the packed loss is a sum.
            (model(**prompt).loss * num_answer_tokens).backward()

    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Passes] = {
            "all regions in a row": of_batches([packed]),
            "one region a pass": of_batches(alone),
            "one region a pass, transformers' loss": of_transformers,
        }
        if phase != "full":
            cache = FeatureCache(folder, model, max_bytes=2**30)
            cache.features(packed)
            ways["all regions in a row, cached features"] = of_batches([packed], cache)
        cpu_s, gradients = _run_ways(model, ways, arguments.repeats)
    first = next(iter(ways))
    results = [
        TrainingMeasurement(
            phase, way, cpu_s[way], cpu_s[way] / cpu_s[first], _difference(gradients[way], gradients[first])
        )
        for way in ways
    ]
    _print_table(results, arguments.regions)
    return results


def _run_ways(
    model: "UrecaForConditionalGeneration", ways: dict[str, Passes], repeats: int
) -> tuple[dict[str, float], dict[str, dict[str, "torch.Tensor"]]]:
    """The minimum CPU seconds and the gradients of each method, which alternate to see the same load of the machine."""
    cpu_s: dict[str, float] = {}
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    for _ in range(repeats):
        for way, run in ways.items():
            model.zero_grad()
            (_, cost) = measure(_once(run))
            cpu_s[way] = min(cost.cpu_s, cpu_s.get(way, cost.cpu_s))
            gradients[way] = {
                name: parameter.grad.clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
    return cpu_s, gradients


def _once(run: Passes) -> Callable[[], Iterator[None]]:
    def work() -> Iterator[None]:
        run()
        yield None

    return work


def _difference(found: dict[str, "torch.Tensor"], expected: dict[str, "torch.Tensor"]) -> float:
    if found.keys() != expected.keys():
        return float("inf")
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    return max((found[name] - expected[name]).abs().max().item() for name in expected) / largest


def _build(phase: str, arguments: argparse.Namespace) -> tuple["UrecaForConditionalGeneration", "UrecaProcessor"]:
    from ureca.model.initialization import build_tiny
    from ureca.model.settings import TinySizes
    from ureca.training.phases import Align, Full, Tune, prepare

    width = arguments.width
    sizes = TinySizes(
        image_size=arguments.tile_size_px,
        max_tiles=TILES[0] * TILES[1],
        vision_width=192,
        vision_layers=4,
        vision_heads=4,
        width=width,
        layers=arguments.layers,
        heads=width // 64,
        key_value_heads=width // 128,
        mlp_width=width * 11 // 4,
        vocab_size=8000,
        num_mask_tokens=2,
    )
    model, processor = build_tiny(sizes)
    # Dropout would make the gradients of the methods differ.
    phases: dict[str, Align | Tune | Full] = {
        "full": Full(),
        "align": Align(),
        "tune": Tune(rank=16, alpha=32, dropout=0),
    }
    return prepare(model, phases[phase], gradient_checkpointing=arguments.gradient_checkpointing), processor


def _example(num_regions: int, tile_size_px: int) -> "ImageExample":
    """An image of noise with elliptic masks."""
    from ureca.model.prompt import QUESTION
    from ureca.training.packing import ImageExample, RegionExample

    random = np.random.default_rng(0)
    height, width = TILES[1] * tile_size_px, TILES[0] * tile_size_px
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    regions = []
    for number in range(num_regions):
        centre_y, centre_x = random.uniform(0.2, 0.8, 2) * (height, width)
        radius_y, radius_x = random.uniform(0.05, 0.3, 2) * (height, width)
        mask = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1
        regions.append(RegionExample(mask, QUESTION, ANSWER[: 60 + 6 * (number % 8)] + "."))
    return ImageExample(pixels, tuple(regions))


def _prompt(processor: "UrecaProcessor", example: "ImageExample", number: int) -> dict[str, Any]:
    """The inputs of transformers for a region's prompt and answer, with labels on the answer."""
    from ureca.model.processing import region_conversation

    region = example.regions[number]
    asked = processor.apply_chat_template(region_conversation(region.question), add_generation_prompt=True)
    inputs, before = (
        processor(images=[example.pixels], text=[text], masks=[region.mask], return_tensors="pt")
        for text in (asked + region.answer + "<|im_end|>", asked)
    )
    labels = inputs["input_ids"].clone()
    labels[:, : before["input_ids"].shape[1]] = -100
    return {**inputs, "labels": labels}


def _print_setting(
    phase: str, model: "UrecaForConditionalGeneration", packed: "PackedBatch", arguments: argparse.Namespace
) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    image_tokens = len(packed.pixel_values) * model.config.image_seq_length
    print(
        f"\n{phase}: {arguments.regions} regions of {int(packed.segment_lengths.float().mean())} tokens, image of "
        f"{image_tokens} tokens; {trained / 1e6:.2f} of {parameters / 1e6:.1f} M parameters trained, float32, "
        f"{arguments.threads} threads",
        flush=True,
    )


def _print_table(results: Sequence[TrainingMeasurement], num_regions: int) -> None:
    print("| way | CPU s | regions / CPU s | times | gradient difference |")
    print("|---|---|---|---|---|")
    for row in results:
        print(
            f"| {row.way} | {row.cpu_s:.2f} | {num_regions / row.cpu_s:.2f} | {row.times:.2f} | "
            f"{row.gradient_difference:.0e} |",
            flush=True,
        )
