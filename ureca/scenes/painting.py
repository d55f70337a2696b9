"""From a label map to pixels."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ureca.scenes.canvas import Canvas
from ureca.scenes.dice import Dice
from ureca.scenes.vocabulary import BACKDROP, COLOURS, PATTERNS

JITTER = 8
"""By how much, of 255, the colour of an object may differ from its name's."""

_SHADE = 0.32
_BACKDROP_SHADE = 0.14
_OUTLINE = 0.45
_LEAST_OUTLINED_PX = 100
"""Lines lie on what is behind, and on nothing so small that too little of its own colour would be left."""

_PERIOD_FRACTION = 0.036


def paint(canvas: Canvas, dice: Dice) -> npt.NDArray[np.uint8]:
    """Pixels uint8 RGB [H, W, 3]: colours and patterns of the nodes, and a dark line between them."""
    labels = canvas.labels
    colours = np.array([COLOURS[node.colour] for node in canvas.nodes], np.float64)
    jitter = (dice.grain((len(canvas.nodes), 3)) - 127.5) * (JITTER / 127.5)
    colours = np.clip(colours + jitter, 0, 255)
    # Patterns are shades of the same colour, darker ones of light colours and lighter ones of dark colours.
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
    """Where the patterns after "plain" are shaded, bool [height, width] each."""
    period = max(4, round(_PERIOD_FRACTION * min(height, width)))
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    stripes = np.broadcast_to(rows % period < period // 2, (height, width))
    down, across = rows % period - (period - 1) / 2, columns % period - (period - 1) / 2
    dots = down * down + across * across <= period * period / 10
    checks = (rows // (period // 2) + columns // (period // 2)) % 2 == 0
    return stripes, dots, checks


def _outline(labels: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    """Pixels beside something that is in front of them."""
    outline = np.zeros(labels.shape, np.bool_)
    outline[:, :-1] |= labels[:, :-1] < labels[:, 1:]
    outline[:, 1:] |= labels[:, 1:] < labels[:, :-1]
    outline[:-1] |= labels[:-1] < labels[1:]
    outline[1:] |= labels[1:] < labels[:-1]
    return outline
