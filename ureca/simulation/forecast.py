"""What a run would take: simulated as a whole, or its beginning and what follows at the same rate."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from ureca.dataset.plan import unit_offsets
from ureca.simulation.calibration import Calibrated
from ureca.simulation.measured import Measured
from ureca.simulation.pipeline import Arrangement, Moment, Simulated, simulate

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
    places: float
    busy_fraction: float
    most_images_per_s: float


@dataclass(frozen=True)
class Forecast:
    """Of a run.

    Attributes:
        num_images: all of them.
        num_units: files that it writes.
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
    num_units: int
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
    images_per_unit: int | None,
) -> Forecast:
    """Predict a run over images like those that were measured.

    Of a run of many images so many are simulated that those in flight are replaced several times; all others are taken
    to go on as the middle half of these did.

    Args:
        measured: of an earlier run.
        calibrated: from the same one.
        arrangement: to run on.
        num_images: at least 1.
        images_per_unit: as in ``curate``.
    """
    sizes = unit_sizes(num_images, images_per_unit)
    in_flight = arrangement.curate_actors * arrangement.images_in_flight
    enough = max(_LEAST_SIMULATED, _FILLINGS * in_flight)
    num_units = _units_with(sizes, enough)
    whole = simulate(measured, calibrated.service, arrangement, sizes[:num_units])
    num_simulated = sum(sizes[:num_units])
    images_per_s = _rate(whole)
    parts = _parts(whole, images_per_s)
    calls = whole.num_calls / num_simulated * num_images
    return Forecast(
        num_images=num_images,
        num_units=len(sizes),
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


def unit_sizes(num_images: int, images_per_unit: int | None) -> list[int]:
    """Images of each unit, as ``curate`` would cut so many."""
    offsets = unit_offsets(num_images, images_per_unit)
    return [end - start for start, end in pairwise(offsets)]


def _units_with(sizes: Sequence[int], num_images: int) -> int:
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
    for name, places in simulated.places.items():
        if name == "images_in_flight":
            # An image that waits for an answer is in flight, too: how many there can be bounds no rate.
            most, busy_fraction = math.inf, _share_in_flight(simulated)
        else:
            busy_s = simulated.end.busy_s[name]
            most = places * simulated.end.num_images / busy_s if busy_s else math.inf
            busy_fraction = images_per_s / most
        parts.append(Part(name, places, busy_fraction, most))
    return sorted(parts, key=lambda part: part.most_images_per_s)


def _share_in_flight(simulated: Simulated) -> float:
    first, last = _under_way(simulated)
    busy_s = last.busy_s["images_in_flight"] - first.busy_s["images_in_flight"]
    return busy_s / (simulated.places["images_in_flight"] * (last.now_s - first.now_s))


def _most_waiting(simulated: Simulated, num_images: int, parts: Sequence[Part], images_per_s: float) -> float:
    """Images whose masks wait at the end of proposing, if that ran at its own pace."""
    if simulated.end.num_images == num_images:
        return simulated.most_images_waiting
    before = min(part.most_images_per_s for part in parts if part.name in {"propose", "tree"})
    return num_images * max(0.0, 1 - images_per_s / before)
