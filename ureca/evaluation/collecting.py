"""From what is stored of a benchmark, of captions and of judgements to measures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ureca.dataset import Output
from ureca.evaluation.benchmarks import StoredBenchmark
from ureca.evaluation.measures import Measure
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.uniqueness import (
    Retrieved,
    listener_measures,
    resolution_measures,
    retrieval_measures,
)

Judged = Sequence[Mapping[str, Any] | None]
"""What was found out about each prediction, fields as in ``JUDGED``; None where its image could not be judged."""


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


def judged_of(benchmark: StoredBenchmark, judged: Output) -> list[Mapping[str, Any] | None]:
    """What was found out about the same regions, in the same order."""
    found: list[Mapping[str, Any] | None] = []
    for row, of_image in _pairs(benchmark, judged):
        regions = {} if of_image is None else {region["region_id"]: region for region in of_image["judged"]}
        found += [regions.get(region["region_id"]) for region in row["benchmark"]]
    return found


def retrieval(
    predictions: Sequence[Prediction], judged: Judged, of_references: Judged, encoder_name: str
) -> list[Measure]:
    """Retrieval and its ceiling. A region without a caption, whose image could not be read, is not retrieved."""
    sizes = _images_with_several(predictions)
    found = [
        _retrieved(row)
        or (Retrieved(0.0, 0.0, sizes[prediction.image_id]) if _is_lost(prediction, row, sizes) else None)
        for prediction, row in zip(predictions, judged, strict=True)
    ]
    return retrieval_measures(found, encoder_name, of_references=[_retrieved(row) for row in of_references])


def listener(
    predictions: Sequence[Prediction], judged: Judged, of_references: Judged, listener_name: str
) -> list[Measure]:
    """The listener and its ceiling; a region without a caption is not understood."""
    sizes = _images_with_several(predictions)
    heard = [
        "blank" if _is_lost(prediction, row, sizes) else row and row["heard"]
        for prediction, row in zip(predictions, judged, strict=True)
    ]
    return listener_measures(heard, listener_name, of_references=[row and row["heard"] for row in of_references])


def scenes(judged: Judged) -> list[Measure]:
    """What ``ureca.scenes.resolve`` says; none where no image is a scene."""
    resolutions = [row and row["resolution"] for row in judged]
    return resolution_measures(resolutions) if any(resolutions) else []


def unjudged(predictions: Sequence[Prediction], judged: Judged) -> list[str]:
    """A sentence on the images that could not be judged, if there are any."""
    lost = {prediction.image_id for prediction, row in zip(predictions, judged, strict=True) if row is None}
    return [f"{len(lost):,} images could not be read to judge captions by."] if lost else []


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


def _retrieved(row: Mapping[str, Any] | None) -> Retrieved | None:
    if row is None or row["num_candidates"] is None:
        return None
    return Retrieved(row["is_first"], row["reciprocal_rank"], row["num_candidates"])


def _is_lost(prediction: Prediction, row: Mapping[str, Any] | None, sizes: Mapping[str, int]) -> bool:
    return row is None and prediction.is_blank and prediction.image_id in sizes


def _images_with_several(predictions: Sequence[Prediction]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for prediction in predictions:
        sizes[prediction.image_id] = sizes.get(prediction.image_id, 0) + 1
    return {id: size for id, size in sizes.items() if size > 1}


def _pairs(benchmark: StoredBenchmark, other: Output) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Each row of the benchmark with the other's row of the same image; both have the same units."""
    done = set(other.done_units())
    for unit in benchmark.units:
        of_image = {row["image_id"]: row for row in other.unit_rows(unit)} if unit in done else {}
        for row in benchmark.rows(unit):
            yield row, of_image.get(row["image_id"])
