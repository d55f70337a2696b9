"""COCO files in the dialects of annotation tools, whose meaning is known: the same regions come out, or are named."""

import contextlib
import io
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from ureca.masks.coco import CocoFile
from ureca.masks.rle import Rle, decode, encode

HEIGHT, WIDTH = 20, 30
Box = tuple[int, int, int, int]
"""Left, top, right and bottom."""


def filled(box: Box) -> np.ndarray:
    left, top, right, bottom = box
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[top:bottom, left:right] = True
    return pixels


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    left, top = draw(st.integers(0, WIDTH - 2)), draw(st.integers(0, HEIGHT - 2))
    return left, top, draw(st.integers(left + 1, WIDTH)), draw(st.integers(top + 1, HEIGHT))


@st.composite
def numbers(draw: st.DrawFn, value: int) -> object:
    """Spell a number as an integer, an integral float or text."""
    return draw(st.sampled_from([value, float(value), str(value), f" {value}", f"{value}.0"]))


@st.composite
def segmentations(draw: st.DrawFn, box: Box) -> object:
    """Spell a filled box in one of the forms of a segmentation."""
    left, top, right, bottom = box
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    flat = [value for point in points for value in point]
    rle = encode(filled(box))
    runs = np.diff(np.flatnonzero(np.diff(filled(box).ravel("F"), prepend=False, append=True)), prepend=0).tolist()
    runs += [] if sum(runs) == HEIGHT * WIDTH else [HEIGHT * WIDTH - sum(runs)]
    forms: list[object] = [
        [flat],
        flat,
        [[float(value) for value in flat]],
        [[str(value) for value in flat]],
        [points],
        points,
        [{"x": x, "y": y} for x, y in points],
        [flat, [left, top, right, top]],
        [[left, top], flat],
        dict(rle),
        {"size": [str(HEIGHT), float(WIDTH)], "counts": rle["counts"]},
        {"counts": f"b'{rle['counts']}'".replace("\\", "\\\\"), "size": [HEIGHT, WIDTH]},
        {"size": [HEIGHT, WIDTH], "counts": runs},
        {"size": [HEIGHT, WIDTH], "counts": [str(run) for run in runs]},
        {"size": [HEIGHT, WIDTH], "counts": [*runs, 0, 0]},
    ]
    return draw(st.sampled_from(forms))


UNUSABLE: list[tuple[str, object]] = [
    ("no_segmentation", None),
    ("no_segmentation", []),
    ("no_segmentation", [[]]),
    ("no_segmentation", {}),
    ("malformed", [[1, 2, 3, 4]]),
    ("malformed", [[1, 2, 3, 4, 5, 6, 7]]),
    ("malformed", [[1, 2, 3, 4, float("nan"), 6]]),
    ("malformed", [[1, 2, 3, 4, None, 6]]),
    ("malformed", "polygon"),
    ("malformed", 7),
    ("malformed", {"size": [HEIGHT, WIDTH], "counts": "Zi0"}),
    ("malformed", {"size": [HEIGHT, WIDTH], "counts": [5, -5, HEIGHT * WIDTH]}),
    ("malformed", {"size": [HEIGHT, WIDTH], "counts": None}),
    ("malformed", {"size": [HEIGHT, WIDTH]}),
    ("size_mismatch", {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}),
]
"""Segmentations that mean nothing, and how they are named."""

EXTRAS = st.dictionaries(
    st.sampled_from(["attributes", "score", "keypoints", "ünknown", "caption"]),
    st.sampled_from([None, float("nan"), float("-inf"), {"deep": [[{"x": 1e400}]]}, "text", 10**30, True, []]),
    max_size=2,
)


@st.composite
def coco_files(draw: st.DrawFn) -> tuple[dict[str, Any], dict[int, list[bytes]], dict[int, Counter[str]], int]:
    """Draw a file, the masks of each image, the unusable annotations of each, and the number of orphans."""
    image_ids = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True))
    masks: dict[int, list[bytes]] = {}
    unusable: dict[int, Counter[str]] = {}
    records: list[dict[str, Any]] = []
    ids = iter(draw(st.permutations(range(40))))
    for image_id in image_ids:
        for box in draw(st.lists(boxes(), max_size=3)):
            masks.setdefault(image_id, []).append(filled(box).tobytes())
            records.append({"image_id": image_id, "segmentation": draw(segmentations(box))})
        for kind, segmentation in draw(st.lists(st.sampled_from(UNUSABLE), max_size=2)):
            unusable.setdefault(image_id, Counter())[kind] += 1
            records.append({"image_id": image_id, "segmentation": segmentation})
    num_orphans = draw(st.integers(0, 2))
    records += [{"image_id": 10**7, "segmentation": []}] * num_orphans
    annotations = []
    for record in draw(st.permutations(records)):
        spelt = record | {"id": draw(numbers(next(ids))), "image_id": draw(numbers(record["image_id"]))}
        spelt |= draw(EXTRAS) | draw(
            st.sampled_from([{}, {"area": 0}, {"area": -1.5, "bbox": [0.1, 0.2, 0.3, 0.4]}, {"bbox": None, "area": ""}])
        )
        spelt |= draw(st.sampled_from([{}, {"iscrowd": 0}, {"iscrowd": 1}, {"iscrowd": True}, {"category_id": "1"}]))
        annotations.append({key: spelt[key] for key in draw(st.permutations(list(spelt)))})
    images = []
    for image_id in image_ids:
        image = {"id": draw(numbers(image_id)), "file_name": f"{image_id}.jpg", **draw(EXTRAS)}
        images.append(image | {"height": draw(numbers(HEIGHT)), "width": draw(numbers(WIDTH))})
    parts: dict[str, Any] = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
        "info": draw(st.sampled_from([{}, None, {"year": float("nan")}, "made by hand"])),
    }
    return {key: parts[key] for key in draw(st.permutations(list(parts)))}, masks, unusable, num_orphans


@given(
    drawn=coco_files(),
    indent=st.sampled_from([None, 0, 1]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_coco_file_of_any_dialect_gives_the_same_regions_or_names_them(
    drawn: tuple[dict[str, Any], dict[int, list[bytes]], dict[int, Counter[str]], int],
    indent: int | None,
    encoding: str,
) -> None:
    content, masks, unusable, num_orphans = drawn
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "instances.json")
        path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding=encoding)
        with CocoFile.read(path) as file:
            assert sum(file.left_out.values()) == num_orphans
            for id in file.images:
                assert isinstance(id, int)
                expected, faults = masks.get(id, []), unusable.get(id, Counter())
                assert file.num_annotations(id) == len(expected) + faults.total()
                if not file.num_annotations(id):
                    continue
                found = file.annotations(id)
                assert not isinstance(found, Exception)
                assert Counter(mask.fault for mask in found if mask.fault is not None) == faults
                good = [mask for mask in found if mask.fault is None]
                assert Counter(mask.decode().tobytes() for mask in good) == Counter(expected)
                assert all(mask.area_px == mask.decode().sum() for mask in good)
                assert len({mask.id for mask in found}) == len(found)
                for mask in found:
                    assert mask.fault is None or f"annotation {mask.id}: " in mask.notes[mask.fault]


@given(st.lists(boxes(), min_size=1, max_size=4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_coco_file_reads_what_pycocotools_reads(drawn: list[Box], as_polygons: bool) -> None:
    records = []
    for id, (left, top, right, bottom) in enumerate(drawn, start=1):
        outline = [left + 0.3, top, right, top + 0.4, right, bottom, left, bottom - 0.2]
        segmentation: object = [outline] if as_polygons else dict(encode(filled((left, top, right, bottom))))
        record = {"id": id, "image_id": 1, "category_id": 1, "segmentation": segmentation, "iscrowd": 0}
        records.append(record | {"area": 1.0, "bbox": [left, top, right - left, bottom - top]})
    images = [{"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}]
    content = {"images": images, "annotations": records, "categories": [{"id": 1, "name": "thing"}]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "instances.json")
        path.write_text(json.dumps(content))
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(path))
        with CocoFile.read(path) as file:
            masks = file.annotations(1)
            assert not isinstance(masks, Exception)
        for mask in masks:
            np.testing.assert_array_equal(mask.decode(), coco.annToMask(coco.anns[mask.id]).astype(bool))
            rle = coco.annToRLE(coco.anns[mask.id])
            counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode()
            np.testing.assert_array_equal(decode(Rle(size=rle["size"], counts=counts)), mask.decode())
