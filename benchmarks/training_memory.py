"""``ureca bench training-memory``: memory of training at the shapes of real models, computed without them."""

import argparse
import time
from collections.abc import Sequence

from ureca.training.phases import Align, Full, Tune

_IMAGE_TILES, _REGIONS, _TEXT_TOKENS, _ANSWER_TOKENS = 7, 8, 80, 60
"""An image of six tiles and a thumbnail, with eight regions whose question and answer have 80 tokens, the answer 60."""

_GPU_SIZES_GIB = (24, 40, 80)


def main(argv: Sequence[str]) -> int:
    """Print the estimate for each model, phase and number of GPUs, with the smallest GPU that has it."""
    parser = argparse.ArgumentParser(prog="ureca bench training-memory", description=__doc__)
    parser.add_argument("--images", type=int, default=2, help="images of a micro-batch (default: %(default)s)")
    options = parser.parse_args(argv)
    from benchmarks.gpu_proof import ON_GPU
    from ureca.model.image_processing import UrecaImageProcessor
    from ureca.model.initialization import build_tokenizer, configuration_of
    from ureca.model.processing import UrecaProcessor
    from ureca.model.settings import TinySizes
    from ureca.training.memory_estimate import MicroBatchSizes, Sharding, alternatives, estimate_memory

    for name, shape in ON_GPU.shapes.items():
        chosen = TinySizes(**shape)  # type: ignore[arg-type]  # all of them are numbers
        processor = UrecaProcessor(
            UrecaImageProcessor(tile_size_px=chosen.image_size, max_tiles=chosen.max_tiles),
            build_tokenizer(),
            num_mask_tokens=chosen.num_mask_tokens,
            image_seq_length=chosen.image_seq_length,
        )
        config = configuration_of(chosen, processor)
        prefix = 40 + _IMAGE_TILES * chosen.image_seq_length
        segment = 2 + _IMAGE_TILES * chosen.num_mask_tokens + _TEXT_TOKENS
        sizes = MicroBatchSizes(
            num_tokens=options.images * (prefix + _REGIONS * segment),
            num_prefix_tokens=options.images * prefix,
            num_image_tiles=options.images * _IMAGE_TILES,
            num_mask_tiles=options.images * _REGIONS * _IMAGE_TILES,
            num_answer_tokens=options.images * _REGIONS * _ANSWER_TOKENS,
        )
        for phase in (Align(), Tune(), Full()):
            for sharding in (Sharding(), Sharding(8, 1), Sharding(8, 3)):
                started = time.monotonic()
                estimate = estimate_memory(config, phase, sizes, sharding)
                seconds = time.monotonic() - started
                gib = next((each for each in _GPU_SIZES_GIB if estimate.fits(each)), None)
                fits = "more than 80 GB" if gib is None else f"{gib} GB"
                print(f"{name} {phase.kind:5} {sharding.num_workers} GPUs, ZeRO-{sharding.zero_stage}: {fits:15} "
                      f"{estimate}, computed in {seconds:.1f} s", flush=True)  # fmt: skip
            smallest = _GPU_SIZES_GIB[0]
            changes = alternatives(config, phase, sizes, Sharding(), smallest, images_per_device=options.images)
            found = ", then ".join(f"{change} ({each.num_bytes / 2**30:.1f} GiB)" for change, each in changes)
            outcome = "fits" if changes[-1][1].fits(smallest) else "does not fit"
            print(f"{name} {phase.kind:5} on one of {smallest} GB: {found}: {outcome}", flush=True)
    return 0
