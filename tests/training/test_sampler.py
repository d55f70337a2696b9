"""The sampler: every region once an epoch, and ranks in step."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ureca.errors import OutputError
from ureca.rng import IndexedRng
from ureca.training.augmentation import draw_scales
from ureca.training.epoch_plan import EpochPlan, MicroBatch
from ureca.training.region_groups import is_too_long, too_long_regions
from ureca.training.sampler import Position, RunPlan
from ureca.training.settings import AugmentationSettings, MicroBatchSettings
from ureca.training.stored_arrays import permuted_blocks
from ureca.training.token_costs import SampleCosts, TokenCosts

COSTS = TokenCosts(image=5, image_tile=16, region=3, mask_tile=2)


def make_counts(text_tokens: list[list[int]], num_scales: int = 1) -> SampleCosts:
    """Counts of images with regions of these text tokens; the first image has 1 tile, the second 3, and so on."""
    tiles = [[1 + 2 * ((image + scale) % 4) for scale in range(num_scales)] for image in range(len(text_tokens))]
    return SampleCosts(
        first_regions=np.cumsum([0, *map(len, text_tokens)]),
        text_tokens=np.array([tokens for image in text_tokens for tokens in image], np.int32),
        num_tiles=np.array(tiles, np.uint8).reshape(len(text_tokens), num_scales),
        image_keys=np.arange(len(text_tokens), dtype=np.uint64) * 977,
    )


def all_micro_batches(plan: EpochPlan, world_size: int) -> list[list[list[MicroBatch]]]:
    """Return all micro-batches by step and rank."""
    return [[plan.micro_batches(step, rank) for rank in range(world_size)] for step in range(plan.num_steps)]


def shown(plan: EpochPlan, world_size: int) -> Counter[tuple[int, int]]:
    """Count how often each region of each image is shown, without padding batches."""
    return Counter(
        (group.image_number, region)
        for step in all_micro_batches(plan, world_size)
        for rank in step
        for micro_batch in rank
        if not micro_batch.is_padding
        for group in micro_batch.groups
        for region in group.region_numbers
    )


COUNTS = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=20), min_size=1, max_size=25)


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a plan, of which at least one region is short enough."""
    counts = make_counts(draw(COUNTS), num_scales := draw(st.sampled_from([1, 3])))
    max_length = draw(st.sampled_from([60, 110, 140, 8192]))
    limit = draw(st.none() | st.integers(max_length, 3 * max_length))
    settings = MicroBatchSettings(
        regions_per_image=draw(st.integers(1, 9)),
        images_per_device=draw(st.integers(1, 4)),
        gradient_accumulation=draw(st.integers(1, 3)),
        max_length=max_length,
        max_tokens_per_device=limit,
        sort_window_steps=draw(st.integers(1, 4)),
    )
    costs = COSTS.model_copy(update={"shared": draw(st.booleans()), "one_mask_tile": draw(st.booleans())})
    scales = {} if num_scales == 1 else {"min_scale": 0.5, "max_scale": 2.0, "num_scales": num_scales}
    if is_too_long(counts, costs, settings).all():
        counts = make_counts([[1], *[[1]] * counts.num_images], num_scales)
        settings = settings.model_copy(update={"max_length": 8192, "max_tokens_per_device": None})
    return {
        "samples": counts,
        "costs": costs,
        "settings": settings,
        "augmentation": AugmentationSettings(**scales),
        "epoch": draw(st.integers(0, 3)),
        "seed": draw(st.integers(0, 2**40)),
        "world_size": draw(st.integers(1, 5)),
    }


@given(plans())
def test_epoch_plan_shows_every_region_once_with_ranks_in_step(arguments: dict[str, Any]) -> None:
    counts, settings, world_size = arguments["samples"], arguments["settings"], arguments["world_size"]
    plan = EpochPlan(**arguments)
    steps = all_micro_batches(plan, world_size)
    assert all(len(rank) == settings.gradient_accumulation for step in steps for rank in step)

    never = too_long_regions(counts, arguments["costs"], settings)
    left_out = set(zip(never.image_numbers.tolist(), never.region_numbers.tolist(), strict=True))
    assert plan.num_too_long == len(never) == len(left_out)
    regions = {
        (image, region) for image, number in enumerate(counts.regions_of_images.tolist()) for region in range(number)
    }
    assert shown(plan, world_size) == Counter(regions - left_out)
    assert plan.num_regions == len(regions) - len(left_out)

    padding = [[micro_batch.is_padding for rank in step for micro_batch in rank] for step in steps]
    assert not any(any(step) for step in padding[:-1])
    assert not all(padding[-1])
    assert sum(not is_padding for step in padding for is_padding in step) == plan.num_micro_batches


@given(plans())
def test_epoch_plan_keeps_its_limits_and_counts_tokens(arguments: dict[str, Any]) -> None:
    counts, costs, settings = arguments["samples"], arguments["costs"], arguments["settings"]
    drawn = {name: arguments[name] for name in ("epoch", "seed")}
    scales = draw_scales(counts.image_keys, arguments["augmentation"], **drawn)
    plan = EpochPlan(**arguments)
    for step in all_micro_batches(plan, arguments["world_size"]):
        for micro_batch in (micro_batch for rank in step for micro_batch in rank):
            assert 1 <= len(micro_batch.groups) <= settings.images_per_device
            assert all(1 <= len(group.region_numbers) <= settings.regions_per_image for group in micro_batch.groups)
            if settings.max_tokens_per_device is not None:
                assert micro_batch.num_tokens <= settings.max_tokens_per_device
            num_tokens = 0
            for image, numbers in micro_batch.groups:
                tiles = int(counts.num_tiles[image, scales[image]])
                text = counts.text_tokens[counts.first_regions[image] + np.array(numbers)]
                mask_tiles = 1 if costs.one_mask_tile else tiles
                num_tokens += (5 + 16 * tiles) * (1 if costs.shared else len(numbers))
                num_tokens += sum(3 + 2 * mask_tiles + tokens for tokens in text.tolist())
            assert micro_batch.num_tokens == num_tokens


@given(plans(), st.data())
def test_epoch_plan_is_a_function_of_its_arguments(arguments: dict[str, Any], data: st.DataObject) -> None:
    """A resumed run therefore shows the same samples as an uninterrupted one."""
    first, again = EpochPlan(**arguments), EpochPlan(**arguments)
    start = data.draw(st.integers(0, first.num_steps - 1))
    whole = all_micro_batches(first, arguments["world_size"])
    assert again.num_steps == first.num_steps
    assert [
        [again.micro_batches(step, rank) for rank in range(arguments["world_size"])]
        for step in range(start, again.num_steps)
    ] == whole[start:]


@given(plans())
def test_epoch_plan_steps_do_not_depend_on_the_number_of_ranks(arguments: dict[str, Any]) -> None:
    settings, world_size = arguments["settings"], arguments["world_size"]
    alone = settings.model_copy(update={"gradient_accumulation": settings.gradient_accumulation * world_size})
    together, single = EpochPlan(**arguments), EpochPlan(**arguments | {"settings": alone, "world_size": 1})
    for step in range(max(together.num_steps, single.num_steps)):
        of_ranks = [together.micro_batches(step, rank) for rank in range(world_size)]
        in_turn = [micro_batch for turn in zip(*of_ranks, strict=True) for micro_batch in turn]
        assert in_turn == single.micro_batches(step, 0)


@pytest.fixture(scope="module")
def large() -> SampleCosts:
    """4000 images with up to 40 regions each, of tokens as captions have them."""
    rng = np.random.default_rng(0)
    return make_counts(
        [(10 + rng.lognormal(3.3, 0.6, size)).astype(int).tolist() for size in rng.integers(1, 40, 4000)]
    )


def test_epoch_plan_buckets_images_of_similar_length(large: SampleCosts) -> None:
    """Ranks of a step have nearly as much to do; without sorting they would not."""
    balance = {}
    for window in (1, 16):
        settings = MicroBatchSettings(images_per_device=2, sort_window_steps=window)
        plan = EpochPlan(large, COSTS, settings, epoch=0, seed=0, world_size=4)
        tokens = np.array(
            [[b.num_tokens for rank in step for b in rank] for step in all_micro_batches(plan, 4)[:-1]], float
        )
        balance[window] = (tokens.mean(axis=1) / tokens.max(axis=1)).mean()
    assert balance[16] > 0.93
    assert balance[16] > balance[1] + 0.02


def test_epoch_plan_groups_are_few_near_equal_and_vary_by_epoch(large: SampleCosts) -> None:
    sizes: dict[int, list[int]] = {}
    compositions: list[set[frozenset[int]]] = []
    for epoch in (0, 1):
        plan = EpochPlan(large, COSTS, MicroBatchSettings(), epoch=epoch, seed=0, world_size=1)
        groups = [group for (batches,) in all_micro_batches(plan, 1) for batch in batches for group in batch.groups]
        compositions.append({frozenset(group.region_numbers) for group in groups if group.image_number == 17})
        sizes = {}
        for group in groups:
            sizes.setdefault(group.image_number, []).append(len(group.region_numbers))
    assert compositions[0] != compositions[1]
    for image, number in enumerate(large.regions_of_images.tolist()):
        assert len(sizes[image]) == -(-number // 8)
        assert max(sizes[image]) - min(sizes[image]) <= 1


def test_epoch_plan_order_varies_by_epoch_and_seed(large: SampleCosts) -> None:
    firsts = [
        EpochPlan(large, COSTS, MicroBatchSettings(), epoch=epoch, seed=seed, world_size=1).micro_batches(0, 0)
        for epoch, seed in ((0, 0), (1, 0), (0, 1))
    ]
    assert firsts[0] != firsts[1] != firsts[2] != firsts[0]


def test_epoch_plan_does_not_depend_on_the_chunk_size(large: SampleCosts, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = MicroBatchSettings(max_length=300, max_tokens_per_device=400)
    whole = EpochPlan(large, COSTS, limited, epoch=0, seed=0, world_size=2)
    monkeypatch.setattr("ureca.training.region_groups.REGIONS_PER_CHUNK", 1000)
    monkeypatch.setattr("ureca.training.stored_arrays.BLOCK", 700)
    chunked = EpochPlan(large, COSTS, limited, epoch=0, seed=0, world_size=2)
    assert all_micro_batches(whole, 2) == all_micro_batches(chunked, 2)


def test_permuted_blocks_are_the_permutation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ureca.training.stored_arrays.BLOCK", 100)
    for count in (0, 1, 99, 100, 101, 1000, 4097):
        blocks = list(permuted_blocks(IndexedRng(7), count, tmp_path))
        assert np.array_equal(np.concatenate(blocks), IndexedRng(7).permutation(count))
    assert max(map(len, blocks)) < 200
    assert not list(tmp_path.iterdir())


@given(plans())
def test_epoch_plan_of_files_is_the_one_in_memory(arguments: dict[str, Any]) -> None:
    in_memory = EpochPlan(**arguments)
    world_size = arguments["world_size"]
    per_step = world_size * arguments["settings"].gradient_accumulation
    with TemporaryDirectory() as folder:
        written = EpochPlan(**arguments, folder=Path(folder))
        opened = EpochPlan.open(Path(folder), world_size, per_step)
        for plan in (written, opened):
            assert all_micro_batches(plan, world_size) == all_micro_batches(in_memory, world_size)
            for name in ("num_steps", "num_micro_batches", "num_regions", "num_too_long", "num_tokens"):
                assert getattr(plan, name) == getattr(in_memory, name)


def store(folder: Path, samples: SampleCosts, *, world_size: int = 2, accumulation: int = 2, **more: Any) -> RunPlan:
    settings = MicroBatchSettings(gradient_accumulation=accumulation)
    length = {"epochs": 2} | more
    return RunPlan.store(
        folder,
        lambda _: samples,
        COSTS,
        settings,
        AugmentationSettings(),
        content="samples",
        seed=3,
        world_size=world_size,
        **length,
    )


def test_stored_run_plan_is_the_one_in_memory_at_any_number_of_ranks(large: SampleCosts, tmp_path: Path) -> None:
    settings = MicroBatchSettings(gradient_accumulation=2)
    drawn = {"seed": 3, "world_size": 2}
    for length in ({"epochs": 2}, {"epochs": 1, "max_steps": 3000}):
        expected = RunPlan(large, COSTS, settings, AugmentationSettings(), **drawn, **length)
        stored = store(tmp_path / "plan", large, **length)
        assert stored.num_steps == expected.num_steps
        for step in (0, 1, stored.epoch_plan(0).num_steps - 1, stored.epoch_plan(0).num_steps, stored.num_steps - 1):
            assert stored.position(step) == expected.position(step)
            assert stored.ends_epoch(step) == expected.ends_epoch(step)
            assert [stored.micro_batches(step, rank) for rank in (0, 1)] == [
                expected.micro_batches(step, rank) for rank in (0, 1)
            ]
    alone = RunPlan.open(tmp_path / "plan", 1)
    of_ranks = [stored.micro_batches(5, rank) for rank in (0, 1)]
    assert alone.micro_batches(5, 0) == [batch for turn in zip(*of_ranks, strict=True) for batch in turn]
    with pytest.raises(OutputError, match="4 micro-batches a step are too few for 5 ranks"):
        RunPlan.open(tmp_path / "plan", 5)
    with pytest.raises(OutputError, match="holds no plan"):
        RunPlan.open(tmp_path / "none", 1)


def test_stored_run_plan_of_ranks_that_do_not_divide_a_step_is_completed_by_padding(
    large: SampleCosts, tmp_path: Path
) -> None:
    store(tmp_path / "plan", large)
    alone, plan = RunPlan.open(tmp_path / "plan", 1), RunPlan.open(tmp_path / "plan", 3)
    assert (alone.num_micro_batches_per_rank, plan.num_micro_batches_per_rank) == (4, 2)
    for step in (0, 7, alone.num_steps - 1):
        of_ranks = [plan.micro_batches(step, rank) for rank in range(3)]
        assert [len(batches) for batches in of_ranks] == [2, 2, 2]
        shown = [batch for turn in zip(*of_ranks, strict=True) for batch in turn]
        weighted = [batch for batch in shown if not batch.is_padding]
        assert weighted == [batch for batch in alone.micro_batches(step, 0) if not batch.is_padding]


def test_stored_run_plan_is_computed_once(large: SampleCosts, tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    store(folder, large)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    store(folder, large, world_size=1, accumulation=4)  # the same steps for another number of ranks
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written
    store(folder, large, world_size=1, accumulation=2)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} != written


def test_epoch_plan_with_too_long_group_halves_it() -> None:
    counts = make_counts([[20] * 8])
    settings = MicroBatchSettings(max_length=50, max_tokens_per_device=100, images_per_device=4)
    plan = EpochPlan(counts, COSTS, settings, epoch=0, seed=0, world_size=1)
    batches = [batch for step in range(plan.num_steps) for batch in plan.micro_batches(step, 0)]
    # 21 tokens of the image and 25 a region: at most three regions, and halving eight gives two.
    assert [len(group.region_numbers) for batch in batches for group in batch.groups] == [2, 2, 2, 2]
    assert {batch.num_tokens for batch in batches} == {71}


def test_too_long_regions_lists_them() -> None:
    counts = make_counts([[20, 500], [30]])
    settings = MicroBatchSettings(max_length=100)
    found = too_long_regions(counts, COSTS, settings)
    assert (found.image_numbers.tolist(), found.region_numbers.tolist()) == ([0], [1])
    assert found.num_tokens.tolist() == [5 + 16 + 3 + 2 + 500]
    assert EpochPlan(counts, COSTS, settings, epoch=0, seed=0, world_size=1).num_regions == 2


def test_epoch_plan_without_short_regions_raises() -> None:
    with pytest.raises(ValueError, match="max_length 8192"):
        EpochPlan(make_counts([[9000]]), COSTS, MicroBatchSettings(), epoch=0, seed=0, world_size=1)


def test_plan_settings_with_too_few_tokens_per_device_raise() -> None:
    with pytest.raises(ValidationError, match="max_tokens_per_device 4000 is below max_length 8192"):
        MicroBatchSettings(max_tokens_per_device=4000)


def test_micro_batches_of_unknown_step_or_rank_raise() -> None:
    plan = EpochPlan(make_counts([[1]]), COSTS, MicroBatchSettings(), epoch=0, seed=0, world_size=2)
    assert plan.num_steps == 1
    assert [plan.micro_batches(0, rank)[0].is_padding for rank in range(2)] == [False, True]
    for step, rank in ((1, 0), (0, 2), (-1, 0)):
        with pytest.raises(IndexError, match="the epoch has 1 steps, the world 2 ranks"):
            plan.micro_batches(step, rank)


RUN_COSTS = TokenCosts(image=5, image_tile=4, region=2, mask_tile=3)
RUN_SETTINGS = MicroBatchSettings(regions_per_image=3, images_per_device=2, max_length=100)


def run_samples() -> SampleCosts:
    """Ten images of seven regions."""
    return SampleCosts(
        first_regions=np.arange(11) * 7,
        text_tokens=np.full(70, 9, np.int32),
        num_tiles=np.ones((10, 1), np.uint8),
        image_keys=np.arange(10).astype(np.uint64),
    )


def run_plan(**length: int) -> RunPlan:
    augmentation = AugmentationSettings()
    return RunPlan(
        run_samples(), RUN_COSTS, RUN_SETTINGS, augmentation, seed=3, world_size=2, **({"epochs": 2} | length)
    )


def epoch_plan(epoch: int) -> EpochPlan:
    return EpochPlan(run_samples(), RUN_COSTS, RUN_SETTINGS, epoch=epoch, seed=3, world_size=2)


def test_run_plan_concatenates_epochs() -> None:
    plan, in_epoch = run_plan(), epoch_plan(0).num_steps
    assert plan.num_steps == 2 * in_epoch
    found = [plan.micro_batches(step, 1) for step in range(plan.num_steps)]
    expected = [epoch_plan(epoch).micro_batches(step, 1) for epoch in (0, 1) for step in range(in_epoch)]
    assert found == expected
    assert plan.position(in_epoch) == Position(1, 0)
    assert [step for step in range(plan.num_steps) if plan.ends_epoch(step)] == [in_epoch - 1, 2 * in_epoch - 1]


@pytest.mark.parametrize("max_steps", [1, 13, 40])
def test_run_plan_with_max_steps_ends_there(max_steps: int) -> None:
    plan = run_plan(max_steps=max_steps)
    assert plan.num_steps == max_steps
    assert plan.ends_epoch(max_steps - 1)
    # A worker that starts in the middle finds the same as one that came there step by step.
    epoch, step = plan.position(max_steps - 1)
    assert run_plan(max_steps=max_steps).micro_batches(max_steps - 1, 0) == epoch_plan(epoch).micro_batches(step, 0)
