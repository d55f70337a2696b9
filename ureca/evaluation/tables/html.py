"""A table as one HTML file that needs nothing else: no script, no request to anywhere."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import groupby
from string import Template

import ureca
from ureca.evaluation.columns import COLUMNS, FAMILIES
from ureca.evaluation.tables.results import Dimension, EvaluationTable, Figure, Group, ModelRows
from ureca.evaluation.tables.text import (
    HEADINGS,
    NOT_MEASURED,
    Block,
    interval_text,
    notes,
    reading,
    sections,
    value_text,
)

_BAR_WIDTH = 100
_LINES = "Lines run from 0 to 100; for comparisons with references, to the largest figure of the column."


def to_html(table: EvaluationTable) -> str:
    """The tables of all dimensions with intervals drawn, the best figure of each column in bold, and the notes."""
    style = _part("table.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    scale = _scale(table)
    return Template(_part("table.html")).substitute(
        generator=f"ureca {ureca.__version__}",
        title=escape(table.title),
        style=style,
        style_hash=f"sha256-{digest}",
        reading=escape(f"{reading(table)} {_LINES}"),
        sections="\n".join(_section(table, *section, scale=scale) for section in sections(table)),
        notes="\n".join(_notes(table)),
        columns="".join(
            f"<dt>{escape(name)}</dt><dd>{escape(COLUMNS[name].explanation)}{_direction(name)}</dd>"
            for name in table.columns
        ),
    )


def _section(
    table: EvaluationTable, dimension: Dimension, blocks: Sequence[Block], *, scale: Mapping[str, float]
) -> str:
    bodies = []
    for block in blocks:
        rows = "".join(_row(table.columns, model, group, block.best, scale) for model, group in block.rows)
        name = (
            f'<tr class="group"><th scope="rowgroup" class="name">{escape(_label(dimension, block))}</th>'
            f'<th colspan="{len(table.columns)}"></th></tr>'
        )
        bodies.append(f"<tbody>{'' if dimension == 'all' else name}{rows}</tbody>")
    heading = escape(HEADINGS[dimension])
    scrolling = f'<div class="scroll" tabindex="0" role="region" aria-label="{heading}">'
    rows = f"<table>{_head(table.columns)}{''.join(bodies)}</table>"
    return f"<section><h2>{heading}</h2>{scrolling}{rows}</div></section>"


def _label(dimension: Dimension, block: Block) -> str:
    return f"Depth {block.name}" if dimension == "depth" else block.name


def _head(columns: Sequence[str]) -> str:
    families = "".join(
        f'<th class="first" scope="colgroup" colspan="{len(list(of_family))}">{escape(FAMILIES[family])}</th>'
        for family, of_family in groupby(columns, key=lambda name: COLUMNS[name].family)
    )
    names = "".join(
        f'<th scope="col"{_first(columns, place)} title="{escape(COLUMNS[name].explanation)}">'
        f"{escape(name)}{_direction(name)}</th>"
        for place, name in enumerate(columns)
    )
    return (
        f'<thead><tr class="families"><th class="name"></th>{families}</tr>'
        f'<tr><th scope="col" class="name">Model</th>{names}</tr></thead>'
    )


def _row(
    columns: Sequence[str], model: ModelRows, group: Group, best: Mapping[str, str], scale: Mapping[str, float]
) -> str:
    count = f"{group.num_regions:,} regions, {group.num_images:,} images"
    cells = "".join(
        _cell(group.figures.get(name), _first(columns, place), best.get(name), scale.get(name, 1.0))
        for place, name in enumerate(columns)
    )
    return f'<tr><th scope="row" class="name">{escape(model.model)}<small>{count}</small></th>{cells}</tr>'


def _cell(figure: Figure | None, first: str, best: str | None, most: float) -> str:
    if figure is None:
        return f"<td{first or ' class=none'}>{NOT_MEASURED}</td>"
    is_best = " best" if value_text(figure) == best else ""
    interval = interval_text(figure)
    small = f"<small>{interval}</small>" if interval else ""
    return f'<td{first}><span class="value{is_best}">{value_text(figure)}</span>{small}{_bar(figure, most)}</td>'


def _bar(figure: Figure, most: float) -> str:
    """The figure and its interval on a line from 0 to ``most``."""

    def at(value: float) -> str:
        return f"{_BAR_WIDTH * max(0.0, value) / most:.1f}%"

    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = f'<line class="interval" x1="{at(figure.low)}" x2="{at(figure.high)}" y1="4" y2="4"/>'
    return (
        f'<svg aria-hidden="true"><line class="track" x1="0" x2="100%" y1="4" y2="4"/>{interval}'
        f'<circle class="dot" cx="{at(figure.value)}" cy="4" r="3"/></svg>'
    )


def _scale(table: EvaluationTable) -> dict[str, float]:
    """What the line of each column ends with: 1 for rates, the most that occurs for metrics, which never come near."""
    most: dict[str, float] = {}
    for figures in (group.figures for model in table.models for group in model.groups):
        for name, figure in figures.items():
            if COLUMNS[name].family == "references":
                most[name] = max(most.get(name, 1e-9), figure.value, figure.high or 0.0)
    return most


def _notes(table: EvaluationTable) -> Iterator[str]:
    written = list(notes(table))
    if written:
        yield '<section class="notes"><h2>Notes</h2>'
        for name, lines in written:
            items = "".join(f"<li>{escape(line)}</li>" for line in lines)
            yield f"<h3>{escape(name) or 'All models'}</h3><ul>{items}</ul>"
        yield "</section>"


def _first(columns: Sequence[str], place: int) -> str:
    """Marks the first column of a family."""
    is_first = place == 0 or COLUMNS[columns[place]].family != COLUMNS[columns[place - 1]].family
    return ' class="first"' if is_first else ""


def _direction(name: str) -> str:
    is_higher_better = COLUMNS[name].is_higher_better
    if is_higher_better is None:
        return ""
    return " ↑" if is_higher_better else " ↓"


def _part(name: str) -> str:
    return resources.files("ureca.evaluation.tables").joinpath(name).read_text(encoding="utf-8")
