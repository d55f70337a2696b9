"""From measures of predictions to the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ureca.errors import InputError
from ureca.evaluation.columns import COLUMNS, OF_THE_PAPER
from ureca.evaluation.measures import Measure, Unmeasured
from ureca.evaluation.predictions import Prediction, by_image, failures
from ureca.evaluation.tables.bootstrap import ImageBootstrap
from ureca.evaluation.tables.results import Dimension, EvaluationTable, Figure, Group, ModelRows

ALL = "all regions"
_NO_DEPTH = "unknown"

Places = npt.NDArray[np.bool_]


class TableSettings(BaseModel):
    """How figures are broken down, and how sure they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_bounds_fraction: tuple[float, ...] = Field(
        default=(0.001, 0.005, 0.02, 0.1), description="bounds between the sizes of regions, as fractions of the image"
    )
    deepest: int = Field(default=3, ge=1, description="depth from which on regions are counted together")
    num_resamples: int = Field(default=1000, ge=100, le=100_000, description="bootstrap samples of the images")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="of the intervals")
    seed: int = Field(default=0, ge=0, description="of the bootstrap")

    @field_validator("size_bounds_fraction")
    @classmethod
    def _ascending(cls, bounds: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < bound < 1 for bound in bounds) or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(f"bounds are fractions between 0 and 1, each larger than the one before, not {bounds}")
        return bounds


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One model's captions and what was measured of them; each measure's statistics in the order of predictions."""

    model: str
    predictions: Sequence[Prediction]
    measures: Sequence[Measure | Unmeasured]
    remarks: Sequence[str] = ()


def build_table(
    models: Sequence[Evaluated], settings: TableSettings, *, title: str, remarks: Sequence[str] = ()
) -> EvaluationTable:
    """Figures of all models over all regions, by depth and by size, with bootstrap confidence intervals.

    Args:
        models: in the order of the rows.
        settings: of breakdowns and intervals.
        title: of the table.
        remarks: on the benchmark, for the reader, a sentence each.

    Raises:
        InputError: no model, two models of one name, or a model without predictions.
        DataError: ``duplicate_region``.
        ValueError: a measure that is no column, is there twice, or is not of all predictions.
    """
    names = [model.model for model in models]
    if not models or len(set(names)) < len(names):
        raise InputError(f"a table needs models of different names, not {names}")
    for model in models:
        _check(model)
    given = {measure.name for model in models for measure in model.measures}
    rows = [_rows(model, settings, given) for model in models]
    occurring = {(group.dimension, group.name) for row in rows for group in row.groups}
    dimensions: dict[Dimension, tuple[str, ...]] = {"all": (ALL,), "depth": _depths(settings), "size": _sizes(settings)}
    return EvaluationTable(
        title=title,
        columns=tuple(name for name in COLUMNS if name in given or name in OF_THE_PAPER),
        dimensions={
            dimension: tuple(name for name in possible if (dimension, name) in occurring)
            for dimension, possible in dimensions.items()
        },
        models=tuple(rows),
        confidence=settings.confidence,
        num_resamples=settings.num_resamples,
        seed=settings.seed,
        remarks=(*remarks, *_remarks(models)),
    )


def _check(model: Evaluated) -> None:
    if not model.predictions:
        raise InputError(f"model {model.model!r} has no predictions; nothing can be said of it")
    names = [measure.name for measure in model.measures]
    if unknown := sorted({*names} - {*COLUMNS}):
        raise ValueError(f"no columns of a table: {unknown}")
    if len(set(names)) < len(names):
        raise ValueError(f"a measure of {model.model!r} is there twice: {sorted(names)}")
    for measure in model.measures:
        if isinstance(measure, Measure) and len(measure.statistics) != len(model.predictions):
            lengths = f"{len(measure.statistics)} regions, not {len(model.predictions)}"
            raise ValueError(f"{measure.name} of {model.model!r} is of {lengths}")


def _rows(model: Evaluated, settings: TableSettings, given: set[str]) -> ModelRows:
    images = by_image(model.predictions)
    image_of_region = np.empty(len(model.predictions), np.int64)
    for number, places in enumerate(images.values()):
        image_of_region[places] = number
    bootstrap = ImageBootstrap(
        image_of_region,
        len(images),
        num_resamples=settings.num_resamples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    blank = np.array([prediction.is_blank for prediction in model.predictions])
    groups = [
        Group(
            dimension=dimension,
            name=name,
            num_regions=int(within.sum()),
            num_images=len(np.unique(image_of_region[within])),
            num_blank=int((blank & within).sum()),
            figures=_figures(model.measures, within, bootstrap),
        )
        for dimension, name, within in _groups(model.predictions, settings)
    ]
    missing = {measure.name: measure.reason for measure in model.measures if isinstance(measure, Unmeasured)}
    not_given = (given | {*OF_THE_PAPER}) - {measure.name for measure in model.measures}
    missing |= dict.fromkeys(sorted(not_given), "it was not asked for")
    missing |= {
        measure.name: "no region counts for it"
        for measure in model.measures
        if isinstance(measure, Measure) and measure.name not in groups[0].figures
    }
    remarks = [remark for measure in model.measures if isinstance(measure, Measure) for remark in measure.remarks]
    return ModelRows(
        model=model.model,
        groups=tuple(groups),
        missing={name: missing[name] for name in COLUMNS if name in missing},
        failures=dict(failures(model.predictions).most_common()),
        remarks=tuple(dict.fromkeys([*model.remarks, *remarks])),
    )


def _figures(measures: Sequence[Measure | Unmeasured], within: Places, bootstrap: ImageBootstrap) -> dict[str, Figure]:
    counted: dict[str, tuple[Measure, float]] = {}
    for measure in measures:
        if isinstance(measure, Measure):
            value = float(measure.figure(measure.statistics[within].sum(axis=0)))
            if not np.isnan(value):
                counted[measure.name] = (measure, value)
    intervals = bootstrap.intervals([measure for measure, _ in counted.values()], within)
    return {
        name: Figure(value=value, low=interval and interval[0], high=interval and interval[1])
        for (name, (_, value)), interval in zip(counted.items(), intervals, strict=True)
    }


def _groups(predictions: Sequence[Prediction], settings: TableSettings) -> list[tuple[Dimension, str, Places]]:
    """All groups that have a region, the whole set first."""
    depths = np.array([-1 if prediction.depth is None else prediction.depth for prediction in predictions])
    areas = np.array([prediction.area_fraction for prediction in predictions])
    depth_index = np.where(depths < 0, settings.deepest + 1, np.minimum(depths, settings.deepest))
    size_index = np.searchsorted(settings.size_bounds_fraction, areas, side="right")
    groups: list[tuple[Dimension, str, Places]] = [("all", ALL, np.ones(len(predictions), bool))]
    if (depths >= 0).any():
        groups += [("depth", name, depth_index == index) for index, name in enumerate(_depths(settings))]
    groups += [("size", name, size_index == index) for index, name in enumerate(_sizes(settings))]
    return [group for group in groups if group[2].any()]


def _depths(settings: TableSettings) -> tuple[str, ...]:
    return (*map(str, range(settings.deepest)), f"{settings.deepest}+", _NO_DEPTH)


def _sizes(settings: TableSettings) -> tuple[str, ...]:
    """Names of the sizes; a region on a bound is of the larger size."""
    bounds = [f"{100 * bound:.6g}" for bound in settings.size_bounds_fraction]
    if not bounds:
        return (ALL,)
    return (f"< {bounds[0]} %", *(f"{low}-{high} %" for low, high in pairwise(bounds)), f"≥ {bounds[-1]} %")


def _remarks(models: Sequence[Evaluated]) -> tuple[str, ...]:
    regions = [{(prediction.image_id, prediction.region_id) for prediction in model.predictions} for model in models]
    if all(of_model == regions[0] for of_model in regions):
        return ()
    shared = len(set.intersection(*regions))
    return (f"The models were not evaluated on the same regions ({shared} are shared by all): compare with care.",)
