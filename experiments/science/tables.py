"""The tables of the models that are finished."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.science.captions import ScoredCaptions
from experiments.science.settings import TABLES, VARIANTS, ScienceSettings
from ureca.evaluation.measures import Measure, Unmeasured
from ureca.evaluation.metrics.scoring import Metric, measure_captions
from ureca.evaluation.tables.build import Evaluated, EvaluationTable, build_table
from ureca.evaluation.tables.formats import write_table
from ureca.evaluation.uniqueness import DuplicateSettings, measure_duplicates, resolution_measures

TITLES = {
    "prompts": "How a model is told which region is meant",
    "mask_tokens": "Mask tokens of a tile",
}


_FIRST = "prompts"


def write_tables(
    settings: ScienceSettings,
    captions: Mapping[str, list[ScoredCaptions]],
    figures: Mapping[str, dict[str, Any]],
    folder: Path,
    metrics: Sequence[Metric],
) -> list[Path]:
    """Write each table that two or more finished models are in, and the first one of a single model; returns the files.

    Args:
        settings: of the experiment.
        captions: by name of a finished model.
        figures: of its training, as ``train_variant`` returns them.
        folder: that exists.
        metrics: of captions against references; they take seconds a model.
    """
    evaluated = {name: _evaluated(name, judged, figures[name], settings, metrics) for name, judged in captions.items()}
    paths = []
    for table, names in TABLES.items():
        models = [evaluated[name] for name in names if name in evaluated]
        if len(models) > 1 or (models and table == _FIRST):
            paths += write_table(_table(table, models, settings), folder, stem=table)
    return paths


def _table(name: str, models: list[Evaluated], settings: ScienceSettings) -> EvaluationTable:
    scenes = settings.scenes
    title = (
        f"{TITLES[name]}: {scenes.test} unseen scenes of {scenes.side_px} x {scenes.side_px} pixels, models trained "
        f"from nothing for {settings.training.budget_s:g} CPU seconds each"
    )
    return build_table(models, settings.table, title=title)


def _evaluated(
    name: str,
    judged: list[ScoredCaptions],
    figures: dict[str, Any],
    settings: ScienceSettings,
    metrics: Sequence[Metric],
) -> Evaluated:
    variant = VARIANTS[name]
    predictions = [one.prediction for one in judged]
    measures: list[Measure | Unmeasured] = [*resolution_measures([one.resolution for one in judged])]
    if metrics:
        measures += measure_captions(predictions, metrics=metrics)
        measures += measure_duplicates(predictions, DuplicateSettings())
    tokens = variant.sizes(settings.sizes).num_mask_tokens
    told = f"{tokens} mask tokens a tile, " if variant.region_prompt == "mask" else ""
    remark = (
        f"{told}{figures['parameters'] / 1e6:.2f} million parameters; {figures['steps']} steps, "
        f"{figures['regions']} regions, {figures['cpu_s']:.0f} CPU seconds ({figures['wall_s']:.0f} by the clock, "
        f"{figures['precision']}), loss {figures['loss']:.3f} at the end."
    )
    return Evaluated(variant.title, predictions, measures, remarks=(remark,))
