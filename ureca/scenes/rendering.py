"""Scenes by number: the same split, seed, number and size give the same pixels, masks and captions anywhere."""

from dataclasses import dataclass
from itertools import combinations, count

import numpy as np
import numpy.typing as npt

from ureca.regions import ROOT, Annotations, Mask
from ureca.regions import rle as rle_codec
from ureca.scenes.canvas import Canvas
from ureca.scenes.captions import RegionCaptions, caption_scene
from ureca.scenes.composition import SPLITS, Split, compose
from ureca.scenes.dice import Dice
from ureca.scenes.painting import paint
from ureca.scenes.placement import place
from ureca.scenes.resolve import BESIDE_FRACTION
from ureca.scenes.scene import Region, Scene, attributes_of
from ureca.scenes.sprites import NONE

LEAST_SIDE_PX = 112


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rendering:
    """One scene, drawn and captioned.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        scene: its regions; ids from 0.
        annotations: the masks of the visible pixels of each region, whose ``extra`` describes the region.
        captions: by region id.
    """

    pixels: npt.NDArray[np.uint8]
    scene: Scene
    annotations: Annotations
    captions: dict[int, RegionCaptions]


def image_id(split: Split, seed: int, number: int) -> str:
    """The id of an image, which is also the stem of its files."""
    return f"{split}_{seed}_{number:06d}"


def render(split: Split, seed: int, number: int, width_px: int = 448, height_px: int = 448) -> Rendering:
    """Make the scene of this number.

    Args:
        split: what the scene is for; a composition (everything but the places) belongs to one split only.
        seed: of the whole set, not negative.
        number: of the image in the set, from 0.
        width_px, height_px: of the image, at least 112 each.

    Raises:
        ValueError: a number is out of range.
    """
    if min(width_px, height_px) < LEAST_SIDE_PX:
        raise ValueError(f"an image has sides of at least {LEAST_SIDE_PX} pixels, not {width_px} x {height_px}")
    attempts = (Dice(seed, SPLITS.index(split), number, attempt) for attempt in count())
    id = image_id(split, seed, number)
    return next(made for dice in attempts if (made := _attempt(split, id, width_px, height_px, dice)) is not None)


def _attempt(split: Split, id: str, width_px: int, height_px: int, dice: Dice) -> Rendering | None:
    """A scene; None: it is another split's, there is no place for all of it, or its regions cannot be told apart."""
    composition = compose(dice)
    if composition.split() != split:
        return None
    canvas = place(composition, width_px, height_px, dice)
    if canvas is None:
        return None
    scene, masks = _regions(canvas)
    if not _is_spread(scene) or (captions := caption_scene(scene, dice)) is None:
        return None
    return Rendering(paint(canvas, dice), scene, Annotations(masks, height_px, width_px, id, f"{id}.png"), captions)


def _regions(canvas: Canvas) -> tuple[Scene, tuple[Mask, ...]]:
    """The visible nodes as regions, and their masks."""
    height, width = canvas.labels.shape
    visible = [number for number, area_px in enumerate(canvas.regions_px()) if area_px > 0]
    ids = {NONE: ROOT} | {number: id for id, number in enumerate(visible)}
    members: dict[int, list[int]] = {number: [number] for number in visible}
    for number in reversed(visible):
        if (parent := canvas.nodes[number].parent) != NONE:
            members[parent] += members[number]
    regions, masks = [], []
    labels = np.ascontiguousarray(canvas.labels.T)  # run lengths go down the columns
    for number in visible:
        node = canvas.nodes[number]
        inside = np.zeros(len(canvas.nodes), np.bool_)
        inside[members[number]] = True
        pixels = np.zeros((width, height), np.bool_)
        window = canvas.windows[number][::-1]
        pixels[window] = inside[labels[window]]
        mask = Mask.from_array(ids[number], pixels.T)
        x, y, box_width, box_height = rle_codec.box_xywh(mask.rle)
        hides = tuple(ids[other] for front, other in canvas.hides if front == number)
        centre = (x + box_width / 2, y + box_height / 2)
        region = Region(mask.id, ids[node.parent], node.kind, node.colour, node.pattern, node.size, hides, centre)
        regions.append(region)
        masks.append(Mask(mask.id, mask.rle, mask.bbox_xywh, mask.area_px, extra=attributes_of(region)))
    return Scene(width, height, tuple(regions)), tuple(masks)


def _is_spread(scene: Scene) -> bool:
    """Whether of any two objects one is clearly further left."""
    centres = [region.centre_xy_px[0] for region in scene.regions if region.size is not None]
    return all(abs(a - b) >= BESIDE_FRACTION * scene.width_px for a, b in combinations(centres, 2))
