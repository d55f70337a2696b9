"""Simulated runs whose results follow from arithmetic."""

import gc
from typing import Any

import pytest

from tests.ops.simulated_runs import arrangement, chain, measured_run, service, simulated
from ureca.ops.forecast import Calibrated, advice, calibrate, forecast, forecast_text, partition_sizes
from ureca.ops.simulator import Clock, Slots, simulate


def test_slots_are_acquired_in_the_order_of_requests() -> None:
    clock, said = Clock(), []
    slots = Slots(clock, 2)
    for number in range(5):
        slots.use(1.0 + number, lambda number=number: said.append((number, clock.now_s)))  # type: ignore[misc]
    clock.run()
    assert said == [(0, 1.0), (1, 2.0), (2, 4.0), (3, 6.0), (4, 9.0)]
    assert (slots.busy_s, slots.num_busy, slots.max_busy) == (15.0, 0, 2)


@pytest.mark.parametrize(
    ("changes", "times", "seconds"),
    [
        # 20 images with 3 questions, one after another, of a second each.
        ({}, {}, 3),
        ({"engine_slots": 4}, {}, 15),
        ({"requests_per_actor": 4}, {}, 15),
        ({"images_in_flight": 5}, {}, 12),
        ({"partitions_in_flight": 1}, {}, 15),  # partitions of 4
        ({"row_actors": 5, "partitions_in_flight": 1}, {}, 3),
        # A processor that has 4 steps an image: to decode it, and its questions.
        ({}, {"step_s": 1.0, "answer_s": (0.0,)}, 80),
        ({"row_actors": 5}, {"step_s": 1.0, "answer_s": (0.0,)}, 16),
        ({"row_actors": 5, "cpus": 2}, {"step_s": 1.0, "answer_s": (0.0,)}, 40),
        # Masks come at one image a second, the last ones 4 at a time.
        ({}, {"generate_s": 1.0}, 20 + 3),
        ({"mask_actors": 5}, {"generate_s": 1.0}, 4 + 3),
        ({"mask_actors": 5, "cpus": 1}, {"generate_s": 1.0}, 20 + 3),
        ({"mask_actors": 5, "cpus": 1, "masks_on_cpu": False}, {"generate_s": 1.0}, 4 + 3),
        ({}, {"tree_s": 1.0}, 20 + 3),
        ({}, {"calls_per_question": 2.0}, 6),
    ],
)
def test_simulate_scarcest_resource_sets_the_duration(
    changes: dict[str, Any], times: dict[str, Any], seconds: float
) -> None:
    result = simulated([chain(3)], [4] * 5, service(**times), **changes)
    assert result.end.now_s == pytest.approx(seconds)
    assert result.end.num_images == 20
    assert result.num_calls == 60 * times.get("calls_per_question", 1)


def test_simulate_limits_images_in_flight() -> None:
    result = simulated([chain(3)], [4] * 5, images_in_flight=3, partitions_in_flight=2)
    assert result.max_images_decoded == 3
    assert result.max_images_waiting == 12  # eight were handed out
    assert result.slots["images_in_flight"] == 3


def test_calibrate_finds_the_unrecorded_durations() -> None:
    images, sizes, there = [chain(3), chain(7), chain(1)], [1, 2, 4, 4, 4], arrangement(images_in_flight=4)
    true = service(step_s=0.02, answer_s=(0.3,))
    run = simulate(measured_run(images), true, there, sizes)
    figures: dict[str, Any] = {"answer_s": (0.3,), "rows_s": run.rows_s, "wall_s": run.end.now_s + 9}
    calibrated = calibrate(measured_run(images, **figures), there, sizes)
    assert calibrated.service.step_s == pytest.approx(0.02, rel=0.05)  # what takes longer may fit better
    assert calibrated.startup_s == pytest.approx(9, abs=0.1)


def test_forecast_of_a_long_run_extrapolates_its_beginning() -> None:
    measured, calibrated = measured_run([chain(3)]), Calibrated(service(generate_s=0.001), 10.0)
    there = arrangement(engine_slots=30, images_in_flight=100)
    predicted = forecast(measured, calibrated, there, 1_000_000, None)
    assert predicted.num_simulated < 3000
    assert 1_000_000 / 64 < predicted.num_partitions == len(partition_sizes(1_000_000, None)) < 1.01 * 1_000_000 / 64
    assert predicted.images_per_s == pytest.approx(10, rel=0.05)  # images end in bursts
    assert predicted.duration_s == pytest.approx(100_010, rel=0.05)
    assert (predicted.num_calls, predicted.num_new_tokens) == (3_000_000, 30_000_000)
    assert predicted.decoded_bytes == 100 * 10
    assert predicted.waiting_bytes == pytest.approx(0.99 * 1_000_000 * 10, rel=0.01)
    busy = {part.name: part.busy_fraction for part in predicted.parts}
    assert predicted.parts[0].name == "engine"
    assert (busy["engine"], busy["masks"]) == (pytest.approx(1, abs=0.05), pytest.approx(0.01, abs=0.001))
    assert "mllm.max_concurrency" in advice(predicted)
    assert "1000000 in" in forecast_text(predicted, measured, calibrated, there)
    assert '"slots": 30' in predicted.to_json()


@pytest.mark.parametrize(
    ("changes", "times", "named"),
    [
        ({"images_in_flight": 2}, {}, "images_in_flight"),
        ({"images_in_flight": 2}, {"step_s": 10.0}, "curate"),
        ({"cpus": 1, "row_actors": 3, "images_in_flight": 2}, {"step_s": 10.0}, "cpus"),
        ({}, {"generate_s": 10.0}, "masks"),
        ({"masks_on_cpu": False}, {"generate_s": 10.0}, "masks"),
    ],
)
def test_advice_names_the_saturated_part(changes: dict[str, Any], times: dict[str, Any], named: str) -> None:
    there = arrangement(**{"cpus": 100, **changes})
    predicted = forecast(measured_run([chain(3)]), Calibrated(service(**times), 0.0), there, 300, 1)
    assert advice(predicted).startswith(f"saturated: {named} ")


def test_advice_for_a_short_run_says_nothing_is_saturated() -> None:
    predicted = forecast(measured_run([chain(3)]), Calibrated(service(), 5.0), arrangement(), 1, None)
    assert (predicted.duration_s, predicted.num_partitions) == (8.0, 1)
    assert advice(predicted).startswith("nothing is saturated")


def test_simulate_leaves_no_reference_cycles() -> None:
    """Cycles would be left to the garbage collector, which scans all live objects again and again."""
    images = [chain(20)] * 5
    gc.collect()
    gc.disable()
    try:
        simulated(images, [1] * 50, service(step_s=0.1), row_actors=4)
        assert gc.collect() < 20 * 50
    finally:
        gc.enable()


def test_simulate_assigns_partitions_to_the_least_loaded_actors() -> None:
    longest = simulated(
        [chain(1)], [1] * 12, row_actors=4, partitions_in_flight=8, engine_slots=4, requests_per_actor=1
    )
    assert longest.end.now_s == pytest.approx(3)
