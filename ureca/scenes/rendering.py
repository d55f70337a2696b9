"""Rendering of scenes: the same split, seed, number and size give the same pixels, masks and captions anywhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, count

import numpy as np
import numpy.typing as npt

from ureca.masks import rle as rle_codec
from ureca.masks.annotations import Annotations
from ureca.masks.mask import Mask
from ureca.masks.tree import ROOT
from ureca.rng import Rng
from ureca.scenes.blueprints import OBJECTS
from ureca.scenes.captions import RegionCaptions, caption_scene
from ureca.scenes.composition import SPLITS, USUAL, Composition, Contents, Object, Split, compose
from ureca.scenes.language import BACKDROP, COLOURS, PATTERNS
from ureca.scenes.scene import BESIDE_FRACTION, Scene, SceneRegion, attributes_of
from ureca.scenes.sprites import NONE, Labels, Node, Sprite, object_sprite, piece_sprite, totals_px

LEAST_SIDE_PX = 112


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rendering:
    """A drawn scene with its captions.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        scene: the regions, with ids from 0.
        annotations: masks of the visible pixels of each region, whose ``extra`` describes the region.
        captions: captions by region id.
    """

    pixels: npt.NDArray[np.uint8]
    scene: Scene
    annotations: Annotations
    captions: dict[int, RegionCaptions]


def image_id(split: Split, seed: int, number: int) -> str:
    """The id of an image, which is the stem of its files."""
    return f"{split}_{seed}_{number:06d}"


def render(
    split: Split, seed: int, number: int, width_px: int = 448, height_px: int = 448, *, contents: Contents = USUAL
) -> Rendering:
    """Render the scene with a number.

    Args:
        split: split of the scene; a composition (a scene without its placement) belongs to one split only.
        seed: seed of the whole set, at least 0.
        number: number of the image in the set, from 0.
        width_px, height_px: size of the image, at least 112 each.
        contents: range of its composition.

    Raises:
        ValueError: a number is out of range.
    """
    if min(width_px, height_px) < LEAST_SIDE_PX:
        raise ValueError(f"an image has sides of at least {LEAST_SIDE_PX} pixels, not {width_px} x {height_px}")
    attempts = (Rng(seed, SPLITS.index(split), number, attempt) for attempt in count())
    id = image_id(split, seed, number)
    return next(
        made
        for rng in attempts
        if (made := _attempt(split, id, width_px, height_px, rng, contents=contents)) is not None
    )


def _attempt(split: Split, id: str, width_px: int, height_px: int, rng: Rng, *, contents: Contents) -> Rendering | None:
    """A scene; None if its composition is of another split or does not fit, or a region has no unique caption."""
    composition = compose(rng, contents)
    if composition.split() != split:
        return None
    canvas = place(composition, width_px, height_px, rng)
    if canvas is None:
        return None
    scene, masks = _regions(canvas)
    if not _is_spread(scene) or (captions := caption_scene(scene, rng)) is None:
        return None
    return Rendering(paint(canvas, rng), scene, Annotations(masks, height_px, width_px, id, f"{id}.png"), captions)


def _regions(canvas: Canvas) -> tuple[Scene, tuple[Mask, ...]]:
    """The visible nodes as a scene, and their masks."""
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
        region = SceneRegion(mask.id, ids[node.parent], node.kind, node.colour, node.pattern, node.size, hides, centre)
        regions.append(region)
        masks.append(Mask(mask.id, mask.rle, mask.bbox_xywh, mask.area_px, extra=attributes_of(region)))
    return Scene(width, height, tuple(regions)), tuple(masks)


def _is_spread(scene: Scene) -> bool:
    """Return True if of any two objects one is clearly to the left of the other."""
    centres = [region.centre_xy_px[0] for region in scene.regions if region.size is not None]
    return all(abs(a - b) >= BESIDE_FRACTION * scene.width_px for a, b in combinations(centres, 2))


_MAX_TRIES = 30
_APART_FRACTION = 0.045
_HEIGHTS = {"small": (0.21, 0.25), "large": (0.36, 0.42)}
"""Ranges of the usual heights of objects, as shares of the image's shorter side."""


def place(composition: Composition, width_px: int, height_px: int, rng: Rng) -> Canvas | None:
    """Place the objects and the background at random, from back to front; None if they do not fit."""
    horizon = rng.uniform(0.42, 0.58)
    sky = Node(NONE, "sky", composition.sky, "plain")
    ground = Node(NONE, "ground", composition.ground, composition.ground_pattern)
    canvas = Canvas(width_px, height_px, int(horizon * height_px), sky, ground)
    if _place_background(canvas, composition, int(horizon * height_px), rng):
        feet = sorted((_foot(object, horizon, rng), index) for index, object in enumerate(composition.objects))
        centres_px: list[float] = []
        if all(_place_object(canvas, composition.objects[index], foot, centres_px, rng) for foot, index in feet):
            return canvas
    return None


def _place_background(canvas: Canvas, composition: Composition, horizon_px: int, rng: Rng) -> bool:
    height_px, width_px = canvas.labels.shape
    pieces = [("cloud", colour, (0.16, 0.3), (0.07, 0.13)) for colour in composition.clouds]
    pieces += [("hill", colour, (0.4, 0.8), (0.08, 0.2)) for colour in composition.hills]
    pieces += [("pond", colour, (0.2, 0.4), (0.05, 0.09)) for colour in composition.ponds]
    forms = {"cloud": "cloud", "hill": "slope", "pond": "ellipse"}
    for kind, colour, widths, heights in pieces:
        piece_width, piece_height = rng.uniform(*widths) * width_px, rng.uniform(*heights) * height_px
        sprite = piece_sprite(Node(NONE, kind, colour, "plain"), forms[kind], piece_width, piece_height)
        height, width = sprite.labels.shape
        tops = {
            "cloud": (0.02 * height_px, 0.6 * horizon_px),
            "hill": (horizon_px - height, horizon_px - height),
            "pond": (horizon_px + 0.02 * height_px, 0.97 * height_px - height),
        }
        lefts = (-0.3 * width, width_px - 0.7 * width)
        places = ((int(rng.uniform(*lefts)), int(rng.uniform(*tops[kind]))) for _ in range(_MAX_TRIES))
        if not any(canvas.place(sprite, left, top) for left, top in places):
            return False
    return True


def _foot(object: Object, horizon: float, rng: Rng) -> float:
    """The vertical position of an object's lower end, as a share of the image's height from its top."""
    return rng.uniform(0.3, horizon) if OBJECTS[object.kind].flies else rng.uniform(horizon + 0.06, 0.98)


def _place_object(canvas: Canvas, object: Object, foot: float, centres_px: list[float], rng: Rng) -> bool:
    """Place an object with its centre apart from ``centres_px``, and append the centre; False if there is no place."""
    image_height, image_width = canvas.labels.shape
    blueprint = OBJECTS[object.kind]
    height = rng.uniform(*_HEIGHTS[object.size]) * blueprint.height * min(image_width, image_height)
    sprite = object_sprite(object, height * blueprint.aspect, height, least_px(image_width, image_height))
    sprite_height, sprite_width = sprite.labels.shape
    top = min(max(0, int(foot * image_height) - sprite_height), image_height - sprite_height)
    if sprite_width > image_width or top < 0:
        return False
    for _ in range(_MAX_TRIES):
        left = rng.integer(0, image_width - sprite_width)
        centre_px = left + sprite_width / 2
        apart = all(abs(centre_px - other) >= _APART_FRACTION * image_width for other in centres_px)
        if apart and canvas.place(sprite, left, top):
            centres_px.append(centre_px)
            return True
    return False


LEAST_FRACTION = 1e-4
"""Area of the smallest region, as a share of the image."""

_LEAST_PX = 4
_VISIBLE_SHARE = 0.5
_HIDING_SHARE = 0.03
_CHILD_SHARE = 0.95

_NUM_BACKDROP = 2


def least_px(width_px: int, height_px: int) -> int:
    """Number of pixels of the smallest region in an image of this size."""
    return max(_LEAST_PX, round(LEAST_FRACTION * width_px * height_px))


class Canvas:
    """The label map of a whole image, on which sprites are placed in front of each other if all remain recognizable.

    Args:
        width_px, height_px: size of the image.
        horizon_px: number of rows of sky; the rows below are ground.
        sky, ground: the nodes 0 and 1.

    Attributes:
        labels: number of the node of each pixel, int16 [H, W], as in ``Sprite``.
        nodes: nodes by number, parents before children, from back to front.
        windows: rows and columns that contain all pixels of a node, by number.
        hides: pairs of numbers of top-level nodes, the first of which hides something of the second.
    """

    def __init__(self, width_px: int, height_px: int, horizon_px: int, sky: Node, ground: Node) -> None:
        self.labels: Labels = np.ones((height_px, width_px), np.int16)
        self.labels[:horizon_px] = 0
        self.nodes: list[Node] = [sky, ground]
        self.windows = [(slice(0, horizon_px), slice(0, width_px)), (slice(horizon_px, height_px), slice(0, width_px))]
        self.hides: list[tuple[int, int]] = []
        self._parents = np.full(_NUM_BACKDROP, NONE, np.int64)
        self._least_px = least_px(width_px, height_px)
        self._own_px = np.array([horizon_px * width_px, (height_px - horizon_px) * width_px], np.int64)
        self._full_px = self._own_px

    def place(self, sprite: Sprite, left: int, top: int) -> bool:
        """Place a sprite in front of all others, clipped to the image, if the scene remains recognizable.

        At least half of every node must remain visible, or nothing of it if it is a part; a sprite hides at least 3 %
        of another sprite or nothing; a part is smaller than its parent.

        Returns:
            True if the sprite was placed.
        """
        sprite_height, sprite_width = sprite.labels.shape
        rows, columns = slice(max(0, top), top + sprite_height), slice(max(0, left), left + sprite_width)
        window = self.labels[rows, columns]
        cut = sprite.labels[rows.start - top :, columns.start - left :][: window.shape[0], : window.shape[1]]
        inside = cut != NONE

        first = len(self.nodes)
        hidden_px = np.bincount(window[inside], minlength=first).astype(np.int64)
        hidden_share = totals_px(hidden_px, self._parents) / np.maximum(self._full_px, 1)
        hidden_share[:_NUM_BACKDROP] = 0
        hidden = (hidden_share > 0) & (self._parents == NONE)
        if (hidden_share[hidden] < _HIDING_SHARE).any():
            return False
        sprite_parents = np.array([node.parent for node in sprite.nodes], np.int64)
        sprite_parents = np.where(sprite_parents == NONE, NONE, sprite_parents + first)
        parents = np.concatenate([self._parents, sprite_parents])
        own_px = np.concatenate([self._own_px - hidden_px, np.bincount(cut[inside], minlength=len(sprite.nodes))])
        visible_px = totals_px(own_px, parents)
        full_px = np.concatenate([self._full_px, visible_px[first:]])
        if not self._are_recognizable(visible_px, full_px, parents):
            return False
        self.hides += [(first, int(number)) for number in np.flatnonzero(hidden)]
        self.nodes += [replace(node, parent=int(parents[first + number])) for number, node in enumerate(sprite.nodes)]
        self.windows += [(rows, columns)] * len(sprite.nodes)
        window[inside] = cut[inside] + first
        self._parents, self._own_px, self._full_px = parents, own_px, full_px
        return True

    def regions_px(self) -> npt.NDArray[np.int64]:
        """Number of visible pixels of each node with its parts, [nodes]."""
        return totals_px(self._own_px, self._parents)

    def _are_recognizable(
        self,
        visible_px: npt.NDArray[np.int64],
        full_px: npt.NDArray[np.int64],
        parents: npt.NDArray[np.int64],
    ) -> bool:
        whole = parents == NONE
        seen = (visible_px >= _VISIBLE_SHARE * full_px) & (visible_px >= self._least_px)
        seen |= (visible_px == 0) & ~whole
        inner = ~whole & (visible_px > 0)
        seen[:_NUM_BACKDROP] = visible_px[:_NUM_BACKDROP] >= self._least_px
        return bool(seen.all() and (visible_px[inner] <= _CHILD_SHARE * visible_px[parents[inner]]).all())


JITTER = 8
"""Largest difference, of 255, between a node's colour and that of its word."""

_SHADE = 0.32
_BACKDROP_SHADE = 0.14
_OUTLINE = 0.45
_LEAST_OUTLINED_PX = 100
"""Outlines are drawn on the node behind, unless it is so small that too little of its colour would remain."""

_PERIOD_FRACTION = 0.036


def paint(canvas: Canvas, rng: Rng) -> npt.NDArray[np.uint8]:
    """Paint colours and patterns of the nodes, and a dark line between them, as uint8 RGB pixels [H, W, 3]."""
    labels = canvas.labels
    colours = np.array([COLOURS[node.colour] for node in canvas.nodes], np.float64)
    jitter = (rng.noise((len(canvas.nodes), 3)) - 127.5) * (JITTER / 127.5)
    colours = np.clip(colours + jitter, 0, 255)
    # Patterns are shades of the node's colour: darker for light colours, lighter for dark ones.
    towards = np.where(colours.mean(axis=1, keepdims=True) > 96, 0.0, 255.0)
    shade = np.array([[_BACKDROP_SHADE if node.kind in BACKDROP else _SHADE] for node in canvas.nodes])
    shades = colours + shade * (towards - colours)
    table = np.concatenate([colours, shades, colours * _OUTLINE]).astype(np.uint8)

    num_nodes = len(canvas.nodes)
    pattern_of_node = np.array([PATTERNS.index(node.pattern) for node in canvas.nodes], np.uint8)
    index = labels.astype(np.intp)
    if pattern_of_node.any():
        patterns = pattern_of_node[labels]
        for number, marks in enumerate(_marks(*labels.shape), start=1):
            index[(patterns == number) & marks] += num_nodes
    outline = _outline(labels) & (np.bincount(labels.ravel()) >= _LEAST_OUTLINED_PX)[labels]
    index[outline] = labels[outline] + 2 * num_nodes
    return table[index]


@lru_cache(maxsize=4)
def _marks(height: int, width: int) -> tuple[npt.NDArray[np.bool_], ...]:
    """The shaded pixels of each pattern after "plain", bool [height, width] each."""
    period = max(4, round(_PERIOD_FRACTION * min(height, width)))
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    stripes = np.broadcast_to(rows % period < period // 2, (height, width))
    down, across = rows % period - (period - 1) / 2, columns % period - (period - 1) / 2
    dots = down * down + across * across <= period * period / 10
    checks = (rows // (period // 2) + columns // (period // 2)) % 2 == 0
    return stripes, dots, checks


def _outline(labels: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    """Pixels beside a node that is in front of them, bool [H, W]."""
    outline = np.zeros(labels.shape, np.bool_)
    outline[:, :-1] |= labels[:, :-1] < labels[:, 1:]
    outline[:, 1:] |= labels[:, 1:] < labels[:, :-1]
    outline[:-1] |= labels[:-1] < labels[1:]
    outline[1:] |= labels[1:] < labels[:-1]
    return outline
