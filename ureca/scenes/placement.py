"""From a composition to a canvas: where everything stands, from back to front."""

from ureca.scenes.blueprints import OBJECTS
from ureca.scenes.canvas import Canvas, least_px
from ureca.scenes.composition import Composition, Object
from ureca.scenes.dice import Dice
from ureca.scenes.sprites import NONE, Node, object_sprite, piece_sprite

_TRIES = 30
_APART_FRACTION = 0.045
_HEIGHTS = {"small": (0.21, 0.25), "large": (0.36, 0.42)}
"""Usual heights of objects, as shares of the image's shorter side."""


def place(composition: Composition, width_px: int, height_px: int, dice: Dice) -> Canvas | None:
    """Find a place for everything; None: chance did not."""
    horizon = dice.between(0.42, 0.58)
    sky = Node(NONE, "sky", composition.sky, "plain")
    ground = Node(NONE, "ground", composition.ground, composition.ground_pattern)
    canvas = Canvas(width_px, height_px, int(horizon * height_px), sky, ground)
    if _place_background(canvas, composition, int(horizon * height_px), dice):
        feet = sorted((_foot(object, horizon, dice), index) for index, object in enumerate(composition.objects))
        centres_px: list[float] = []
        if all(_place_object(canvas, composition.objects[index], foot, centres_px, dice) for foot, index in feet):
            return canvas
    return None


def _place_background(canvas: Canvas, composition: Composition, horizon_px: int, dice: Dice) -> bool:
    height_px, width_px = canvas.labels.shape
    pieces = [("cloud", colour, (0.16, 0.3), (0.07, 0.13)) for colour in composition.clouds]
    pieces += [("hill", colour, (0.4, 0.8), (0.08, 0.2)) for colour in composition.hills]
    pieces += [("pond", colour, (0.2, 0.4), (0.05, 0.09)) for colour in composition.ponds]
    forms = {"cloud": "cloud", "hill": "slope", "pond": "ellipse"}
    for kind, colour, widths, heights in pieces:
        piece_width, piece_height = dice.between(*widths) * width_px, dice.between(*heights) * height_px
        sprite = piece_sprite(Node(NONE, kind, colour, "plain"), forms[kind], piece_width, piece_height)
        height, width = sprite.labels.shape
        tops = {
            "cloud": (0.02 * height_px, 0.6 * horizon_px),
            "hill": (horizon_px - height, horizon_px - height),
            "pond": (horizon_px + 0.02 * height_px, 0.97 * height_px - height),
        }
        lefts = (-0.3 * width, width_px - 0.7 * width)
        places = ((int(dice.between(*lefts)), int(dice.between(*tops[kind]))) for _ in range(_TRIES))
        if not any(canvas.place(sprite, left, top) for left, top in places):
            return False
    return True


def _foot(object: Object, horizon: float, dice: Dice) -> float:
    """The height at which an object stands or hovers, as a share of the image's from its top."""
    return dice.between(0.3, horizon) if OBJECTS[object.kind].flies else dice.between(horizon + 0.06, 0.98)


def _place_object(canvas: Canvas, object: Object, foot: float, centres_px: list[float], dice: Dice) -> bool:
    """Place an object with its centre apart from those before it, and add it to them."""
    image_height, image_width = canvas.labels.shape
    blueprint = OBJECTS[object.kind]
    height = dice.between(*_HEIGHTS[object.size]) * blueprint.height * min(image_width, image_height)
    sprite = object_sprite(object, height * blueprint.aspect, height, least_px(image_width, image_height))
    sprite_height, sprite_width = sprite.labels.shape
    top = min(max(0, int(foot * image_height) - sprite_height), image_height - sprite_height)
    if sprite_width > image_width or top < 0:
        return False
    for _ in range(_TRIES):
        left = dice.whole(0, image_width - sprite_width)
        centre_px = left + sprite_width / 2
        apart = all(abs(centre_px - other) >= _APART_FRACTION * image_width for other in centres_px)
        if apart and canvas.place(sprite, left, top):
            centres_px.append(centre_px)
            return True
    return False
