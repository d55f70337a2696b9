"""A run's steps are those of its epochs, one after the other."""

import numpy as np
import pytest

from ureca.training.augmentation import AugmentationSettings
from ureca.training.sampler import EpochPlan, PlanSettings, Position, RunPlan
from ureca.training.token_costs import SampleCosts, TokenCosts

COSTS = TokenCosts(image=5, image_tile=4, region=2, mask_tile=3)
SETTINGS = PlanSettings(regions_per_image=3, images_per_device=2, max_length=100)


def counts() -> SampleCosts:
    """Ten images of seven regions."""
    return SampleCosts(
        first_regions=np.arange(11) * 7,
        text_tokens=np.full(70, 9, np.int32),
        num_tiles=np.ones((10, 1), np.uint8),
        image_keys=np.arange(10).astype(np.uint64),
    )


def run_plan(**length: int) -> RunPlan:
    augmentation = AugmentationSettings()
    return RunPlan(counts(), COSTS, SETTINGS, augmentation, seed=3, world_size=2, **({"epochs": 2} | length))


def epoch_plan(epoch: int) -> EpochPlan:
    return EpochPlan(counts(), COSTS, SETTINGS, epoch=epoch, seed=3, world_size=2)


def test_epochs_follow_each_other() -> None:
    plan, in_epoch = run_plan(), epoch_plan(0).num_steps
    assert plan.num_steps == 2 * in_epoch
    found = [plan.micro_batches(step, 1) for step in range(plan.num_steps)]
    expected = [epoch_plan(epoch).micro_batches(step, 1) for epoch in (0, 1) for step in range(in_epoch)]
    assert found == expected
    assert plan.position(in_epoch) == Position(1, 0)
    assert [step for step in range(plan.num_steps) if plan.ends_epoch(step)] == [in_epoch - 1, 2 * in_epoch - 1]


@pytest.mark.parametrize("max_steps", [1, 13, 40])
def test_a_run_may_end_anywhere(max_steps: int) -> None:
    plan = run_plan(max_steps=max_steps)
    assert plan.num_steps == max_steps
    assert plan.ends_epoch(max_steps - 1)
    # A worker that starts in the middle finds the same as one that came there step by step.
    epoch, step = plan.position(max_steps - 1)
    assert run_plan(max_steps=max_steps).micro_batches(max_steps - 1, 0) == epoch_plan(epoch).micro_batches(step, 0)
