"""Views of a region for an MLLM (paper, stages 2 to 4).

The background is a Gaussian blur of sigma 100 px of the image; contours are 3 px wide in the view. Masks are decoded
and resized within their own boxes, and everything else happens at the size of the view, so that the cost of a view
hardly depends on the size of the photograph.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil, floor

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFilter, ImageFont

from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask

Pixels = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]
Colour = tuple[int, int, int]

YELLOW = (255, 255, 0)
TARGET_BLUE = (0, 64, 255)
MIN_CROP_PX = 448
"""Default of the longest side to which small crops are enlarged: the input of common vision encoders."""

_BLUR_SIGMA_PX = 100
_BLUR_SHRINK = 8  # so wide a blur has no detail that is lost at an eighth of the resolution

# Each is the farthest in CIELAB from all before it, for the worst of normal vision, protanopia, deuteranopia and
# tritanopia (Machado et al. 2009), among colours that nobody calls blue; twice as far from the target's as from others.
_MARK_CODES = (
    "0040ff d53c00 e08080 600000 ffe000 00ffe0 600060 c0ff80 000000 ff40c0 a04060 a0c060 "
    "e080ff a00000 c0a000 c04040 c000a0 ffff60 60c0a0 ffc040 8000a0 008080 800040 c08040"
)
_MARKS = [(code[0], code[1], code[2]) for code in map(bytes.fromhex, _MARK_CODES.split())]


def mark_colours(count: int) -> list[Colour]:
    """Return the colours of numbered marks, the target's blue first; the fewer, the farther apart.

    Up to 24 colours are distinct for readers with any colour vision; further ones go round the circle of hues.
    """
    hues = np.linspace(-60, 180, max(0, count - len(_MARKS))) % 360
    return [*_MARKS[:count], *(ImageColor.getrgb(f"hsl({hue:.2f}, 80%, 40%)")[:3] for hue in hues)]


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
    def height(self) -> int:
        """Number of rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.right - self.left

    @property
    def rows_and_columns(self) -> tuple[slice, slice]:
        """Index that selects the box in an array [H, W, ...]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Views:
    """Renderer of the views of one image's masks; every view is uint8 RGB [h, w, 3] with max(h, w) <= max_side_px.

    The image is shrunk and blurred at most once, when the first view needs it. Views may be rendered on several
    threads.

    Args:
        pixels: image, uint8 RGB [H, W, 3].
        masks: masks of the image by id; those that are drawn have at least one pixel.
        max_side_px: longest side of a view; larger crops are shrunk.
        min_crop_px: longest side to which smaller crops are enlarged, within max_side_px, before contours are drawn:
            contours hide less of a small region. The full image is never enlarged. 0: crops are not enlarged.

    Attributes:
        pixels, masks: the arguments.
    """

    def __init__(
        self,
        pixels: Pixels,
        masks: Mapping[int, Mask],
        *,
        max_side_px: int = 1024,
        min_crop_px: int = MIN_CROP_PX,
    ) -> None:
        if max_side_px < 1:
            raise ValueError(f"max_side_px is at least 1, not {max_side_px}")
        self.pixels = pixels
        self.masks = masks
        self._max_side_px = max_side_px
        self._min_crop_px = min(min_crop_px, max_side_px)
        self._boxes: dict[int, Box] = {}
        self._once = threading.Lock()

    def whole(self) -> Pixels:
        """Render the full image without contours: the global view of the verification and of uniqueness questions."""
        with self._once:  # views are rendered on several threads
            return self._whole

    def whole_with_contour(self, id: int) -> Pixels:
        """Render the full image with the region's contour: a main object's first view, and the bottom-up view."""
        drawn = self.whole().copy()
        self._draw_contour(drawn, id, self._image_box, YELLOW)
        return drawn

    def crop(self, id: int) -> Pixels:
        """Render the crop of the region's box with everything outside of its mask blurred."""
        box = self._box(id)
        return self._blurred_outside(id, self._size(box))

    def crop_with_mask(self, id: int, *, max_side_px: int) -> tuple[Pixels, BoolMask]:
        """Render the crop at most at another size, with the mask in it, bool [h, w], which has at least one pixel."""
        box = self._box(id)
        size = _capped(box, max_side_px)
        return self._blurred_outside(id, size), self._mask_in_view(id, box, size)

    def part_in_parent(self, id: int, parent: int) -> Pixels:
        """Render the crop of the parent, blurred outside of the parent, with the part's contour.

        A part may extend beyond its parent (containment is at least 0.8, not 1): its contour is cut at the crop.
        """
        box = self._box(parent)
        drawn = self._blurred_outside(parent, self._size(box))
        self._draw_contour(drawn, id, box, YELLOW)
        return drawn

    def lookalikes(self, target: int, others: Sequence[int]) -> Pixels:
        """Render the crop around a region and its look-alikes, with contours and numbers; the target is 0 and blue.

        Each number stands where the region is widest: at the point of the region that is farthest from its border.
        """
        ids = [target, *others]
        boxes = [self._box(id) for id in ids]
        union = Box(
            left=min(box.left for box in boxes),
            top=min(box.top for box in boxes),
            right=max(box.right for box in boxes),
            bottom=max(box.bottom for box in boxes),
        )
        drawn = self._resized_crop(union, self._size(union))
        # The target is drawn last, so that nothing covers its contour and its number.
        marks = list(zip(range(len(ids)), ids, mark_colours(len(ids)), strict=True))[::-1]
        drawn_masks = [self._draw_contour(drawn, id, union, colour) for _, id, colour in marks]
        canvas = Image.fromarray(drawn)
        for (number, _, colour), (inside, left, top) in zip(marks, drawn_masks, strict=True):
            x, y = _widest_point(inside)
            _write_number(canvas, number, (x + left, y + top), colour)
        return np.asarray(canvas)

    @property
    def _image_box(self) -> Box:
        return Box(0, 0, self.pixels.shape[1], self.pixels.shape[0])

    @cached_property
    def _whole(self) -> Pixels:
        return self._resized_crop(self._image_box, _capped(self._image_box, self._max_side_px))

    @cached_property
    def _small_blurred(self) -> Image.Image:
        """The blurred background at an eighth of the image's resolution."""
        height, width = self.pixels.shape[:2]
        small = (max(1, height // _BLUR_SHRINK), max(1, width // _BLUR_SHRINK))
        return _shrunk(self.pixels, small).filter(ImageFilter.GaussianBlur(_BLUR_SIGMA_PX / _BLUR_SHRINK))

    def _box(self, id: int) -> Box:
        if id not in self._boxes:
            self._boxes[id] = Box.around([self.masks[id]])
        return self._boxes[id]

    def _size(self, crop: Box) -> tuple[int, int]:
        """Compute height and width of the view of a crop."""
        longest = max(crop.height, crop.width)
        if longest < self._min_crop_px:
            scale = self._min_crop_px / longest
            return max(1, round(crop.height * scale)), max(1, round(crop.width * scale))
        return _capped(crop, self._max_side_px)

    def _resized_crop(self, crop: Box, size: tuple[int, int]) -> Pixels:
        """Crop the image and resize it to (height, width)."""
        pixels = self.pixels[crop.rows_and_columns]
        if pixels.shape[:2] == size:
            return pixels.copy()
        if size[0] < crop.height or size[1] < crop.width:
            return np.array(_shrunk(pixels, size))
        return np.array(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))

    def _blurred_outside(self, id: int, size: tuple[int, int]) -> Pixels:
        """Render the crop of a region at (height, width), with the blurred background outside of the mask.

        Where a pixel of the view lies partly inside, region and background are averaged by their shares.
        """
        import cv2

        crop = self._box(id)
        with self._once:
            blurred = self._small_blurred
        inside = rle_codec.decode_box(self.masks[id].rle, crop.left, crop.top, crop.right, crop.bottom)
        scale_x, scale_y = blurred.width / self.pixels.shape[1], blurred.height / self.pixels.shape[0]
        background_box = (crop.left * scale_x, crop.top * scale_y, crop.right * scale_x, crop.bottom * scale_y)
        pixels = self.pixels[crop.rows_and_columns]
        if size[0] < crop.height or size[1] < crop.width:
            background = np.asarray(
                blurred.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=background_box)
            ).astype(np.uint16)
            region = np.asarray(_shrunk(np.asarray(cv2.copyTo(pixels, inside), np.uint8), size)).astype(np.uint16)
            outside = np.uint16(255) - np.asarray(_shrunk(inside, size))[..., None]
            mixed = region + (outside * background + np.uint16(127)) // np.uint16(255)
            return np.minimum(mixed, 255).astype(np.uint8)
        background = np.array(blurred.resize((crop.width, crop.height), Image.Resampling.BILINEAR, box=background_box))
        composed = np.asarray(cv2.copyTo(pixels, inside, background), np.uint8)
        if composed.shape[:2] == size:
            return composed
        return np.array(Image.fromarray(composed).resize((size[1], size[0]), Image.Resampling.BICUBIC))

    def _draw_contour(
        self, drawn: Pixels, id: int, crop: Box, colour: Colour
    ) -> tuple[npt.NDArray[np.uint8], int, int]:
        """Draw a region's contour into the view of a crop.

        Returns:
            The region's mask of 0 and 1 with an empty border of 1 px, [h, w], and its left column and top row.
        """
        inside, left, top = self._box_in_view(id, crop, (drawn.shape[0], drawn.shape[1]))
        padded, left, top = np.pad(inside.view(np.uint8), 1), left - 1, top - 1
        rows = slice(max(0, top), min(drawn.shape[0], top + padded.shape[0]))
        columns = slice(max(0, left), min(drawn.shape[1], left + padded.shape[1]))
        ring = _contour(padded)[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        drawn[rows, columns][ring] = colour
        return padded, left, top

    def _mask_in_view(self, id: int, crop: Box, size: tuple[int, int]) -> BoolMask:
        """Resize the part of a mask in a crop to (height, width)."""
        mask = np.zeros(size, np.bool_)
        inside, left, top = self._box_in_view(id, crop, size)
        mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return mask

    def _box_in_view(self, id: int, crop: Box, size: tuple[int, int]) -> tuple[BoolMask, int, int]:
        """Resize a mask to its place in the view of a crop: the pixels of at least half of which lie inside.

        Only the mask's own box is decoded and resized. A mask too thin to fill half of any pixel keeps its fullest
        ones.

        Returns:
            Bool [h, w], empty if the mask lies outside of the crop, and its left column and top row in the view.
        """
        own = self._box(id)
        left, top = max(own.left, crop.left), max(own.top, crop.top)
        right, bottom = min(own.right, crop.right), min(own.bottom, crop.bottom)
        if right <= left or bottom <= top:
            return np.zeros((0, 0), np.bool_), 0, 0
        scale_x, scale_y = crop.width / size[1], crop.height / size[0]
        # The whole pixels of the view that the box touches, and what they cover of the image.
        x0, x1 = floor((left - crop.left) / scale_x), min(size[1], ceil((right - crop.left) / scale_x))
        y0, y1 = floor((top - crop.top) / scale_y), min(size[0], ceil((bottom - crop.top) / scale_y))
        source = Box(
            left=crop.left + floor(x0 * scale_x),
            top=crop.top + floor(y0 * scale_y),
            right=min(crop.right, crop.left + ceil(x1 * scale_x)),
            bottom=min(crop.bottom, crop.top + ceil(y1 * scale_y)),
        )
        inside = rle_codec.decode_box(self.masks[id].rle, source.left, source.top, source.right, source.bottom)
        if (scale_x, scale_y) == (1, 1):
            return inside > 0, x0, y0
        offset_x, offset_y = crop.left - source.left, crop.top - source.top
        part = (
            max(0.0, x0 * scale_x + offset_x),
            max(0.0, y0 * scale_y + offset_y),
            min(float(source.width), x1 * scale_x + offset_x),
            min(float(source.height), y1 * scale_y + offset_y),
        )
        method = Image.Resampling.BOX if scale_x > 1 or scale_y > 1 else Image.Resampling.BILINEAR
        share = np.asarray(Image.fromarray(inside).resize((x1 - x0, y1 - y0), method, box=part))
        if share.max() < 128:  # nowhere half inside; 8 bits may not even hold the shares
            exact = Image.fromarray(inside.astype(np.float32)).resize((x1 - x0, y1 - y0), method, box=part)
            share_exact = np.asarray(exact)
            return (share_exact > 0) & (share_exact >= share_exact.max()), x0, y0
        return share >= 128, x0, y0


def _capped(crop: Box, max_side_px: int) -> tuple[int, int]:
    """Compute height and width of a crop that is shrunk to a longest side, if it is longer."""
    longest = max(crop.height, crop.width)
    if longest <= max_side_px:
        return crop.height, crop.width
    return max(1, round(crop.height * max_side_px / longest)), max(1, round(crop.width * max_side_px / longest))


def _shrunk(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
    """Shrink to (height, width) by averaging."""
    return Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BOX)


def _contour(inside: npt.NDArray[np.uint8]) -> BoolMask:
    """Draw a line 3 px wide along the border of a mask [h, w] of 0 and 1: one pixel outside, two inside.

    The array has an empty border of one pixel, so that contours are closed at the edge of the view.
    """
    import cv2

    grown = cv2.dilate(inside, np.ones((3, 3), np.uint8))
    kept = cv2.erode(inside, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(grown != kept)


def _widest_point(inside: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Find the point (x, y) of a mask [h, w] of 0 and 1 that is farthest from its border; of several, the most central.

    The array has an empty border of one pixel.
    """
    import cv2

    distances = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    rows, columns = np.nonzero(distances >= distances.max() - 0.5)
    centre_y, centre_x = (cv2.moments(inside, binaryImage=True)[key] for key in ("m01", "m10"))
    area = max(1, int(np.count_nonzero(inside)))
    to_centre = (rows - centre_y / area) ** 2 + (columns - centre_x / area) ** 2
    nearest = np.argmin(np.round(to_centre, 3))  # rounded: of equally central points the first one, on every machine
    return int(columns[nearest]), int(rows[nearest])


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def _write_number(canvas: Image.Image, number: int, centre: tuple[int, int], colour: Colour) -> None:
    size = max(12, max(canvas.size) // 40)
    is_light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 160
    ImageDraw.Draw(canvas).text(
        centre,
        str(number),
        fill=colour,
        font=_font(size),
        anchor="mm",
        stroke_width=max(1, size // 8),
        stroke_fill=(0, 0, 0) if is_light else (255, 255, 255),
    )
