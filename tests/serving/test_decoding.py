"""Decoding of requests: every form of a region, and errors that name the invalid field."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ureca.masks import rle as rle_codec
from ureca.masks.mask_images import decode_mask_image
from ureca.masks.rle import from_coco as rle_from_coco
from ureca.serving.decoding import decode_base64, decode_regions
from ureca.serving.schemas import ApiError, RegionInput
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
        {"mask_png": png(INSIDE.astype(np.uint16))},
        {"mask_png": png(INSIDE.astype(np.uint8) + 3), "mask_value": 4},
    ],
    ids=["rle", "runs", "polygon", "two polygons", "grey", "data url", "one bit", "alpha", "16 bits", "value"],
)
def test_decode_regions_mask_form_gives_mask(region: dict[str, Any]) -> None:
    decoded = decode_regions([RegionInput.model_validate(region)], (HEIGHT, WIDTH), LIMITS)
    assert decoded.ids == (0,) and not decoded.prompts
    mask = decoded.masks[0]
    assert (mask.decode() == INSIDE).all()
    assert mask.bbox_xywh == (10, 5, 12, 10) and mask.area_px == 120


@pytest.mark.parametrize("orientation", [3, 6])
def test_decode_regions_of_the_stored_image_are_turned_upright(orientation: int) -> None:
    expected = INSIDE[::-1, ::-1] if orientation == 3 else np.rot90(INSIDE, -1)
    size = (expected.shape[0], expected.shape[1])
    forms: list[dict[str, Any]] = [
        {"rle": dict(RLE)},
        {"polygon": [[10, 5, 22, 5, 22, 15, 10, 15]]},
        {"mask_png": png(INSIDE)},
        {"bbox_xywh": [10, 5, 12, 10]},
    ]
    regions = [RegionInput.model_validate(form) for form in forms]
    limits = ServingLimits(max_regions=4, max_mask_pixels=6000)
    decoded = decode_regions(regions, size, limits, orientation=orientation)
    for id in range(3):
        np.testing.assert_array_equal(decoded.masks[id].decode(), expected)
    assert decoded.prompts[3].bbox_xywh == decoded.masks[0].bbox_xywh


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_decode_regions_of_mask_files_with_orientations_of_their_own_are_turned_once(
    orientation: int, frame: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(INSIDE.astype(np.uint8) * 255).save(file := io.BytesIO(), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file))).astype(bool)
    regions = [RegionInput.model_validate({"mask_png": base64.b64encode(file.getvalue()).decode()})]
    limits = ServingLimits(max_mask_pixels=6000)
    # Of an image that is stored as the mask is, and of one that is stored in another way.
    for of_image in {orientation, 7 if orientation >= 5 else 2} if frame == "stored" else {1}:
        if frame == "stored" and orientation == 1 and of_image != 1:
            continue  # the image's orientation turns a mask file without one, as the other forms
        decoded = decode_regions(regions, expected.shape, limits, orientation=of_image)
        np.testing.assert_array_equal(decoded.masks[0].decode(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_regions_of_the_stored_image_of_any_orientation_are_turned_as_it_is(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(INSIDE.astype(np.uint8) * 255).save(file := io.BytesIO(), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file))).astype(bool)
    forms: list[dict[str, Any]] = [{"rle": dict(RLE)}, {"mask_png": png(INSIDE)}, {"bbox_xywh": [10, 5, 12, 10]}]
    regions = [RegionInput.model_validate(form) for form in forms]
    limits = ServingLimits(max_mask_pixels=6000)
    decoded = decode_regions(regions, expected.shape, limits, orientation=orientation)
    for id in range(2):
        np.testing.assert_array_equal(decoded.masks[id].decode(), expected)
    assert decoded.prompts[2].bbox_xywh == decoded.masks[0].bbox_xywh


def test_decode_regions_boxes_and_points_give_prompts_with_ids() -> None:
    regions = [
        RegionInput(bbox_xywh=(1, 2, 3, 4)),
        RegionInput.model_validate({"points": [{"x": 3, "y": 4}, {"x": 5, "y": 6, "label": 0}], "region_id": 0}),
        RegionInput.model_validate({"rle": dict(RLE)}),
    ]
    decoded = decode_regions(regions, (HEIGHT, WIDTH), LIMITS)
    assert decoded.ids == (1, 0, 2)
    assert decoded.params == {1: "regions[0]", 0: "regions[1]", 2: "regions[2]"}
    assert decoded.prompts[1].bbox_xywh == (1, 2, 3, 4)
    assert decoded.prompts[0].points_xy == ((3, 4), (5, 6)) and decoded.prompts[0].labels == (1, 0)
    assert list(decoded.masks) == [2]


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
        ([{"mask_png": png(INSIDE.astype(np.uint8) + 3)}], "several_mask_values", "regions[0].mask_png"),
        ([{"mask_png": png(INSIDE), "mask_value": 7}], "unknown_mask_value", "regions[0].mask_png"),
        ([{"points": [{"x": 31, "y": 2}]}], "outside", "regions[0].points[0]"),
        ([{"points": [{"x": 3, "y": 2, "label": 0}]}], "malformed", "regions[0].points"),
        ([{"bbox_xywh": [30, 2, 5, 5]}], "outside", "regions[0].bbox_xywh"),
        ([{"bbox_xywh": [3, 2, 5, 0]}], "malformed", "regions[0].bbox_xywh"),
        ([{**GOOD, "region_id": 3}, {**GOOD, "region_id": 3}], "duplicate_ids", "regions[1].region_id"),
        ([GOOD] * 5, "too_many_regions", "regions"),
    ],
)
def test_decode_regions_invalid_region_names_field(regions: list[dict[str, Any]], code: str, param: str) -> None:
    inputs = [RegionInput.model_validate(region) for region in regions]
    with pytest.raises(ApiError) as raised:
        decode_regions(inputs, (HEIGHT, WIDTH), LIMITS)
    error = raised.value
    assert (error.status, error.problem.code, error.problem.param) == (422, code, param)


def test_decode_regions_too_many_pixels_raises_before_decoding() -> None:
    inputs = [RegionInput(mask_png="not even base64")] * 2
    with pytest.raises(ApiError, match="too_many_pixels"):
        decode_regions(inputs, (60, 60), LIMITS)


def test_decode_regions_equal_mask_files_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []

    def decode(data: bytes, *arguments: Any, **options: Any) -> Any:
        decoded.append(data)
        return decode_mask_image(data, *arguments, **options)

    monkeypatch.setattr("ureca.serving.decoding.decode_mask_image", decode)
    files = [png(INSIDE.astype(np.uint8)), png(INSIDE.T.copy().astype(np.uint8).reshape(HEIGHT, WIDTH))]
    inputs = [RegionInput(mask_png=files[index % 2]) for index in range(256)]
    limits = ServingLimits(max_mask_file_pixels=2 * HEIGHT * WIDTH)
    regions = decode_regions(inputs, (HEIGHT, WIDTH), limits)
    assert len(decoded) == 2 and len(regions.masks) == 256
    assert (regions.masks[254].decode() == INSIDE).all() and not (regions.masks[255].decode() == INSIDE).all()
    with pytest.raises(ApiError, match="3 different mask_png"):
        decode_regions([*inputs[:2], RegionInput(mask_png="other")], (HEIGHT, WIDTH), limits)
    assert len(decoded) == 2


def test_decode_regions_equal_masks_of_any_form_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []

    def from_coco(segmentation: object, *size: int) -> Any:
        decoded.append(segmentation)
        return rle_from_coco(segmentation, *size)

    monkeypatch.setattr("ureca.serving.decoding.rle_codec.from_coco", from_coco)
    polygon = {"polygon": [[1, 1, 9, 1, 9, 9]]}
    inputs = [RegionInput.model_validate(region) for region in (GOOD, polygon) * 100]
    regions = decode_regions(inputs, (HEIGHT, WIDTH), ServingLimits())
    assert len(decoded) == 2 and len(regions.masks) == 200
    assert regions.masks[0].rle == regions.masks[198].rle != regions.masks[199].rle


def test_decode_regions_counts_beyond_the_total_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ureca.serving.decoding.MAX_COUNTS_LENGTH", 2 * len(RLE["counts"]))
    inputs = [RegionInput.model_validate(GOOD)] * 3
    assert len(decode_regions(inputs[:2], (HEIGHT, WIDTH), LIMITS).masks) == 2
    with pytest.raises(ApiError, match="too_many_counts"):
        decode_regions(inputs, (HEIGHT, WIDTH), LIMITS)


def test_decode_regions_mask_file_of_another_size_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ureca.serving.decoding.decode_mask_image", None)
    with pytest.raises(ApiError, match="size_mismatch"):
        decode_regions([RegionInput(mask_png=png(np.ones((21, 30), np.uint8)))], (HEIGHT, WIDTH), LIMITS)


def test_decode_regions_no_longer_wanted_stops_before_the_next_mask() -> None:
    asked = iter([True, True, False])
    inputs = [RegionInput.model_validate(GOOD)] * 2 + [RegionInput(mask_png="not even base64")]
    with pytest.raises(ApiError) as raised:
        decode_regions(inputs, (HEIGHT, WIDTH), LIMITS, lambda: next(asked))
    assert raised.value.problem.code == "cancelled"


@given(st.binary())
def test_decode_base64_reads_the_alphabet_of_urls_and_text_without_padding(data: bytes) -> None:
    for text in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()):
        for form in (text, text.rstrip("="), f"data:image/png;charset=utf-8;base64,{text}"):
            assert decode_base64(form, "image") == data


@given(st.text())
def test_decode_base64_any_text_decodes_or_raises(text: str) -> None:
    try:
        assert isinstance(decode_base64(text, "image"), bytes)
    except ApiError as error:
        assert error.problem.code == "not_base64"
