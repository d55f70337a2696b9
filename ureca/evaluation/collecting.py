"""From what is stored of a benchmark, of captions and of judgements to measures."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ureca.dataset import Output
from ureca.errors import OutputError
from ureca.evaluation.benchmarks import StoredBenchmark
from ureca.evaluation.measures import Measure
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.uniqueness import (
    Heard,
    Retrieved,
    listener_measures,
    resolution_measures,
    retrieval_measures,
)

Judged = Sequence[Mapping[str, Any]]
"""What was found out about each prediction; fields as in ``JUDGED``."""


def predictions_of(benchmark: StoredBenchmark, captions: Output) -> list[Prediction]:
    """The captions of all regions of a benchmark, in its order, with their references.

    Args:
        benchmark: that is stored.
        captions: of the dataset ``CAPTIONS``, in the benchmark's units.
    """
    predictions = []
    for row, captioned in _pairs(benchmark, captions):
        area_px = row["height"] * row["width"]
        said = {} if captioned is None else {region["region_id"]: region for region in captioned["captions"]}
        for region in row["benchmark"]:
            caption, failure = _caption(captioned, said.get(region["region_id"]))
            predictions.append(
                Prediction(
                    image_id=row["image_id"],
                    region_id=region["region_id"],
                    caption=caption,
                    references=tuple(region["references"]),
                    depth=region["depth"],
                    area_fraction=region["area_px"] / area_px,
                    failure=failure,
                )
            )
    return predictions


def judged_of(benchmark: StoredBenchmark, judged: Output) -> tuple[Judged, int]:
    """What was found out about the same regions, in the same order, and how many images could not be looked at."""
    found: list[Mapping[str, Any]] = []
    num_failed = 0
    for row, of_image in _pairs(benchmark, judged):
        if of_image is None:
            raise OutputError(f"{judged.path} lacks image {row['image_id']!r}: run the same command again")
        num_failed += of_image["error"] is not None
        regions = {region["region_id"]: region for region in of_image["judged"]}
        found += [regions[region["region_id"]] for region in row["benchmark"]]
    return found, num_failed


def retrieval(
    predictions: Sequence[Prediction], judged: Judged, of_references: Judged, encoder_name: str
) -> list[Measure]:
    """Retrieval and its ceiling. A region without a caption is not retrieved, even if its image could not be read."""
    sizes = Counter(prediction.image_id for prediction in predictions)
    found = [
        _retrieved(row) or (_lost(sizes[prediction.image_id]) if prediction.is_blank else None)
        for prediction, row in zip(predictions, judged, strict=True)
    ]
    return retrieval_measures(found, encoder_name, of_references=[_retrieved(row) for row in of_references])


def listener(
    predictions: Sequence[Prediction], judged: Judged, of_references: Judged, listener_name: str
) -> list[Measure]:
    """The listener and its ceiling. A region without a caption is not understood, even if its image is unreadable."""
    sizes = Counter(prediction.image_id for prediction in predictions)
    heard: list[Heard | None] = [
        row["heard"] or ("blank" if prediction.is_blank and sizes[prediction.image_id] > 1 else None)
        for prediction, row in zip(predictions, judged, strict=True)
    ]
    return listener_measures(heard, listener_name, of_references=[row["heard"] for row in of_references])


def scenes(judged: Judged) -> list[Measure]:
    """What ``ureca.scenes.resolve`` says; none where no image is a scene."""
    resolutions = [row["resolution"] for row in judged]
    return resolution_measures(resolutions) if any(resolutions) else []


def _caption(row: Mapping[str, Any] | None, region: Mapping[str, Any] | None) -> tuple[str, str | None]:
    """A caption, or why there is none."""
    if row is None:
        return "", "not captioned"
    if row["error"] is not None:
        return "", f"{row['error']['stage']}: {row['error']['kind']}"
    if region is None:
        return "", "not captioned"
    if region["caption"] is None:
        return "", region["status"].removeprefix("failed:").replace(":", ": ")
    return region["caption"], None


def _retrieved(row: Mapping[str, Any]) -> Retrieved | None:
    if row["num_candidates"] is None:
        return None
    return Retrieved(row["is_first"], row["reciprocal_rank"], row["num_candidates"])


def _lost(num_candidates: int) -> Retrieved | None:
    return Retrieved(0.0, 0.0, num_candidates) if num_candidates > 1 else None


def _pairs(benchmark: StoredBenchmark, other: Output) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Each row of the benchmark with the other's row of the same image; both have the same units."""
    done = set(other.done_units())
    for unit in benchmark.units:
        of_image = {row["image_id"]: row for row in other.unit_rows(unit)} if unit in done else {}
        for row in benchmark.rows(unit):
            yield row, of_image.get(row["image_id"])
