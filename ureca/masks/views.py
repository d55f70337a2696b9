"""Views of a region for an MLLM (paper, stages 2 to 4).

The background is a Gaussian blur of sigma 100 px of the image; contours are 3 px wide in the view.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFilter, ImageFont

from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask

Pixels = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]

YELLOW = (255, 255, 0)
TARGET_BLUE = (0, 64, 255)
_BLUR_SIGMA_PX = 100
_BLUR_SHRINK = 8  # so wide a blur has no detail that is lost at an eighth of the resolution


@dataclass(frozen=True)
class Box:
    """A box of whole pixels: columns left to right - 1, rows top to bottom - 1."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def around(cls, masks: Sequence[Mask]) -> "Box":
        """Compute the smallest box around masks, of which at least one must have a pixel."""
        boxes = [rle_codec.box_xywh(mask.rle) for mask in masks]
        boxes = [box for box in boxes if box[2] > 0]
        return cls(
            left=int(min(x for x, _, _, _ in boxes)),
            top=int(min(y for _, y, _, _ in boxes)),
            right=int(max(x + width for x, _, width, _ in boxes)),
            bottom=int(max(y + height for _, y, _, height in boxes)),
        )

    @property
    def rows_and_columns(self) -> tuple[slice, slice]:
        """Index that selects the box in an array [H, W, ...]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Views:
    """Renderer of the views of one image's masks; every view is uint8 RGB [h, w, 3] with max(h, w) <= max_side_px.

    The image is blurred at most once, when the first view needs it. Views may be rendered on several threads.

    Args:
        pixels: image, uint8 RGB [H, W, 3].
        masks: masks of the image by id; those that are drawn have at least one pixel.
        max_side_px: longest side of a view; larger crops are shrunk, smaller ones are unchanged.
    """

    def __init__(self, pixels: Pixels, masks: Mapping[int, Mask], *, max_side_px: int = 1024) -> None:
        if max_side_px < 1:
            raise ValueError(f"max_side_px is at least 1, not {max_side_px}")
        self.pixels = self._pixels = pixels
        self.masks = self._masks = masks
        self._max_side_px = max_side_px
        self._blurring = threading.Lock()

    def whole(self) -> Pixels:
        """Render the full image without contours: the global view of the verification."""
        return self._whole

    def whole_with_contour(self, id: int) -> Pixels:
        """Render the full image with the region's contour: a main object's first view, and the bottom-up view."""
        return self._outlined(self._whole, [(self._masks[id].decode(), YELLOW)])

    def crop(self, id: int) -> Pixels:
        """Render the crop of the region's box with everything outside of its mask blurred."""
        pixels, _ = self.crop_with_mask(id, max_side_px=self._max_side_px)
        return pixels

    def crop_with_mask(self, id: int, *, max_side_px: int) -> tuple[Pixels, BoolMask]:
        """Render the crop at another size, with the mask in it, bool [h, w], which has at least one pixel."""
        crop = Box.around([self._masks[id]]).rows_and_columns
        inside = self._masks[id].decode()[crop]
        pixels = _capped(self._blurred_outside(inside, crop), max_side_px)
        return pixels, _shrunk_mask(inside, pixels.shape[:2])

    def part_in_parent(self, id: int, parent: int) -> Pixels:
        """Render the crop of the parent, blurred outside of the parent, with the part's contour.

        A part may extend beyond its parent (containment is at least 0.8, not 1): its contour is cut at the crop.
        """
        crop = Box.around([self._masks[parent]]).rows_and_columns
        blurred = self._blurred_outside(self._masks[parent].decode()[crop], crop)
        return self._outlined(blurred, [(self._masks[id].decode()[crop], YELLOW)])

    def lookalikes(self, target: int, others: Sequence[int]) -> Pixels:
        """Render the crop around a region and its look-alikes, with contours and numbers; the target is 0 and blue."""
        ids = [target, *others]
        crop = Box.around([self._masks[id] for id in ids]).rows_and_columns
        # From magenta over red, yellow and green to cyan: no look-alike is as blue as the target.
        hues = np.linspace(-60, 180, len(others)) % 360
        colours = [TARGET_BLUE, *(ImageColor.getrgb(f"hsl({hue:.2f}, 100%, 45%)")[:3] for hue in hues)]
        inside = [self._masks[id].decode()[crop] for id in ids]
        # The target is drawn last, so that nothing covers its contour and its index.
        outlines = list(zip(inside, colours, strict=True))[::-1]
        drawn = self._outlined(self._pixels[crop], outlines)
        shrink_x, shrink_y = drawn.shape[1] / inside[0].shape[1], drawn.shape[0] / inside[0].shape[0]
        canvas = Image.fromarray(drawn)
        for index, (mask, colour) in zip(reversed(range(len(ids))), outlines, strict=True):
            column, row = _centre(mask)
            _write_index(canvas, index, (column * shrink_x, row * shrink_y), colour)
        return np.asarray(canvas)

    @cached_property
    def _whole(self) -> Pixels:
        return _capped(self._pixels, self._max_side_px)

    @cached_property
    def _blurred(self) -> Pixels:
        height, width = self._pixels.shape[:2]
        small = (max(1, height // _BLUR_SHRINK), max(1, width // _BLUR_SHRINK))
        blurred = _resized(Image.fromarray(self._pixels), small).filter(
            ImageFilter.GaussianBlur(_BLUR_SIGMA_PX / _BLUR_SHRINK)
        )
        return np.asarray(blurred.resize((width, height), Image.Resampling.BILINEAR))

    def _blurred_outside(self, inside: BoolMask, crop: tuple[slice, slice]) -> Pixels:
        with self._blurring:  # views are rendered on several threads
            background = self._blurred
        return np.where(inside[..., None], self._pixels[crop], background[crop])

    def _outlined(self, pixels: Pixels, outlines: Sequence[tuple[BoolMask, tuple[int, int, int]]]) -> Pixels:
        """Shrink to the size of the view, then draw contours, which are thus 3 px wide in the view."""
        drawn = _capped(pixels, self._max_side_px).copy()
        for inside, colour in outlines:
            drawn[_contour(_shrunk_mask(inside, drawn.shape[:2]))] = colour
        return drawn


def _capped(pixels: Pixels, max_side_px: int) -> Pixels:
    longest = max(pixels.shape[:2])
    if longest <= max_side_px:
        return pixels
    height, width = (max(1, round(side * max_side_px / longest)) for side in pixels.shape[:2])
    return np.asarray(_resized(Image.fromarray(pixels), (height, width)))


def _shrunk_mask(inside: BoolMask, size: tuple[int, ...]) -> BoolMask:
    """Resize a mask to (height, width); a mask too thin to fill half of any pixel keeps its fullest ones."""
    if inside.shape == size:
        return inside
    share = np.asarray(_resized(Image.fromarray(inside.astype(np.float32)), (size[0], size[1])))
    return (share > 0) & (share >= min(0.5, float(share.max())))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Shrink to (height, width) by averaging."""
    return image.resize((size[1], size[0]), Image.Resampling.BOX)


def _contour(inside: BoolMask) -> BoolMask:
    """Draw a line 3 px wide along the border of a mask [h, w]: one pixel outside, two inside; closed at the edge."""
    ring = np.zeros_like(inside)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if rows.size:  # only around the mask: a view can have many small ones
        box = slice(max(0, rows[0] - 1), rows[-1] + 2), slice(max(0, columns[0] - 1), columns[-1] + 2)
        near = inside[box]
        ring[box] = _dilated(near, 1) & ~_eroded(near, 2)
    return ring


def _dilated(inside: BoolMask, by_px: int) -> BoolMask:
    """Add every pixel within ``by_px`` rows and columns of the mask."""
    padded = np.pad(inside, by_px)
    shifts = range(2 * by_px + 1)
    rows: BoolMask = np.logical_or.reduce([padded[shift : shift + inside.shape[0]] for shift in shifts])
    grown: BoolMask = np.logical_or.reduce([rows[:, shift : shift + inside.shape[1]] for shift in shifts])
    return grown


def _eroded(inside: BoolMask, by_px: int) -> BoolMask:
    """Keep the pixels whose neighbours within ``by_px`` rows and columns are all in the mask and in the array."""
    return ~_dilated(np.pad(~inside, by_px, constant_values=True), by_px)[by_px:-by_px, by_px:-by_px]


def _centre(inside: BoolMask) -> tuple[float, float]:
    """Find column and row of the mask's pixel nearest to its centre of mass, so that it is inside even of a ring."""
    rows, columns = np.nonzero(inside)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return float(columns[nearest]), float(rows[nearest])


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def _write_index(canvas: Image.Image, index: int, centre: tuple[float, float], colour: tuple[int, int, int]) -> None:
    size = max(12, max(canvas.size) // 40)
    ImageDraw.Draw(canvas).text(
        centre,
        str(index),
        fill=colour,
        font=_font(size),
        anchor="mm",
        stroke_width=max(1, size // 8),
        stroke_fill=(255, 255, 255),
    )
