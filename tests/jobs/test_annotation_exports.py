"""Annotation files as annotation tools export them, through the command: every region comes out, or a line names it."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ureca.data.output import Output
from ureca.jobs.cli import main
from ureca.masks.rle import encode

WIDTH, HEIGHT = 120, 80
BOARD = [[10, 10, 50, 10, 50, 60, 10, 60]]
"""Polygon of a red board, 2000 pixels."""
SAIL = [[70, 20, 110, 20, 90, 60]]
"""Polygon of a green sail, 800 pixels."""


def photograph() -> np.ndarray:
    """Draw the board and the sail on a blue ground."""
    pixels = np.full((HEIGHT, WIDTH, 3), (60, 90, 200), np.uint8)
    pixels[10:60, 10:50] = (200, 30, 30)
    pixels[sail()] = (30, 160, 40)
    return pixels


def sail() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows >= 20) & (rows - 20 < 40 - 2 * np.abs(columns - 89.5))


def write_photograph(path: Path, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photograph()).save(path, quality=95, exif=exif)


def annotation(id: object, image_id: object, segmentation: object, **others: Any) -> dict[str, Any]:
    """Make a record of COCO; box and area of the board and the sail are stated."""
    record = {"id": id, "image_id": image_id, "category_id": 1, "segmentation": segmentation, "iscrowd": 0}
    if segmentation == BOARD:
        record |= {"area": 2000.0, "bbox": [10, 10, 40, 50]}
    elif segmentation == SAIL:
        record |= {"area": 800.0, "bbox": [70, 20, 40, 40]}
    return {**record, **others}


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != key}


Regions = Mapping[str, Sequence[tuple[int, int, str]]]
"""Id, area in pixels and status of the regions, by image."""

RED, GREEN = (1, 2000, "ok"), (3, 800, "ok")


def board_rle() -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:60, 10:50] = True
    return dict(encode(mask))


# The annotations of a file whose images are a.jpg (1) and b.jpg (2); what comes out; the counted remarks.
COCO_CASES: dict[str, tuple[list[Any], Regions, dict[str, int]]] = {
    "a piece of two points beside another": (
        [annotation(1, 1, [*BOARD, [60, 30, 60, 35]]), annotation(3, 2, SAIL)],
        {"a": [RED], "b": [GREEN]},
        {"annotations dropped_pieces": 1},
    ),
    "a piece of two points alone": (
        [annotation(1, 1, BOARD), annotation(2, 1, [[60, 30, 60, 35]]), annotation(3, 2, SAIL)],
        {"a": [RED, (2, 0, "skipped:malformed")], "b": [GREEN]},
        {"skipped malformed": 1},
    ),
    "a rectangle of CVAT": (
        [annotation(1, 1, BOARD), annotation(2, 1, [], bbox=[70.0, 20.0, 40.0, 40.0]), annotation(3, 2, SAIL)],
        {"a": [RED, (2, 0, "skipped:no_segmentation")], "b": [GREEN]},
        {"skipped no_segmentation": 1},
    ),
    "a leftover without area": (
        [
            annotation(1, 1, BOARD, iscrowd=False),
            annotation(2, 1, [], area=0, bbox=[0, 0, 0, 0]),
            annotation(3, 2, SAIL),
        ],
        {"a": [RED, (2, 0, "skipped:no_segmentation")], "b": [GREEN]},
        {"skipped no_segmentation": 1},
    ),
    "no segmentation": (
        [annotation(1, 1, BOARD), without(annotation(2, 1, SAIL), "segmentation"), annotation(3, 2, SAIL)],
        {"a": [RED, (2, 0, "skipped:no_segmentation")], "b": [GREEN]},
        {"skipped no_segmentation": 1},
    ),
    "segmentation null": (
        [annotation(1, 1, BOARD), annotation(2, 1, None), annotation(3, 2, SAIL)],
        {"a": [RED, (2, 0, "skipped:no_segmentation")], "b": [GREEN]},
        {"skipped no_segmentation": 1},
    ),
    "one id in two images": (
        [annotation(1, 1, BOARD), annotation(1, 2, SAIL)],
        {"a": [RED], "b": [(1, 800, "ok")]},
        {},
    ),
    "one id for two masks of an image": (
        [annotation(1, 1, BOARD), annotation(1, 1, SAIL), annotation(3, 2, SAIL)],
        {"a": [RED, (0, 800, "ok")], "b": [GREEN]},
        {"annotations duplicate_id": 1},
    ),
    "one annotation twice": (
        [annotation(1, 1, BOARD), annotation(1, 1, BOARD), annotation(3, 2, SAIL)],
        {"a": [RED], "b": [GREEN]},
        {"annotations duplicate_mask": 1},
    ),
    "areas that are wrong": (
        [
            annotation(1, 1, BOARD, area=-2000.0),
            annotation(2, 1, SAIL, area=9600.9),
            annotation(3, 2, SAIL, area=28800),
        ],
        {"a": [RED, (2, 800, "ok")], "b": [GREEN]},
        {"annotations stated_area": 3},
    ),
    "boxes that are wrong": (
        [annotation(1, 1, BOARD, bbox=[10, 10, 50, 60]), annotation(3, 2, SAIL, bbox=[0.58, 0.25, 0.33, 0.5])],
        {"a": [RED], "b": [GREEN]},
        {"annotations stated_box": 2},
    ),
    "no box and no area": (
        [annotation(1, 1, BOARD, bbox=None, area=None), annotation(3, 2, SAIL, bbox=[], area="")],
        {"a": [RED], "b": [GREEN]},
        {},
    ),
    "a flat polygon": ([annotation(1, 1, BOARD[0]), annotation(3, 2, SAIL[0])], {"a": [RED], "b": [GREEN]}, {}),
    "points in pairs": (
        [
            annotation(1, 1, [[[10, 10], [50, 10], [50, 60], [10, 60]]]),
            annotation(3, 2, [[70, 20], [110, 20], [90, 60]]),
        ],
        {"a": [RED], "b": [GREEN]},
        {},
    ),
    "numbers as text": (
        [
            annotation("1", "1", [[str(value) for value in BOARD[0]]], category_id="1", area="2000"),
            annotation(3.0, 2.0, SAIL, category_id=1.0),
        ],
        {"a": [RED], "b": [GREEN]},
        {},
    ),
    "an id that is no number": (
        [annotation("board", 1, BOARD), annotation(3, 2, SAIL)],
        {"a": [(0, 2000, "ok")], "b": [GREEN]},
        {"annotations renamed_id": 1},
    ),
    "crowds": (
        [annotation(1, 1, BOARD, iscrowd=True), annotation(3, 2, SAIL, iscrowd=1)],
        {"a": [RED], "b": [GREEN]},
        {},
    ),
    "polygons beyond the border": (
        [
            annotation(1, 1, [[-5.5, -3, 50, -3, 50, 60, -5.5, 60]], area=3000, bbox=[0, 0, 50, 60]),
            annotation(2, 1, [[130, 10, 150, 10, 150, 60]], area=0),
            annotation(3, 2, SAIL),
        ],
        {"a": [(1, 3000, "ok"), (2, 0, "skipped:empty")], "b": [GREEN]},
        {"skipped empty": 1},
    ),
    "run lengths in every form": (
        [
            annotation(1, 1, board_rle()),
            annotation(2, 1, {**board_rle(), "counts": f"b'{board_rle()['counts']}'"}),
            annotation(
                3,
                2,
                {"size": [80.0, "120"], "counts": ["810", *[50.0, 30] * 39, 50, 5620]},
            ),
        ],
        {"a": [RED, (2, 2000, "ok")], "b": [(3, 2000, "ok")]},
        {},
    ),
    "run lengths in a list": (
        [
            annotation(1, 1, [board_rle()]),
            annotation(3, 2, [board_rle(), {"size": [80, 120], "counts": [0, 80, 9520]}]),
        ],
        {"a": [RED], "b": [(3, 2080, "ok")]},
        {},
    ),
    "run lengths that are broken": (
        [
            annotation(1, 1, BOARD),
            annotation(2, 1, {"size": [HEIGHT, WIDTH], "counts": "Zi0b1n"}),
            annotation(4, 1, {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}),
            annotation(5, 1, {"counts": None, "size": [HEIGHT, WIDTH]}),
            annotation(3, 2, SAIL),
        ],
        {
            "a": [RED, (2, 0, "skipped:malformed"), (4, 0, "skipped:size_mismatch"), (5, 0, "skipped:malformed")],
            "b": [GREEN],
        },
        {"skipped malformed": 2, "skipped size_mismatch": 1},
    ),
    "coordinates that are no numbers": (
        [
            annotation(1, 1, BOARD),
            annotation(2, 1, [[10, 10, float("nan"), 10, 50, 60]]),
            annotation(4, 1, [[10, 10, None, 10, 50, 60]]),
            annotation(5, 1, [[10, 10, 50, 10, 50]]),
            annotation(6, 1, "polygon"),
            annotation(3, 2, SAIL),
        ],
        {"a": [RED, *[(id, 0, "skipped:malformed") for id in (2, 4, 5, 6)]], "b": [GREEN]},
        {"skipped malformed": 4},
    ),
    "unknown keys of any kind": (
        [
            annotation(1, 1, BOARD, attributes={"distance": float("nan"), "track": [1, {"x": float("inf")}]}),
            annotation(3, 2, SAIL, attributes=None, score="high"),
        ],
        {"a": [RED], "b": [GREEN]},
        {},
    ),
    "annotations of no image": (
        [annotation(1, 1, BOARD), annotation(2, 99, SAIL), annotation(4, None, SAIL), annotation(3, 2, SAIL)],
        {"a": [RED], "b": [GREEN]},
        {
            "left out annotation of an image that the file does not list in instances.json": 1,
            "left out annotation of no image in instances.json": 1,
        },
    ),
}


def curate(tmp_path: Path, images: Path, annotations: object, *flags: str) -> tuple[Regions, dict[str, int]]:
    """Run the command; returns its regions, and the remarks on annotations that run.json counts."""
    out = tmp_path / "out"
    argv = ["curate", str(images), str(out), "--masks.kind", "annotations", "--listing.annotations", str(annotations)]
    assert main([*argv, *flags]) == 0
    output = Output(str(out))
    regions = {}
    for row in output.rows():
        assert row["error"] is None
        regions[row["image_id"]] = sorted(
            (region["region_id"], region["area_px"], region["status"]) for region in row["regions"]
        )
        for region in row["regions"]:
            assert bool(region["caption"]) == (region["status"] == "ok")
            reason = region["status"].removeprefix("skipped:")
            kinds = {note["kind"] for note in region["annotation_notes"] or ()}
            assert region["status"] == "ok" or reason in kinds
    run = output.run()
    counted = {f"left out {reason}": number for reason, number in run.get("left_out", {}).items()}
    counted |= {f"skipped {reason}": number for reason, number in run["totals"]["skipped"].items()}
    counted |= {f"annotations {kind}": number for kind, number in run["totals"]["annotation_notes"].items()}
    return regions, counted


def in_order(regions: Regions) -> Regions:
    return {image: sorted(of_image) for image, of_image in regions.items()}


@pytest.mark.parametrize("case", COCO_CASES)
def test_curate_with_a_coco_file_keeps_or_names_every_region(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, regions, counted = COCO_CASES[case]
    for name in ("a.jpg", "b.jpg"):
        write_photograph(tmp_path / "in" / name)
    images = [
        {"id": id, "file_name": name, "width": WIDTH, "height": HEIGHT} for id, name in ((1, "a.jpg"), (2, "b.jpg"))
    ]
    file = tmp_path / "instances.json"
    categories = [{"id": 1, "name": "board", "supercategory": ""}]
    file.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories}))
    found = curate(tmp_path, tmp_path / "in", file)
    assert found == (in_order(regions), counted)
    printed = capsys.readouterr().out
    for line in counted:
        assert line.removeprefix("left out ").removeprefix("skipped ").removeprefix("annotations ") in printed
    (region, *_) = next(Output(str(tmp_path / "out")).rows())["regions"]
    assert region["category"] == "board"


def test_curate_with_boxes_of_a_coco_file_fills_them(tmp_path: Path) -> None:
    write_photograph(tmp_path / "in" / "a.jpg")
    file = tmp_path / "instances.json"
    record = annotation(2, 1, [], bbox=[70.0, 20.0, 40.0, 40.0], area=1600)
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [record]}))
    found = curate(tmp_path, tmp_path / "in", file, "--masks.boxes")
    assert found == ({"a": [(2, 1600, "ok")]}, {"annotations box_as_mask": 1})


def sa1b(*annotations: dict[str, Any], **image: Any) -> bytes:
    return json.dumps({"image": {"width": WIDTH, "height": HEIGHT, **image}, "annotations": annotations}).encode()


def labelme(*shapes: dict[str, Any]) -> bytes:
    content = {"version": "5.4.1", "flags": {}, "imagePath": "a.jpg", "imageData": None, "shapes": shapes}
    return json.dumps({**content, "imageHeight": HEIGHT, "imageWidth": WIDTH}).encode()


def labelme_mask(label: str, inside: np.ndarray, corner: tuple[int, int]) -> dict[str, Any]:
    Image.fromarray(inside.astype(np.uint8) * 255).save(file := io.BytesIO(), "PNG")
    (left, top), (height, width) = corner, inside.shape
    points = [[left, top], [left + width - 1, top + height - 1]]
    mask = base64.b64encode(file.getvalue()).decode()
    return {"label": label, "shape_type": "mask", "points": points, "mask": mask, "group_id": None}


def index_image(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels, mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[224] * 759])
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def corners(polygon: list[list[int]]) -> list[list[int]]:
    return [polygon[0][index : index + 2] for index in range(0, len(polygon[0]), 2)]


def index_pixels() -> np.ndarray:
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[10:60, 10:50] = 1
    values[sail()] = 2
    values[9, 10:50] = 255  # a void border
    return values


FILE_CASES: dict[str, tuple[Callable[[], bytes], str, list[tuple[int, int, str]], dict[str, int]]] = {
    "SA-1B": (
        lambda: sa1b(annotation(1, 1, board_rle(), bbox=[10, 10, 39, 49], area=2000), annotation(3, 1, SAIL)),
        "json",
        [RED, GREEN],
        {},
    ),
    "SA-1B with areas of 0": (
        lambda: sa1b(annotation(1, 1, board_rle(), area=0, bbox=[0, 0, 0, 0]), annotation(3, 1, SAIL, area=960000)),
        "json",
        [RED, GREEN],
        {"annotations stated_area": 2, "annotations stated_box": 1},
    ),
    "SA-1B with an empty mask": (
        lambda: sa1b(annotation(1, 1, BOARD), annotation(3, 1, {"size": [HEIGHT, WIDTH], "counts": [9600]}, area=0)),
        "json",
        [RED, (3, 0, "skipped:empty")],
        {"skipped empty": 1},
    ),
    "a list of SAM's masks": (
        lambda: json.dumps([{"segmentation": board_rle(), "area": 2000}, {"segmentation": SAIL}]).encode(),
        "json",
        [(0, 2000, "ok"), (1, 800, "ok")],
        {},
    ),
    "with a mark of UTF-8": (lambda: b"\xef\xbb\xbf" + sa1b(annotation(1, 1, BOARD)), "json", [RED], {}),
    "UTF-16": (lambda: sa1b(annotation(1, 1, BOARD)).decode().encode("utf-16"), "json", [RED], {}),
    "LabelMe": (
        lambda: labelme(
            {"label": "board", "points": [[10, 10], [50, 60]], "shape_type": "rectangle", "group_id": None},
            {"label": "sail", "points": corners(SAIL), "shape_type": "polygon", "group_id": None, "flags": {}},
            {"label": "mast", "points": [[90, 5], [90, 70]], "shape_type": "line"},
        ),
        "json",
        [(0, 2000, "ok"), (1, 800, "ok"), (2, 0, "skipped:no_segmentation")],
        {"skipped no_segmentation": 1},
    ),
    "LabelMe with a mask": (
        lambda: labelme(
            labelme_mask("board", index_pixels()[10:60, 5:50] == 1, (5, 10)),
            labelme_mask("corner", np.ones((20, 20), bool), (110, -10)),
            {"label": "broken", "shape_type": "mask", "points": [[1, 1], [5, 5]], "mask": "iVBORw0KGgo="},
        ),
        "json",
        [(0, 2000, "ok"), (1, 100, "ok"), (2, 0, "skipped:malformed")],
        {"skipped malformed": 1},
    ),
    "an index image of VOC": (
        lambda: index_image(index_pixels()),
        "png",
        [(1, 2000, "ok"), (2, int(sail().sum()), "ok")],
        {},
    ),
}


@pytest.mark.parametrize("case", FILE_CASES)
def test_curate_with_a_file_of_each_image_keeps_or_names_every_region(tmp_path: Path, case: str) -> None:
    content, extension, regions, counted = FILE_CASES[case]
    write_photograph(tmp_path / "in" / "a.jpg")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / f"a.{extension}").write_bytes(content())
    assert curate(tmp_path, tmp_path / "in", tmp_path / "masks") == ({"a": sorted(regions)}, counted)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_curate_with_masks_of_the_stored_frame_describes_the_right_thing(tmp_path: Path, orientation: int) -> None:
    write_photograph(tmp_path / "in" / "a.jpg", orientation)
    (tmp_path / "in" / "a.json").write_bytes(sa1b(annotation(1, 1, BOARD), annotation(3, 1, SAIL)))
    regions, counted = curate(tmp_path, tmp_path / "in", "beside", "--masks.frame", "stored")
    assert (regions, counted) == ({"a": [RED, GREEN]}, {})
    captions = {
        region["region_id"]: region["caption"] for region in next(Output(str(tmp_path / "out")).rows())["regions"]
    }
    assert "red" in captions[1] and "green" in captions[3]


def test_curate_with_masks_that_fit_both_frames_warns(tmp_path: Path) -> None:
    write_photograph(tmp_path / "in" / "a.jpg", orientation=3)
    (tmp_path / "in" / "a.json").write_bytes(sa1b(annotation(1, 1, BOARD)))
    assert curate(tmp_path, tmp_path / "in", "beside") == ({"a": [RED]}, {"annotations ambiguous_frame": 1})


def test_curate_with_small_masks_captions_them_all(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.kron(photograph(), np.ones((8, 8, 1), np.uint8))).save(tmp_path / "in" / "a.png")
    records = [annotation(id, 1, [[x, 100, x + 5, 100, x + 5, 105, x, 105]], area=25) for id, x in ((1, 100), (3, 700))]
    (tmp_path / "in" / "a.json").write_bytes(
        sa1b(*(without(record, "bbox") for record in records), width=960, height=640)
    )
    assert curate(tmp_path, tmp_path / "in", "beside") == ({"a": [(1, 25, "ok"), (3, 25, "ok")]}, {})
