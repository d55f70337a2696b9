import asyncio
import gc
import re
import weakref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ureca.curation.protocols import LookAlike
from ureca.curation.rule_based.captioner import Captions, RuleBasedCaptioner
from ureca.curation.rule_based.measurement import measure_regions
from ureca.errors import AnswerError


def _short(image, id):
    return asyncio.run(RuleBasedCaptioner().short_caption(image, id, parent_caption=None, sibling_captions=()))


def _unique(image, id):
    return asyncio.run(RuleBasedCaptioner().unique_caption(image, id, caption="", lookalikes=()))


def _verdict(image, id, caption):
    return asyncio.run(RuleBasedCaptioner().verify(image, id, caption=caption))


async def _walk(image, *, all_alike):
    """The curation's stages 2 to 4, one request after another; returns short, detailed and final captions."""
    annotator = RuleBasedCaptioner()
    parts = {id: [child for child in image.tree.children[id] if child in image.regions] for id in image.regions}
    short, detailed = {}, {}
    for id in image.regions:
        parent = image.tree.parents[id]
        siblings = [short[other] for other in short if image.tree.parents[other] == parent]
        short[id] = await annotator.short_caption(
            image, id, parent_caption=short.get(parent), sibling_captions=siblings
        )
    for id in reversed(image.regions):
        detailed[id] = short[id]
        if parts[id]:
            detailed[id] = await annotator.detailed_caption(
                image, id, short_caption=short[id], child_captions=[detailed[child] for child in parts[id]]
            )
    final = dict(detailed)
    for id in image.regions:
        alike = [other for other in image.regions if other != id and (all_alike or detailed[other] == detailed[id])]
        if alike:
            final[id] = await annotator.unique_caption(
                image, id, caption=detailed[id], lookalikes=[LookAlike(other, detailed[other]) for other in alike]
            )
    return short, detailed, final


@st.composite
def _scenes(draw):
    """Any small image with masks of any form, among them copies, single pixels and masks without a hole between."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    few = st.sampled_from([0, 90, 200])
    pixels = draw(hnp.arrays(np.uint8, (height, width, 3), elements=few))
    boxes = st.builds(
        lambda y, x, h, w: np.pad(np.ones((h, w), bool), ((y, height), (x, width)))[:height, :width],
        st.integers(0, height - 1),
        st.integers(0, width - 1),
        st.integers(1, height),
        st.integers(1, width),
    )
    anything = hnp.arrays(bool, (height, width)).filter(np.any)
    masks = draw(st.lists(boxes | anything, min_size=1, max_size=6))
    copies = draw(st.lists(st.sampled_from(masks), max_size=3))
    return pixels, [*masks, *copies]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scene=_scenes(), all_alike=st.booleans())
def test_annotator_final_captions_are_distinct_and_true(image_of, scene, all_alike):
    image = image_of(*scene)
    short, detailed, final = asyncio.run(_walk(image, all_alike=all_alike))
    assert len({" ".join(caption.casefold().split()) for caption in final.values()}) == len(image.regions)
    for id, captions in {id: (short[id], detailed[id], final[id]) for id in image.regions}.items():
        for caption in captions:
            verdict = _verdict(image, id, caption)
            assert verdict.accepted, (caption, verdict.reason)
            assert re.fullmatch(r"(A|An|The) [^.]+\.( It has [^.]+\.)?", caption)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scene=_scenes())
def test_unique_caption_equals_no_caption_of_another_region(image_of, scene):
    image = image_of(*scene)
    short, detailed, unique = asyncio.run(_walk(image, all_alike=True))
    if len(image.regions) == 1:
        return
    for id in image.regions:
        others = [captions[other] for captions in (short, detailed, unique) for other in image.regions if other != id]
        assert unique[id] not in others


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scene=_scenes())
def test_short_captions_of_siblings_differ(image_of, scene):
    image = image_of(*scene)
    captions = Captions(measure_regions(image), image.pixels.shape[1::-1])
    for siblings in image.tree.children.values():
        assert len({captions.short(id) for id in siblings}) == len(siblings)


def _three_discs(canvas, painted, image_of):
    discs = [canvas.ellipse(x, 100, 20) for x in (50, 150, 250)]
    return image_of(painted(*((disc, "e01010") for disc in discs)), discs)


def test_short_caption_names_colour_shape_texture_location_and_extent(canvas, painted, image_of):
    disc = canvas.ellipse(60, 50, 25)
    assert _short(image_of(painted((disc, "e01010")), [disc]), 1) == (
        "A smooth round red patch in the upper left of the image."
    )
    larger = canvas.ellipse(100, 70, 55)
    assert _short(image_of(painted((larger, "e01010")), [larger]), 1) == (
        "A smooth round red area in the upper left of the image, filling about a sixth of the image."
    )


def test_short_caption_of_a_part_locates_it_in_its_parent(canvas, painted, image_of):
    plate, spot = canvas.ellipse(150, 100, 80), canvas.ellipse(115, 65, 15)
    image = image_of(painted((plate, "2050d0"), (spot, "ffffff")), [plate, spot])
    assert _short(image, 2) == (
        "A small smooth round white patch in the upper part of the image, in the upper left of the blue area."
    )


def test_short_caption_of_alike_siblings_counts_them(canvas, painted, image_of):
    pair = [canvas.ellipse(x, 150, 12) for x in (25, 75)]
    image = image_of(painted(*((disc, "e01010") for disc in pair)), pair)
    assert [_short(image, id) for id in (1, 2)] == [
        f"A small smooth round red patch in the lower left of the image, the {which} of two alike from the left."
        for which in ("first", "second")
    ]


def test_short_caption_of_two_colours_that_lie_apart_tells_where_they_are(canvas, painted, image_of):
    disc, lower = canvas.ellipse(150, 100, 60), canvas.rectangle(0, 100, 300, 200)
    image = image_of(painted((disc, "e01010"), (disc & lower, "ffffff")), [disc])
    assert "red and white" in _short(image, 1) or "white and red" in _short(image, 1)
    assert ", red at the top and white at the bottom" in _short(image, 1)
    mixed = image_of(painted((disc, "e01010"), (disc & (canvas.x % 8 < 4), "ffffff")), [disc])
    assert "at the top" not in _short(mixed, 1)


def test_short_caption_names_the_colours_inside_the_mask_only(canvas, painted, image_of):
    """Thin white bars on a red ground: at the reduced size every block of pixels holds some of the ground."""
    bars = (canvas.x % 6 < 2) & canvas.rectangle(5, 5, 295, 195)
    image = image_of(painted((canvas.rectangle(0, 0, 300, 200), "e01010"), (bars, "ffffff")), [bars])
    assert " white " in _short(image, 1)
    assert "red" not in _short(image, 1)
    assert "pink" not in _short(image, 1)


def test_short_caption_where_colour_and_location_fit_others_tells_its_point(canvas, painted, image_of):
    spots = [canvas.ellipse(x, y, 6) for x, y in ((20, 20), (60, 45))]
    spots.append(canvas.rectangle(75, 10, 90, 14))
    image = image_of(painted(*((spot, "e01010") for spot in spots)), spots)
    assert _short(image, 3).endswith(", a quarter of the way from the left and close to the top edge.")


def test_short_caption_of_a_point_by_two_axes_says_of_the_way_once(canvas, painted, image_of):
    spots = [canvas.rectangle(52, 145, 68, 155), canvas.ellipse(95, 150, 6), canvas.ellipse(60, 180, 6)]
    image = image_of(painted(*((spot, "e01010") for spot in spots)), spots)
    assert _short(image, 1).endswith(", a fifth of the way from the left and three quarters down.")
    assert _verdict(image, 1, _short(image, 1)).accepted
    assert not _verdict(image, 3, _short(image, 1)).accepted


def test_short_caption_says_one_axis_where_it_tells_all_others_apart(canvas, painted, image_of):
    spots = [canvas.ellipse(x, 150, 6) for x in (30, 85)]
    spots[1] &= canvas.y > 146
    image = image_of(painted(*((spot, "e01010") for spot in spots)), spots)
    assert _short(image, 1).endswith(" in the lower left of the image, near the left edge.")


def test_short_caption_of_an_elongated_region_does_not_take_shadings_along_it_for_stripes(canvas, painted, image_of):
    bar = canvas.rectangle(20, 80, 280, 120)
    lines = bar & (canvas.y % 4 < 2)
    across = bar & (canvas.x % 8 < 4)
    for stripes, words in ((lines, "horizontal black"), (across, "vertically striped horizontal")):
        image = image_of(painted((bar, "303030"), (stripes, "000000")), [bar])
        assert words in _short(image, 1) and "horizontally striped" not in _short(image, 1), _short(image, 1)


def test_captions_of_regions_that_cover_most_of_the_image_have_no_rank(canvas, painted, image_of):
    outer, inner = canvas.rectangle(5, 5, 295, 195), canvas.rectangle(20, 15, 280, 185)
    image = image_of(painted((outer, "2050d0"), (inner, "2050d0")), [outer, inner])
    for id in image.regions:
        for caption in (_short(image, id), _unique(image, id)):
            if "covering" in caption:
                assert not re.search(r"\b(largest|smallest|first|second|leftmost|brightest)\b", caption), caption


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ("A red disc, about a fiftieth of the image.", None),
        ("A red disc, about 2% of the image.", None),
        ("A red disc, about a tenth of the image.", "says about a tenth of the image; it is 2.1% of it"),
        ("A red disc, just under a fifth of the way from the left and halfway down.", None),
        (
            "A red disc, halfway across and halfway down.",
            "says halfway across; its centre is a fifth of the way from the left and halfway down",
        ),
        ("A red disc, slightly left of centre.", "says slightly left of centre; its centre is a fifth of the way"),
        ("A red disc near the right edge, halfway down.", "says near the right edge; its centre is a fifth"),
        ("A red disc, a fifth of the way from the left.", None),
        (
            "A red disc, a fifth of the way from the left and three quarters down.",
            "says three quarters down; its centre",
        ),
    ],
)
def test_verify_checks_extent_and_point(canvas, painted, image_of, claim, reason):
    verdict = _verdict(_three_discs(canvas, painted, image_of), 1, claim)
    assert verdict.accepted == (reason is None)
    assert reason is None or verdict.reason.startswith(reason)


def test_detailed_caption_lists_parts_largest_first_and_similar_ones_together(canvas, painted, image_of):
    plate, bar = canvas.rectangle(10, 10, 290, 190), canvas.rectangle(10, 150, 290, 190)
    spots = [canvas.ellipse(x, 60, 14) for x in (60, 150, 240)]
    image = image_of(
        painted((plate, "2050d0"), (bar, "32a032"), *((spot, "ffffff") for spot in spots)), [plate, bar, *spots]
    )
    detailed = asyncio.run(
        RuleBasedCaptioner().detailed_caption(image, 1, short_caption="A blue area.", child_captions=["any"])
    )
    assert detailed == "A blue area. It has a green strip along its bottom edge and three small white patches."


def test_detailed_caption_lists_at_most_four_groups_of_parts(canvas, painted, image_of):
    plate = canvas.rectangle(0, 0, 300, 200)
    colours = ["ffffff", "e01010", "ffd700", "32a032", "ff69b4", "000000"]
    spots = [canvas.ellipse(30 + 48 * index, 100, 20 - index) for index in range(6)]
    image = image_of(painted((plate, "2050d0"), *zip(spots, colours, strict=True)), [plate, *spots])
    parts = asyncio.run(RuleBasedCaptioner().detailed_caption(image, 1, short_caption="A.", child_captions=["any"]))
    assert parts.endswith("a green patch in its centre and two smaller parts.")


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"colours": ("e01010", "2050d0", "ffd700")}, "The smooth round red patch on the left side of the image"),
        ({"radii": (30, 20, 12)}, "The largest smooth round red patch on the left side of the image"),
        ({}, "The leftmost smooth round red patch on the left side of the image"),
    ],
)
def test_unique_caption_ranks_only_what_attributes_do_not_distinguish(canvas, painted, image_of, shapes, expected):
    radii, colours = shapes.get("radii", (20, 20, 20)), shapes.get("colours", ("e01010",) * 3)
    discs = [canvas.ellipse(x, 100, radius) for x, radius in zip((35, 70, 105), radii, strict=True)]
    discs = [discs[0], discs[1] & ~discs[0], discs[2] & ~discs[1] & ~discs[0]]
    image = image_of(painted(*zip(discs, colours, strict=True)), discs)
    assert _unique(image, 1).startswith(expected), _unique(image, 1)


def test_short_caption_names_a_neighbour_of_another_colour(canvas, painted, image_of):
    left, right = canvas.rectangle(20, 60, 120, 140), canvas.rectangle(125, 50, 260, 150)
    image = image_of(painted((left, "e01010"), (right, "2050d0")), [left, right])
    assert ", left of the blue area" in _short(image, 1)
    assert ", right of the red area" in _short(image, 2)
    above, below = canvas.rectangle(20, 20, 200, 80), canvas.rectangle(20, 85, 220, 180)
    image = image_of(painted((above, "e01010"), (below, "2050d0")), [above, below])
    assert ", above the blue area" in _short(image, 1)
    assert ", below the red" in _short(image, 2)


def test_caption_of_several_possible_neighbours_says_a_not_the(canvas, painted, image_of):
    left = canvas.rectangle(20, 60, 80, 140)
    right, other = canvas.rectangle(85, 60, 145, 140), canvas.rectangle(220, 60, 280, 140)
    image = image_of(painted((left, "e01010"), (right, "2050d0"), (other, "2050d0")), [left, right, other])
    assert ", left of a blue patch" in _short(image, 1)


def test_caption_names_no_neighbour_of_which_there_are_many(canvas, painted, image_of):
    spot = canvas.rectangle(10, 60, 60, 140)
    others = [canvas.rectangle(65 + 55 * index, 60, 110 + 55 * index, 140) for index in range(4)]
    image = image_of(painted((spot, "e01010"), *((other, "2050d0") for other in others)), [spot, *others])
    assert "left of a blue" not in _short(image, 1)
    few = image_of(painted((spot, "e01010"), *((other, "2050d0") for other in others[:3])), [spot, *others[:3]])
    assert "left of a blue" in _short(few, 1)


def test_caption_of_a_part_does_not_repeat_its_location(canvas, painted, image_of):
    band, end = canvas.rectangle(0, 0, 200, 200), canvas.rectangle(0, 20, 40, 180)
    image = image_of(painted((band, "2050d0"), (end, "ffffff")), [band, end])
    for caption in (_short(image, 2), _unique(image, 2)):
        assert "along the left edge of the image, within the blue area" in caption, caption


def test_unique_caption_of_the_largest_part_in_a_larger_region_of_its_colour_has_no_rank(canvas, painted, image_of):
    plate = canvas.rectangle(60, 20, 240, 180)
    spots = [canvas.ellipse(x, y, radius) for x, y, radius in ((120, 100, 22), (170, 100, 14), (140, 140, 8))]
    image = image_of(painted((plate, "e01010")), [plate, *spots])
    for id in (2, 3):
        assert not re.search(r"\b(largest|brightest|darkest)\b", _unique(image, id)), _unique(image, id)


def test_unique_caption_counts_only_where_all_regions_of_its_colour_and_place_are_counted(canvas, painted, image_of):
    discs = [canvas.ellipse(x, 100, 8) for x in (115, 150, 185)]
    bar = canvas.rectangle(110, 120, 190, 124)
    image = image_of(painted(*((mask, "e01010") for mask in (*discs, bar))), [*discs, bar])
    for id in (1, 2, 3):
        assert not re.search(r"\b(leftmost|rightmost|second)\b", _unique(image, id)), _unique(image, id)


def test_unique_caption_calls_no_dark_region_the_brightest_and_no_light_one_the_darkest(canvas, painted, image_of):
    for tones, wrong in ((("505050", "303030", "282828"), "brightest"), (("e8e8e8", "c8c8c8", "f8f8f8"), "darkest")):
        discs = [canvas.ellipse(x, 100, 12) for x in (120, 150, 180)]
        image = image_of(painted(*zip(discs, tones, strict=True)), discs)
        for id in image.regions:
            assert wrong not in _unique(image, id), _unique(image, id)


def test_caption_names_no_neighbour_that_is_around_it_beyond_its_rows_or_far_away(canvas, painted, image_of):
    bracket = canvas.rectangle(100, 20, 220, 180) & ~canvas.rectangle(120, 60, 220, 140)
    inside, low, far = canvas.ellipse(150, 100, 20), canvas.rectangle(60, 185, 95, 200), canvas.ellipse(290, 100, 8)
    colours = ["2050d0", "e01010", "ffd700", "32a032"]
    image = image_of(painted(*zip([bracket, inside, low, far], colours, strict=True)), [bracket, inside, low, far])
    assert re.findall("(left of|right of|above|below) the blue", _short(image, 2)) in ([], ["right of"])
    for id in (3, 4):
        assert not re.search("(?<!upper )(?<!lower )(left of|right of|above|below) (the|a) ", _short(image, id))


def test_caption_of_nested_areas_does_not_repeat_that_one_covers_most_of_the_other(canvas, painted, image_of):
    nested = [canvas.rectangle(10 + step, 10 + step, 250 - step, 170 - step) for step in (0, 12, 24)]
    spot = canvas.ellipse(90, 60, 12)
    image = image_of(painted((nested[0], "2050d0"), (spot, "ffffff")), [*nested, spot])
    for id in (1, 2, 3):
        _, detailed, final = (captions[id] for captions in asyncio.run(_walk(image, all_alike=True)))
        for caption in (detailed, final):
            assert "covering most of it" not in caption and "covering most of the larger" not in caption, caption
            assert "It has a small white patch in its upper left." in caption, caption


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ("A red disc, left of a red patch.", None),
        ("A red disc in the upper left of the image, left of the red patch.", "says in the upper left"),
        ("A red disc, right of the red patch.", "says right of the red patch; it is not right of one"),
        ("A red disc, below the red patch; it is smooth.", "says below the red patch"),
        ("A red disc, right of the green car.", None),  # no region is called so: it cannot be checked
    ],
)
def test_verify_checks_relations_to_regions(canvas, painted, image_of, claim, reason):
    discs = [canvas.ellipse(x, 100, 30) for x in (50, 130, 210)]
    verdict = _verdict(image_of(painted(*((disc, "e01010") for disc in discs)), discs), 1, claim)
    assert verdict.accepted == (reason is None)
    assert reason is None or verdict.reason.startswith(reason)


def test_unique_caption_ranks_among_the_same_description(canvas, painted, image_of):
    row = [canvas.ellipse(x, 100, 8) for x in range(10, 110, 18)]
    colours = ["e01010", "2050d0", "e01010", "2050d0", "e01010", "2050d0"]
    image = image_of(painted(*zip(row, colours, strict=True)), row)
    assert _unique(image, 3).startswith("The second red patch from the left, ")
    assert _unique(image, 4).startswith("The second blue patch from the left, ")
    assert _unique(image, 6).startswith("The rightmost small smooth round blue patch on the left side of the image")


def test_unique_caption_of_duplicate_masks_ranks_by_size(canvas, painted, image_of):
    disc, other = canvas.ellipse(100, 100, 30), canvas.ellipse(220, 100, 20)
    image = image_of(painted((disc, "e01010"), (other, "2050d0")), [disc, disc, other])
    first, second = (_unique(image, id) for id in (1, 2))
    assert first != second
    assert not {first, second} & {_short(image, id) for id in image.regions}


def test_unique_caption_attributes_are_false_of_every_other_region(canvas, painted, image_of):
    shapes = [canvas.ellipse(40, 40, 25), canvas.bar(150, 40, 80, 15, 0), canvas.rectangle(220, 20, 280, 70)]
    shapes += [canvas.ellipse(60, 150, 40, 24), canvas.bar(150, 140, 90, 14, 90), canvas.rectangle(220, 120, 260, 160)]
    colours = ["e01010", "2050d0", "ffd700", "32a032", "ffffff", "000000"]
    image = image_of(painted(*zip(shapes, colours, strict=True)), shapes)
    for id in image.regions:
        for other in image.regions:
            assert _verdict(image, other, _unique(image, id)).accepted == (id == other)


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ("A green disc.", "says green; its pixels are red"),
        ("A red disc on a green lawn.", None),
        ("A rectangular thing.", "says rectangular; its outline is that of a round patch"),
        ("A large disc.", "says large; it covers 2.1% of the image"),
        ("A striped or finely textured ball.", "says finely textured; its texture is smooth"),
        ("A bright ball.", "says bright; its lightness is 0.59 of 1"),
        ("A ball in the top right of the photo.", "says in the upper right of; it is on the left side of the image"),
        ("A round ball at the left of a grey wall.", None),
        ("A red ball within the image.", None),
        ("A RED ball,\n on the left side of the picture", None),
        ("A ball.", "says nothing that pixels could show"),
        ("", "says nothing that pixels could show"),
    ],
)
def test_verify_names_the_false_statement(canvas, painted, image_of, claim, reason):
    verdict = _verdict(_three_discs(canvas, painted, image_of), 1, claim)
    assert verdict.accepted == (reason is None)
    assert reason is None or verdict.reason == reason


def test_verify_checks_claims_on_the_parent_against_the_parent(canvas, painted, image_of):
    plate, spot = canvas.ellipse(150, 100, 80), canvas.ellipse(115, 65, 15)
    image = image_of(painted((plate, "2050d0"), (spot, "ffffff")), [plate, spot])
    assert _verdict(image, 2, "A white spot in the upper left of the blue area.").accepted
    assert _verdict(image, 2, "A white spot in the upper left of the green area.").reason == (
        "of what it is part of, says green; its pixels are blue"
    )
    assert not _verdict(image, 2, "A white spot in the lower right of the blue area.").accepted


def test_verify_later_sentences_may_describe_parts(canvas, painted, image_of):
    plate, spot = canvas.ellipse(150, 100, 80), canvas.ellipse(115, 65, 15)
    image = image_of(painted((plate, "2050d0"), (spot, "ffffff")), [plate, spot])
    assert _verdict(image, 1, "A blue area. It holds a white patch.").accepted
    assert not _verdict(image, 1, "A blue area. It holds a yellow patch.").accepted


def test_verify_checks_coordinates(canvas, painted, image_of):
    image = _three_discs(canvas, painted, image_of)
    said = "The red patch that covers {} pixels around the point {}% from the left and 50% from the top of the image."
    assert _verdict(image, 1, said.format(image.masks[1].area_px, 17)).accepted
    assert not _verdict(image, 1, said.format(image.masks[1].area_px, 50)).accepted
    assert not _verdict(image, 1, said.format(2 * image.masks[1].area_px, 17)).accepted


def test_annotator_captions_do_not_depend_on_the_order_of_calls(canvas, painted, image_of):
    image = _three_discs(canvas, painted, image_of)

    async def ask(order):
        annotator = RuleBasedCaptioner()
        return {id: await annotator.unique_caption(image, id, caption="", lookalikes=()) for id in order}

    assert asyncio.run(ask([1, 2, 3])) == asyncio.run(ask([3, 1, 2]))


def test_annotator_concurrent_requests_measure_an_image_once(canvas, painted, image_of, monkeypatch):
    image = _three_discs(canvas, painted, image_of)
    measured = []

    def counted(image):
        measured.append(image)
        return measure_regions(image)

    monkeypatch.setattr("ureca.curation.rule_based.captioner.measure_regions", counted)

    async def ask():
        annotator = RuleBasedCaptioner()
        await asyncio.gather(
            *(annotator.short_caption(image, id, parent_caption=None, sibling_captions=()) for id in (1, 2, 3))
        )

    asyncio.run(ask())
    assert len(measured) == 1


def test_annotator_does_not_keep_an_image_alive(canvas, painted, image_of):
    annotator = RuleBasedCaptioner()
    image = _three_discs(canvas, painted, image_of)
    asyncio.run(annotator.short_caption(image, 1, parent_caption=None, sibling_captions=()))
    reference = weakref.ref(image)
    del image
    gc.collect()
    assert reference() is None


def test_annotator_mask_without_pixels_is_an_answer_error(canvas, painted, image_of):
    disc = canvas.ellipse(60, 50, 25)
    image = image_of(painted((disc, "e01010")), [disc, np.zeros_like(disc)])
    assert _short(image, 1)
    with pytest.raises(AnswerError, match="empty_mask: the mask of region 2 has no pixel"):
        _short(image, 2)


def test_annotator_three_hundred_regions_get_distinct_captions(image_of):
    rng = np.random.default_rng(0)
    masks = []
    for _ in range(300):
        mask = np.zeros((120, 160), bool)
        y, x = rng.integers(0, 115), rng.integers(0, 155)
        mask[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)] = True
        masks.append(mask)
    image = image_of(rng.integers(0, 256, (120, 160, 3)).astype(np.uint8), masks)
    _, _, final = asyncio.run(_walk(image, all_alike=True))
    assert len(set(final.values())) == 300
