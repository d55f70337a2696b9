"""A measure of captions as numbers of each region, so that it can be taken over any set of regions.

What corpus metrics need of a region adds up: BLEU's n-gram counts, METEOR's matches, an accuracy's hits. A figure of a
set is a function of the sums over the set. So a breakdown, or a thousand bootstrap samples, costs a matrix product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Measure:
    """One measure of a list of predictions.

    Attributes:
        name: a name of ``ureca.evaluation.columns.COLUMNS``.
        statistics: float64 [N, K], of each prediction in its order; zeros where a region does not count.
        figure: from sums of statistics [..., K] to values [...]; NaN where nothing counts. A function of a module, so
            that a measure can be sent to another process.
        remarks: what a reader of the figures must know, a sentence each.
    """

    name: str
    statistics: Floats
    figure: Callable[[Floats], Floats]
    remarks: tuple[str, ...] = ()

    def value(self) -> float:
        """The figure of all predictions."""
        return float(self.figure(self.statistics.sum(axis=0)))

    def each(self) -> Floats:
        """The figure of each prediction alone, [N]; NaN where it does not count."""
        return self.figure(self.statistics)


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A measure that was not taken, and why: a sentence without its full stop."""

    name: str
    reason: str


def mean_of(name: str, values: Sequence[float | None] | Floats, remarks: tuple[str, ...] = ()) -> Measure:
    """The mean of a value a prediction; None (or NaN) where a region does not count."""
    column = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    counts = ~np.isnan(column)
    return Measure(name, np.stack([np.where(counts, column, 0.0), counts], axis=1), mean_figure, remarks)


def mean_figure(sums: Floats) -> Floats:
    """From a sum of values and their number [..., 2] to their mean [...]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])
