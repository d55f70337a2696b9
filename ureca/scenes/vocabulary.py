"""The words of the language of scenes. Its rules are in ``language``, their meaning in ``resolve``."""

COLOURS = {
    "red": (214, 48, 49),
    "orange": (243, 146, 36),
    "yellow": (247, 216, 66),
    "green": (76, 166, 76),
    "turquoise": (64, 200, 190),
    "blue": (58, 110, 205),
    "purple": (132, 76, 176),
    "pink": (244, 150, 190),
    "brown": (134, 86, 50),
    "black": (44, 44, 50),
    "grey": (146, 150, 156),
    "white": (246, 246, 242),
}
"""sRGB of each colour; what is drawn differs from it by at most ``painting.JITTER`` a channel."""

PATTERNS = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "large")
ORDERS = ("leftmost", "middle", "rightmost", "highest", "lowest")

OF = "of"
LEFT_OF, RIGHT_OF = "to the left of", "to the right of"
IN_FRONT_OF, BEHIND = "in front of", "behind"
RELATIONS = (OF, LEFT_OF, RIGHT_OF, IN_FRONT_OF, BEHIND)

NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}

KINDS = {
    # objects
    "house": "houses",
    "car": "cars",
    "tree": "trees",
    "robot": "robots",
    "flower": "flowers",
    "balloon": "balloons",
    "rocket": "rockets",
    "tower": "towers",
    # background
    "sky": "skies",
    "ground": "grounds",
    "hill": "hills",
    "cloud": "clouds",
    "pond": "ponds",
    # parts and details
    "wall": "walls",
    "roof": "roofs",
    "chimney": "chimneys",
    "cap": "caps",
    "window": "windows",
    "skylight": "skylights",
    "door": "doors",
    "knob": "knobs",
    "body": "bodies",
    "cabin": "cabins",
    "handle": "handles",
    "lamp": "lamps",
    "wheel": "wheels",
    "hub": "hubs",
    "trunk": "trunks",
    "hole": "holes",
    "crown": "crowns",
    "apple": "apples",
    "head": "heads",
    "eye": "eyes",
    "mouth": "mouths",
    "arm": "arms",
    "hand": "hands",
    "leg": "legs",
    "panel": "panels",
    "button": "buttons",
    "blossom": "blossoms",
    "heart": "hearts",
    "stem": "stems",
    "leaf": "leaves",
    "pot": "pots",
    "band": "bands",
    "envelope": "envelopes",
    "star": "stars",
    "rope": "ropes",
    "basket": "baskets",
    "badge": "badges",
    "nose": "noses",
    "fin": "fins",
    "flame": "flames",
    "core": "cores",
    "porthole": "portholes",
    "glass": "glasses",
    "shaft": "shafts",
    "lantern": "lanterns",
}
"""Plural by singular."""

BACKDROP = ("sky", "ground")
"""Kinds that have no place: they are all around, and in no relation to anything."""
