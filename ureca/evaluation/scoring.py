"""From what is stored of a benchmark, of captions and of judgements to measures.

[from] What others make of the captions of an image: an encoder, a listener, BERTScore's model, and the scene itself."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ureca.curation.listener import Listener
from ureca.data.crash_log import CrashLog, NullCrashLog
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.processing import ImagesInFlight, MaskedImage, MaskedPartition, RowError
from ureca.data.reading import Fetched
from ureca.errors import AnnotationError, DataError, OutputError
from ureca.evaluation.benchmarks.stored import StoredBenchmark
from ureca.evaluation.encoders import ImageTextEncoder
from ureca.evaluation.measures import Measure
from ureca.evaluation.metrics.bert_score import BertScorer
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.uniqueness import (
    Heard,
    Question,
    Retrieved,
    distractors,
    listen,
    listener_measures,
    resolution,
    resolution_measures,
    retrieval_measures,
    retrieve,
)
from ureca.images import ImageLimits, decode_image
from ureca.llm.usage import metered
from ureca.masks.mask import Mask
from ureca.masks.views import Views
from ureca.scenes.scene import read_scene

_CROP_SIDE_PX = 448
"""Longest side of what the encoder is shown; encoders see less."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Scorers:
    """Who judges; None: nobody.

    Attributes:
        encoder: finds regions by captions.
        listener: chooses regions by captions.
        bert: compares captions with references.
        max_distractors: regions that the listener is shown beside the right one, at most.
    """

    encoder: ImageTextEncoder | None = None
    listener: Listener | None = None
    bert: BertScorer | None = None
    max_distractors: int = 8


class ScoringStage:
    """Judges the captions of units of a benchmark, or its references.

    Args:
        benchmark: the stored benchmark.
        captions: of its regions, in the same units; None: the first reference of each region is judged, by encoder and
            listener, which gives their ceilings.
        judges: who judges.
        limits: of images.
        images_in_flight: decoded images that are held at a time.
        attempts: of this stage, where processes may die and be replaced.
    """

    def __init__(  # noqa: PLR0917
        self,
        benchmark: Output,
        captions: Output | None,
        judges: Scorers,
        limits: ImageLimits,
        images_in_flight: int,
        crash_log: CrashLog | None = None,
    ) -> None:
        self._benchmark = benchmark
        self._captions = captions
        self._judges = judges
        self._limits = limits
        self._images = ImagesInFlight(images_in_flight, limits, crash_log or NullCrashLog())
        self._encoding = asyncio.Lock()  # one network, one batch at a time

    async def __call__(self, partition: MaskedPartition) -> tuple[list[Row], PartitionReport]:
        """Rows of the schema ``JUDGED``, in the order of the unit's images, and the work they took."""
        started = time.monotonic()
        regions = {
            row["image_id"]: row for row in await asyncio.to_thread(self._benchmark.partition_rows, partition.number)
        }
        said = await asyncio.to_thread(self._said, partition.number, regions)
        rows: dict[str, Row] = {
            image.entry.image_id: {"image_id": image.entry.image_id, "judged": [], "error": None}
            for image in partition.images
        }

        images = {image.entry.image_id: image for image in partition.images}
        asked = {id: self._regions(row, said[id]) for id, row in regions.items()}
        for id, row in rows.items():
            row["judged"] = [region.judged for region in asked[id]]

        async def judge(fetched: Fetched) -> None:
            id = fetched.entry.image_id
            try:
                await self._read(regions[id], asked[id])
                await self._look(images[id], fetched, asked[id])
            except DataError as error:
                give_up(id, error)

        def give_up(id: str, reason: DataError) -> None:
            rows[id]["error"] = asdict(RowError.of("judge", reason))

        entries = [replace(image.entry, annotation_path=None) for image in partition.images]
        with metered() as usage:
            await self._images.each(entries, judge, give_up)
        seconds = {"judge": time.monotonic() - started}
        return list(rows.values()), PartitionReport(**asdict(usage), seconds=seconds)

    def _said(self, partition: int, regions: Mapping[str, Row]) -> dict[str, dict[int, str]]:
        """Captions by image and region; blank where there is none."""
        if self._captions is None:
            return {
                id: {region["region_id"]: next(iter(region["references"]), "") for region in row["benchmark"]}
                for id, row in regions.items()
            }
        said: dict[str, dict[int, str]] = {id: {} for id in regions}
        for row in self._captions.partition_rows(partition):
            said[row["image_id"]] = {region["region_id"]: region["caption"] or "" for region in row["captions"]}
        return said

    def _regions(self, row: Row, said: Mapping[int, str]) -> list["_Region"]:
        return [
            _Region.of(region, said.get(region["region_id"], ""), is_reference=self._captions is None)
            for region in row["benchmark"]
        ]

    async def _read(self, row: Row, regions: Sequence["_Region"]) -> None:
        """What needs no pixels."""
        if self._captions is not None:
            await self._compare(regions)
            if row["scene"] is not None:
                await asyncio.to_thread(_resolve, row["scene"], regions)

    async def _look(self, image: MaskedImage, fetched: Fetched, regions: Sequence["_Region"]) -> None:
        """What needs pixels."""
        if self._judges.encoder is not None or self._judges.listener is not None:
            views = await asyncio.to_thread(self._views, image, fetched)
            await self._retrieve(views, regions)
            await self._listen(views, {mask.id: mask for mask in image.masks}, regions)

    async def _retrieve(self, views: Views, regions: Sequence["_Region"]) -> None:
        encoder = self._judges.encoder
        if encoder is None:
            return

        def find() -> list[Retrieved | None]:
            crops = [views.crop_with_mask(region.id, max_side_px=_CROP_SIDE_PX)[0] for region in regions]
            return retrieve([region.text for region in regions], crops, encoder)

        async with self._encoding:
            found = await asyncio.to_thread(find)
        for region, retrieved in zip(regions, found, strict=True):
            if retrieved is not None and region.counts:
                region.judged.update(asdict(retrieved))

    async def _listen(self, views: Views, masks: Mapping[int, Mask], regions: Sequence["_Region"]) -> None:
        if self._judges.listener is None or len(regions) < 2:
            return
        most = self._judges.max_distractors
        asked = [region for region in regions if region.counts]
        questions = [
            Question(region.id, region.text, distractors(region.id, masks, region.lookalike_ids, max_distractors=most))
            for region in asked
        ]
        for region, heard in zip(asked, await listen(self._judges.listener, views, questions), strict=True):
            region.judged["heard"] = heard

    async def _compare(self, regions: Sequence["_Region"]) -> None:
        bert = self._judges.bert
        compared = [region for region in regions if region.references]
        if bert is None or not compared:
            return
        texts, references = [region.text for region in compared], [region.references for region in compared]
        async with self._encoding:
            values = await asyncio.to_thread(bert.f1, texts, references)
        for region, value in zip(compared, values, strict=True):
            region.judged["bert_f1"] = value

    def _views(self, image: MaskedImage, fetched: Fetched) -> Views:
        """The views of an image whose masks fit it.

        Raises:
            DataError: it cannot be read, or has another size than when its masks were made.
        """
        if image.error is not None:
            raise DataError(image.error.kind, image.error.message)
        if isinstance(fetched.image, DataError):
            raise fetched.image
        pixels = decode_image(fetched.image, self._limits)
        if pixels.shape[:2] != (image.height_px, image.width_px):
            raise DataError("changed", "the image has another size than when its masks were made")
        return Views(pixels, {mask.id: mask for mask in image.masks})


@dataclass(frozen=True, slots=True)
class _Region:
    """A region that is judged.

    Attributes:
        id: of the region.
        text: what is said of it; may be blank.
        references: of it.
        lookalike_ids: of it.
        counts: whether encoder and listener are asked.
        judged: the struct of ``JUDGED`` that becomes of it.
    """

    id: int
    text: str
    references: Sequence[str]
    lookalike_ids: Sequence[int]
    counts: bool
    judged: Row

    @classmethod
    def of(cls, region: Row, text: str, *, is_reference: bool) -> "_Region":
        """Nothing is asked of a region that has no reference where references are judged."""
        return cls(
            id=region["region_id"],
            text=text,
            references=region["references"],
            lookalike_ids=region["lookalike_ids"],
            counts=bool(text) or not is_reference,
            judged={"region_id": region["region_id"], "status": "ok"},
        )


def _resolve(path: str, regions: Sequence[_Region]) -> None:
    try:
        scene = read_scene(Path(path))
    except OSError as error:
        raise AnnotationError("missing_scene", f"{path}: {error}") from error
    for region in regions:
        region.judged["resolution"] = resolution(region.text, region.id, scene)


ScoredCaptions = Sequence[Mapping[str, Any]]
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


def judged_of(benchmark: StoredBenchmark, judged: Output) -> tuple[ScoredCaptions, int]:
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
    predictions: Sequence[Prediction], judged: ScoredCaptions, of_references: ScoredCaptions, encoder_name: str
) -> list[Measure]:
    """Retrieval and its ceiling. A region without a caption is not retrieved, even if its image could not be read."""
    sizes = Counter(prediction.image_id for prediction in predictions)
    found = [
        _retrieved(row) or (_lost(sizes[prediction.image_id]) if prediction.is_blank else None)
        for prediction, row in zip(predictions, judged, strict=True)
    ]
    return retrieval_measures(found, encoder_name, of_references=[_retrieved(row) for row in of_references])


def listener(
    predictions: Sequence[Prediction], judged: ScoredCaptions, of_references: ScoredCaptions, listener_name: str
) -> list[Measure]:
    """The listener and its ceiling. A region without a caption is not understood, even if its image is unreadable."""
    sizes = Counter(prediction.image_id for prediction in predictions)
    heard: list[Heard | None] = [
        row["heard"] or ("blank" if prediction.is_blank and sizes[prediction.image_id] > 1 else None)
        for prediction, row in zip(predictions, judged, strict=True)
    ]
    return listener_measures(heard, listener_name, of_references=[row["heard"] for row in of_references])


def scenes(judged: ScoredCaptions) -> list[Measure]:
    """What ``ureca.scenes.scene`` says; none where no image is a scene."""
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
    done = set(other.done_partitions())
    for partition in benchmark.partitions:
        of_image = {row["image_id"]: row for row in other.partition_rows(partition)} if partition in done else {}
        for row in benchmark.rows(partition):
            yield row, of_image.get(row["image_id"])
