"""Tables that compare the finished models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.science.captions import SceneCaption
from experiments.science.settings import TABLES, VARIANTS, ScienceSettings
from ureca.evaluation.scorer import measure_predictions
from ureca.evaluation.settings import DuplicateSettings, Metric
from ureca.evaluation.tables.build import Evaluated, EvaluationTable, build_table
from ureca.evaluation.tables.formats import write_table
from ureca.wording import quantity

TITLES = {
    "prompts": "How a model is told which region is meant",
    "mask_tokens": "Mask tokens of a tile",
    "mask_encoders": "Mask encoders",
}

_FIRST = "prompts"


def write_tables(
    settings: ScienceSettings,
    captions: Mapping[str, list[SceneCaption]],
    figures: Mapping[str, dict[str, Any]],
    folder: Path,
    metrics: Sequence[Metric],
) -> list[Path]:
    """Write each table that compares two or more finished models, and the first table also for a single model.

    Args:
        settings: settings of the experiment.
        captions: captions of the test set by the name of each finished model.
        figures: figures of each model's training, as ``train_variant`` returns them.
        folder: existing folder for the tables.
        metrics: metrics of captions against references, which take seconds a model; none leaves out duplicates, too.

    Returns:
        The paths of the files.
    """
    evaluated = {name: _evaluate(name, of_model, figures[name], metrics) for name, of_model in captions.items()}
    paths = []
    for table, names in TABLES.items():
        models = [evaluated[name] for name in names if name in evaluated]
        if len(models) > 1 or (models and table == _FIRST):
            paths += write_table(_table(table, models, settings), folder, stem=table)
    return paths


def _table(name: str, models: list[Evaluated], settings: ScienceSettings) -> EvaluationTable:
    scenes = settings.scenes
    start = "from nothing" if settings.base is None else f"from the checkpoint {Path(settings.base).name}"
    title = (
        f"{TITLES[name]}: {scenes.test} unseen scenes of {scenes.side_px} x {scenes.side_px} pixels, models trained "
        f"{start} for {settings.training.budget_s:g} CPU seconds each"
    )
    return build_table(models, settings.table, title=title)


def _evaluate(
    name: str,
    captions: list[SceneCaption],
    figures: dict[str, Any],
    metrics: Sequence[Metric],
) -> Evaluated:
    variant = VARIANTS[name]
    predictions = [caption.prediction for caption in captions]
    measures = measure_predictions(
        predictions,
        [caption.scores for caption in captions],
        metrics=metrics,
        duplicates=DuplicateSettings() if metrics else None,
    )
    tokens = figures["mask_tokens"]
    of_mask = f"{quantity(tokens, 'mask token')} a tile, "
    mask_tokens = of_mask if variant.region_prompt == "mask" else ""
    remark = (
        f"{mask_tokens}{figures['parameters'] / 1e6:.2f} million parameters; {figures['steps']} steps, "
        f"{figures['regions']} regions, {figures['cpu_s']:.0f} CPU seconds ({figures['wall_s']:.0f} by the clock, "
        f"{figures['precision']}), loss {figures['loss']:.3f} at the end."
    )
    return Evaluated(variant.title, predictions, measures, remarks=(remark,))
