"""A forecast as lines for people.

[from] What a run's record does not tell, fitted: the simulation of that run must take what the run took.
[from] What a run would take: simulated as a whole, or its beginning and what follows at the same rate."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

from ureca.data.partitions import partition_offsets
from ureca.errors import InputError
from ureca.ops.measured import Measured
from ureca.ops.simulator import Arrangement, Moment, Service, Simulated, simulate
from ureca.ops.status import duration

_LONGEST_STEP_S = 100.0
_HALVINGS = 12


@dataclass(frozen=True)
class Calibrated:
    """Times for further simulations.

    Attributes:
        service: seconds that work takes.
        startup_s: from the beginning of a session to its first unit, and from its last to its end.
    """

    service: Service
    startup_s: float


def calibrate(measured: Measured, arrangement: Arrangement, partition_sizes: Sequence[int]) -> Calibrated:
    """Find the processor time of a curating actor's steps, and the time around the work, of a run.

    A unit's time in an actor is known, of which answers take a known part: what is left is the actor's own work and
    the waiting for it.

    Args:
        measured: of the run.
        arrangement: on which it ran.
        partition_sizes: of its units.

    Raises:
        InputError: its units took longer than any processor time explains.
    """
    base = Service(
        generate_s=measured.generate_s,
        tree_s=measured.tree_s,
        step_s=0.0,
        answer_s=measured.answer_s or (0.0,),
        calls_per_question=measured.calls_per_question,
    )

    def curate_s(step_s: float) -> float:
        return simulate(measured, replace(base, step_s=step_s), arrangement, partition_sizes).curate_s

    low, high = 0.0, 0.001
    while curate_s(high) < measured.curate_s:
        low, high = high, 2 * high
        if high > _LONGEST_STEP_S:
            raise InputError(
                f"the units of this run were {measured.curate_s:.0f} s in their actors, which its answers and the work "
                "on them do not explain: did something hold it up?"
            )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if curate_s(middle) < measured.curate_s else (low, middle)
    service = replace(base, step_s=(low + high) / 2)
    simulated_s = simulate(measured, service, arrangement, partition_sizes).end.now_s
    return Calibrated(service, max(0.0, measured.wall_s - simulated_s))


_LEAST_SIMULATED = 2000
_FILLINGS = 4
"""How often the images in flight are replaced in a simulation that stands for a longer run."""

SATURATED = 0.9


@dataclass(frozen=True)
class Part:
    """Of the pipeline.

    Attributes:
        name: propose, tree, curate (the actors' own work), engine, cpus, or images_in_flight.
        places: that can be taken at a time.
        busy_fraction: of them that is taken while the run is under way, 0 to about 1.
        most_images_per_s: that it could do if it were always busy; ``math.inf``: it sets no limit.
    """

    name: str
    slots: float
    busy_fraction: float
    most_images_per_s: float


@dataclass(frozen=True)
class Forecast:
    """Of a run.

    Attributes:
        num_images: all of them.
        num_partitions: files that it writes.
        num_simulated: images of the simulation; fewer than ``num_images``: the rest was taken to go on as it did.
        duration_s: with ``startup_s``.
        startup_s: before the first unit and after the last.
        images_per_s: while it is under way.
        parts: of the pipeline; the first one would be saturated first.
        num_calls: of the chat model.
        num_prompt_tokens: of all calls.
        num_new_tokens: of all calls.
        decoded_bytes: of the images decoded at a time, over all curating actors.
        waiting_bytes: of the masks that wait between stages in the object store, if nothing held back what makes them.
        stored_bytes: of the dataset.
    """

    num_images: int
    num_partitions: int
    num_simulated: int
    duration_s: float
    startup_s: float
    images_per_s: float
    parts: Sequence[Part]
    num_calls: float
    num_prompt_tokens: float
    num_new_tokens: float
    decoded_bytes: float
    waiting_bytes: float
    stored_bytes: float

    def to_json(self) -> str:
        """One JSON object; null where there is no limit."""
        parts = [
            {name: None if value == math.inf else value for name, value in asdict(part).items()} for part in self.parts
        ]
        return json.dumps({**asdict(self), "parts": parts}, indent=2)


def forecast(
    measured: Measured,
    calibrated: Calibrated,
    arrangement: Arrangement,
    num_images: int,
    images_per_partition: int | None,
) -> Forecast:
    """Predict a run over images like those that were measured.

    Of a run of many images so many are simulated that those in flight are replaced several times; all others are taken
    to go on as the middle half of these did.

    Args:
        measured: of an earlier run.
        calibrated: from the same one.
        arrangement: to run on.
        num_images: at least 1.
        images_per_partition: as in ``curate``.
    """
    sizes = partition_sizes(num_images, images_per_partition)
    in_flight = arrangement.curate_actors * arrangement.images_in_flight
    enough = max(_LEAST_SIMULATED, _FILLINGS * in_flight)
    num_partitions = _partitions_with(sizes, enough)
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
        decoded_bytes=whole.most_images_decoded * measured.pixel_bytes,
        waiting_bytes=_most_waiting(whole, num_images, parts, images_per_s) * measured.mask_bytes,
        stored_bytes=measured.stored_bytes * num_images,
    )


def partition_sizes(num_images: int, images_per_partition: int | None) -> list[int]:
    """Images of each unit, as ``curate`` would cut so many."""
    offsets = partition_offsets(num_images, images_per_partition)
    return [end - start for start, end in pairwise(offsets)]


def _partitions_with(sizes: Sequence[int], num_images: int) -> int:
    """How many of the first units have so many images."""
    counted = 0
    for number, size in enumerate(sizes):
        if counted >= num_images:
            return number
        counted += size
    return len(sizes)


def _under_way(simulated: Simulated) -> tuple[Moment, Moment]:
    """Between which moments the run is under way: its middle half; all of it, where it is short for what it has."""
    is_short = _FILLINGS * simulated.most_images_decoded > simulated.end.num_images
    if is_short or simulated.three_quarters.now_s <= simulated.quarter.now_s:
        return Moment(0.0, 0, dict.fromkeys(simulated.end.busy_s, 0.0)), simulated.end
    return simulated.quarter, simulated.three_quarters


def _rate(simulated: Simulated) -> float:
    """Images per second while the run is under way."""
    first, last = _under_way(simulated)
    return (last.num_images - first.num_images) / (last.now_s - first.now_s)


def _parts(simulated: Simulated, images_per_s: float) -> list[Part]:
    parts = []
    for name, slots in simulated.slots.items():
        if name == "images_in_flight":
            # An image that waits for an answer is in flight, too: how many there can be bounds no rate.
            most, busy_fraction = math.inf, _share_in_flight(simulated)
        else:
            busy_s = simulated.end.busy_s[name]
            most = slots * simulated.end.num_images / busy_s if busy_s else math.inf
            busy_fraction = images_per_s / most
        parts.append(Part(name, slots, busy_fraction, most))
    return sorted(parts, key=lambda part: part.most_images_per_s)


def _share_in_flight(simulated: Simulated) -> float:
    first, last = _under_way(simulated)
    busy_s = last.busy_s["images_in_flight"] - first.busy_s["images_in_flight"]
    return busy_s / (simulated.slots["images_in_flight"] * (last.now_s - first.now_s))


def _most_waiting(simulated: Simulated, num_images: int, parts: Sequence[Part], images_per_s: float) -> float:
    """Images whose masks wait at the end of proposing, if that ran at its own pace."""
    if simulated.end.num_images == num_images:
        return simulated.most_images_waiting
    before = min(part.most_images_per_s for part in parts if part.name in {"masks", "tree"})
    return num_images * max(0.0, 1 - images_per_s / before)


_PURPOSES = {
    "masks": ("actors that propose masks", "raise resources.masks.num_actors, on more CPUs or GPUs"),
    "tree": ("tasks that plant trees", "give the cluster more CPUs"),
    "curate": ("processors of the curating actors", "raise resources.curate.num_actors"),
    "engine": ("answers of the chat model at a time", "add servers, or raise mllm.max_concurrency if theirs are idle"),
    "cpus": ("processors of the cluster", "give the cluster more CPUs"),
    "images_in_flight": (
        "images under way in curating actors",
        "raise resources.curate.images_in_flight, or pixels_in_flight",
    ),
}


def forecast_text(forecast: Forecast, measured: Measured, calibrated: Calibrated, arrangement: Arrangement) -> str:
    """The lines: what was learned, what is predicted, how busy each part is, and what to set."""
    service = calibrated.service
    answer_s = sum(service.answer_s) / len(service.answer_s)
    actors = arrangement.curate_actors
    rows = [
        (
            "an image takes",
            f"{measured.masks_per_image:.1f} masks, {measured.regions_per_image:.1f} captions, "
            f"{forecast.num_calls / forecast.num_images:.1f} calls; propose {_s(service.generate_s)}, "
            f"tree {_s(service.tree_s)}; a step of curate {_s(service.step_s)}, an answer {_s(answer_s)}",
        ),
        ("images", f"{forecast.num_images} in {forecast.num_partitions} units" + _how_far(forecast)),
        ("duration", f"{duration(forecast.duration_s)}, of which {_s(forecast.startup_s)} to start and end"),
        ("rate", f"{forecast.images_per_s:.3g} images/s under way"),
        ("calls", f"{_count(forecast.num_calls)}: {_count(forecast.num_prompt_tokens)} tokens in, "
                  f"{_count(forecast.num_new_tokens)} out"),
        ("output", f"{_bytes(forecast.stored_bytes)} of Parquet in {forecast.num_partitions} files"),
        ("memory", f"{_bytes(forecast.decoded_bytes)} of decoded images at a time in {actors} curating actors, "
                   f"{_bytes(forecast.decoded_bytes / actors)} in each"),
        ("object store", f"{_bytes(forecast.waiting_bytes)} of masks, if nothing holds back what proposes them"),
    ]  # fmt: skip
    lines = [f"{name:<16} {value}" for name, value in rows]
    lines += ["", f"{'part':<16} {'slots':>8} {'busy':>6} {'at most images/s':>17}"]
    lines += [_part_line(part) for part in forecast.parts]
    return "\n".join([*lines, "", advice(forecast)])


def advice(forecast: Forecast) -> str:
    """What bounds the run, and what to set to make it faster."""
    by_name = {part.name: part for part in forecast.parts}
    full = [part for part in forecast.parts if part.busy_fraction >= SATURATED]
    # Images wait for everything else: that they fill their places bounds a run only where nothing else is full.
    bounds = [part for part in full if part.name != "images_in_flight"] or full
    if bounds:
        purpose, remedy = _PURPOSES[bounds[0].name]
        return f"saturated: {bounds[0].name} ({purpose}); for more, {remedy}"
    busiest = max(by_name.values(), key=lambda part: part.busy_fraction)
    return f"nothing is saturated: the run is short for what it has; the busiest part is {busiest.name}"


def _how_far(forecast: Forecast) -> str:
    if forecast.num_simulated == forecast.num_images:
        return ", all simulated"
    return f"; {forecast.num_simulated} simulated, the rest at the same rate"


def _part_line(part: Part) -> str:
    slots = "any" if math.isinf(part.slots) else f"{part.slots:g}"
    most = "" if math.isinf(part.most_images_per_s) else f"{part.most_images_per_s:.3g}"
    return f"{part.name:<16} {slots:>8} {part.busy_fraction:>6.0%} {most:>17}   {_PURPOSES[part.name][0]}"


def _s(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _count(number: float) -> str:
    for partition, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= partition:
            return f"{number / partition:.3g} {name}"
    return f"{number:.0f}"


def _bytes(number: float) -> str:
    for partition, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if number >= partition:
            return f"{number / partition:.1f} {name}"
    return f"{number / 2**10:.1f} KiB"
