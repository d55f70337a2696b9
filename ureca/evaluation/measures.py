"""The columns a table can have, in their order: the paper's first.

[from] A measure of captions as numbers of each region, so that it can be taken over any set of regions."""

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
        name: a name of ``ureca.evaluation.measures.COLUMNS``.
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


Family: TypeAlias = Literal["references", "uniqueness", "scenes"]

FAMILIES: dict[Family, str] = {
    "references": "Compared with references",
    "uniqueness": "Uniqueness within the image",
    "scenes": "Decided by the scene",
}


@dataclass(frozen=True, slots=True)
class Column:
    """How a measure is shown.

    Attributes:
        name: of the measure, and the head of its column.
        family: columns under one head.
        explanation: for the reader of a table.
        is_higher_better: whether more is better; None: it is not the model's, but a bound of what it can have.
    """

    name: str
    family: Family
    explanation: str
    is_higher_better: bool | None = True


_ALL = (
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
    Column("Duplicates", "uniqueness", "regions with the caption of another region of the image, or with none", False),
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
    Column("Not of the language", "scenes", "captions that are not of the language; they are among the wrong", False),
)

COLUMNS: dict[str, Column] = {column.name: column for column in _ALL}

OF_THE_PAPER = ("BLEU@1", "BLEU@2", "BLEU@3", "BLEU@4", "ROUGE", "METEOR", "BERTScore")
"""What the paper's tables report; a table has these columns even where one was not measured."""
