"""The table of an evaluation: built from measures, written as Markdown, JSON and HTML."""

from ureca.evaluation.tables.build import Evaluated, TableSettings, build_table
from ureca.evaluation.tables.plain import to_text
from ureca.evaluation.tables.results import EvaluationTable, Figure, Group, ModelRows
from ureca.evaluation.tables.write import read_table, to_forms, write_table

__all__ = [
    "Evaluated",
    "EvaluationTable",
    "Figure",
    "Group",
    "ModelRows",
    "TableSettings",
    "build_table",
    "read_table",
    "to_forms",
    "to_text",
    "write_table",
]
