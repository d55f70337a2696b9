"""A forecast as lines for people."""

import math

from ureca.durations import duration
from ureca.simulation.calibration import Calibrated
from ureca.simulation.forecast import SATURATED, Forecast, Part
from ureca.simulation.measured import Measured
from ureca.simulation.pipeline import Arrangement

_PURPOSES = {
    "propose": ("actors that propose masks", "raise resources.propose.num_actors, on more CPUs or GPUs"),
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
            f"{forecast.num_calls / forecast.num_images:.1f} calls; propose {_s(service.propose_s)}, "
            f"tree {_s(service.tree_s)}; a step of curate {_s(service.step_s)}, an answer {_s(answer_s)}",
        ),
        ("images", f"{forecast.num_images} in {forecast.num_units} units" + _how_far(forecast)),
        ("duration", f"{duration(forecast.duration_s)}, of which {_s(forecast.startup_s)} to start and end"),
        ("rate", f"{forecast.images_per_s:.3g} images/s under way"),
        ("calls", f"{_count(forecast.num_calls)}: {_count(forecast.num_prompt_tokens)} tokens in, "
                  f"{_count(forecast.num_new_tokens)} out"),
        ("output", f"{_bytes(forecast.stored_bytes)} of Parquet in {forecast.num_units} files"),
        ("memory", f"{_bytes(forecast.decoded_bytes)} of decoded images at a time in {actors} curating actors, "
                   f"{_bytes(forecast.decoded_bytes / actors)} in each"),
        ("object store", f"{_bytes(forecast.waiting_bytes)} of masks, if nothing holds back what proposes them"),
    ]  # fmt: skip
    lines = [f"{name:<16} {value}" for name, value in rows]
    lines += ["", f"{'part':<16} {'places':>8} {'busy':>6} {'at most images/s':>17}"]
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
    places = "any" if math.isinf(part.places) else f"{part.places:g}"
    most = "" if math.isinf(part.most_images_per_s) else f"{part.most_images_per_s:.3g}"
    return f"{part.name:<16} {places:>8} {part.busy_fraction:>6.0%} {most:>17}   {_PURPOSES[part.name][0]}"


def _s(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _count(number: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f}"


def _bytes(number: float) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number / 2**10:.1f} KiB"
