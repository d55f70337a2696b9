"""Measures of one variant of the curation, and the table that compares variants."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ureca.data.output import Output
from ureca.errors import AnnotationError, DataError
from ureca.evaluation.measures import COLUMNS, Measure
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.scorer import CaptionScorer, CaptionScores, ScoredCaption, measure_predictions
from ureca.evaluation.settings import DuplicateSettings
from ureca.evaluation.tables.formats import NOT_MEASURED
from ureca.masks.mask import Mask
from ureca.masks.views import Views
from ureca.scenes.scene import Scene, read_scene

Row = Mapping[str, Any]


class VariantResult(BaseModel):
    """One variant of the curation with its counts and measures.

    Attributes:
        variant: name of the variant, which says which stage was left out.
        num_regions: regions that were to be captioned.
        num_kept: regions whose caption neither listener nor verification rejected, as an export has them.
        num_invalid: regions whose caption was rejected by listener or verification.
        num_failed: regions without a caption.
        num_calls: calls of models.
        num_new_tokens: tokens of the models' answers.
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


def measure_variant(
    variant: str, output: Output, scorer: CaptionScorer, duplicates: DuplicateSettings | None = None
) -> VariantResult:
    """Measure the kept captions of a finished run.

    Retrieval and listener choose among all regions that were to be captioned, so that a variant that keeps fewer
    captions has no easier task.

    Args:
        variant: name of the variant.
        output: output of the run.
        scorer: scorer of the captions.
        duplicates: settings of the duplicate rates; None takes their defaults.
    """
    return asyncio.run(_measure_variant(variant, output, scorer, duplicates or DuplicateSettings()))


async def _measure_variant(
    variant: str, output: Output, scorer: CaptionScorer, duplicates: DuplicateSettings
) -> VariantResult:
    predictions: list[Prediction] = []
    scores: list[CaptionScores] = []
    num_regions = num_invalid = num_failed = 0
    for partition in output.done_partitions():
        rows = [row for row in output.partition_rows(partition) if row["error"] is None]
        pixels = dict(output.pixels([row["image_id"] for row in rows])) if scorer.needs_pixels else {}
        for row in rows:
            regions = [region for region in row["regions"] if not region["status"].startswith("skipped:")]
            num_regions += len(regions)
            num_failed += sum(region["status"] != "ok" for region in regions)
            num_invalid += sum(region["status"] == "ok" and region["verdict"] == "rejected" for region in regions)
            captions = []
            for region in regions:
                is_kept = region["status"] == "ok" and region["verdict"] != "rejected"
                text = region["caption"] if is_kept else ""
                caption = ScoredCaption(
                    region["region_id"], text, lookalike_ids=region["lookalike_ids"], is_scored=is_kept
                )
                captions.append(caption)
                if is_kept:
                    area_fraction = region["area_px"] / (row["height"] * row["width"])
                    predictions.append(Prediction(row["image_id"], region["region_id"], text, (), None, area_fraction))
                    scores.append(caption.scores)
            if (scene := _scene_beside(row["uri"])) is not None:
                scorer.resolve(captions, scene)
            image = pixels.get(row["image_id"])
            if image is not None and not isinstance(image, DataError) and any(item.is_scored for item in captions):
                masks = [Mask.from_region(region, row["height"], row["width"]) for region in row["regions"]]
                views = Views(image, {mask.id: mask for mask in masks})
                await scorer.score_views(captions, views)
    measures = measure_predictions(
        predictions,
        scores,
        duplicates=duplicates,
        encoder_name=None if scorer.encoder is None else scorer.encoder.name,
        listener_name=None if scorer.listener is None else scorer.listener.name,
    )
    values = {measure.name: measure.value() for measure in measures if isinstance(measure, Measure)}
    report = output.report()
    return VariantResult(
        variant=variant,
        num_regions=num_regions,
        num_kept=len(predictions),
        num_invalid=num_invalid,
        num_failed=num_failed,
        num_calls=report.num_calls,
        num_new_tokens=report.num_new_tokens,
        figures={name: values[name] for name in COLUMNS if name in values and not isnan(values[name])},
    )


def to_markdown(results: Sequence[VariantResult]) -> str:
    """A Markdown table with one row a variant; measures are in per cent, in the order in which they were taken."""
    columns: dict[str, Callable[[VariantResult], str]] = {
        "variant": lambda row: row.variant,
        "kept of regions": lambda row: f"{row.num_kept} of {row.num_regions}",
        "rejected": lambda row: str(row.num_invalid),
        "failed": lambda row: str(row.num_failed),
        "calls": lambda row: str(row.num_calls),
        "calls a region": lambda row: f"{row.num_calls / max(1, row.num_regions):.2f}",
    }
    measures = list(dict.fromkeys(name for row in results for name in row.figures))
    lines = [[*columns, *measures], ["---"] * (len(columns) + len(measures))]
    for row in results:
        figures = (f"{100 * row.figures[name]:.1f}" if name in row.figures else NOT_MEASURED for name in measures)
        lines.append([*(cell(row) for cell in columns.values()), *figures])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _scene_beside(uri: str) -> Scene | None:
    """The scene in the annotation file beside an image; None where the image shows none."""
    try:
        return read_scene(Path(uri).with_suffix(".json"))
    except (OSError, AnnotationError, ValueError):
        return None
