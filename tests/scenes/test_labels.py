"""Labels of scenes, and the captions of the policy "shortest"."""

import numpy as np
import pytest

from ureca.masks.rle import decode
from ureca.scenes import Rendering, render, resolve
from ureca.scenes.captions import shortest_captions
from ureca.scenes.labels import SceneLabels, label_scene


def region_map_of(rendering: Rendering) -> "np.ndarray[tuple[int, int], np.dtype[np.int16]]":
    region_map = np.full(rendering.pixels.shape[:2], -1, np.int16)
    for mask in rendering.annotations:
        region_map[decode(mask.rle)] = mask.id
    return region_map


@pytest.fixture(scope="module", params=[0, 1, 2])
def drawn(request: pytest.FixtureRequest) -> tuple[Rendering, SceneLabels]:
    rendering = render("train", 3, request.param, 112, 112)
    return rendering, label_scene(rendering.scene, region_map_of(rendering))


def test_labels_equal_the_masks_and_their_boxes(drawn: tuple[Rendering, SceneLabels]) -> None:
    rendering, labels = drawn
    for region in rendering.scene.regions:
        mask = decode(rendering.annotations[region.id].rle)
        assert (labels.mask(region.id) == mask).all()
        assert labels.areas_px[region.id] == mask.sum()
        assert tuple(labels.boxes[region.id, :2]) == region.centre_xy_px


def test_labels_of_a_part_name_all_that_it_is_part_of(drawn: tuple[Rendering, SceneLabels]) -> None:
    rendering, labels = drawn
    for region in rendering.scene.regions:
        line = [region, *rendering.scene.ancestors(region)][::-1]
        assert labels.depths[region.id] == len(line) - 1
        assert labels.ancestors[region.id, : len(line)].tolist() == [one.id for one in line]
        assert (labels.words[region.id, len(line) :] == 0).all()


def test_counts_equal_those_by_resolve(drawn: tuple[Rendering, SceneLabels]) -> None:
    rendering, labels = drawn
    for region in rendering.scene.regions:
        top = [region, *rendering.scene.ancestors(region)][-1]
        assert labels.counts[region.id, 0, 0] == len(resolve(f"The {top.kind}.", rendering.scene))
        is_leftmost = labels.counts[region.id, 0, 1] == 0
        assert is_leftmost == (top.id in resolve(f"The leftmost {top.kind}.", rendering.scene))


def test_labels_of_a_mirrored_scene_exchange_left_and_right(drawn: tuple[Rendering, SceneLabels]) -> None:
    rendering, labels = drawn
    mirrored = label_scene(rendering.scene, region_map_of(rendering), mirrored=True)
    assert (mirrored.region_map == labels.region_map[:, ::-1]).all()
    assert (mirrored.counts[:, :, [0, 2, 1, 3, 4]] == labels.counts).all()
    assert (mirrored.places[:, [0, 2, 1, 3, 4, 5]] == labels.places).all()
    assert (mirrored.boxes[:, 0] == 112 - labels.boxes[:, 0]).all()


def test_shortest_captions_are_unique_and_deterministic(drawn: tuple[Rendering, SceneLabels]) -> None:
    scene = drawn[0].scene
    captions = shortest_captions(scene)
    assert all(resolve(captions[region.id], scene) == [region.id] for region in scene.regions)
    assert captions == shortest_captions(scene)


def test_shortest_captions_are_shorter_than_varied_ones(drawn: tuple[Rendering, SceneLabels]) -> None:
    rendering = drawn[0]
    shortest = shortest_captions(rendering.scene)
    words = {id: len(str(caption).split()) for id, caption in shortest.items()}
    varied = {id: len(str(captions.unique).split()) for id, captions in rendering.captions.items()}
    assert sum(words.values()) < sum(varied.values())
