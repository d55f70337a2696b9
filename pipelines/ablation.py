"""The curation of one corpus with stages left out one by one, on one Ray session.

[from] What each stage of the curation does for the captions: the same corpus, with stages left out one by one."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from ureca.curation.listener import Listener
from ureca.data.output import Output
from ureca.errors import AnnotationError, DataError
from ureca.evaluation.encoders import ImageTextEncoder
from ureca.evaluation.measures import Measure
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.tables.formats import NOT_MEASURED
from ureca.evaluation.uniqueness import (
    DuplicateSettings,
    Heard,
    Question,
    Resolution,
    Retrieved,
    distractors,
    listen,
    listener_measures,
    measure_duplicates,
    resolution,
    resolution_measures,
    retrieval_measures,
    retrieve,
)
from ureca.masks.mask import Mask
from ureca.masks.views import Views
from ureca.pipelines.ablation_settings import AblationSettings
from ureca.pipelines.batch.session import ray_session
from ureca.pipelines.components import build_encoder, build_scoring_listener
from ureca.pipelines.curate import curate
from ureca.scenes.scene import Scene, read_scene

_CROP_SIDE_PX = 448

Row = Mapping[str, Any]
Pixels = npt.NDArray[np.uint8]


class Ablated(BaseModel):
    """One variant of the curation and what came of it.

    Attributes:
        variant: what was left out.
        num_regions: that were to be captioned.
        num_kept: of which there is a caption that nothing speaks against: what an export has.
        num_invalid: of which the caption was rejected by listener or verification.
        num_failed: without a caption.
        num_calls: questions to models.
        num_new_tokens: of their answers.
        figures: measures of the kept captions by name, 0 to 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str
    num_regions: int
    num_kept: int
    num_invalid: int
    num_failed: int
    num_calls: int
    num_new_tokens: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Scorers:
    """Who is asked about the captions; None: nobody."""

    listener: Listener | None = None
    encoder: ImageTextEncoder | None = None
    duplicates: DuplicateSettings = field(default_factory=DuplicateSettings)
    max_distractors: int = 8


def measure_variant(variant: str, output: Output, judges: Scorers) -> Ablated:
    """Measure what a run has made.

    Args:
        variant: its name.
        output: of the run.
        judges: of the captions.
    """
    kept = _Kept(judges)
    num_regions = num_invalid = num_failed = 0
    for partition in output.done_partitions():
        rows = [row for row in output.partition_rows(partition) if row["error"] is None]
        pixels = dict(output.pixels([row["image_id"] for row in rows])) if judges.listener or judges.encoder else {}
        for row in rows:
            regions = [region for region in row["regions"] if not region["status"].startswith("skipped:")]
            good = [region for region in regions if region["status"] == "ok" and region["verdict"] != "rejected"]
            num_regions += len(regions)
            num_failed += sum(region["status"] != "ok" for region in regions)
            num_invalid += sum(region["status"] == "ok" and region["verdict"] == "rejected" for region in regions)
            kept.add(row, regions, good, pixels.get(row["image_id"]))
    report = output.report()
    return Ablated(
        variant=variant,
        num_regions=num_regions,
        num_kept=len(kept.predictions),
        num_invalid=num_invalid,
        num_failed=num_failed,
        num_calls=report.num_calls,
        num_new_tokens=report.num_new_tokens,
        figures={measure.name: value for measure in kept.measures() if not np.isnan(value := measure.value())},
    )


class _Kept:
    """The captions of a variant that are kept, and what is found out about each."""

    def __init__(self, judges: Scorers) -> None:
        self._judges = judges
        self.predictions: list[Prediction] = []
        self._heard: list[Heard | None] = []
        self._retrieved: list[Retrieved | None] = []
        self._resolutions: list[Resolution | None] = []

    def add(self, row: Row, regions: Sequence[Row], kept: Sequence[Row], pixels: Pixels | DataError | None) -> None:
        """Judge the kept regions of one image among all that were to be captioned."""
        captions = {region["region_id"]: region["caption"] for region in kept}
        area_px = row["height"] * row["width"]
        self.predictions += [
            Prediction(row["image_id"], region["region_id"], region["caption"], (), None, region["area_px"] / area_px)
            for region in kept
        ]
        scene = _scene_of(row["uri"])
        self._resolutions += [None if scene is None else resolution(said, id, scene) for id, said in captions.items()]
        masks = {region["region_id"]: _mask(region, row) for region in regions}
        if pixels is None or isinstance(pixels, DataError):
            self._heard += [None] * len(kept)
            self._retrieved += [None] * len(kept)
            return
        views = Views(pixels, {region["region_id"]: _mask(region, row) for region in row["regions"]})
        self._heard += self._listen(kept, masks, views)
        self._retrieved += self._retrieve(captions, [*masks], views)

    def measures(self) -> Iterator[Measure]:
        """Of all that were added."""
        if not self.predictions:
            return
        yield from measure_duplicates(self.predictions, self._judges.duplicates)
        if self._judges.encoder is not None:
            yield from retrieval_measures(self._retrieved, self._judges.encoder.name)
        if self._judges.listener is not None:
            yield from listener_measures(self._heard, self._judges.listener.name)
        yield from resolution_measures(self._resolutions)

    def _listen(self, kept: Sequence[Row], masks: Mapping[int, Mask], views: Views) -> Sequence[Heard | None]:
        if self._judges.listener is None or len(masks) < 2:
            return [None] * len(kept)
        most = self._judges.max_distractors
        questions = [
            Question(
                region["region_id"],
                region["caption"],
                distractors(region["region_id"], masks, region["lookalike_ids"], max_distractors=most),
            )
            for region in kept
        ]
        return asyncio.run(listen(self._judges.listener, views, questions))

    def _retrieve(
        self, captions: Mapping[int, str], candidates: Sequence[int], views: Views
    ) -> Sequence[Retrieved | None]:
        """Among all regions that were to be captioned: so a variant that keeps fewer has it no easier."""
        if self._judges.encoder is None or not captions:
            return [None] * len(captions)
        crops = [views.crop_with_mask(id, max_side_px=_CROP_SIDE_PX)[0] for id in candidates]
        found = retrieve([captions.get(id, "") for id in candidates], crops, self._judges.encoder)
        by_id = dict(zip(candidates, found, strict=True))
        return [by_id[id] for id in captions]


def _mask(region: Row, row: Row) -> Mask:
    return Mask(
        id=region["region_id"],
        rle={"size": [row["height"], row["width"]], "counts": region["rle"]},
        bbox_xywh=tuple(region["bbox_xywh"]),
        area_px=region["area_px"],
        predicted_iou=region["predicted_iou"],
        stability_score=region["stability_score"],
    )


def _scene_of(uri: str) -> Scene | None:
    """The scene that lies beside an image, if it is one's."""
    try:
        return read_scene(Path(uri).with_suffix(".json"))
    except (OSError, AnnotationError, ValueError):
        return None


_COLUMNS: dict[str, Callable[[Ablated], str]] = {
    "variant": lambda row: row.variant,
    "kept of regions": lambda row: f"{row.num_kept} of {row.num_regions}",
    "rejected": lambda row: str(row.num_invalid),
    "failed": lambda row: str(row.num_failed),
    "calls": lambda row: str(row.num_calls),
    "calls a region": lambda row: f"{row.num_calls / max(1, row.num_regions):.2f}",
}


def to_markdown(rows: Sequence[Ablated]) -> str:
    """One row a variant; measures in per cent, in the order in which they were taken."""
    measures = list(dict.fromkeys(name for row in rows for name in row.figures))
    lines = [[*_COLUMNS, *measures], ["---"] * (len(_COLUMNS) + len(measures))]
    for row in rows:
        figures = (f"{100 * row.figures[name]:.1f}" if name in row.figures else NOT_MEASURED for name in measures)
        lines.append([*(cell(row) for cell in _COLUMNS.values()), *figures])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def ablate(settings: AblationSettings, on_variant: Callable[[str], None] = lambda name: None) -> list[Ablated]:
    """Run each variant, as far as that was not done before, and measure it.

    Args:
        settings: of the verb.
        on_variant: told the name of each variant before it runs.

    Returns:
        the whole curation first, then one without each of its stages.

    Raises:
        InputError, OutputError, SettingsError: as ``curate``.
    """
    judges = Scorers(
        listener=build_scoring_listener(settings),
        encoder=build_encoder(settings.retrieval),
        duplicates=settings.duplicates,
    )
    measured = []
    with ray_session():
        for name, variant in settings.variants().items():
            on_variant(name)
            curate(variant, on_plan=lambda num_images, num_to_do: None)
            measured.append(measure_variant(name, Output(variant.output), judges))
    return measured
