"""A table for a terminal: the figures of all regions, measures down, models across."""

from ureca.evaluation.tables.results import EvaluationTable
from ureca.evaluation.tables.text import NOT_MEASURED, sections, value_text


def to_text(table: EvaluationTable) -> str:
    """Lines of equal width; intervals, breakdowns and notes are in the other forms."""
    (_, (block, *_)), *_ = sections(table)
    lines = [("", *(model.model for model, _ in block.rows))]
    lines += [("regions", *(f"{group.num_regions:,}" for _, group in block.rows))]
    lines += [("without a caption", *(f"{group.num_blank:,}" for _, group in block.rows))]
    for name in table.columns:
        figures = (group.figures.get(name) for _, group in block.rows)
        lines.append((name, *(NOT_MEASURED if figure is None else value_text(figure) for figure in figures)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip() for cells in lines
    )
