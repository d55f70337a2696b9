"""Writing a table, and reading it back."""

from pathlib import Path

from pydantic import ValidationError

from ureca.atomic import replacing
from ureca.errors import InputError
from ureca.evaluation.tables.html import to_html
from ureca.evaluation.tables.markdown import to_markdown
from ureca.evaluation.tables.results import EvaluationTable


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
