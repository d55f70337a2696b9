"""Measures of captions as statistics of each region, which can be summed over any set of regions, and their columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Measure:
    """One measure of a list of predictions.

    Attributes:
        name: a key of ``COLUMNS``.
        statistics: statistics of each prediction in its order, float64 [N, K]; zeros where a region does not count.
        figure: function from sums of statistics [..., K] to values [...]; NaN where nothing counts. It is a function of
            a module, so that a measure can be pickled.
        remarks: notes for the reader of the figures, a sentence each.
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
    """A measure that was not taken, with the reason as a sentence without its full stop."""

    name: str
    reason: str


def mean_of(name: str, values: Sequence[float | None] | Floats, remarks: tuple[str, ...] = ()) -> Measure:
    """The mean of one value per prediction.

    Args:
        name: name of the measure.
        values: one value per prediction; None or NaN where a region does not count.
        remarks: notes for the reader.
    """
    column = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    counts = ~np.isnan(column)
    return Measure(name, np.stack([np.where(counts, column, 0.0), counts], axis=1), mean_figure, remarks)


def mean_figure(sums: Floats) -> Floats:
    """The mean [...] from the sum and the number of values [..., 2]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


Family: TypeAlias = Literal["references", "uniqueness", "scenes"]

FAMILIES: dict[Family, str] = {
    "references": "Compared with references",
    "uniqueness": "Uniqueness within the image",
    "scenes": "Decided by the scene",
}
"""Headings of the column families."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: name of the measure, and head of its column.
        family: family of columns under one heading.
        explanation: explanation for the reader of a table.
        is_higher_better: True if higher is better; None for a ceiling, which does not depend on the model.
    """

    name: str
    family: Family
    explanation: str
    is_higher_better: bool | None = True


COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        *(
            Column(
                f"BLEU@{order}",
                "references",
                f"precision of n-grams up to length {order}, less where captions are short",
            )
            for order in (1, 2, 3, 4)
        ),
        Column("ROUGE", "references", "longest common subsequence with a reference (ROUGE-L)"),
        Column("METEOR", "references", "words aligned with a reference by form, stem, synonym or paraphrase"),
        Column("BERTScore", "references", "F1 of words aligned with a reference by contextual embeddings"),
        Column("CIDEr", "references", "n-grams shared with the references, the more the rarer (100 times the mean)"),
        Column(
            "Duplicates", "uniqueness", "regions with the caption of another region of the image, or with none", False
        ),
        Column(
            "Near-duplicates",
            "uniqueness",
            "regions with nearly the caption of another region of the image, or with none",
            False,
        ),
        Column("Retrieval R@1", "uniqueness", "captions that an image-text encoder finds nearest to their own region"),
        Column("Retrieval MRR", "uniqueness", "mean of 1 / rank of the caption's own region among those of its image"),
        Column("Retrieval ceiling", "uniqueness", "retrieval R@1 of the reference captions", None),
        Column("Listener", "uniqueness", "captions by which an MLLM picks the right one of numbered candidates"),
        Column("Listener ceiling", "uniqueness", "the same for the reference captions", None),
        Column("Correct", "scenes", "captions that fit their region and no other"),
        Column("Ambiguous", "scenes", "captions that fit their region and others", False),
        Column("Wrong", "scenes", "captions that do not fit their region, or are not of the language", False),
        Column(
            "Not of the language", "scenes", "captions that are not of the language; they are among the wrong", False
        ),
    )
}
"""The columns that a table can have, in their order; the paper's come first."""

OF_THE_PAPER = ("BLEU@1", "BLEU@2", "BLEU@3", "BLEU@4", "ROUGE", "METEOR", "BERTScore")
"""The columns of the paper's tables; every table has them, even where one was not measured."""
