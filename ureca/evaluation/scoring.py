"""Scoring the captions of a stored benchmark partition by partition, and reading captions and scores back."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ureca.data.in_flight import ImagesInFlight
from ureca.data.masked import MaskedImage, MaskedPartition, RowError
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.reading import Fetched
from ureca.errors import AnnotationError, DataError, OutputError
from ureca.evaluation.benchmarks.stored import StoredBenchmark
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.scorer import CaptionScorer, CaptionScores, ScoredCaption
from ureca.evaluation.uniqueness import Retrieved
from ureca.images import try_decode_image
from ureca.llm.usage import metered
from ureca.masks.views import Views
from ureca.memory import out_of_memory_as
from ureca.scenes.scene import Scene, read_scene
from ureca.wording import quantity

Row = dict[str, Any]


class ScoringStage:
    """Scores the captions of a benchmark's partitions, or the benchmark's references.

    Args:
        benchmark: output of the stored benchmark.
        captions: output with captions of the benchmark's regions, in the same partitions; None scores the first
            reference of each region by encoder and listener, which gives their ceilings.
        scorer: scorer of each image's captions.
        images: images in flight, which it reads.
    """

    def __init__(
        self, benchmark: Output, captions: Output | None, scorer: CaptionScorer, images: ImagesInFlight
    ) -> None:
        self._benchmark = benchmark
        self._captions = captions
        self.scorer = scorer
        self._images = images

    async def __call__(self, partition: MaskedPartition) -> tuple[list[Row], PartitionReport]:
        """Rows of the schema ``JUDGED``, in the order of the partition's images, and the work they took."""
        started = time.monotonic()
        images = {image.entry.image_id: image for image in partition.images}
        captions, scene_paths = await asyncio.to_thread(self._read_captions, partition.number)
        errors: dict[str, RowError] = {}

        async def score(fetched: Fetched) -> None:
            image_id = fetched.entry.image_id
            try:
                with out_of_memory_as(DataError, f"the scores of {quantity(len(captions[image_id]), 'caption')}"):
                    if self._captions is not None:
                        await self.scorer.compare_references(captions[image_id])
                        if (path := scene_paths[image_id]) is not None:
                            self.scorer.resolve(captions[image_id], await asyncio.to_thread(_read_scene, path))
                    if self.scorer.needs_pixels:
                        views = await asyncio.to_thread(self._views, images[image_id], fetched)
                        await self.scorer.score_views(captions[image_id], views)
            except DataError as error:
                give_up(image_id, error)

        def give_up(image_id: str, reason: DataError) -> None:
            errors[image_id] = RowError.of("judge", reason)

        entries = [image.entry.without_annotation() for image in partition.images]
        with metered() as usage:
            await self._images.each(entries, score, give_up)
        rows = [
            {
                "image_id": image_id,
                "judged": [_score_row(caption) for caption in captions[image_id]],
                "error": asdict(errors[image_id]) if image_id in errors else None,
            }
            for image_id in images
        ]
        return rows, PartitionReport(**asdict(usage), seconds={"judge": time.monotonic() - started})

    def _read_captions(self, partition: int) -> tuple[dict[str, list[ScoredCaption]], dict[str, str | None]]:
        """The captions of each image's regions, blank for a region without one, and the path of each image's scene."""
        texts: dict[str, dict[int, str]] = {}
        if self._captions is not None:
            for row in self._captions.partition_rows(partition):
                texts[row["image_id"]] = {region["region_id"]: region["caption"] or "" for region in row["captions"]}
        captions: dict[str, list[ScoredCaption]] = {}
        scene_paths: dict[str, str | None] = {}
        for row in self._benchmark.partition_rows(partition):
            scene_paths[row["image_id"]] = row["scene"]
            captions[row["image_id"]] = []
            for region in row["benchmark"]:
                if self._captions is None:
                    text = next(iter(region["references"]), "")
                else:
                    text = texts.get(row["image_id"], {}).get(region["region_id"], "")
                captions[row["image_id"]].append(
                    ScoredCaption(
                        region_id=region["region_id"],
                        caption=text,
                        references=region["references"],
                        lookalike_ids=region["lookalike_ids"],
                        # A region without a reference has no ceiling; a region without a caption counts as a failure.
                        is_scored=bool(text) or self._captions is not None,
                    )
                )
        return captions, scene_paths

    def _views(self, image: MaskedImage, fetched: Fetched) -> Views:
        """The views of an image.

        Raises:
            DataError: the image cannot be read, or its size is not that of its masks.
        """
        if image.error is not None:
            raise DataError(image.error.kind, image.error.message)
        pixels = try_decode_image(fetched.image, self._images.limits)
        if isinstance(pixels, DataError):
            raise pixels
        if pixels.shape[:2] != (image.height_px, image.width_px):
            raise DataError("changed", "the image has another size than when its masks were made")
        return Views(pixels, {mask.id: mask for mask in image.masks})


def stored_predictions(benchmark: StoredBenchmark, captions: Output) -> list[Prediction]:
    """The captions of all regions of a benchmark, in its order, with their references.

    Args:
        benchmark: the stored benchmark.
        captions: output of the dataset ``CAPTIONS``, in the benchmark's partitions.
    """
    predictions = []
    for row, captioned in _paired_rows(benchmark, captions):
        image_area_px = row["height"] * row["width"]
        by_id = {} if captioned is None else {region["region_id"]: region for region in captioned["captions"]}
        for region in row["benchmark"]:
            caption, failure = _caption_or_failure(captioned, by_id.get(region["region_id"]))
            predictions.append(
                Prediction(
                    image_id=row["image_id"],
                    region_id=region["region_id"],
                    caption=caption,
                    references=tuple(region["references"]),
                    depth=region["depth"],
                    area_fraction=region["area_px"] / image_area_px,
                    failure=failure,
                )
            )
    return predictions


def stored_scores(benchmark: StoredBenchmark, scored: Output) -> tuple[list[CaptionScores], dict[str, int]]:
    """The scores of all regions of a benchmark, in its order, and the images that failed, by ``<stage>:<kind>``.

    Args:
        benchmark: the stored benchmark.
        scored: output of the dataset ``JUDGED``, in the benchmark's partitions.

    Raises:
        OutputError: an image of the benchmark has no row.
    """
    scores: list[CaptionScores] = []
    failures: Counter[str] = Counter()
    for row, of_image in _paired_rows(benchmark, scored):
        if of_image is None:
            raise OutputError(f"{scored.path} lacks image {row['image_id']!r}: run the same command again")
        if (error := of_image["error"]) is not None:
            failures[f"{error['stage']}:{error['kind']}"] += 1
        by_id = {region["region_id"]: region for region in of_image["judged"]}
        for region in row["benchmark"]:
            stored = by_id[region["region_id"]]
            retrieved = (stored["is_first"], stored["reciprocal_rank"], stored["num_candidates"])
            scores.append(
                CaptionScores(
                    retrieved=None if stored["num_candidates"] is None else Retrieved(*retrieved),
                    heard=stored["heard"],
                    bert_f1=stored["bert_f1"],
                    resolution=stored["resolution"],
                )
            )
    return scores, dict(failures)


def _score_row(caption: ScoredCaption) -> Row:
    """The struct of ``JUDGED`` for a region."""
    scores = caption.scores
    return {
        "region_id": caption.region_id,
        **({} if scores.retrieved is None else asdict(scores.retrieved)),
        "heard": scores.heard,
        "bert_f1": scores.bert_f1,
        "resolution": scores.resolution,
        "status": "ok",
    }


def _read_scene(path: str) -> Scene:
    try:
        return read_scene(Path(path))
    except OSError as error:
        raise AnnotationError("missing_scene", f"{path}: {error}") from error


def _caption_or_failure(row: Mapping[str, Any] | None, region: Mapping[str, Any] | None) -> tuple[str, str | None]:
    """The caption and None, or a blank caption and the reason."""
    if row is None:
        return "", "not captioned"
    if row["error"] is not None:
        return "", f"{row['error']['stage']}: {row['error']['kind']}"
    if region is None:
        return "", "not captioned"
    if region["caption"] is None:
        return "", region["status"].removeprefix("failed:").replace(":", ": ")
    return region["caption"], None


def _paired_rows(
    benchmark: StoredBenchmark, other: Output
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Each row of the benchmark with the other's row of the same image; both have the same partitions."""
    done = set(other.done_partitions())
    for partition in benchmark.partitions:
        of_image = {row["image_id"]: row for row in other.partition_rows(partition)} if partition in done else {}
        for row in benchmark.rows(partition):
            yield row, of_image.get(row["image_id"])
