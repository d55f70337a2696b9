"""Prediction of a run from the measurements of another one, or of a sample of its images, by simulation."""

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise

from ureca.data.partitions import partition_offsets
from ureca.errors import InputError
from ureca.ops.measured import Measured
from ureca.ops.simulator import Arrangement, Moment, Service, Simulated, simulate
from ureca.wording import duration, quantity

_LONGEST_STEP_S = 100.0
_NUM_BISECTIONS = 12

_MIN_SIMULATED_IMAGES = 2000
_NUM_REFILLS = 4
"""Times that the images in flight are replaced in a simulation that stands for a longer run."""

SATURATED = 0.9
"""Busy fraction from which a part counts as saturated."""


@dataclass(frozen=True)
class PartLoad:
    """Load of a part of the pipeline.

    Attributes:
        name: masks, tree, the operator of the row actors (their own work), engine, cpus, or images_in_flight.
        slots: number of its slots.
        busy_fraction: fraction of the slots that is busy in the steady state, from 0 to about 1.
        max_images_per_s: throughput if all its slots were always busy; ``math.inf``: it sets no limit.
    """

    name: str
    slots: float
    busy_fraction: float
    max_images_per_s: float


@dataclass(frozen=True)
class Forecast:
    """Prediction of a run.

    Attributes:
        num_images: number of images.
        num_partitions: number of files that the run writes.
        num_simulated: number of simulated images; the others are taken to go on at the same rate.
        duration_s: seconds of the run, including ``startup_s``.
        startup_s: seconds before the first partition and after the last one.
        images_per_s: throughput in the steady state.
        parts: parts of the pipeline; the first one would be saturated first.
        num_calls: calls of the chat model.
        num_prompt_tokens: prompt tokens of all calls.
        num_new_tokens: generated tokens of all calls.
        decoded_bytes: bytes of the images decoded at a time, over all row actors.
        waiting_bytes: bytes of masks that wait between operators in the object store, without backpressure.
        stored_bytes: bytes of the dataset.
    """

    num_images: int
    num_partitions: int
    num_simulated: int
    duration_s: float
    startup_s: float
    images_per_s: float
    parts: Sequence[PartLoad]
    num_calls: float
    num_prompt_tokens: float
    num_new_tokens: float
    decoded_bytes: float
    waiting_bytes: float
    stored_bytes: float

    def to_json(self) -> str:
        """Return the prediction as a JSON object, with null for infinity."""
        parts = [
            {name: None if value == math.inf else value for name, value in asdict(part).items()} for part in self.parts
        ]
        return json.dumps({**asdict(self), "parts": parts}, indent=2)


@dataclass(frozen=True)
class Calibrated:
    """Durations for further simulations.

    Attributes:
        service: durations of the work.
        startup_s: seconds from the start of a session to its first partition, and from its last one to its end.
    """

    service: Service
    startup_s: float


def calibrate(measured: Measured, arrangement: Arrangement, partition_sizes: Sequence[int]) -> Calibrated:
    """Fit the two durations that no record of a run has: a row actor's step, and the start and end of the session.

    The time of a partition in its actor is known, and so is the part of it that answers take. The rest is the actor's
    own work and the waiting for it. It is fitted so that the simulation of the run takes as long as the run took.

    Args:
        measured: measurements of the run.
        arrangement: workers and limits of the run.
        partition_sizes: images of each of its partitions.

    Raises:
        InputError: the partitions took longer than any processor time explains.
    """
    base = Service(
        generate_s=measured.generate_s,
        tree_s=measured.tree_s,
        step_s=0.0,
        answer_s=measured.answer_s or (0.0,),
        calls_per_question=measured.calls_per_question,
    )

    def rows_s(step_s: float) -> float:
        return simulate(measured, replace(base, step_s=step_s), arrangement, partition_sizes).rows_s

    low, high = 0.0, 0.001
    while rows_s(high) < measured.rows_s:
        low, high = high, 2 * high
        if high > _LONGEST_STEP_S:
            raise InputError(
                f"the partitions of this run took {measured.rows_s:.0f} s in their actors, more than its answers and "
                "the work on them explain: other work may have slowed it down; measure a run on an idle machine"
            )
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if rows_s(middle) < measured.rows_s else (low, middle)
    service = replace(base, step_s=(low + high) / 2)
    simulated_s = simulate(measured, service, arrangement, partition_sizes).end.now_s
    return Calibrated(service, max(0.0, measured.wall_s - simulated_s))


def forecast(
    measured: Measured,
    calibrated: Calibrated,
    arrangement: Arrangement,
    num_images: int,
    images_per_partition: int | None,
) -> Forecast:
    """Predict a run over images like those that were measured.

    Of a long run only enough images are simulated to replace those in flight several times; the others are taken to go
    on at the rate of the middle half of these.

    Args:
        measured: measurements of an earlier run, or of a sample.
        calibrated: durations from the same run or sample.
        arrangement: workers and limits of the run to predict.
        num_images: number of images, at least 1.
        images_per_partition: setting of that name.
    """
    sizes = partition_sizes(num_images, images_per_partition)
    in_flight = arrangement.row_actors * arrangement.images_in_flight
    enough = max(_MIN_SIMULATED_IMAGES, _NUM_REFILLS * in_flight)
    num_partitions = min(len(sizes), 1 + bisect_left(list(accumulate(sizes)), enough))
    whole = simulate(measured, calibrated.service, arrangement, sizes[:num_partitions])
    num_simulated = sum(sizes[:num_partitions])
    images_per_s = _rate(whole)
    parts = _parts(whole, images_per_s)
    calls = whole.num_calls / num_simulated * num_images
    return Forecast(
        num_images=num_images,
        num_partitions=len(sizes),
        num_simulated=num_simulated,
        duration_s=calibrated.startup_s + whole.end.now_s + (num_images - num_simulated) / images_per_s,
        startup_s=calibrated.startup_s,
        images_per_s=images_per_s,
        parts=parts,
        num_calls=calls,
        num_prompt_tokens=calls * measured.prompt_tokens_per_call,
        num_new_tokens=calls * measured.new_tokens_per_call,
        decoded_bytes=whole.max_images_decoded * measured.pixel_bytes,
        waiting_bytes=_max_waiting(whole, num_images, parts, images_per_s) * measured.mask_bytes,
        stored_bytes=measured.stored_bytes * num_images,
    )


def partition_sizes(num_images: int, images_per_partition: int | None) -> list[int]:
    """Return the number of images of each partition, as a run would cut them."""
    offsets = partition_offsets(num_images, images_per_partition)
    return [end - start for start, end in pairwise(offsets)]


def _steady_state(simulated: Simulated) -> tuple[Moment, Moment]:
    """Return the bounds of the steady state: the middle half of the run, or all of a run too short to have one."""
    is_short = _NUM_REFILLS * simulated.max_images_decoded > simulated.end.num_images
    if is_short or simulated.three_quarters.now_s <= simulated.quarter.now_s:
        return Moment(0.0, 0, dict.fromkeys(simulated.end.busy_s, 0.0)), simulated.end
    return simulated.quarter, simulated.three_quarters


def _rate(simulated: Simulated) -> float:
    """Return the images per second in the steady state."""
    first, last = _steady_state(simulated)
    return (last.num_images - first.num_images) / (last.now_s - first.now_s)


def _parts(simulated: Simulated, images_per_s: float) -> list[PartLoad]:
    parts = []
    for name, slots in simulated.slots.items():
        if name == "images_in_flight":
            # An image that waits for an answer is in flight, too: their number bounds no rate.
            most = math.inf
            first, last = _steady_state(simulated)
            busy_fraction = (last.busy_s[name] - first.busy_s[name]) / (slots * (last.now_s - first.now_s))
        else:
            busy_s = simulated.end.busy_s[name]
            most = slots * simulated.end.num_images / busy_s if busy_s else math.inf
            busy_fraction = images_per_s / most
        parts.append(PartLoad(name, slots, busy_fraction, most))
    return sorted(parts, key=lambda part: part.max_images_per_s)


def _max_waiting(simulated: Simulated, num_images: int, parts: Sequence[PartLoad], images_per_s: float) -> float:
    """Return the images whose masks wait when the last masks are generated, without backpressure."""
    if simulated.end.num_images == num_images:
        return simulated.max_images_waiting
    before = min(part.max_images_per_s for part in parts if part.name in {"masks", "tree"})
    return num_images * max(0.0, 1 - images_per_s / before)


_PURPOSES = {
    "masks": ("actors that generate masks", "raise resources.masks.num_actors, on more CPUs or GPUs"),
    "tree": ("tasks that build trees", "give the cluster more CPUs"),
    "curate": ("processors of the curating actors", "raise resources.curate.num_actors"),
    "caption": ("actors that caption", "raise resources.caption.num_actors, on more GPUs"),
    "engine": ("slots of the chat model", "add servers, or raise mllm.max_concurrency if they are idle"),
    "cpus": ("processors of the cluster", "give the cluster more CPUs"),
    "images_in_flight": (
        "images in flight in the row actors",
        "raise images_in_flight or pixels_in_flight of their resources",
    ),
}


def forecast_text(
    forecast: Forecast,
    measured: Measured,
    calibrated: Calibrated,
    arrangement: Arrangement,
    counts: Sequence[tuple[str, str]] = (),
) -> str:
    """Render a prediction as lines of text: counts, time, memory, the load of each part, and advice.

    Args:
        forecast: prediction.
        measured: measurements that it was made from.
        calibrated: durations that it was made from.
        arrangement: workers and limits of the predicted run.
        counts: first rows, as names and values; empty: the measurements of an image, and the totals.
    """
    service = calibrated.service
    answer_s = sum(service.answer_s) / len(service.answer_s)
    actors = arrangement.row_actors
    is_whole = forecast.num_simulated == forecast.num_images
    simulated = ", all simulated" if is_whole else f"; {forecast.num_simulated} simulated, the rest at the same rate"
    rows = list(counts) or [
        (
            "an image takes",
            f"{measured.masks_per_image:.1f} masks, {measured.regions_per_image:.1f} captions, "
            f"{forecast.num_calls / forecast.num_images:.1f} calls; masks {_s(service.generate_s)}, "
            f"tree {_s(service.tree_s)}, each step of curate {_s(service.step_s)}, each answer {_s(answer_s)}",
        ),
        ("images", f"{forecast.num_images} in {quantity(forecast.num_partitions, 'partition')}{simulated}"),
        ("calls", f"{_count(forecast.num_calls)}: {_count(forecast.num_prompt_tokens)} tokens in, "
                  f"{_count(forecast.num_new_tokens)} out"),
    ]  # fmt: skip
    startup = f", of which {_s(forecast.startup_s)} to start and end" if forecast.startup_s else ", and the start"
    rows += [
        ("duration", f"{duration(forecast.duration_s)}{startup}"),
        ("rate", f"{forecast.images_per_s:.3g} images/s in the steady state"),
        ("output", f"{_bytes(forecast.stored_bytes)} of Parquet in {quantity(forecast.num_partitions, 'file')}"),
        ("memory", f"{_bytes(forecast.decoded_bytes)} of decoded images at a time in {quantity(actors, 'actor')}, "
                   f"{_bytes(forecast.decoded_bytes / actors)} in each"),
        ("object store", f"{_bytes(forecast.waiting_bytes)} of waiting masks, without backpressure"),
    ]  # fmt: skip
    lines = [f"{name:<18} {value}" for name, value in rows]
    lines += ["", f"{'part':<18} {'slots':>8} {'busy':>6} {'at most images/s':>17}"]
    lines += [_part_line(part) for part in forecast.parts]
    return "\n".join([*lines, "", advice(forecast)])


def advice(forecast: Forecast) -> str:
    """Name the part that limits the run, and the setting that would make it faster."""
    full = [part for part in forecast.parts if part.busy_fraction >= SATURATED]
    # Images in flight wait for everything else: they limit a run only where nothing else is saturated.
    limiting = [part for part in full if part.name != "images_in_flight"] or full
    if limiting:
        purpose, remedy = _PURPOSES[limiting[0].name]
        return f"saturated: {limiting[0].name} ({purpose}); for more, {remedy}"
    busiest = max(forecast.parts, key=lambda part: part.busy_fraction)
    return f"nothing is saturated: the run is too short for its resources; the busiest part is {busiest.name}"


def _part_line(part: PartLoad) -> str:
    slots = "any" if math.isinf(part.slots) else f"{part.slots:g}"
    most = "" if math.isinf(part.max_images_per_s) else f"{part.max_images_per_s:.3g}"
    return f"{part.name:<18} {slots:>8} {part.busy_fraction:>6.0%} {most:>17}   {_PURPOSES[part.name][0]}"


def _s(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _count(number: float) -> str:
    for factor, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.3g} {name}"
    return f"{number:.0f}"


def _bytes(number: float) -> str:
    for factor, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if number >= factor:
            return f"{number / factor:.1f} {name}"
    return f"{number / 2**10:.1f} KiB"
