"""Writing a table, and reading it back.

[from] What all forms of a table say, and how they say it.
[from] A table for a terminal: the figures of all regions, measures down, models across.
[from] A table as Markdown.
[from] A table as one HTML file that needs nothing else: no script, no request to anywhere."""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path
from string import Template

from pydantic import ValidationError

import ureca
from ureca.errors import InputError
from ureca.evaluation.measures import COLUMNS, FAMILIES
from ureca.evaluation.tables.build import Dimension, EvaluationTable, Figure, Group, ModelRows
from ureca.io import replacing

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
        rows = "".join(_row_html(table.columns, model, group, block.best, scale) for model, group in block.rows)
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


def _row_html(
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


def to_forms(table: EvaluationTable) -> dict[str, str]:
    """The table as Markdown, JSON and HTML, by the suffix of each form's files."""
    return {"md": to_markdown(table), "json": table.model_dump_json(indent=2) + "\n", "html": to_html(table)}


def write_table(table: EvaluationTable, folder: Path, stem: str = "table") -> list[Path]:
    """Write ``stem`` as .md, .json and .html into a folder that exists, replacing what is there; returns the paths.

    Raises:
        OutputError: a file cannot be written.
    """
    paths = []
    for suffix, text in to_forms(table).items():
        path = folder / f"{stem}.{suffix}"
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def read_table(path: Path) -> EvaluationTable:
    """Read the JSON of a table.

    Raises:
        InputError: there is none, or one of another version.
    """
    try:
        return EvaluationTable.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{path} is no evaluation table that this version reads: {error}") from error
