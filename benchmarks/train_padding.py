"""Overhead of training: padding tokens, idle ranks, and steps that wait for data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ureca.errors import InputError

if TYPE_CHECKING:
    from ureca.training.token_costs import SampleCosts, TokenCosts

NUM_IMAGES = 1000
WORLD_SIZE = 4


def print_padding() -> None:
    """Plan an epoch over images of very different sizes, and print its shares of padding and of idle ranks.

    Packed rows have no padding; padding batches, which keep ranks in step at the end of an epoch, count as padding.
    """
    from ureca.training.epoch_plan import EpochPlan
    from ureca.training.settings import MicroBatchSettings
    from ureca.training.token_costs import SampleCosts, TokenCosts

    random = np.random.default_rng(0)
    regions = random.geometric(1 / 12, NUM_IMAGES)
    text_tokens = random.integers(20, 200, int(regions.sum()), dtype=np.int32)
    counts = SampleCosts(
        first_regions=np.concatenate([[0], np.cumsum(regions)]),
        text_tokens=text_tokens,
        num_tiles=random.choice(np.array([1, 3, 5, 7], np.uint8), (NUM_IMAGES, 1)),
        image_keys=random.integers(0, 2**63, NUM_IMAGES, dtype=np.uint64),
    )
    costs = TokenCosts(image=30, image_tile=256, region=20, mask_tile=8)
    plan = EpochPlan(counts, costs, MicroBatchSettings(), epoch=0, seed=0, world_size=WORLD_SIZE)
    steps = [[plan.micro_batches(step, rank)[0] for rank in range(WORLD_SIZE)] for step in range(plan.num_steps)]
    tokens = np.array([[micro_batch.num_tokens for micro_batch in step] for step in steps])
    padding_batches = np.array([[micro_batch.is_padding for micro_batch in step] for step in steps])
    idle = (tokens.max(axis=1, keepdims=True) - tokens).sum() / (tokens.max(axis=1).sum() * WORLD_SIZE)
    print(
        f"\nan epoch of {NUM_IMAGES} images with 1 to {regions.max()} regions, {WORLD_SIZE} ranks: "
        f"{tokens[padding_batches].sum() / tokens.sum():.2%} of the tokens are padding; "
        f"{_padding_of_random_batches(counts, costs):.0%} would be in random batches of 16 whole prompts; "
        f"ranks idle {idle:.1%} of the time if tokens are time"
    )


def _padding_of_random_batches(counts: "SampleCosts", costs: "TokenCosts", size: int = 16) -> float:
    tiles = np.repeat(counts.num_tiles[:, 0], counts.regions_of_images)
    lengths = costs.image_tokens(tiles) + costs.segment_tokens(counts.text_tokens, tiles)
    shuffled = np.random.default_rng(0).permutation(lengths)[: len(lengths) // size * size].reshape(-1, size)
    return float(1 - shuffled.sum() / (shuffled.max(axis=1).sum() * size))


def print_waiting(run: Path) -> None:
    """Print the share of time in which a run of ``ureca train`` waited for data.

    Args:
        run: folder of the run, with metrics.jsonl.

    Raises:
        InputError: the folder has no metrics of steps.
    """
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        steps = [line["seconds"] for line in lines if "data_wait_fraction" in line]
        waited = np.array([step["data_wait"] for step in steps])
        worked = np.array([step["forward_backward"] + step["optimizer"] for step in steps])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run} is no folder of a run of `ureca train` with metrics.jsonl ({error})") from error
    if not steps:
        raise InputError(f"{run} has no metrics of a step yet")
    seconds = waited + worked
    print(
        f"{len(steps)} steps, {seconds.sum():.1f} s; waiting for data: {waited.sum() / seconds.sum():.1%} of the time, "
        f"the first step {waited[0]:.1f} s"
        + (f", later steps {waited[1:].sum() / seconds[1:].sum():.1%}" if len(steps) > 1 else "")
    )
