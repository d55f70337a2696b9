"""Masks of annotation files in the frame of the upright image."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.drawn import png
from ureca.errors import AnnotationError
from ureca.masks.generators.annotations import AnnotationMaskGenerator
from ureca.masks.generators.settings import AnnotationsConfig, Frame

HEIGHT, WIDTH = 30, 50
STORED = np.zeros((HEIGHT, WIDTH), bool)
STORED[3:9, 30:46] = True  # unlike each of its mirror images and rotations


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels as Pillow does for an EXIF orientation."""
    operations = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return np.asarray(Image.fromarray(pixels.astype(np.uint8)).transpose(operations[orientation])).astype(bool)


def file_of(pixels: np.ndarray) -> bytes:
    rows, columns = np.nonzero(pixels)
    left, top, right, bottom = map(int, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    polygon = [left, top, right, top, right, bottom, left, bottom]
    image = {"height": pixels.shape[0], "width": pixels.shape[1]}
    return json.dumps({"image": image, "annotations": [{"id": 3, "segmentation": [polygon]}]}).encode()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_annotations_in_the_stored_frame_are_turned_with_the_image(orientation: int) -> None:
    expected = upright(STORED, orientation)
    image = np.zeros((*expected.shape, 3), np.uint8)
    generator = AnnotationMaskGenerator(AnnotationsConfig(frame="stored"))
    (mask,) = generator.generate(image, file_of(STORED), orientation=orientation)
    np.testing.assert_array_equal(mask.decode(), expected)
    assert mask.notes == {}


@pytest.mark.parametrize("orientation", range(2, 9))
def test_annotations_in_the_upright_frame_stay(orientation: int) -> None:
    expected = upright(STORED, orientation)
    image = np.zeros((*expected.shape, 3), np.uint8)
    generator = AnnotationMaskGenerator(AnnotationsConfig(frame="upright"))
    (mask,) = generator.generate(image, file_of(expected), orientation=orientation)
    np.testing.assert_array_equal(mask.decode(), expected)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_annotations_in_an_unknown_frame_are_turned_where_the_size_tells_and_noted_elsewhere(orientation: int) -> None:
    expected = upright(STORED, orientation)
    image = np.zeros((*expected.shape, 3), np.uint8)
    (mask,) = AnnotationMaskGenerator().generate(image, file_of(STORED), orientation=orientation)
    if orientation >= 5:
        np.testing.assert_array_equal(mask.decode(), expected)
        assert mask.notes == {}
    else:
        np.testing.assert_array_equal(mask.decode(), STORED)
        assert list(mask.notes) == ["ambiguous_frame"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_annotations_without_a_size_are_of_the_frame_that_is_set(orientation: int, frame: Frame) -> None:
    expected = STORED if orientation == 1 else upright(STORED, orientation)
    content = json.loads(file_of(STORED if frame == "stored" else expected))
    del content["image"]
    generator = AnnotationMaskGenerator(AnnotationsConfig(frame=frame))
    image = np.zeros((*expected.shape, 3), np.uint8)
    (mask,) = generator.generate(image, json.dumps(content).encode(), orientation=orientation)
    np.testing.assert_array_equal(mask.decode(), expected)


def test_annotations_of_another_size_raise() -> None:
    with pytest.raises(AnnotationError) as caught:
        AnnotationMaskGenerator().generate(np.zeros((WIDTH, HEIGHT, 3), np.uint8), file_of(STORED))
    assert caught.value.kind == "size_mismatch"


def test_boxes_make_masks_only_where_they_are_asked_for() -> None:
    data = json.dumps({"annotations": [{"id": 1, "segmentation": [], "bbox": [2, 3, 10, 4]}]}).encode()
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    (mask,) = AnnotationMaskGenerator().generate(image, data)
    assert (mask.fault, mask.area_px) == ("no_segmentation", 0)
    (mask,) = AnnotationMaskGenerator(AnnotationsConfig(boxes=True)).generate(image, data)
    assert (mask.fault, mask.area_px, list(mask.notes)) == (None, 40, ["box_as_mask"])
    assert mask.decode()[3:7, 2:12].all()


def test_labelme_shapes_are_masks_with_labels() -> None:
    shapes = [
        {"label": "cat", "shape_type": "rectangle", "points": [[2, 3], [12, 7]]},
        {"label": "dog", "shape_type": "circle", "points": [[25, 15], [30, 15]]},
        {"label": "line", "shape_type": "line", "points": [[0, 0], [9, 9]]},
    ]
    data = json.dumps({"shapes": shapes, "imageHeight": HEIGHT, "imageWidth": WIDTH, "imagePath": "a.jpg"}).encode()
    cat, dog, line = AnnotationMaskGenerator().generate(np.zeros((HEIGHT, WIDTH, 3), np.uint8), data)
    assert (cat.category, cat.area_px, cat.fault) == ("cat", 40, None)
    assert (dog.category, dog.fault) == ("dog", None)
    assert 60 <= dog.area_px <= 95
    assert (line.category, line.fault) == ("line", "no_segmentation")


def test_index_images_have_a_mask_for_each_value_but_background_and_void() -> None:
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[:5], values[10:12], values[20] = 4, 9, 255
    masks = AnnotationMaskGenerator().generate(np.zeros((HEIGHT, WIDTH, 3), np.uint8), png(values))
    assert [(mask.id, mask.area_px) for mask in masks] == [(4, 5 * WIDTH), (9, 2 * WIDTH)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("frame", ["auto", "stored", "upright"])
def test_index_images_with_an_orientation_of_their_own_are_turned_by_it_alone(orientation: int, frame: Frame) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(STORED.astype(np.uint8) * 3).save(file := io.BytesIO(), "PNG", exif=exif)
    expected = STORED if orientation == 1 else upright(STORED, orientation)
    image = np.zeros((*expected.shape, 3), np.uint8)
    generator = AnnotationMaskGenerator(AnnotationsConfig(frame=frame))
    (mask,) = generator.generate(image, file.getvalue(), orientation=orientation)
    np.testing.assert_array_equal(mask.decode(), expected)
    assert (mask.id, mask.notes) == (3, {})


@pytest.mark.parametrize("orientation", range(2, 9))
def test_index_images_of_the_stored_frame_are_turned_with_the_image(orientation: int) -> None:
    expected = upright(STORED, orientation)
    generator = AnnotationMaskGenerator(AnnotationsConfig(frame="stored"))
    image = np.zeros((*expected.shape, 3), np.uint8)
    (mask,) = generator.generate(image, png(STORED.astype(np.uint8)), orientation=orientation)
    np.testing.assert_array_equal(mask.decode(), expected)


def test_index_image_of_background_alone_has_no_masks() -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    assert AnnotationMaskGenerator().generate(image, png(np.zeros((HEIGHT, WIDTH), np.uint8))) == []
    with pytest.raises(AnnotationError) as caught:
        AnnotationMaskGenerator().generate(image, png(np.zeros((HEIGHT, WIDTH + 1), np.uint8)))
    assert caught.value.kind == "size_mismatch"
