"""``ureca bench views``: views rendered at their own size, against rendering them at the photograph's size.

The image is drawn: uneven light, grain and nested ellipses. Both sides render the same views; the share of the pixels
that differ by more than rounding is printed. Then the image is curated with a chat model that answers at once, which
gives the CPU time of a question with its JPEG files, and the same at ten times the pixels.
"""

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from benchmarks.tree import random_masks
from ureca.curation.curator import Curator, curate_regions, select_regions
from ureca.curation.listener import PromptedListener
from ureca.curation.prompted import PromptedAnnotator
from ureca.curation.settings import PromptedConfig, PromptedListenerSettings, TreeSettings
from ureca.images import encode_jpeg
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.masks.mask import Mask
from ureca.masks.tree import MaskTree
from ureca.masks.views import YELLOW, Box, Colour, Views, mark_colours

Pixels = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]

_TREE = TreeSettings(min_area_fraction=0.002)
_NUM_LOOKALIKES = 8
_JPEG_QUALITY = 90
_ROUNDING = 2  # of 255
_MAX_DIFFERING = 0.001


class PlainViews:
    """Views rendered as their definition reads: every mask at the image's size, floating point, then shrinking.

    Crops smaller than ``Views.min_crop_px`` are not enlarged.
    """

    def __init__(self, pixels: Pixels, masks: Mapping[int, Mask], *, max_side_px: int = 1024) -> None:
        self._pixels = pixels
        self._masks = masks
        self._max_side_px = max_side_px
        height, width = pixels.shape[:2]
        small = Image.fromarray(pixels).resize((max(1, width // 8), max(1, height // 8)), Image.Resampling.BOX)
        blurred = small.filter(ImageFilter.GaussianBlur(100 / 8))
        self._blurred = np.asarray(blurred.resize((width, height), Image.Resampling.BILINEAR))

    def whole_with_contour(self, id: int) -> Pixels:
        """Render the full image with the region's contour."""
        return self._outlined(self._pixels, [(self._masks[id].decode(), YELLOW)])

    def crop(self, id: int) -> Pixels:
        """Render the crop of a region, blurred outside of its mask."""
        box = Box.around([self._masks[id]]).rows_and_columns
        return self._outlined(self._blurred_outside(id, box), [])

    def part_in_parent(self, id: int, parent: int) -> Pixels:
        """Render the crop of the parent, blurred outside of it, with the part's contour."""
        box = Box.around([self._masks[parent]]).rows_and_columns
        return self._outlined(self._blurred_outside(parent, box), [(self._masks[id].decode()[box], YELLOW)])

    def lookalikes(self, target: int, others: Sequence[int]) -> Pixels:
        """Render the crop around numbered regions."""
        ids = [target, *others]
        box = Box.around([self._masks[id] for id in ids]).rows_and_columns
        inside = [self._masks[id].decode()[box] for id in ids]
        outlines = list(zip(inside, mark_colours(len(ids)), strict=True))[::-1]
        drawn = self._outlined(self._pixels[box], outlines)
        canvas = Image.fromarray(drawn)
        size = max(12, max(canvas.size) // 40)
        font = ImageFont.load_default(size)
        for number, (mask, colour) in zip(reversed(range(len(ids))), outlines, strict=True):
            centre = _farthest_from_border(_shrunk_mask(mask, drawn.shape[:2]))
            is_light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 160
            ImageDraw.Draw(canvas).text(
                centre,
                str(number),
                fill=colour,
                font=font,
                anchor="mm",
                stroke_width=max(1, size // 8),
                stroke_fill=(0, 0, 0) if is_light else (255, 255, 255),
            )
        return np.asarray(canvas)

    def _blurred_outside(self, id: int, box: tuple[slice, slice]) -> Pixels:
        inside = self._masks[id].decode()[box]
        return np.where(inside[..., None], self._pixels[box], self._blurred[box])

    def _outlined(self, pixels: Pixels, outlines: Sequence[tuple[BoolMask, Colour]]) -> Pixels:
        longest = max(pixels.shape[:2])
        height, width = (
            side if longest <= self._max_side_px else max(1, round(side * self._max_side_px / longest))
            for side in pixels.shape[:2]
        )
        drawn = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
        for inside, colour in outlines:
            mask = _shrunk_mask(inside, (height, width))
            outside = np.pad(~mask, 2, constant_values=True)
            kept = ~ndimage.binary_dilation(outside, np.ones((5, 5)))[2:-2, 2:-2]
            drawn[ndimage.binary_dilation(mask, np.ones((3, 3))) & ~kept] = colour
        return drawn


def _shrunk_mask(inside: BoolMask, size: tuple[int, ...]) -> BoolMask:
    share = np.asarray(Image.fromarray(inside.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BOX))
    return (share > 0) & (share >= min(0.5, float(share.max())))


def _farthest_from_border(inside: BoolMask) -> tuple[int, int]:
    distances = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    rows, columns = np.nonzero(distances >= distances.max() - 0.5)
    centre_row, centre_column = (axis.mean() for axis in np.nonzero(inside))
    nearest = np.argmin(np.round((rows - centre_row) ** 2 + (columns - centre_column) ** 2, 3))
    return int(columns[nearest]), int(rows[nearest])


def photograph(height: int, width: int, masks: Sequence[Mask], seed: int) -> Pixels:
    """Draw an image with uneven light, grain and a colour for each mask, uint8 RGB [height, width, 3]."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cells in (3, 9, 27, 81):
        coarse = rng.normal(0, 40 / cells**0.5, (cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            image[..., channel] += np.asarray(layer)
    for mask in masks:
        box = Box.around([mask]).rows_and_columns
        image[box][mask.decode()[box]] += rng.uniform(-60, 60, 3).astype(np.float32)
    image += rng.normal(0, 6, image.shape[:2]).astype(np.float32)[..., None]
    return np.clip(image + 120, 0, 255).astype(np.uint8)


def _serialize(request: ChatRequest) -> bytes:
    parts = [
        part if isinstance(part, str) else base64.b64encode(encode_jpeg(part, _JPEG_QUALITY)).decode("ascii")
        for part in request.parts
    ]
    return json.dumps({"content": parts}).encode()


class _AnswersAtOnce:
    """A chat model whose answers cost nothing; it serializes the views of each request."""

    name = "answers-at-once"

    def __init__(self) -> None:
        self.num_questions = 0

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        await asyncio.to_thread(_serialize, request)
        self.num_questions += 1
        fields = (request.answer_schema or {}).get("properties", {})
        answers = {"caption": f"A thing of kind {self.num_questions}", "is_true": True, "choice": 0, "reason": ""}
        return ChatAnswer(json.dumps({key: value for key, value in answers.items() if key in fields}), 0, 0)


def main(argv: Sequence[str]) -> int:
    """Measure both sides and print their times and differences.

    Returns:
        1 if a view differs from the plain one by more than rounding, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="ureca bench views", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--height", type=int, default=1536, help="height of the image in pixels (default: %(default)s)")
    parser.add_argument("--width", type=int, default=2048, help="width of the image in pixels (default: %(default)s)")
    parser.add_argument("--masks", type=int, default=60, help="number of masks (default: %(default)s)")
    parser.add_argument("--regions", type=int, default=10, help="regions to render (default: %(default)s)")
    options = parser.parse_args(argv)
    masks = random_masks(options.masks, options.height, options.width, seed=0)
    pixels = photograph(options.height, options.width, masks, seed=0)
    largest = _compare(pixels, masks, options.regions)
    seconds, questions = _curate(pixels, masks)
    print(f"\na question of a curation, with JPEG        {seconds / questions:6.3f} CPU s ({questions} questions)")
    scale = 10**0.5
    size = round(options.height * scale), round(options.width * scale)
    large = np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    enlarged = [
        Mask.from_array(mask.id, np.asarray(Image.fromarray(mask.decode()).resize((size[1], size[0]), 0)))
        for mask in masks
    ]
    large_seconds, large_questions = _curate(large, enlarged)
    print(f"the same at {size[0]} x {size[1]}                {large_seconds / large_questions:6.3f} CPU s")
    print(f"ratio, at ten times the pixels             {large_seconds * questions / large_questions / seconds:6.1f}")
    captioners = []
    for image, its_masks in ((pixels, masks), (large, enlarged)):
        started = time.process_time()
        asyncio.run(curate_regions(image, its_masks, Curator(tree=_TREE)))
        captioners.append(time.process_time() - started)
    print(f"rule-based captions of the image           {captioners[0]:6.2f} CPU s")
    print(f"the same at ten times the pixels           {captioners[1]:6.2f} CPU s")
    print(f"ratio                                      {captioners[1] / captioners[0]:6.1f}")
    return int(largest > _MAX_DIFFERING)


def _compare(pixels: Pixels, masks: Sequence[Mask], num_regions: int) -> float:
    """Print the times of each view on both sides; returns the largest share of differing pixels of a view."""
    by_id = {mask.id: mask for mask in masks}
    tree = MaskTree.build(masks)
    main_objects, regions, _ = select_regions(tree, _TREE)
    regions = regions[:: max(1, len(regions) // num_regions)][:num_regions]
    others = {id: [other for other in regions if other != id][:_NUM_LOOKALIKES] for id in regions}
    parts = [id for id in regions if id not in main_objects]
    fast, plain = Views(pixels, by_id, min_crop_px=0), PlainViews(pixels, by_id)
    fast.crop(regions[0])  # shrinks and blurs the image, once for all views
    fast.whole()
    views: list[tuple[str, Sequence[int], Callable[[Views | PlainViews, int], Pixels]]] = [
        ("whole with contour", regions, lambda side, id: side.whole_with_contour(id)),
        ("crop", regions, lambda side, id: side.crop(id)),
        ("part in parent", parts, lambda side, id: side.part_in_parent(id, tree.parents[id])),
        (f"{_NUM_LOOKALIKES + 1} look-alikes", regions, lambda side, id: side.lookalikes(id, others[id])),
    ]
    print(f"{pixels.shape[0]} x {pixels.shape[1]}, {len(regions)} regions: CPU ms a view, share of differing pixels")
    largest = 0.0
    totals = [0.0, 0.0]
    for name, ids, render in views:
        milliseconds, rendered = [], []
        for side in (plain, fast):
            started = time.process_time()
            rendered.append([render(side, id) for id in ids])
            milliseconds.append(1000 * (time.process_time() - started) / max(1, len(ids)))
        pairs = zip(*rendered, strict=True)
        # A pixel of which almost exactly half lies inside may get the contour on one side only.
        differing = [float((np.abs(a.astype(int) - b).max(axis=-1) > _ROUNDING).mean()) for a, b in pairs]
        largest = max([largest, *differing])
        totals = [total + value for total, value in zip(totals, milliseconds, strict=True)]
        ratio = milliseconds[0] / max(milliseconds[1], 1e-9)
        both = f"plain {milliseconds[0]:7.1f}  now {milliseconds[1]:6.1f}  ratio {ratio:5.1f}"
        print(f"{name:<20} {both}  {max(differing, default=0.0):9.6f}")
    print(f"{'one of each':<20} plain {totals[0]:7.1f}  now {totals[1]:6.1f}  ratio {totals[0] / totals[1]:5.1f}")
    return largest


def _curate(pixels: Pixels, masks: Sequence[Mask]) -> tuple[float, int]:
    """Curate the image with all stages; returns CPU seconds and the number of questions."""
    model = _AnswersAtOnce()
    annotator = PromptedAnnotator(model, PromptedConfig())
    curator = Curator(
        annotator=annotator,
        tree=_TREE,
        verifier=annotator,
        listener=PromptedListener(model, PromptedListenerSettings()),
    )
    started = time.process_time()
    asyncio.run(curate_regions(pixels, masks, curator))
    return time.process_time() - started, model.num_questions
