"""Captioning of the masks of an image."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tests.drawn import drawn_image
from ureca.captioning.captioners import EngineCaptioner
from ureca.captioning.continuous import CaptionEngine
from ureca.captioning.images import caption_image
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedImage
from ureca.masks.mask import Mask
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_tiny
from ureca.model.settings import CaptionSettings
from ureca.schema import CAPTIONS, conform

ENTRY = ManifestEntry("a", "a.png", "a.png")
SETTINGS = CaptionSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def captioner() -> RegionCaptioner:
    return RegionCaptioner(*build_tiny())


def test_caption_image_with_a_tree_gives_rows_of_the_schema(captioner: RegionCaptioner) -> None:
    pixels, masks = drawn_image(0)
    rows = caption_image(captioner, pixels, masks, SETTINGS, parents={1: -1, 4: -1, 2: 1, 3: 2})
    expected = captioner.describe([pixels], [[mask.decode() for mask in masks]], SETTINGS)[0]
    assert [row["caption"] for row in rows] == [region.text for region in expected]
    assert [row["num_tokens"] for row in rows] == [region.num_tokens for region in expected]
    assert [(row["region_id"], row["parent_id"], row["depth"]) for row in rows] == [
        (1, -1, 0),
        (2, 1, 1),
        (3, 2, 2),
        (4, -1, 0),
    ]
    height, width = pixels.shape[:2]
    image = {"image_id": "a", "uri": "a.png", "height": height, "width": width, "captions": rows}
    assert conform([image], CAPTIONS).num_rows == 1


def test_caption_image_with_bad_masks_captions_the_others_alike(captioner: RegionCaptioner) -> None:
    pixels, masks = drawn_image(0)
    empty = Mask.from_array(9, np.zeros(pixels.shape[:2], np.bool_))
    turned = Mask.from_array(8, np.ones(pixels.shape[1::-1], np.bool_))
    alone = caption_image(captioner, pixels, masks, SETTINGS)
    rows = caption_image(captioner, pixels, [empty, *masks, turned], SETTINGS)
    assert rows[1:-1] == alone
    assert [rows[0]["status"], rows[-1]["status"]] == ["skipped:empty", "failed:caption:size_mismatch"]
    assert rows[0]["caption"] is rows[0]["num_tokens"] is None
    assert {row["status"] for row in alone} == {"ok"}
    assert {(row["parent_id"], row["depth"]) for row in alone} == {(None, None)}


def test_caption_image_with_wrong_stated_area_succeeds(captioner: RegionCaptioner) -> None:
    pixels, masks = drawn_image(0)
    rows = caption_image(captioner, pixels, [replace(masks[0], area_px=0)], SETTINGS)
    assert rows[0]["status"] == "ok"


def test_engine_captioner_with_several_images_equals_each_alone(captioner: RegionCaptioner) -> None:
    drawn = [drawn_image(seed) for seed in range(3)]
    alone = [caption_image(captioner, pixels, masks, SETTINGS) for pixels, masks in drawn]
    images = [(drawn[0][0], []), *drawn]

    async def run() -> list[list[dict[str, object]]]:
        engine = EngineCaptioner(CaptionEngine(captioner, 5, serves_requests=False), SETTINGS)
        prepared = [
            engine.prepare(pixels, MaskedImage(ENTRY, *pixels.shape[:2], tuple(masks))) for pixels, masks in images
        ]
        return [rows for rows, _ in await asyncio.gather(*map(engine.caption, prepared))]

    assert asyncio.run(run()) == [[], *alone]


def test_caption_image_with_empty_caption_fails_the_region() -> None:
    model, processor = build_tiny()
    captioner = RegionCaptioner(model, processor)
    pixels, masks = drawn_image(0)
    described = captioner.describe([pixels], [[masks[0].decode()]], CaptionSettings(max_new_tokens=1))[0][0]
    token = processor.tokenizer(described.text, add_special_tokens=False).input_ids[0]
    model.generation_config.eos_token_id = token
    (row,) = caption_image(RegionCaptioner(model, processor), pixels, masks[:1], SETTINGS)
    assert (row["caption"], row["status"], row["finish_reason"]) == (None, "failed:caption:no_text", "stop")
