"""Rendered scenes: nested masks, true and unique captions, chance that falls alike, splits apart."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scenes.worlds import rendering, renderings
from ureca.masks.tree import ROOT, MaskTree
from ureca.rng import Rng
from ureca.scenes.composition import SPLITS, USUAL, Contents, compose
from ureca.scenes.language import COLOURS, parse
from ureca.scenes.rendering import JITTER, LEAST_FRACTION, Rendering, render
from ureca.scenes.scene import resolve

GOLDEN = "7b8fa1dd924659c1b791727557ada0b86f1778ad77dcd0e73909d02eaee1f49e"
"""Hashes of three scenes drawn with NumPy 2.4 on x86-64, which other versions and machines must reproduce."""


@settings(max_examples=25, deadline=None)
@given(renderings)
def test_rendered_unique_captions_fit_their_region_only(rendering: Rendering) -> None:
    assert list(rendering.captions) == [region.id for region in rendering.scene.regions]
    for id, said in rendering.captions.items():
        assert parse(str(said.unique)) == said.unique
        assert resolve(str(said.unique), rendering.scene) == [id]
    assert len({str(said.unique) for said in rendering.captions.values()}) == len(rendering.captions)


@settings(max_examples=25, deadline=None)
@given(renderings)
def test_rendered_short_and_detailed_captions_are_true(rendering: Rendering) -> None:
    scene = rendering.scene
    for region in scene.regions:
        said = rendering.captions[region.id]
        fitting = resolve(str(said.short), scene)
        assert region.id in fitting
        assert region.id in resolve(str(said.detailed), scene)
        assert (said.short == said.detailed) == (not scene.children(region.id))
        if region.parent_id != ROOT:  # the top-down pass tells siblings apart
            assert [id for id in fitting if scene[id].parent_id == region.parent_id] == [region.id]


@settings(max_examples=25, deadline=None)
@given(renderings)
def test_rendered_masks_are_exactly_nested(rendering: Rendering) -> None:
    masks = {mask.id: mask.decode() for mask in rendering.annotations}
    height, width = rendering.pixels.shape[:2]
    times_covered = np.zeros((height, width), int)
    for region in rendering.scene.regions:
        mask = masks[region.id]
        assert mask.shape == (height, width)
        assert mask.sum() >= max(4, round(LEAST_FRACTION * mask.size))
        if region.parent_id == ROOT:
            times_covered += mask
        else:
            assert not (mask & ~masks[region.parent_id]).any()
            assert mask.sum() < masks[region.parent_id].sum()
        parts = [masks[child.id] for child in rendering.scene.children(region.id)]
        assert not parts or (np.sum(parts, axis=0) <= 1).all()
    assert (times_covered == 1).all()


@settings(max_examples=25, deadline=None)
@given(renderings)
def test_mask_tree_of_rendering_equals_scene(rendering: Rendering) -> None:
    tree = MaskTree.build(rendering.annotations)
    assert tree.parents == {region.id: region.parent_id for region in rendering.scene.regions}


@settings(max_examples=25, deadline=None)
@given(renderings)
def test_rendered_pixels_have_named_colours(rendering: Rendering) -> None:
    """A region without parts has one colour; a shade of it where it has a pattern, and a dark line at most."""
    for region in rendering.scene.regions:
        if not rendering.scene.children(region.id):
            pixels = rendering.pixels[rendering.annotations[region.id].decode()].astype(int)
            exact = (np.abs(pixels - COLOURS[region.colour]).max(axis=1) <= JITTER + 1).mean()
            assert exact == 1 or exact > 0.3
            if region.pattern == "plain":
                assert len(np.unique(pixels, axis=0)) <= 2


@settings(max_examples=25, deadline=None)
@given(renderings)
def test_rendered_hiding_region_touches_hidden_region(rendering: Rendering) -> None:
    hidden_by: dict[int, list[int]] = {region.id: [] for region in rendering.scene.regions}
    for region in rendering.scene.regions:
        assert not region.hides or region.parent_id == ROOT
        for id in region.hides:
            assert id < region.id, "what is in front comes later"
            hidden_by[id].append(region.id)
    for id, in_front in hidden_by.items():
        if len(in_front) == 1 and not hidden_by[in_front[0]]:  # else a third one may hide where they touch
            mask = np.pad(rendering.annotations[in_front[0]].decode(), 1)
            grown = mask | np.any([np.roll(mask, step, axis) for step in (1, -1) for axis in (0, 1)], axis=0)
            assert (grown & np.pad(rendering.annotations[id].decode(), 1)).any()


@pytest.fixture(scope="module")
def full_size() -> list[Rendering]:
    return [render("test", 5, number) for number in range(40)]


def test_rendered_scenes_have_levels_kinds_and_occlusion(full_size: list[Rendering]) -> None:
    for made in full_size:
        depths = Counter(sum(1 for _ in made.scene.ancestors(region)) for region in made.scene.regions)
        assert depths[0] >= 5 and depths[1] >= 3 and depths[2] >= 1
    assert sum(any(region.hides for region in made.scene.regions) for made in full_size) >= len(full_size) / 2
    kinds = [Counter(region.kind for region in made.scene.regions if region.size) for made in full_size]
    assert sum(max(count.values()) > 1 for count in kinds) >= len(full_size) * 3 / 4


def test_rendered_scenes_have_many_small_parts(full_size: list[Rendering]) -> None:
    """Four fifths of the details (parts of parts) are smaller than 0.5 % of the image, a quarter smaller than 0.1 %."""
    shares = [
        made.annotations[region.id].area_px / (448 * 448)
        for made in full_size
        for region in made.scene.regions
        if sum(1 for _ in made.scene.ancestors(region)) >= 2
    ]
    assert np.mean([share < 0.005 for share in shares]) >= 0.8
    assert np.mean([share < 0.001 for share in shares]) >= 0.25


def test_rendered_captions_use_whole_language(full_size: list[Rendering]) -> None:
    text = " ".join(str(said.unique) for made in full_size for said in made.captions.values())
    wanted = ("to the left of", "to the right of", "in front of", "behind", "leftmost", "middle", "rightmost", "with a")
    assert not [word for word in (*wanted, "small", "striped", "plain", *COLOURS) if word not in text]


def test_rendering_is_equal_on_every_machine() -> None:
    digest = hashlib.sha256()
    for split, (width, height) in zip(SPLITS, [(448, 448), (320, 224), (112, 112)], strict=True):
        made = render(split, 7, 3, width, height)
        digest.update(made.pixels.tobytes())
        for mask, said in zip(made.annotations, made.captions.values(), strict=True):
            digest.update(json.dumps([mask.rle, str(said.short), str(said.detailed), str(said.unique)]).encode())
    assert digest.hexdigest() == GOLDEN


@given(st.integers(0, 2**40), st.integers(0, 50))
@settings(deadline=None)
def test_composition_split_does_not_depend_on_object_order(seed: int, number: int) -> None:
    composition = compose(Rng(seed, number))
    turned = type(composition)(**{name: getattr(composition, name) for name in composition.__slots__})
    assert turned.split() == composition.split()
    backwards = {"objects": composition.objects[::-1]}
    fields = {name: getattr(composition, name) for name in composition.__slots__} | backwards
    assert type(composition)(**fields).split() == composition.split()


def test_rendered_splits_share_no_scene() -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for seed in (0, 1):
            for number in range(15):
                scene = rendering(split, seed, number, 112, 112).scene
                regions = sorted(
                    (region.kind, region.colour, region.pattern, str(region.size)) for region in scene.regions
                )
                content = repr(regions)
                assert content not in seen, (split, seen[content])
                seen[content] = split
    assert Counter(seen.values()) == dict.fromkeys(SPLITS, 30)


def test_render_of_too_small_image_raises_value_error() -> None:
    with pytest.raises(ValueError, match="at least 112 pixels, not 448 x 100"):
        render("train", 0, 0, 448, 100)


def test_rendered_scene_with_many_objects_has_so_many() -> None:
    made = render("test", 0, 0, 112, 112, contents=Contents(num_objects=(7, 8)))
    objects = [region for region in made.scene.regions if region.size is not None]
    assert len(objects) in (7, 8)
    assert all(
        resolve(str(made.captions[region.id].unique), made.scene) == [region.id] for region in made.scene.regions
    )


def test_unusual_background_has_no_colour_of_a_usual_one() -> None:
    def pairs(contents: Contents) -> set[tuple[str, str]]:
        drawn = [compose(Rng(5, number), contents) for number in range(300)]
        names = ("hills", "clouds", "ponds")
        found = {(name, colour) for one in drawn for name in names for colour in getattr(one, name)}
        return found | {(name, getattr(one, name)) for one in drawn for name in ("sky", "ground")}

    usual, unusual = pairs(USUAL), pairs(Contents(has_usual_colours=False))
    assert not usual & unusual
    assert len(usual | unusual) == 5 * len(COLOURS)
