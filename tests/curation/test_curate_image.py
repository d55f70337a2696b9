"""Rows of an image and its masks."""

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ureca
from tests.curation.fakes import EverythingAlike, NothingAlike, RecordingAnnotator, failing
from tests.drawn import HEIGHT, WIDTH, disc, drawn_image
from ureca.curation.curator import Curator, curate_regions
from ureca.curation.embedders import DescriptorEmbedder
from ureca.curation.prompted import PromptedAnnotator
from ureca.curation.protocols import Embedder
from ureca.curation.rule_based.captioner import RuleBasedCaptioner
from ureca.curation.settings import PromptedConfig, TreeSettings, UniquenessSettings, ViewSettings
from ureca.llm.fake import FakeChatModel
from ureca.llm.settings import FakeConfig
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.mask import Mask
from ureca.masks.tree import MaskTree
from ureca.schema import REGIONS, conform

BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def curate(masks: list[Mask], annotator: RecordingAnnotator | None = None, **curator: Any) -> dict[int, dict[str, Any]]:
    """Rows by region id, in their order."""
    curator.setdefault("embedder", NothingAlike())
    made = Curator(annotator=annotator or RecordingAnnotator(), **curator)
    rows = asyncio.run(curate_regions(BLACK, masks, made))
    return {row["region_id"]: row for row in rows}


def drawn_masks() -> list[Mask]:
    """A large disc 1 with two parts 2 and 3, and a small disc 4 beside it."""
    return drawn_image(0)[1]


def test_curate_regions_row_has_all_fields() -> None:
    mask = Mask.from_array(7, disc(20, 30, 9), predicted_iou=1.02, stability_score=0.9)
    assert curate([mask])[7] == {
        "region_id": 7,
        "rle": mask.rle["counts"],
        "bbox_xywh": [21, 11, 18, 18],
        "area_px": mask.area_px,
        "parent_id": -1,
        "depth": 0,
        "predicted_iou": 1.02,
        "stability_score": 0.9,
        "category": None,
        "annotation_notes": None,
        "short_caption": "short of 7",
        "detailed_caption": "short of 7",
        "caption": "short of 7",
        "lookalike_ids": [],
        "listener_choice": None,
        "listener_rounds": 0,
        "listener_questions": 0,
        "listener_candidates": None,
        "listener_chance": None,
        "verdict": "unchecked",
        "verdict_reason": None,
        "note": None,
        "status": "ok",
    }


def test_curate_regions_every_mask_has_a_row_parents_first() -> None:
    rows = curate(drawn_masks()[::-1])
    assert {id: (row["parent_id"], row["depth"]) for id, row in rows.items()} == {
        1: (-1, 0),
        2: (1, 1),
        3: (1, 1),
        4: (-1, 0),
    }
    assert next(iter(rows)) == 1
    assert rows[1]["detailed_caption"] == "detailed of 1"


def test_curate_regions_skipped_masks_have_a_reason() -> None:
    empty = Mask.from_array(9, np.zeros((HEIGHT, WIDTH), bool))
    rows = curate([*drawn_masks(), empty], tree=TreeSettings(min_area_fraction=0.033))
    assert {id: row["status"] for id, row in rows.items()} == {
        1: "ok",
        2: "skipped:small",
        3: "skipped:small",
        4: "ok",
        9: "skipped:empty",
    }
    for id in (3, 9):
        assert rows[id]["short_caption"] is rows[id]["detailed_caption"] is rows[id]["caption"] is None
        assert rows[id]["verdict"] == "unchecked"


def test_curate_regions_empty_mask_is_skipped_without_a_lower_bound() -> None:
    empty = Mask.from_array(9, np.zeros((HEIGHT, WIDTH), bool))
    annotator = PromptedAnnotator(FakeChatModel(FakeConfig()), PromptedConfig())
    curator = Curator(annotator, DescriptorEmbedder(), tree=TreeSettings(min_area_fraction=0))
    rows = asyncio.run(curate_regions(BLACK, [*drawn_masks(), empty], curator))
    assert [row["region_id"] for row in rows if row["status"] == "skipped:empty"] == [9]


def test_curate_regions_failed_region_names_its_stage() -> None:
    annotator = RecordingAnnotator(failing("short", 1, kind="refused"))
    rows = curate(drawn_masks(), annotator, embedder=EverythingAlike(), verifier=annotator)
    failed = "failed:short_caption:refused"
    assert {id: row["status"] for id, row in rows.items()} == {1: failed, 2: "ok", 3: "ok", 4: "ok"}
    assert (rows[1]["caption"], rows[1]["verdict"], rows[1]["note"]) == (None, "unchecked", None)


@pytest.mark.parametrize(
    ("stage", "note", "caption", "verdict"),
    [
        ("detailed", "detailed_caption:refused", "unique of 1", "accepted"),
        ("unique", "unique_caption:refused", "detailed of 1", "accepted"),
        ("verify", "verify:refused", "unique of 1", "unchecked"),
    ],
)
def test_curate_regions_step_without_answer_keeps_the_last_caption_with_a_note(
    stage: str, note: str, caption: str, verdict: str
) -> None:
    annotator = RecordingAnnotator(failing(stage, 1, kind="refused"))
    rows = curate(drawn_masks(), annotator, embedder=EverythingAlike(), verifier=annotator)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert (rows[1]["note"], rows[1]["caption"], rows[1]["verdict"]) == (note, caption, verdict)
    assert note in rows[1]["verdict_reason"]
    assert all(row["note"] is None for id, row in rows.items() if id != 1)


def test_curate_regions_rows_have_verdicts_and_reasons() -> None:
    verifier = RecordingAnnotator(accepts=lambda caption: caption != "short of 4")
    rows = curate(drawn_masks(), verifier=verifier)
    assert {id: row["verdict"] for id, row in rows.items()} == {
        1: "accepted",
        2: "accepted",
        3: "accepted",
        4: "rejected",
    }
    assert rows[4]["verdict_reason"] == "verify of 4"
    assert rows[4]["caption"] == "short of 4"
    assert rows[4]["status"] == "ok"


def test_curate_regions_rows_have_lookalikes() -> None:
    masks = drawn_masks()
    assert curate(masks, embedder=EverythingAlike())[1]["lookalike_ids"] == [4]
    nested = UniquenessSettings(include_nested=True)
    assert set(curate(masks, embedder=EverythingAlike(), uniqueness=nested)[1]["lookalike_ids"]) == {2, 3, 4}


def test_curate_regions_builds_the_tree_unless_it_is_given() -> None:
    first, second = Mask.from_array(1, disc(30, 40, 12)), Mask.from_array(2, disc(30, 48, 9))
    assert curate([first, second], tree=TreeSettings(containment=0.9))[2]["parent_id"] == -1
    assert curate([first, second], tree=TreeSettings(containment=0.5))[2]["parent_id"] == 1
    tree = MaskTree.build([first, second], containment=0.5)
    rows = asyncio.run(curate_regions(BLACK, [first, second], Curator(RecordingAnnotator(), NothingAlike()), tree))
    assert [row["parent_id"] for row in rows] == [-1, 1]


def test_curate_regions_views_are_limited_by_their_setting() -> None:
    class Looking(RecordingAnnotator):
        async def short_caption(self, image: Any, region_id: int, **context: Any) -> str:
            assert max(image.views.whole_with_contour(region_id).shape) == 40
            return await super().short_caption(image, region_id, **context)

    assert curate(drawn_masks(), Looking(), views=ViewSettings(max_side_px=40))[1]["status"] == "ok"


def test_curate_regions_without_masks_returns_no_rows() -> None:
    assert curate([]) == {}


def test_curate_regions_of_one_pixel() -> None:
    pixels, mask = np.full((1, 1, 3), 90, np.uint8), Mask.from_array(0, np.ones((1, 1), bool))
    annotator = PromptedAnnotator(FakeChatModel(FakeConfig()), PromptedConfig())
    curator = Curator(annotator, DescriptorEmbedder(), tree=TreeSettings(max_area_fraction=1), verifier=annotator)
    (row,) = asyncio.run(
        curate_regions(
            pixels,
            [
                mask,
            ],
            curator,
        )
    )
    assert (row["status"], row["verdict"]) == ("ok", "accepted")


def test_curate_regions_with_masks_of_another_image_raises() -> None:
    with pytest.raises(ValueError, match=r"mask 3 has the size \[2, 2\], the image \[60, 80\]"):
        curate([Mask.from_array(3, np.ones((2, 2), bool))])
    with pytest.raises(ValueError, match="4 appears twice"):
        curate([Mask.from_array(4, disc(20, 20, 5)), Mask.from_array(4, disc(40, 40, 5))])


@pytest.mark.parametrize("embedder", [DescriptorEmbedder(), EverythingAlike()], ids=["descriptor", "all alike"])
@pytest.mark.parametrize(
    "annotator",
    [RuleBasedCaptioner(), PromptedAnnotator(FakeChatModel(FakeConfig()), PromptedConfig())],
    ids=["rule_based", "prompted"],
)
def test_curate_regions_with_real_annotators_writes_distinct_captions(
    annotator: RuleBasedCaptioner | PromptedAnnotator, embedder: Embedder
) -> None:
    pixels, masks = drawn_image(1)
    rows = asyncio.run(curate_regions(pixels, masks, Curator(annotator, embedder, verifier=annotator)))
    captions = [row["caption"] for row in rows]
    assert len(set(captions)) == len(captions) == 4
    assert {row["status"] for row in rows} == {"ok"}
    expected = "self_checked" if isinstance(annotator, RuleBasedCaptioner) else "accepted"
    assert {row["verdict"] for row in rows} == {expected}
    conform([{"image_id": "a", "uri": "a.png", "height": HEIGHT, "width": WIDTH, "regions": rows}], REGIONS)


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(0, 59), st.integers(0, 79), st.integers(1, 40)), max_size=8),
    st.floats(0, 0.6),
    st.integers(0, 2**16),
)
def test_curate_regions_with_any_answers_writes_distinct_captions(
    discs: list[tuple[int, int, int]], malformed_fraction: float, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    masks = [Mask.from_array(id, disc(*shape)) for id, shape in enumerate(discs)]
    model = FakeChatModel(FakeConfig(malformed_fraction=malformed_fraction))
    annotator = PromptedAnnotator(model, PromptedConfig(max_attempts=1))
    rows = asyncio.run(curate_regions(pixels, masks, Curator(annotator, DescriptorEmbedder())))
    assert sorted(row["region_id"] for row in rows) == list(range(len(masks)))
    captions = [row["caption"] for row in rows if row["status"] == "ok"]
    assert None not in captions
    assert len({caption.casefold() for caption in captions}) == len(captions)


def test_curate_regions_verified_by_the_captioner_itself_are_self_checked() -> None:
    pixels, masks = drawn_image(1)
    itself, other = (
        Curator(verifier=RuleBasedCaptioner()),
        Curator(annotator=Oblivious(), verifier=RuleBasedCaptioner()),
    )
    rows = asyncio.run(curate_regions(pixels, masks, itself))
    assert {row["verdict"] for row in rows if row["status"] == "ok"} == {"self_checked"}
    rows = asyncio.run(curate_regions(pixels, masks, other))
    assert {row["verdict"] for row in rows if row["status"] == "ok"} == {"accepted"}


class Oblivious(RuleBasedCaptioner):
    """The same captions from a captioner of another name."""

    name = "oblivious"


def test_curate_image_without_masks_makes_none_that_it_skips() -> None:
    pixels = np.full((200, 300, 3), (40, 80, 200), np.uint8)
    pixels[20:120, 30:150] = (200, 40, 40)
    pixels[150:154, 200:206] = (250, 250, 250)  # 0.04 % of the image
    regions = ureca.curate_image(pixels)
    assert regions and all(region.status == "ok" for region in regions)


@pytest.mark.parametrize("smallest", [0.004, 0.02])
def test_curate_image_generates_no_mask_that_curation_leaves_out_as_small(smallest: float) -> None:
    pixels = np.full((120, 160, 3), 200, np.uint8)
    sides_px = [6, 9, 14, 20, 28, 40]  # 0.2 to 8 % of the image
    for number, side_px in enumerate(sides_px):
        left = 4 + sum(sides_px[:number]) + 6 * number
        pixels[20 : 20 + side_px, left : left + side_px] = [[200, 30, 30], [30, 60, 200]][number % 2]
    regions = ureca.curate_image(pixels, curator=Curator(tree=TreeSettings(min_area_fraction=smallest)))
    assert regions and {region.status for region in regions} == {"ok"}
    areas = [mask.area_px for mask in SegmentsMaskGenerator().generate(pixels)]
    is_large_enough = [area >= smallest * pixels.shape[0] * pixels.shape[1] for area in areas]
    assert len(regions) == sum(is_large_enough) < len(areas)  # those of no setting of its own include smaller ones
