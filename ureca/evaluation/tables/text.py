"""What all forms of a table say, and how they say it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ureca.evaluation.columns import COLUMNS
from ureca.evaluation.tables.results import Dimension, EvaluationTable, Figure, Group, ModelRows

NOT_MEASURED = "–"  # noqa: RUF001 - the sign that readers of tables know

HEADINGS: dict[Dimension, str] = {
    "all": "All regions",
    "depth": "By depth in the mask tree",
    "size": "By size, as a share of the image",
}


@dataclass(frozen=True, slots=True)
class Block:
    """The models side by side over one group of regions; ``best`` has the best figures by column, as they are shown."""

    name: str
    rows: tuple[tuple[ModelRows, Group], ...]
    best: Mapping[str, str]


def sections(table: EvaluationTable) -> Iterator[tuple[Dimension, list[Block]]]:
    """The blocks of each dimension that has any."""
    for dimension, names in table.dimensions.items():
        blocks = [_block(table, dimension, name) for name in names]
        if blocks:
            yield dimension, blocks


def _block(table: EvaluationTable, dimension: Dimension, name: str) -> Block:
    found = [(model, model.group(dimension, name)) for model in table.models]
    rows = tuple((model, group) for model, group in found if group is not None)
    best = {}
    for column in table.columns:
        figures = [group.figures[column] for _, group in rows if column in group.figures]
        is_higher_better = COLUMNS[column].is_higher_better
        # What cannot be told apart in the table is equally good.
        if is_higher_better is not None and len(set(map(value_text, figures))) > 1:
            choose = max if is_higher_better else min
            best[column] = value_text(choose(figures, key=lambda figure: figure.value))
    return Block(name, rows, best)


def value_text(figure: Figure) -> str:
    """A figure in per cent."""
    return f"{100 * figure.value:.2f}"


def interval_text(figure: Figure) -> str | None:
    """Its interval in per cent, if it has one."""
    if figure.low is None or figure.high is None:
        return None
    return f"{100 * figure.low:.1f} to {100 * figure.high:.1f}"


def reading(table: EvaluationTable) -> str:
    """How the figures are to be read."""
    return (
        f"All figures are in per cent, with {100 * table.confidence:g} % confidence intervals from "
        f"{table.num_resamples} resamplings of the images (seed {table.seed}). {NOT_MEASURED}: not measured; "
        "the reasons are below."
    )


def notes(table: EvaluationTable) -> Iterator[tuple[str, list[str]]]:
    """Below the tables: what is missing, failed, or to be known; of all models (an empty name), then of each."""
    lines = {model.model: [*_missing(model), *model.remarks, *_failed(model)] for model in table.models}
    first, *others = lines.values()
    common = [line for line in first if others and all(line in other for other in others)]
    if table.remarks or common:
        yield "", [*table.remarks, *common]
    for name, of_model in lines.items():
        if own := [line for line in of_model if line not in common]:
            yield name, own


def _missing(model: ModelRows) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in model.missing.items():
        by_reason.setdefault(reason, []).append(name)
    return (f"Not measured: {', '.join(names)} ({reason})." for reason, names in by_reason.items())


def _failed(model: ModelRows) -> Iterator[str]:
    whole = model.groups[0]
    if whole.num_blank:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in model.failures.items())
        yield f"{whole.num_blank:,} of {whole.num_regions:,} regions have no caption and count as blank ({reasons})."
