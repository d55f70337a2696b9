"""Prompt files: what they say is kept, everything else is refused by name."""

import json
from typing import Any

import pytest

from ureca.errors import AnnotationError
from ureca.masks.prompts import MAX_POINTS, Prompt, parse_prompts


def file(*prompts: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"prompts": prompts, **more}).encode()


def test_parse_prompts_of_boxes_and_points_keeps_ids() -> None:
    parsed = parse_prompts(
        file({"bbox_xywh": [1, 2.5, 3, 4]}, {"id": 0, "points_xy": [[5, 6], [7, 8]], "labels": [1, 0]}, image="a.png")
    )
    assert parsed == [
        (1, Prompt(bbox_xywh=(1, 2.5, 3, 4))),
        (0, Prompt(id=0, points_xy=((5, 6), (7, 8)), labels=(1, 0))),
    ]


@pytest.mark.parametrize(
    ("content", "kind", "why"),
    [
        (b"", "malformed", "file"),
        (b"[" * 100_000, "malformed", "file"),
        (b"{}", "malformed", "prompts"),
        (file(), "no_masks", "empty"),
        (file({}), "malformed", "bbox_xywh, points_xy, or both"),
        (file({"bbox_xywh": [0, 0, 0, 4]}), "malformed", "above 0"),
        (file({"bbox_xywh": [0, 0, 1]}), "malformed", r"prompts\.0\.bbox_xywh"),
        (b'{"prompts": [{"bbox_xywh": [NaN, 0, 1, 1]}]}', "malformed", "finite"),
        (b'{"prompts": [{"bbox_xywh": [1e999, 0, 1, 1]}]}', "malformed", "finite"),
        (file({"points_xy": [[1, 1]], "labels": [1, 1]}), "malformed", "1 points have 2 labels"),
        (file({"points_xy": [[1, 1]], "labels": [2]}), "malformed", "labels"),
        (file({"points_xy": [[1, 1]] * (MAX_POINTS + 1)}), "malformed", "256"),
        (file({"points_xy": [[1, 1]], "colour": "red"}), "malformed", "colour"),
        (file(*[{"id": 3, "points_xy": [[1, 1]]}] * 2), "duplicate_ids", "more than once"),
        (file({"id": -1, "points_xy": [[1, 1]]}), "malformed", "id"),
        (file(*[{"points_xy": [[1, 1]]}] * 4097), "too_many_masks", "4097"),
    ],
)
def test_parse_prompts_of_invalid_files_raises(content: bytes, kind: str, why: str) -> None:
    with pytest.raises(AnnotationError, match=why) as error:
        parse_prompts(content)
    assert error.value.kind == kind
