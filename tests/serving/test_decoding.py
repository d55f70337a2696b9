"""What requests hold: every form of a region gives its mask, and what is wrong is named."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ureca.masks import rle as rle_codec
from ureca.serving.decoding import read_base64, read_regions
from ureca.serving.schemas import ApiError, RegionRequest
from ureca.serving.settings import ServingLimits

HEIGHT, WIDTH = 20, 30
LIMITS = ServingLimits(max_regions=4, max_mask_pixels=3000)
INSIDE = np.zeros((HEIGHT, WIDTH), np.bool_)
INSIDE[5:15, 10:22] = True


def png(pixels: np.ndarray, mode: str | None = None) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def rgba(inside: np.ndarray) -> np.ndarray:
    return np.where(inside[..., None], np.uint8(255), np.array([255, 255, 255, 0], np.uint8))


RLE = rle_codec.encode(INSIDE)
RUNS = [int(n) for n in np.diff(np.flatnonzero(np.diff(INSIDE.ravel("F"), prepend=False, append=True)), prepend=0)]


@pytest.mark.parametrize(
    "region",
    [
        {"rle": dict(RLE)},
        {"rle": {"size": [HEIGHT, WIDTH], "counts": RUNS}},
        {"polygon": [[10, 5, 22, 5, 22, 15, 10, 15]]},
        {"polygon": [[10, 5, 16, 5, 16, 15, 10, 15], [16, 5, 22, 5, 22, 15, 16, 15]]},
        {"mask_png": png(INSIDE.astype(np.uint8) * 255)},
        {"mask_png": "data:image/png;base64," + png(INSIDE.astype(np.uint8))},
        {"mask_png": png(INSIDE)},
        {"mask_png": png(rgba(INSIDE))},
    ],
    ids=["rle", "runs", "polygon", "two polygons", "grey", "data url", "one bit", "alpha"],
)
def test_every_form_of_a_mask(region: dict[str, Any]) -> None:
    given = read_regions([RegionRequest.model_validate(region)], (HEIGHT, WIDTH), LIMITS)
    assert given.ids == (0,) and not given.prompts
    mask = given.masks[0]
    assert (mask.decode() == INSIDE).all()
    assert mask.bbox_xywh == (10, 5, 12, 10) and mask.area_px == 120


def test_boxes_and_points_are_for_the_segmenter_and_ids_are_kept() -> None:
    regions = [
        RegionRequest(bbox_xywh=(1, 2, 3, 4)),
        RegionRequest.model_validate({"points": [{"x": 3, "y": 4}, {"x": 5, "y": 6, "label": 0}], "region_id": 0}),
        RegionRequest.model_validate({"rle": dict(RLE)}),
    ]
    given = read_regions(regions, (HEIGHT, WIDTH), LIMITS)
    assert given.ids == (1, 0, 2)
    assert given.fields == {1: "regions[0]", 0: "regions[1]", 2: "regions[2]"}
    assert given.prompts[1].bbox_xywh == (1, 2, 3, 4)
    assert given.prompts[0].points_xy == ((3, 4), (5, 6)) and given.prompts[0].labels == (1, 0)
    assert list(given.masks) == [2]


GOOD = {"rle": dict(RLE)}
FAR = [[0, 0, 299, 0, 0, 199, 299, 199, 0, 0, 290, 190] * 60]


@pytest.mark.parametrize(
    ("regions", "code", "param"),
    [
        ([GOOD, {"rle": {"size": [WIDTH, HEIGHT], "counts": RLE["counts"]}}], "size_mismatch", "regions[1].rle"),
        ([{"rle": {"size": [HEIGHT, WIDTH], "counts": "zz"}}], "malformed", "regions[0].rle"),
        ([{"rle": {"size": [HEIGHT, WIDTH], "counts": [2**40, 3]}}], "malformed", "regions[0].rle"),
        ([{"rle": {"size": [HEIGHT, WIDTH], "counts": [600]}}], "empty_mask", "regions[0].rle"),
        ([{"polygon": []}], "malformed", "regions[0].polygon"),
        ([{"polygon": [[1, 2, 3, 4, 5]]}], "malformed", "regions[0].polygon"),
        ([{"polygon": [[1e9, 2, 3, 4, 5, 6]]}], "malformed", "regions[0].polygon"),
        ([{"polygon": FAR}], "malformed", "regions[0].polygon"),
        ([{"mask_png": "!"}], "not_base64", "regions[0].mask_png"),
        ([{"mask_png": "data:image/png,abc"}], "not_base64", "regions[0].mask_png"),
        ([{"mask_png": "QUJD"}], "not_an_image", "regions[0].mask_png"),
        ([{"mask_png": png(INSIDE.T.copy())}], "size_mismatch", "regions[0].mask_png"),
        ([{"mask_png": png(np.zeros((HEIGHT, WIDTH), np.uint8))}], "empty_mask", "regions[0].mask_png"),
        ([{"points": [{"x": 31, "y": 2}]}], "outside", "regions[0].points[0]"),
        ([{"points": [{"x": 3, "y": 2, "label": 0}]}], "malformed", "regions[0].points"),
        ([{"bbox_xywh": [30, 2, 5, 5]}], "outside", "regions[0].bbox_xywh"),
        ([{"bbox_xywh": [3, 2, 5, 0]}], "malformed", "regions[0].bbox_xywh"),
        ([{**GOOD, "region_id": 3}, {**GOOD, "region_id": 3}], "duplicate_ids", "regions[1].region_id"),
        ([GOOD] * 5, "too_many_regions", "regions"),
    ],
)
def test_what_is_wrong_is_named(regions: list[dict[str, Any]], code: str, param: str) -> None:
    asked = [RegionRequest.model_validate(region) for region in regions]
    with pytest.raises(ApiError) as api_error:
        read_regions(asked, (HEIGHT, WIDTH), LIMITS)
    assert (api_error.value.status, api_error.value.problem.code, api_error.value.problem.param) == (422, code, param)


def test_pixels_of_all_masks_together_are_limited_before_any_is_decoded() -> None:
    asked = [RegionRequest(mask_png="not even base64")] * 2
    with pytest.raises(ApiError, match="too_many_pixels"):
        read_regions(asked, (60, 60), LIMITS)


@given(st.text())
def test_any_text_is_base64_or_refused(text: str) -> None:
    try:
        assert isinstance(read_base64(text, "image"), bytes)
    except ApiError as api_error:
        assert api_error.problem.code == "not_base64"
