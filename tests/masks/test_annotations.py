"""Annotation files: what they say is kept, what they lack is computed, and what they cannot mean is refused."""

import gzip
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.coco import read_coco_images
from ureca.errors import AnnotationError
from ureca.masks.annotations import (
    MAX_ANNOTATION_BYTES,
    Annotations,
    parse_annotations,
    read_annotations,
    to_sa1b,
    write_annotations,
)
from ureca.masks.coco import CocoFile
from ureca.masks.mask import MAX_MASKS, Mask
from ureca.masks.segmentations import whole_number

HEIGHT, WIDTH = 3, 4
SEGMENTATION = {"size": [HEIGHT, WIDTH], "counts": "327"}
"""The two upper pixels of the second column."""


def sa1b(*annotations: Mapping[str, Any], **image: Any) -> bytes:
    return json.dumps({"image": {"width": WIDTH, "height": HEIGHT, **image}, "annotations": annotations}).encode()


def annotation(**fields: Any) -> dict[str, Any]:
    return {"segmentation": SEGMENTATION, **fields}


def only(data: bytes) -> Mask:
    (mask,) = parse_annotations(data)
    return mask


def api_error(data: bytes) -> AnnotationError:
    with pytest.raises(AnnotationError) as caught:
        parse_annotations(data)
    # The message becomes a value of a row.
    caught.value.message.encode()
    assert len(caught.value.message) < 1000
    return caught.value


class TestParseAnnotations:
    def test_parse_annotations_of_sa1b_keeps_all_fields(self) -> None:
        fields = {
            "id": 12,
            "bbox": [1.0, 0.0, 0.0, 1.0],
            "area": 2,
            "predicted_iou": 1.0234,
            "stability_score": 0.97,
            "crop_box": [0, 0, 4, 3],
            "point_coords": [[1.5, 0.25]],
        }
        annotations = parse_annotations(sa1b(annotation(**fields), image_id=7, file_name="sa_7.jpg"))
        assert (annotations.height_px, annotations.width_px) == (HEIGHT, WIDTH)
        assert (annotations.image_id, annotations.file_name) == (7, "sa_7.jpg")
        assert annotations[0] == Mask(
            id=12,
            rle={"size": [HEIGHT, WIDTH], "counts": "327"},
            bbox_xywh=(1.0, 0.0, 0.0, 1.0),
            area_px=2,
            predicted_iou=1.0234,
            stability_score=0.97,
            extra={"crop_box": [0, 0, 4, 3], "point_coords": [[1.5, 0.25]]},
        )

    def test_parse_annotations_computes_geometry_from_the_runs(self) -> None:
        mask = only(sa1b(annotation(bbox=[0.72, 0.25, 1.44, 2], area=2.6)))
        assert (mask.bbox_xywh, mask.area_px, mask.notes) == ((1, 0, 0, 1), 2, {})
        wrong = only(
            sa1b(annotation(bbox=[0.1, 0.1, 90, 0.7], area=0.0), width=400, height=300).replace(
                b'{"size": [3, 4], "counts": "327"}', b"[[10, 10, 110, 10, 110, 60, 10, 60]]"
            )
        )
        assert (wrong.bbox_xywh, wrong.area_px) == ((10, 10, 99, 49), 5000)
        assert wrong.notes == {
            "stated_area": "the file states an area of 0 px, the mask has 5000",
            "stated_box": "the file states the box [0.1, 0.1, 90, 0.7], the mask spans [10, 10, 100, 50]",
        }

    def test_parse_annotations_without_box_and_area_computes_them(self) -> None:
        mask = only(sa1b(annotation()))
        assert mask.bbox_xywh == (1, 0, 0, 1)  # inclusive: one column, two rows
        assert mask.area_px == 2
        assert (mask.predicted_iou, mask.stability_score, mask.extra) == (None, None, {})

    def test_parse_annotations_with_null_fields_equals_missing_fields(self) -> None:
        missing_resources = dict.fromkeys(("id", "bbox", "area", "predicted_iou", "stability_score"))
        assert only(sa1b(annotation(**missing_resources))) == only(sa1b(annotation()))

    def test_parse_annotations_without_some_ids_assigns_free_ids(self) -> None:
        given_ids = [1, None, 0, None, 5]
        masks = parse_annotations(sa1b(*(annotation(id=id) for id in given_ids)))
        assert [mask.id for mask in masks] == [1, 2, 0, 3, 5]

    @pytest.mark.parametrize(
        "segmentation",
        [
            SEGMENTATION,
            {"size": [HEIGHT, WIDTH], "counts": [3, 2, 7]},
            {"size": [HEIGHT, WIDTH], "counts": [3, 1, 0, 1, 7]},
            [[1, 0, 2, 0, 2, 2, 1, 2]],
        ],
        ids=["compressed", "uncompressed", "with an empty run", "polygons"],
    )
    def test_parse_annotations_of_every_segmentation_form_gives_the_same_mask(self, segmentation: object) -> None:
        assert only(sa1b({"segmentation": segmentation})) == only(sa1b(annotation()))

    def test_annotations_are_a_sequence_in_file_order(self) -> None:
        annotations = parse_annotations(sa1b(*(annotation(id=id) for id in (5, 3, 9))))
        assert len(annotations) == 3
        assert [mask.id for mask in annotations] == [5, 3, 9]
        assert [mask.id for mask in annotations[1:]] == [3, 9]
        assert annotations[-1].id == 9


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMED = {"id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "category_id"}
NAMED |= {"category", "category_name", "label", "class_name", "class", "name"}
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def masks(draw: st.DrawFn, id: int) -> Mask:
    mask = Mask.from_array(id, draw(arrays.arrays(bool, (5, 6))))
    return Mask(
        id=id,
        rle=mask.rle,
        bbox_xywh=mask.bbox_xywh,
        area_px=mask.area_px,
        notes={} if mask.area_px else {"empty": f"annotation {id}: its mask has no pixel inside the image"},
        category=draw(st.none() | st.just("zebra")),
        predicted_iou=draw(st.none() | NUMBERS),
        stability_score=draw(st.none() | NUMBERS),
        extra=draw(st.dictionaries(st.text().filter(lambda key: key not in NAMED), JSON_VALUES, max_size=3)),
    )


@st.composite
def annotated_images(draw: st.DrawFn) -> Annotations:
    ids = draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4, unique=True))
    return Annotations(
        masks=tuple(draw(masks(id)) for id in ids),
        height_px=5,
        width_px=6,
        image_id=draw(st.none() | st.integers() | st.text().filter(lambda text: whole_number(text) is None)),
        file_name=draw(st.none() | st.text()),
    )


class TestWriteAnnotations:
    @given(annotated_images())
    def test_to_sa1b_then_parse_annotations_round_trips(self, annotations: Annotations) -> None:
        assert parse_annotations(json.dumps(to_sa1b(annotations), allow_nan=False).encode()) == annotations

    def test_write_annotations_then_read_annotations_round_trips(self, tmp_path: Path) -> None:
        annotations = parse_annotations(sa1b(annotation(note="grün \ud800", predicted_iou=1.1), image_id="a"))
        write_annotations(tmp_path / "a.json", annotations)
        assert read_annotations(tmp_path / "a.json") == annotations
        assert read_annotations(str(tmp_path / "a.json")) == annotations

    def test_read_annotations_of_a_missing_file_raises(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_annotations(tmp_path / "nowhere.json")

    def test_parse_annotations_of_an_empty_list_has_the_size_and_no_masks(self) -> None:
        annotations = parse_annotations(sa1b())
        assert (len(annotations), annotations.width_px, annotations.height_px) == (0, WIDTH, HEIGHT)


class TestInvalidAnnotations:
    @pytest.mark.parametrize("segments", [[{"id": 5}], 7, None])
    def test_parse_annotations_of_a_panoptic_record_says_where_its_masks_are(self, segments: object) -> None:
        content = {"image": {"width": WIDTH, "height": HEIGHT}, "annotations": [{"segments_info": segments}]}
        mask = only(json.dumps(content).encode())
        assert mask.fault == "no_segmentation"
        assert "panoptic" in mask.notes["no_segmentation"]

    def test_parse_annotations_beyond_max_masks_raises(self) -> None:
        assert len(parse_annotations(sa1b(*[annotation()] * MAX_MASKS))) == MAX_MASKS
        error = api_error(sa1b(*[annotation()] * (MAX_MASKS + 1)))
        assert error.kind == "too_many_masks"
        assert "4097 masks" in error.message

    def test_parse_annotations_with_an_id_twice_keeps_different_masks(self) -> None:
        other = {"segmentation": [[0, 0, 4, 0, 4, 3, 0, 3]], "id": 8}
        masks = parse_annotations(sa1b(annotation(id=8), annotation(id=8.0), other, annotation(id=0)))
        assert [(mask.id, mask.area_px, *mask.notes) for mask in masks] == [
            (8, 2, "duplicate_mask"),
            (1, 12, "duplicate_id"),
            (0, 2),
        ]

    @pytest.mark.parametrize(
        ("data", "where"),
        [
            (b"", "not JSON"),
            (b"{", "not JSON"),
            (b"\xff\xfe\x00", "not JSON"),
            (b"\x80abc", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b'{"a":' * 100_000, "not JSON"),
            (b"[" + b"9" * 5000 + b"]", "not JSON"),
            (b"null", "a JSON object is expected, not NoneType"),
            (b"{}", "annotations: a list is expected"),
            (b'{"image": {"width": 4, "height": 3}}', "annotations: a list is expected"),
            (sa1b(annotation(), width=-4), "image.width"),
            (sa1b(annotation(), width=4.5), "image.width"),
            (sa1b(annotation(), width=True), "image.width"),
            (sa1b(annotation(), height=10**400), "image.height"),
            (sa1b(annotation(), height=65536, width=65536), "too large"),
        ],
    )
    def test_parse_annotations_of_malformed_files_names_the_field(self, data: bytes, where: str) -> None:
        error = api_error(data)
        assert error.kind == "malformed"
        assert where in error.message

    @pytest.mark.parametrize(
        ("bad", "fault", "where"),
        [
            (7, "malformed", "a JSON object is expected, not int"),
            ({}, "no_segmentation", "annotation 5: it has no segmentation"),
            ({"segmentation": None, "bbox": [0, 0, 2, 2]}, "no_segmentation", "masks.boxes makes a filled box of it"),
            ({"segmentation": [], "bbox": [0, 0, 0, 0]}, "no_segmentation", "it has no segmentation"),
            ({"segmentation": "327"}, "malformed", "not str"),
            ({"segmentation": {"a": 1}}, "malformed", "a segmentation is an RLE"),
            ({"segmentation": {"size": [3, 4], "counts": "32"}}, "malformed", "annotation 5: the runs"),
            ({"segmentation": {"size": [4, 3], "counts": "327"}}, "size_mismatch", "size is [4, 3]"),
            ({"segmentation": {"size": [3, 4], "counts": "\ud800"}}, "malformed", "alphabet"),
            ({"segmentation": {"size": ["\ud800"], "counts": "327"}}, "size_mismatch", "size is ['\\ud800']"),
            ({"segmentation": [[10**400, 0, 1, 1, 2, 2]]}, "malformed", "finite numbers only"),
            ({"segmentation": [[float("nan"), 0, 1, 1, 2, 2]]}, "malformed", "finite numbers only"),
            ({"segmentation": [[0, 0, 1e6, 1, 2, 2]]}, "malformed", "none beyond 40"),
            ({"segmentation": [[0, 0, 3, 3]]}, "malformed", "at least three points"),
            ({"segmentation": [[0, 0, 3, 3, 3, 0, 2]]}, "malformed", "7 numbers is no list of x, y pairs"),
        ],
    )
    def test_parse_annotations_of_an_unusable_annotation_keeps_its_neighbours(
        self, bad: Any, fault: str, where: str
    ) -> None:
        bad = {**bad, "id": 5} if isinstance(bad, dict) else bad
        first, failed, last = parse_annotations(sa1b(annotation(id=1), bad, annotation(id=3)))
        assert [(mask.id, mask.area_px, mask.fault) for mask in (first, last)] == [(1, 2, None), (3, 2, None)]
        assert (failed.area_px, failed.fault) == (0, fault)
        assert where in failed.notes[fault]

    @pytest.mark.parametrize(
        "fields",
        [{"id": "7"}, {"id": 7.0}, {"id": " 7 "}, {"id": 7, "note": float("inf")}, {"id": 7, "area": float("nan")}],
    )
    def test_parse_annotations_reads_numbers_in_every_spelling(self, fields: dict[str, Any]) -> None:
        (mask,) = parse_annotations(sa1b(annotation(**fields), width="4", height=3.0))
        assert (mask.id, mask.area_px, mask.notes) == (7, 2, {})
        to_sa1b(Annotations((mask,), HEIGHT, WIDTH))
        json.dumps(mask.extra, allow_nan=False)

    @pytest.mark.parametrize("id", [-1, 2**63, True, "seven", 1.5, [1]])
    def test_parse_annotations_with_another_id_gives_one_and_names_it(self, id: object) -> None:
        (mask,) = parse_annotations(sa1b(annotation(id=id)))
        assert mask.id == 0
        assert repr(id)[:4] in mask.notes["renamed_id"]

    def test_parse_annotations_of_a_coco_file_of_one_image_skips_those_of_others(self) -> None:
        ids = {1: 7, 2: "7", 3: None, 4: 8}
        records = [annotation(id=id, image_id=image_id) for id, image_id in ids.items()]
        images = [{"id": 7.0, "width": WIDTH, "height": HEIGHT}]
        masks = parse_annotations(json.dumps({"images": images, "annotations": records}).encode())
        assert [mask.fault for mask in masks] == [None, None, None, "other_image"]
        assert masks[3].notes["other_image"] == "annotation 4: it is of image 8, which the file does not list"

    def test_parse_annotations_without_any_size_raises(self) -> None:
        with pytest.raises(AnnotationError, match="does not state width and height") as caught:
            parse_annotations(b'{"annotations": [{"segmentation": [[0, 0, 4, 0, 4, 3]]}]}')
        assert caught.value.kind == "no_size"

    @pytest.mark.parametrize("unknown", [None, 0, "", "0"])
    def test_parse_annotations_without_a_known_size_takes_that_of_the_image(self, unknown: object) -> None:
        data = sa1b(annotation(id=1), width=unknown, height=unknown)
        assert parse_annotations(data, size=(HEIGHT, WIDTH)) == parse_annotations(sa1b(annotation(id=1)))

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-be"])
    def test_parse_annotations_of_compressed_files_reads_them(self, encoding: str) -> None:
        plain = sa1b(annotation(id=1))
        assert parse_annotations(gzip.compress(plain.decode().encode(encoding))) == parse_annotations(plain)
        with pytest.raises(AnnotationError, match="compressed file ends early"):
            parse_annotations(gzip.compress(plain)[:-5])

    def test_parse_annotations_of_a_compressed_bomb_raises(self) -> None:
        with pytest.raises(AnnotationError, match="larger than"):
            parse_annotations(gzip.compress(b" " * (MAX_ANNOTATION_BYTES + 2), 1))

    def test_parse_annotations_of_a_million_annotations_raises_from_the_length(self) -> None:
        item = b'{"segmentation": {"size": [3, 4], "counts": "327"}, "bbox": [1, 0, 0, 1], "id": 1}, '
        data = sa1b().replace(b"[]", b"[" + item * 300_000 + b"{}]")
        assert api_error(data).message == "more than 4096 annotations of one image, which is the limit"

    def test_read_annotations_of_a_file_over_the_limit_raises(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        data = sa1b(annotation())
        (tmp_path / "a.json").write_bytes(data)
        monkeypatch.setattr("ureca.masks.annotations.MAX_ANNOTATION_BYTES", len(data))
        assert len(read_annotations(tmp_path / "a.json")) == 1
        (tmp_path / "a.json").write_bytes(data + b" ")
        with pytest.raises(AnnotationError, match="larger than"):
            read_annotations(tmp_path / "a.json")

    @pytest.mark.parametrize("kind_of_nest", [b"[%s]", b'{"a": %s}'])
    def test_parse_annotations_with_deep_nesting_drops_the_key(self, kind_of_nest: bytes) -> None:
        def nested(levels: int) -> bytes:
            nest = b"1"
            for _ in range(levels):
                nest = kind_of_nest % nest
            return sa1b(annotation()).replace(b'"327"}', b'"327"}, "note": ' + nest)

        assert "note" in pickle.loads(pickle.dumps(parse_annotations(nested(31))))[0].extra  # noqa: S301
        for levels in (40, 150):
            mask = only(nested(levels))
            assert (mask.area_px, mask.extra) == (2, {})
            assert "more than 32 levels" in mask.notes["dropped_key"]

    @given(
        JSON_VALUES,
        st.sampled_from([(), ("image",), ("annotations",), ("annotations", 0), ("annotations", 0, "segmentation")]),
    )
    def test_parse_annotations_of_any_json_parses_or_raises_annotation_error(
        self, value: object, path: tuple[str | int, ...]
    ) -> None:
        content: Any = {"content": json.loads(sa1b(annotation()))}
        holder, key = content, "content"
        for step in path:
            holder, key = holder[key], step
        holder[key] = value
        try:
            parse_annotations(json.dumps(content["content"]).encode())
        except AnnotationError as error:
            assert error.kind == "malformed"


class TestCocoImages:
    def write(self, tmp_path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Path:
        path = tmp_path / "instances.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
        return path

    def image(self, id: object, height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
        return {"id": id, "height": height, "width": width, "file_name": f"{id}.jpg", "license": 3}

    def test_coco_images_yields_annotated_images_in_file_order(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            [self.image(9), self.image(7), self.image(8)],
            [annotation(id=1, image_id=8), annotation(id=2, image_id=9), annotation(id=3, image_id=8)],
        )
        read = list(read_coco_images(path))
        assert [(one.image_id, one.file_name, [mask.id for mask in one]) for one in read] == [
            (9, "9.jpg", [2]),
            (8, "8.jpg", [1, 3]),
        ]

    def test_coco_images_with_crowd_and_64_bit_id_keeps_them(self, tmp_path: Path) -> None:
        crowd = {
            "id": 900100448263,
            "image_id": 1,
            "iscrowd": 1,
            "category_id": 1,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [3, 2, 7]},
            "area": 2,
            "bbox": [1, 0, 1, 2],
        }
        polygon = {"id": 3, "image_id": "1", "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]], "area": 4.0}
        (read,) = read_coco_images(self.write(tmp_path, [self.image(1)], [crowd, polygon]))
        assert read[0].id == 900100448263
        assert read[0].extra == {"iscrowd": 1, "category_id": 1, "image_id": 1}
        np.testing.assert_array_equal(np.flatnonzero(read[0].decode()), [1, 5])
        assert read[1].decode()[:2, :2].all()
        assert read[1].area_px == 4

    def test_coco_images_without_boxes_computes_boxes(self, tmp_path: Path) -> None:
        (read,) = read_coco_images(self.write(tmp_path, [self.image(1)], [annotation(image_id=1)]))
        assert read[0].bbox_xywh == (1, 0, 0, 1)

    def test_coco_file_counts_records_of_no_image(self, tmp_path: Path) -> None:
        annotations = [annotation(id=5, image_id=2), annotation(id=6), annotation(id=7, image_id="1")]
        images = [self.image(1), self.image(None), self.image(1.0)]
        path = self.write(tmp_path, images, annotations)
        file = CocoFile.read(path)
        assert file.left_out == {
            "annotation of an image that the file does not list": 1,
            "annotation of no image": 1,
            "image without an id": 1,
            "image with the id of another": 1,
        }
        assert [[mask.id for mask in one] for one in read_coco_images(path)] == [[7]]
        (mask,) = parse_annotations(file.image_file(1))
        assert (mask.id, mask.area_px) == (7, 2)

    @pytest.mark.parametrize("text", ["{}", "[]", '{"images": []}', '{"images": [{"id": 1}', "", '{"images": 3}'])
    def test_coco_images_of_no_coco_file_raises(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(AnnotationError) as caught:
            list(read_coco_images(tmp_path / "a.json"))
        assert caught.value.kind == "malformed"

    def test_coco_images_with_one_mask_id_in_two_images_accepts_it(self, tmp_path: Path) -> None:
        annotations = [annotation(id=5, image_id=1), annotation(id=5, image_id=2)]
        assert len(list(read_coco_images(self.write(tmp_path, [self.image(1), self.image(2)], annotations)))) == 2
