"""A table as Markdown."""

import re
from collections.abc import Iterable

from ureca.evaluation.tables.results import EvaluationTable, Figure
from ureca.evaluation.tables.text import HEADINGS, NOT_MEASURED, interval_text, notes, reading, sections, value_text


def to_markdown(table: EvaluationTable) -> str:
    """The tables of all dimensions, the best figure of each column in bold, and the notes."""
    lines = [f"# {_text(table.title)}", "", reading(table)]
    for dimension, blocks in sections(table):
        is_broken_down = dimension != "all"
        head = [*([dimension] if is_broken_down else []), "model", "regions", "images", *table.columns]
        lines += ["", f"## {HEADINGS[dimension]}", "", _row(head), _row(["---"] * len(head))]
        for block in blocks:
            for model, group in block.rows:
                cells = (_figure(group.figures.get(name), block.best.get(name)) for name in table.columns)
                first = [_text(block.name)] if is_broken_down else []
                lines.append(_row([*first, _text(model.model), str(group.num_regions), str(group.num_images), *cells]))
    for name, remarks in notes(table):
        lines += ["", f"**{_text(name)}**" if name else "**All models**", ""]
        lines += [f"- {_text(remark)}" for remark in remarks]
    return "\n".join(lines) + "\n"


def _figure(figure: Figure | None, best: str | None) -> str:
    if figure is None:
        return NOT_MEASURED
    value = value_text(figure)
    interval = interval_text(figure)
    shown = f"**{value}**" if value == best else value
    return f"{shown} ({interval})" if interval else shown


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """Text of somebody else's on one line, without meaning as Markdown or HTML."""
    escaped = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
