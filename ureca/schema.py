"""Arrow schemas of the stored datasets: one row per image, regions as a nested list.

Readers of a dataset can rely on these names and types; every file is conformed to them when it is written.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

ERROR = pa.struct(
    [
        pa.field("stage", pa.string(), nullable=False),  # read | masks | tree | curate | caption
        pa.field("kind", pa.string(), nullable=False),  # snake_case, for counting
        pa.field("message", pa.string(), nullable=False),
    ]
)

_FieldNames = dict[str, "_FieldNames | None"]

_BOX = pa.list_(pa.float32(), 4)

ANNOTATION_NOTES = pa.list_(
    pa.struct([pa.field("kind", pa.string(), nullable=False), pa.field("message", pa.string(), nullable=False)])
)
"""Remarks on a region's annotation: a defect, a repair, or figures of the file that disagree with its mask."""

REGION = pa.struct(
    [
        # SA-1B ids fit 32 bits; ids of COCO crowd annotations do not.
        pa.field("region_id", pa.int64(), nullable=False),
        pa.field("rle", pa.string(), nullable=False),
        pa.field("bbox_xywh", _BOX, nullable=False),
        pa.field("area_px", pa.int64(), nullable=False),
        pa.field("parent_id", pa.int64(), nullable=False),
        pa.field("depth", pa.int16(), nullable=False),
        pa.field("predicted_iou", pa.float32()),
        pa.field("stability_score", pa.float32()),
        pa.field("category", pa.string()),
        pa.field("annotation_notes", ANNOTATION_NOTES),
        pa.field("short_caption", pa.string()),
        pa.field("detailed_caption", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("lookalike_ids", pa.list_(pa.int64()), nullable=False),
        pa.field("listener_choice", pa.string()),
        pa.field("listener_rounds", pa.int16()),
        pa.field("listener_questions", pa.int32()),
        pa.field("listener_candidates", pa.int32()),
        pa.field("listener_chance", pa.float32()),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("verdict_reason", pa.string()),
        pa.field("note", pa.string()),
        pa.field("status", pa.string(), nullable=False),
    ]
)

PROVENANCE = pa.struct(
    [
        pa.field("proposer", pa.string()),
        pa.field("annotator", pa.string()),  # with the version of its prompts, where it has any
        pa.field("embedder", pa.string()),
        pa.field("listener", pa.string()),
        pa.field("verifier", pa.string()),
        pa.field("ureca", pa.string()),
        pa.field("recipe", pa.string()),  # config hash, over settings, prompts and checkpoints
    ]
)

REGIONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("regions", pa.list_(REGION), nullable=False),
        pa.field("error", ERROR),
        pa.field("provenance", PROVENANCE),
    ]
)
"""The dataset that ``curate`` writes.

A region: ``rle`` holds COCO compressed counts of a [height, width] mask; ``parent_id`` is -1 at the top level and
``depth`` 0 there; ``category`` is the class of the annotation file, null without one; ``annotation_notes`` are remarks
on the annotation, null without any; ``listener_choice`` is the region_id that the listener chose for ``caption``,
"none" or "several", null if it was not asked, ``listener_rounds`` the number of captions that it was asked about,
``listener_questions`` the number of its questions, ``listener_candidates`` the number of regions it could choose from,
and ``listener_chance`` the probability with which a guess would have been accepted; ``verdict``, of the listener and
the verification, is unchecked, accepted, self_checked (by the captioner itself) or rejected; ``note`` names the steps
without a usable answer, ``<stage>:<kind>`` separated by "; ", after which the last caption or verdict stayed;
``status`` is ok, skipped:<reason> or failed:<stage>:<kind>. ``ureca.curation.results.region_row`` makes a region of
what the stages decided. ``error`` is null for a good row; ``height`` and ``width`` (pixels, EXIF rotation applied) are
null if the image could not be read.
"""

CAPTION = pa.struct(
    [
        pa.field("region_id", pa.int64(), nullable=False),
        pa.field("rle", pa.string(), nullable=False),
        pa.field("bbox_xywh", _BOX, nullable=False),
        pa.field("area_px", pa.int64(), nullable=False),
        pa.field("parent_id", pa.int64()),
        pa.field("depth", pa.int16()),
        pa.field("predicted_iou", pa.float32()),
        pa.field("stability_score", pa.float32()),
        pa.field("category", pa.string()),
        pa.field("annotation_notes", ANNOTATION_NOTES),
        pa.field("caption", pa.string()),
        pa.field("num_tokens", pa.int32()),
        pa.field("finish_reason", pa.string()),
        pa.field("status", pa.string(), nullable=False),
    ]
)

CAPTIONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("captions", pa.list_(CAPTION), nullable=False),
        pa.field("error", ERROR),
        pa.field("model", pa.string()),
        pa.field("proposer", pa.string()),
        pa.field("recipe", pa.string()),
    ]
)
"""The dataset that ``caption`` writes.

``parent_id`` (-1: top level) and ``depth`` are null if no mask tree is known. ``category`` and ``annotation_notes`` as
in ``REGIONS``. ``status`` is ok, skipped:<kind> for an unusable annotation, or failed:caption:<kind> for a mask that
cannot be captioned: it has no caption, the others of its image do. ``finish_reason`` is stop (the model ended the
caption) or length (it was cut off). ``model`` names the checkpoint, ``proposer`` the mask generator; ``recipe`` is as
in the provenance of ``REGIONS``.
"""

BENCHMARK = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field(
            "benchmark",
            pa.list_(
                pa.struct(
                    [
                        pa.field("region_id", pa.int64(), nullable=False),
                        pa.field("rle", pa.string(), nullable=False),
                        pa.field("bbox_xywh", _BOX, nullable=False),
                        pa.field("area_px", pa.int64(), nullable=False),
                        pa.field("parent_id", pa.int64()),
                        pa.field("depth", pa.int16()),
                        pa.field("lookalike_ids", pa.list_(pa.int64()), nullable=False),
                        pa.field("references", pa.list_(pa.string()), nullable=False),
                        pa.field("status", pa.string(), nullable=False),
                    ]
                )
            ),
            nullable=False,
        ),
        pa.field("scene", pa.string()),
        pa.field("error", ERROR),
    ]
)
"""The regions that ``evaluate`` captions, with the captions that people wrote.

``parent_id`` and ``depth`` as in ``CAPTIONS``; ``references`` may be empty; ``status`` is ok, ``error`` null.
``scene`` is the file of the scene that captions are resolved in, null if the image shows none.
"""

JUDGED = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field(
            "judged",
            pa.list_(
                pa.struct(
                    [
                        pa.field("region_id", pa.int64(), nullable=False),
                        pa.field("is_first", pa.float32()),
                        pa.field("reciprocal_rank", pa.float32()),
                        pa.field("num_candidates", pa.int32()),
                        pa.field("heard", pa.string()),
                        pa.field("bert_f1", pa.float32()),
                        pa.field("resolution", pa.string()),
                        pa.field("status", pa.string(), nullable=False),
                    ]
                )
            ),
            nullable=False,
        ),
        pa.field("error", ERROR),
    ]
)
"""Scores of the captions of a benchmark, region by region; null for a measure that was not computed.

``is_first``, ``reciprocal_rank`` and ``num_candidates`` are of ``ureca.evaluation.uniqueness.Retrieved``, ``heard``
and ``resolution`` as there, ``bert_f1`` is BERTScore's. ``status`` is ok. If the image could not be read, ``error``
is set, and only the measures that need no pixels are there.
"""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A kind of dataset: rows are images, each with a list of regions that have ``region_id`` and ``status``.

    Attributes:
        name: name of the folder with its files, and of the column with the regions.
        schema: schema of its rows.
    """

    name: str
    schema: pa.Schema


REGIONS_DATASET = Dataset("regions", REGIONS)
CAPTIONS_DATASET = Dataset("captions", CAPTIONS)
BENCHMARK_DATASET = Dataset("benchmark", BENCHMARK)
JUDGED_DATASET = Dataset("judged", JUDGED)
DATASETS = {dataset.name: dataset for dataset in (REGIONS_DATASET, CAPTIONS_DATASET, BENCHMARK_DATASET)}
"""Kinds of datasets whose regions have masks, by name: reports, exports, training and captioning can read them."""


def conform(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Make a table of exactly a schema from rows of Python values.

    Raises:
        pyarrow.ArrowInvalid, pyarrow.ArrowTypeError: a value does not fit its column, which is a bug of the writer.
        ValueError: a row, or a struct within it, has an unknown field, or lacks one that must not be null.
    """
    rows = list(rows)
    names = {field.name: _field_names(field.type) for field in schema}
    for row in rows:
        if unknown := sorted(_unknown_fields(row, names)):
            raise ValueError(f"row {row.get('image_id')!r} has fields that the schema lacks: {unknown}")
    table = pa.Table.from_pylist(rows, schema=schema)
    for field in schema:
        _check_nulls(table.column(field.name).combine_chunks(), field, field.name)
    return table


def _field_names(type: pa.DataType) -> _FieldNames | None:
    """Return the names within a struct, or within the structs of a list; None for other types."""
    if pa.types.is_struct(type):
        return {field.name: _field_names(field.type) for field in type}
    return _field_names(type.value_type) if pa.types.is_list(type) else None


def _unknown_fields(value: Any, names: _FieldNames, path: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (f"{path}{name}" for name in value.keys() - names.keys())
        for name, inner in names.items():
            if inner is not None:
                yield from _unknown_fields(value.get(name), inner, f"{path}{name}.")
    elif isinstance(value, list):
        for item in value:
            yield from _unknown_fields(item, names, path)


def _check_nulls(values: pa.Array, field: pa.Field, path: str) -> None:
    if not field.nullable and values.null_count:
        raise ValueError(f"{path!r} must not be null")
    present = values.drop_null()
    if pa.types.is_struct(field.type):
        for child, child_values in zip(field.type, present.flatten(), strict=True):
            _check_nulls(child_values, child, f"{path}.{child.name}")
    elif pa.types.is_list(field.type):
        _check_nulls(present.flatten(), field.type.value_field, path)
