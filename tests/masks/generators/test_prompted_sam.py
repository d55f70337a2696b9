"""Boxes and points to masks, by the package's own predictor at a size that runs anywhere."""

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.masks.generators.test_sam import build_tiny_sam
from ureca.errors import AnnotationError, DataError, ImageError
from ureca.masks.generators.base import MaskGenerator
from ureca.masks.generators.prompted_sam import PromptedSam
from ureca.masks.generators.sam import SamNetwork
from ureca.masks.prompts import Prompt

pytest.importorskip("torch")
segment_anything = pytest.importorskip("segment_anything")

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def sam() -> Any:
    return build_tiny_sam()


def test_masks_of_prompts_equal_those_of_the_predictor(sam: Any) -> None:
    prompts = [
        Prompt(bbox_xywh=(5, 6, 20, 10)),
        Prompt(points_xy=((30, 20),)),
        Prompt(points_xy=((30, 20), (5, 5)), labels=(1, 0)),
        Prompt(bbox_xywh=(5, 6, 20, 10), points_xy=((10, 10),)),
    ]
    masks = PromptedSam.from_network(SamNetwork(sam)).masks(IMAGE, list(zip((4, 3, 2, 1), prompts, strict=True)))
    assert [mask.id for mask in masks] == [4, 3, 2, 1]

    predictor = segment_anything.SamPredictor(sam)
    predictor.set_image(IMAGE)
    box = np.array([5, 6, 25, 16])
    point, other = np.array([[30, 20]]), np.array([[5, 5]])
    for mask, arguments, multiple in zip(
        masks,
        [
            {"box": box},
            {"point_coords": point, "point_labels": np.array([1])},
            {"point_coords": np.concatenate([point, other]), "point_labels": np.array([1, 0])},
            {"box": box, "point_coords": np.array([[10, 10]]), "point_labels": np.array([1])},
        ],
        [False, True, False, False],
        strict=True,
    ):
        expected, ious, _ = predictor.predict(**arguments, multimask_output=multiple)
        best = np.argmax(ious)
        assert np.array_equal(mask.decode(), expected[best])
        assert mask.predicted_iou == pytest.approx(float(ious[best]))


def test_prompts_of_one_form_are_decoded_together_and_equal_single_ones(
    sam: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = {
        **{id: Prompt(bbox_xywh=(3 + id, 6, 20, 4 + id)) for id in (9, 8, 7, 6, 5)},
        4: Prompt(points_xy=((30, 20),)),
        3: Prompt(points_xy=((3, 4),)),
        2: Prompt(points_xy=((30, 20), (5, 5)), labels=(1, 0)),
        1: Prompt(bbox_xywh=(70, 0, 5, 5)),
    }
    prompted = PromptedSam.from_network(SamNetwork(sam))
    alone = [mask for item in prompts.items() for mask in prompted.masks(IMAGE, [item])]
    sizes: list[int] = []
    decode, most = prompted.network.decode, [99]

    def decode_some(image: Any, batch: Any, *, several: bool) -> Any:
        num_prompts = len(batch.boxes_xyxy if batch.points_xy is None else batch.points_xy)
        if num_prompts > most[0]:
            raise MemoryError("as on a small device")
        sizes.append(num_prompts)
        return decode(image, batch, several=several)

    monkeypatch.setattr(prompted.network, "decode", decode_some)
    for most[0], expected in ((99, [4, 1, 2, 1]), (2, [2, 2, 1, 2, 1]), (1, [1] * 8)):
        sizes.clear()
        masks = prompted.masks(IMAGE, list(prompts.items()))
        assert sizes == expected
        assert [mask.id for mask in masks] == list(prompts)
        assert [mask.rle for mask in masks] == [mask.rle for mask in alone]
        assert [mask.bbox_xywh for mask in masks] == [mask.bbox_xywh for mask in alone]
    most[0] = 0
    with pytest.raises(DataError, match="out_of_memory"):
        prompted.masks(IMAGE, list(prompts.items()))


@pytest.mark.parametrize(
    "prompt",
    [Prompt(bbox_xywh=(70, 0, 5, 5)), Prompt(bbox_xywh=(-9, 0, 5, 5)), Prompt(points_xy=((10, 10), (10, 41)))],
)
def test_masks_of_a_prompt_outside_the_image_are_empty(sam: Any, prompt: Prompt) -> None:
    (mask,) = PromptedSam.from_network(SamNetwork(sam)).masks(IMAGE, [(0, prompt)])
    assert mask.rle["size"] == [40, 60]
    assert mask.area_px == 0


def test_generate_reads_prompts_from_the_annotation_file(sam: Any) -> None:
    mask_generator: MaskGenerator = PromptedSam.from_network(SamNetwork(sam))
    file = json.dumps({"prompts": [{"bbox_xywh": [5, 6, 20, 10]}]}).encode()
    assert [mask.id for mask in mask_generator.generate(IMAGE, file)] == [0]
    with pytest.raises(AnnotationError, match="missing_annotation"):
        mask_generator.generate(IMAGE)
    with pytest.raises(ImageError, match="too_elongated"):
        mask_generator.generate(np.zeros((1, 900, 3), np.uint8), file)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_generate_turns_prompts_of_the_stored_image(sam: Any, orientation: int) -> None:
    box = [35, 24, 20, 10]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros(IMAGE.shape[:2], np.uint8)
    pixels[24:34, 35:55] = 255
    # The orientation that undoes this one is the same but for quarter turns.
    exif[0x0112] = {6: 8, 8: 6}.get(orientation, orientation)
    Image.fromarray(pixels).save(image := io.BytesIO(), "PNG", exif=exif)
    rows, columns = np.nonzero(np.asarray(ImageOps.exif_transpose(Image.open(image))))
    stored = [int(value) for value in (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)]
    file, turned = (json.dumps({"prompts": [{"bbox_xywh": one}]}).encode() for one in (stored, box))
    ((expected,), (found,)) = (
        PromptedSam.from_network(SamNetwork(sam), frame=frame).generate(IMAGE, data, orientation=orientation)
        for frame, data in (("upright", turned), ("stored", file))
    )
    assert found == expected
    (noted,) = PromptedSam.from_network(SamNetwork(sam)).generate(IMAGE, turned, orientation=orientation)
    assert noted.rle == expected.rle and list(noted.notes) == ["ambiguous_frame"]


def test_generate_segments_the_boxes_of_an_annotation_file(sam: Any) -> None:
    generator = PromptedSam.from_network(SamNetwork(sam))
    records = [
        {"id": 4, "category": "cat", "bbox": [5, 6, 20, 10], "segmentation": []},
        {"id": 5, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]},
        {"id": 6, "bbox": [5, 6, 0, 0]},
    ]
    of_box, given, unusable = generator.generate(IMAGE, json.dumps({"annotations": records}).encode())
    (expected,) = generator.masks(IMAGE, [(4, Prompt(bbox_xywh=(5, 6, 20, 10)))])
    assert (of_box.rle, of_box.predicted_iou, of_box.category) == (expected.rle, expected.predicted_iou, "cat")
    assert list(of_box.notes) == ["segmented_box"]
    assert (given.id, given.area_px, given.notes) == (5, 81, {})
    assert (unusable.id, unusable.fault) == (6, "no_segmentation")
