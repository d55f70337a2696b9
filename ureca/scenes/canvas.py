"""The label map of a whole image, on which a sprite is placed only where everything stays recognisable."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ureca.scenes.sprites import NONE, Labels, Node, Sprite, totals_px

LEAST_FRACTION = 1e-4
"""The smallest region, as a share of the image."""

_LEAST_PX = 4
_VISIBLE_SHARE = 0.5
_HIDING_SHARE = 0.03
_CHILD_SHARE = 0.95

_NUM_BACKDROP = 2


def least_px(width_px: int, height_px: int) -> int:
    """Pixels of the smallest region in an image of this size."""
    return max(_LEAST_PX, round(LEAST_FRACTION * width_px * height_px))


class Canvas:
    """Sprites one in front of another.

    Args:
        width_px, height_px: of the image.
        horizon_px: rows of sky; all below is ground.
        sky, ground: the nodes 0 and 1.

    Attributes:
        labels: int16 [H, W], numbers of nodes, as in ``Sprite``.
        nodes: by number, parents before children, from back to front.
        windows: rows and columns of the image outside of which a node has no pixels, by number.
        hides: pairs of numbers of nodes without parent: the first hides something of the second.
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
        """Put a sprite in front of everything, cut off at the border of the image; False: it cannot be there.

        Of every node at least half must be visible, or nothing if it is a part; a sprite hides at least 3 % of another
        or nothing of it; a part is smaller than what it is a part of.
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
        parents = np.concatenate([self._parents, _parents(sprite.nodes, first)])
        own_px = np.concatenate([self._own_px - hidden_px, np.bincount(cut[inside], minlength=len(sprite.nodes))])
        visible_px = totals_px(own_px, parents)
        full_px = np.concatenate([self._full_px, visible_px[first:]])
        if not self._all_recognisable(visible_px, full_px, parents):
            return False
        self.hides += [(first, int(number)) for number in np.flatnonzero(hidden)]
        self.nodes += [replace(node, parent=int(parents[first + number])) for number, node in enumerate(sprite.nodes)]
        self.windows += [(rows, columns)] * len(sprite.nodes)
        window[inside] = cut[inside] + first
        self._parents, self._own_px, self._full_px = parents, own_px, full_px
        return True

    def regions_px(self) -> npt.NDArray[np.int64]:
        """Visible pixels of each node with its parts."""
        return totals_px(self._own_px, self._parents)

    def _all_recognisable(
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


def _parents(nodes: Sequence[Node], first: int) -> npt.NDArray[np.int64]:
    """Numbers of the parents of nodes that are numbered from ``first`` on."""
    parents = np.array([node.parent for node in nodes], np.int64)
    return np.where(parents == NONE, NONE, parents + first)
