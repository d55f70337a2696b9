"""The label map of a whole image, on which a sprite is placed only where everything stays recognisable."""

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
        parents = np.array([*(node.parent for node in self.nodes), *_shifted_parents(sprite, first)], np.int64)
        hidden_px = np.bincount(window[inside], minlength=first).astype(np.int64)
        new_px = np.bincount(cut[inside], minlength=len(sprite.nodes)).astype(np.int64)
        own_px = np.concatenate([self._own_px - hidden_px, new_px])
        visible_px = totals_px(own_px, parents)
        full_px = np.concatenate([self._full_px, visible_px[first:]])
        hidden_share = totals_px(hidden_px, parents[:first]) / self._full_px

        on_top = [number for number in range(_NUM_BACKDROP, first) if parents[number] == NONE]
        if any(0 < hidden_share[number] < _HIDING_SHARE for number in on_top):
            return False
        if not self._all_recognisable(visible_px, full_px, parents):
            return False
        self.hides += [(first, number) for number in on_top if hidden_share[number] > 0]
        self.nodes += [
            Node(parent, node.kind, node.colour, node.pattern, node.size)
            for parent, node in zip(parents[first:].tolist(), sprite.nodes, strict=True)
        ]
        self.windows += [(rows, columns)] * len(sprite.nodes)
        window[inside] = cut[inside] + first
        self._own_px, self._full_px = own_px, full_px
        return True

    def regions_px(self) -> npt.NDArray[np.int64]:
        """Visible pixels of each node with its parts."""
        return totals_px(self._own_px, np.array([node.parent for node in self.nodes]))

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


def _shifted_parents(sprite: Sprite, by: int) -> list[int]:
    return [node.parent if node.parent == NONE else node.parent + by for node in sprite.nodes]
