"""Tables of an evaluation as text for a terminal, Markdown, JSON and HTML, and reading the JSON back."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pydantic import ValidationError

from ureca.errors import InputError
from ureca.evaluation.measures import COLUMNS, FAMILIES
from ureca.evaluation.tables.build import Dimension, EvaluationTable, Figure, ModelRows, TableGroup
from ureca.html import read_asset, render_page
from ureca.io import replacing

NOT_MEASURED = "–"  # noqa: RUF001 - the sign that readers of tables know

HEADINGS: dict[Dimension, str] = {
    "all": "All regions",
    "depth": "By depth in the mask tree",
    "size": "By size, as a share of the image",
}


def to_forms(table: EvaluationTable) -> dict[str, str]:
    """The table as Markdown, JSON and HTML, by the file name suffix of each format."""
    return {"md": to_markdown(table), "json": table.model_dump_json(indent=2) + "\n", "html": to_html(table)}


def write_table(table: EvaluationTable, folder: Path, stem: str = "table") -> list[Path]:
    """Write ``stem`` as .md, .json and .html into an existing folder, replacing old files.

    Returns:
        The paths of the files.

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
        InputError: the file does not exist, or is no table of this version.
    """
    try:
        return EvaluationTable.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{path} is no evaluation table that this version reads: {error}") from error


def to_text(table: EvaluationTable) -> str:
    """The figures of all regions for a terminal, measures down and models across, in lines of equal width.

    Intervals, breakdowns and notes are in the other formats only.
    """
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

    def row(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [f"# {_escape_markdown(table.title)}", "", reading_note(table)]
    for dimension, blocks in sections(table):
        is_broken_down = dimension != "all"
        head = [*([dimension] if is_broken_down else []), "model", "regions", "images", *table.columns]
        lines += ["", f"## {HEADINGS[dimension]}", "", row(head), row(["---"] * len(head))]
        for block in blocks:
            for model, group in block.rows:
                first = [_escape_markdown(block.name)] if is_broken_down else []
                counts = [str(group.num_regions), str(group.num_images)]
                cells = (_markdown_cell(group.figures.get(name), block.best.get(name)) for name in table.columns)
                lines.append(row([*first, _escape_markdown(model.model), *counts, *cells]))
    for name, remarks in notes(table):
        lines += ["", f"**{_escape_markdown(name)}**" if name else "**All models**", ""]
        lines += [f"- {_escape_markdown(remark)}" for remark in remarks]
    return "\n".join(lines) + "\n"


def _markdown_cell(figure: Figure | None, best: str | None) -> str:
    if figure is None:
        return NOT_MEASURED
    value = value_text(figure)
    interval = interval_text(figure)
    shown = f"**{value}**" if value == best else value
    return f"{shown} ({interval})" if interval else shown


def _escape_markdown(text: str) -> str:
    """Untrusted text on one line, in which nothing is Markdown or HTML."""
    escaped = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_html(table: EvaluationTable) -> str:
    """One self-contained page with the tables of all dimensions, their intervals drawn, and the notes.

    The best figure of each column is bold. The page has no script and requests nothing.
    """
    # A line ends at 1 for rates. Metrics never come near 1, so theirs end at the largest figure of the column.
    line_ends: dict[str, float] = {}
    for figures in (group.figures for model in table.models for group in model.groups):
        for name, figure in figures.items():
            if COLUMNS[name].family == "references":
                line_ends[name] = max(line_ends.get(name, 1e-9), figure.value, figure.high or 0.0)
    families = [
        (FAMILIES[family], list(names))
        for family, names in groupby(table.columns, key=lambda name: COLUMNS[name].family)
    ]
    lines = "Lines run from 0 to 100; for comparisons with references, to the largest figure of the column."
    values = {
        "table": table,
        "reading": f"{reading_note(table)} {lines}",
        "sections": list(sections(table)),
        "notes": list(notes(table)),
        "columns": COLUMNS,
        "headings": HEADINGS,
        "not_measured": NOT_MEASURED,
        "families": [(family, len(names)) for family, names in families],
        "first_of_family": {names[0] for _, names in families},
        "value_text": value_text,
        "interval_text": interval_text,
        "position": lambda name, value: f"{100 * max(0.0, value) / line_ends.get(name, 1.0):.1f}%",
    }
    style = read_asset("ureca.evaluation.tables", "table.css")
    return "".join(render_page("ureca.evaluation.tables", "table.html", values, style=style))


@dataclass(frozen=True, slots=True)
class TableBlock:
    """The models side by side over one group of regions.

    Attributes:
        name: name of the group.
        rows: the models that have regions in the group, with their figures.
        best: the best figure of each column, as its text in the table; columns without a best figure are missing.
    """

    name: str
    rows: tuple[tuple[ModelRows, TableGroup], ...]
    best: Mapping[str, str]


def sections(table: EvaluationTable) -> Iterator[tuple[Dimension, list[TableBlock]]]:
    """The blocks of each dimension that has any."""
    for dimension, names in table.dimensions.items():
        if names:
            yield dimension, [_block(table, dimension, name) for name in names]


def _block(table: EvaluationTable, dimension: Dimension, name: str) -> TableBlock:
    found = [(model, model.group(dimension, name)) for model in table.models]
    rows = tuple((model, group) for model, group in found if group is not None)
    best = {}
    for column in table.columns:
        figures = [group.figures[column] for _, group in rows if column in group.figures]
        is_higher_better = COLUMNS[column].is_higher_better
        # Figures with the same text in the table are equally good.
        if is_higher_better is not None and len(set(map(value_text, figures))) > 1:
            choose = max if is_higher_better else min
            best[column] = value_text(choose(figures, key=lambda figure: figure.value))
    return TableBlock(name, rows, best)


def value_text(figure: Figure) -> str:
    """The value in per cent."""
    return f"{100 * figure.value:.2f}"


def interval_text(figure: Figure) -> str | None:
    """The confidence interval in per cent; None without one."""
    if figure.low is None or figure.high is None:
        return None
    return f"{100 * figure.low:.1f} to {100 * figure.high:.1f}"


def reading_note(table: EvaluationTable) -> str:
    """Sentences on the unit of the figures, their intervals and the sign for missing ones."""
    return (
        f"All figures are in per cent, with {100 * table.confidence:g} % confidence intervals from "
        f"{table.num_resamples} resamplings of the images (seed {table.seed}). {NOT_MEASURED}: not measured; "
        "the reasons are below."
    )


def notes(table: EvaluationTable) -> Iterator[tuple[str, list[str]]]:
    """Missing measures, failures and remarks: those of all models under an empty name, then those of each model."""
    lines = {}
    for model in table.models:
        by_reason: dict[str, list[str]] = {}
        for name, reason in model.missing.items():
            by_reason.setdefault(reason, []).append(name)
        lines[model.model] = [f"Not measured: {', '.join(names)} ({reason})." for reason, names in by_reason.items()]
        lines[model.model] += model.remarks
        whole = model.groups[0]
        if whole.num_blank:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in model.failures.items())
            lines[model.model].append(
                f"{whole.num_blank:,} of {whole.num_regions:,} regions have no caption and count as blank ({reasons})."
            )
    first, *others = lines.values()
    common = [line for line in first if others and all(line in other for other in others)]
    if table.remarks or common:
        yield "", [*table.remarks, *common]
    for name, of_model in lines.items():
        if own := [line for line in of_model if line not in common]:
            yield name, own
