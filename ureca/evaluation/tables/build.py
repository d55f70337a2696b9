"""The table of an evaluation: figures of models by groups of regions, with intervals by resampling images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ureca.errors import InputError
from ureca.evaluation.measures import COLUMNS, OF_THE_PAPER, Floats, Measure, Unmeasured
from ureca.evaluation.predictions import Prediction, by_image, failures
from ureca.evaluation.settings import TableSettings

Dimension: TypeAlias = Literal["all", "depth", "size"]

Text: TypeAlias = Annotated[str, AfterValidator(lambda text: text.encode(errors="backslashreplace").decode())]
"""Text that UTF-8 can encode: lone surrogates, of a file name or a model's answer, are escaped."""


class _TableModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_TableModel):
    """One figure with its bootstrap confidence interval, which is None for regions of a single image."""

    value: float
    low: float | None
    high: float | None


class TableGroup(_TableModel):
    """Figures of a model over some of its regions.

    Attributes:
        dimension: "all", "depth" or "size".
        name: name of the group within its dimension.
        num_regions, num_images: numbers of regions and of their images.
        num_blank: number of regions without a caption.
        figures: figures by measure, of those measures for which any of the regions counts.
    """

    dimension: Dimension
    name: str
    num_regions: int = Field(ge=0)
    num_images: int = Field(ge=0)
    num_blank: int = Field(ge=0)
    figures: dict[str, Figure]


class ModelRows(_TableModel):
    """The results of one model.

    Attributes:
        model: name of the model.
        groups: figures by group, the whole set first.
        missing: reason for each measure that was not taken.
        failures: numbers of regions without a caption, by reason.
        remarks: notes for the reader.
    """

    model: Text
    groups: tuple[TableGroup, ...]
    missing: dict[str, Text]
    failures: dict[Text, int]
    remarks: tuple[Text, ...]

    def group(self, dimension: str, name: str) -> TableGroup | None:
        """The group of a dimension and name; None if the model has no region in it."""
        return next((group for group in self.groups if (group.dimension, group.name) == (dimension, name)), None)


class EvaluationTable(_TableModel):
    """An evaluation of several models on the same regions; its JSON is the table's file.

    Attributes:
        version: version of the JSON.
        title: title of the table.
        columns: names of the measures in their order.
        dimensions: names of the groups of each breakdown in their order.
        models: results of the models in the order of the rows.
        confidence: confidence level of the intervals.
        num_resamples, seed: number and seed of the resamplings of images.
        remarks: notes on the benchmark.
    """

    version: Literal[1] = 1
    title: Text
    columns: tuple[str, ...]
    dimensions: dict[Dimension, tuple[str, ...]]
    models: tuple[ModelRows, ...]
    confidence: float
    num_resamples: int
    seed: int
    remarks: tuple[Text, ...]


ALL = "all regions"
_NO_DEPTH = "unknown"

RegionMask = npt.NDArray[np.bool_]
"""Membership of each prediction in a group, bool [N]."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One model's predictions with their measures, whose statistics are in the order of the predictions."""

    model: str
    predictions: Sequence[Prediction]
    measures: Sequence[Measure | Unmeasured]
    remarks: Sequence[str] = ()


def build_table(
    models: Sequence[Evaluated], settings: TableSettings, *, title: str, remarks: Sequence[str] = ()
) -> EvaluationTable:
    """Build the table of all models over all regions, by depth and by size, with bootstrap confidence intervals.

    Args:
        models: predictions and measures of the models, in the order of the rows.
        settings: breakdowns and intervals.
        title: title of the table.
        remarks: notes on the benchmark, a sentence each.

    Raises:
        InputError: there is no model, two models have one name, or a model has no predictions.
        DataError: ``duplicate_region``.
        ValueError: a measure is no column, occurs twice, or does not have a row for each prediction.
    """
    names = [model.model for model in models]
    if not models or len(set(names)) < len(names):
        raise InputError(f"a table needs models of different names, not {names}")
    for model in models:
        _check_measures(model)
    measured = {measure.name for model in models for measure in model.measures}
    rows = [_rows(model, settings, measured) for model in models]
    occurring = {(group.dimension, group.name) for row in rows for group in row.groups}
    dimensions: dict[Dimension, tuple[str, ...]] = {"all": (ALL,), "depth": _depths(settings), "size": _sizes(settings)}
    return EvaluationTable(
        title=title,
        columns=tuple(name for name in COLUMNS if name in measured or name in OF_THE_PAPER),
        dimensions={
            dimension: tuple(name for name in possible if (dimension, name) in occurring)
            for dimension, possible in dimensions.items()
        },
        models=tuple(rows),
        confidence=settings.confidence,
        num_resamples=settings.num_resamples,
        seed=settings.seed,
        remarks=(*remarks, *_remarks_on_regions(models)),
    )


def _check_measures(model: Evaluated) -> None:
    if not model.predictions:
        raise InputError(f"model {model.model!r} has no predictions for regions of the benchmark: leave it out")
    names = [measure.name for measure in model.measures]
    if unknown := sorted({*names} - {*COLUMNS}):
        raise ValueError(f"no columns of a table: {unknown}")
    if len(set(names)) < len(names):
        raise ValueError(f"a measure of {model.model!r} is there twice: {sorted(names)}")
    for measure in model.measures:
        if isinstance(measure, Measure) and len(measure.statistics) != len(model.predictions):
            lengths = f"{len(measure.statistics)} regions, not {len(model.predictions)}"
            raise ValueError(f"{measure.name} of {model.model!r} is of {lengths}")


def _rows(model: Evaluated, settings: TableSettings, measured: set[str]) -> ModelRows:
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
        TableGroup(
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
    not_measured = (measured | {*OF_THE_PAPER}) - {measure.name for measure in model.measures}
    missing |= dict.fromkeys(sorted(not_measured), "it was not asked for")
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


def _figures(
    measures: Sequence[Measure | Unmeasured], within: RegionMask, bootstrap: "ImageBootstrap"
) -> dict[str, Figure]:
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


def _groups(predictions: Sequence[Prediction], settings: TableSettings) -> list[tuple[Dimension, str, RegionMask]]:
    """All groups that have a region, the whole set first."""
    depths = np.array([-1 if prediction.depth is None else prediction.depth for prediction in predictions])
    areas = np.array([prediction.area_fraction for prediction in predictions])
    depth_index = np.where(depths < 0, settings.deepest + 1, np.minimum(depths, settings.deepest))
    size_index = np.searchsorted(settings.size_bounds_fraction, areas, side="right")
    groups: list[tuple[Dimension, str, RegionMask]] = [("all", ALL, np.ones(len(predictions), bool))]
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


def _remarks_on_regions(models: Sequence[Evaluated]) -> tuple[str, ...]:
    """Warn the reader of models that were not evaluated on the same regions."""
    regions = [{(prediction.image_id, prediction.region_id) for prediction in model.predictions} for model in models]
    if all(of_model == regions[0] for of_model in regions):
        return ()
    shared = len(set.intersection(*regions))
    return (f"The models were not evaluated on the same regions ({shared} are shared by all): compare with care.",)


_MAX_WEIGHTS = 4_000_000
"""Multiplicities of images that are in memory at once: 32 MB."""


class ImageBootstrap:
    """Bootstrap over images, as the regions of one image are not independent.

    The same seed draws the same samples, so that models evaluated on the same images are compared on the same samples.

    Args:
        image_of_region: number of each region's image, from 0, int [N].
        num_images: number of all images.
        num_resamples: number of samples.
        confidence: confidence level of the intervals.
        seed: seed of the samples.
    """

    def __init__(
        self,
        image_of_region: npt.NDArray[np.int64],
        num_images: int,
        *,
        num_resamples: int,
        confidence: float,
        seed: int,
    ) -> None:
        self._image_of_region = image_of_region
        self._num_images = num_images
        self._num_resamples = num_resamples
        self._tails = (1 - confidence) / 2
        self._seed = seed

    def intervals(self, measures: Sequence[Measure], within: npt.NDArray[np.bool_]) -> list[tuple[float, float] | None]:
        """Percentile intervals of measures over the regions of a group, bool [N].

        An interval is None where fewer than two images have a region that counts. Samples in which nothing counts are
        ignored.
        """
        # Measures that share their statistics (BLEU's four) are summed once.
        sums = {id(measure.statistics): self._image_sums(measure.statistics, within) for measure in measures}
        ends = dict(zip(sums, np.cumsum([part.shape[1] for part in sums.values()]), strict=True))
        sampled = np.empty(0)  # [resamples, K], K statistics of all measures
        if measures:
            of_image = np.concatenate(list(sums.values()), axis=1)
            sampled = np.concatenate([weights @ of_image for weights in self._weights()])
        intervals: list[tuple[float, float] | None] = []
        for measure in measures:
            of_images = sums[id(measure.statistics)]
            if np.count_nonzero(of_images.any(axis=1)) < 2:
                intervals.append(None)
                continue
            end = ends[id(measure.statistics)]
            values = measure.figure(sampled[:, end - of_images.shape[1] : end])
            low, high = np.nanquantile(values, [self._tails, 1 - self._tails])
            intervals.append((float(low), float(high)))
        return intervals

    def _image_sums(self, statistics: Floats, within: npt.NDArray[np.bool_]) -> Floats:
        sums = np.zeros((self._num_images, statistics.shape[1]))
        np.add.at(sums, self._image_of_region[within], statistics[within])
        return sums

    def _weights(self) -> Iterator[Floats]:
        """Multiplicities of the images [resamples, I], in blocks of samples that bound the memory."""
        rng = np.random.default_rng(self._seed)
        num_images = self._num_images
        block_size = max(1, _MAX_WEIGHTS // num_images)
        for start in range(0, self._num_resamples, block_size):
            size = min(block_size, self._num_resamples - start)
            images = rng.integers(num_images, size=(size, num_images)) + num_images * np.arange(size)[:, None]
            counts = np.bincount(images.ravel(), minlength=size * num_images)
            yield counts.reshape(size, num_images).astype(np.float64)
