"""``ureca bench describe``: captions of the rule-based captioner, judged by other measures of the pixels than its own.

A listener gets a caption and all regions of its image, scores each region by each claim of the first sentence (colours,
shape, texture, size, extent, place in the image, what it is beside, rank among those that fit as well), and chooses the
best: the share of captions from which it finds the region. A second check tells which captions are true of their
region: no claim may be false. Colours are ranges of CIELAB's lightness, chroma and hue; outlines are measured with
OpenCV's contours, relations in a grid over the image.
"""

import argparse
import asyncio
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ureca.curation.curator import Curator, curate_regions
from ureca.curation.settings import TreeSettings
from ureca.image_limits import ImageLimits
from ureca.images import decode_image
from ureca.masks.annotations import read_annotations
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.mask import Mask
from ureca.masks.views import Box
from ureca.scenes.rendering import render

_TRUE = 0.5
"""Score from which a claim counts as true; scores go from 0, clearly false, to 1, clearly true."""

_MAX_SIDE_PX = 160
_GRID = 64

# Ranges of CIELAB: lightness, chroma and hue in degrees; a hue range may wrap around 360. Neighbours overlap.
_COLOURS = {
    "black": ((0, 35), (0, 16), (0, 360)),
    "grey": ((15, 88), (0, 16), (0, 360)),
    "white": ((78, 101), (0, 16), (0, 360)),
    "red": ((10, 75), (22, 200), (340, 55)),
    "orange": ((40, 90), (28, 200), (40, 85)),
    "brown": ((3, 65), (5, 60), (15, 100)),
    "beige": ((52, 98), (4, 48), (40, 112)),
    "yellow": ((50, 101), (25, 200), (75, 118)),
    "green": ((5, 98), (5, 200), (92, 185)),
    "turquoise": ((15, 98), (6, 200), (160, 250)),
    "blue": ((5, 98), (5, 200), (215, 310)),
    "purple": ((5, 90), (6, 200), (285, 358)),
    "pink": ((42, 98), (8, 200), (315, 45)),
}
_NUMBERS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8}
_NUMBERS |= {"ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12}
_EXTENTS = {
    "nearly all": 0.95,
    "three quarters": 0.75,
    "two thirds": 0.667,
    "three fifths": 0.6,
    "half": 0.5,
    "two fifths": 0.4,
    "a third": 0.333,
    "a quarter": 0.25,
    "a fifth": 0.2,
    "a sixth": 0.167,
    "an eighth": 0.125,
    "a tenth": 0.1,
    "a fifteenth": 0.067,
    "a twentieth": 0.05,
    "a thirtieth": 0.033,
    "a fiftieth": 0.02,
}


@dataclass(frozen=True)
class Seen:
    """Measures of a region.

    Attributes:
        centre: centre of mass, x and y as fractions of the image.
        box: left, top, right and bottom as fractions of the image.
        area: fraction of the image.
        lightness, chroma, hue_deg: CIELAB of the pixels inside, [N].
        filled_box: area over that of the smallest rectangle in any direction.
        filled_ellipse: area over that of the ellipse of equal moments, at most 1.
        elongation: longer over shorter side of that rectangle.
        angle_deg: direction of its longer side, 0 (horizontal) to 180.
        roughness: mean contrast of neighbouring pixels' lightness, 0 to 100.
        spread: standard deviation of the lightness.
        cells: bool [64, 64], the cells of a grid over the image in which it has pixels.
    """

    centre: tuple[float, float]
    box: tuple[float, float, float, float]
    area: float
    lightness: npt.NDArray[np.float64]
    chroma: npt.NDArray[np.float64]
    hue_deg: npt.NDArray[np.float64]
    filled_box: float
    filled_ellipse: float
    elongation: float
    angle_deg: float
    roughness: float
    spread: float
    cells: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, pixels: npt.NDArray[np.uint8], mask: Mask) -> "Seen":
        """Measure a region of an image, uint8 RGB [H, W, 3]."""
        height, width = pixels.shape[:2]
        box = Box.around([mask])
        whole = mask.decode().astype(np.uint8)
        inside = whole[box.rows_and_columns]
        rows, columns = np.nonzero(inside)
        step = max(1, max(inside.shape) // _MAX_SIDE_PX)
        crop = pixels[box.rows_and_columns][::step, ::step]
        small = inside[::step, ::step] > 0
        if not small.any():
            crop, small = pixels[box.rows_and_columns], inside > 0
        lab = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).astype(np.float64)
        lightness, a, b = lab[small].T
        points = np.stack([columns, rows], axis=1).astype(np.int32)
        (_, sides, angle) = cv2.minAreaRect(points)
        long, short = max(sides) + 1, min(sides) + 1
        variances = np.linalg.eigvalsh(np.cov(points.T.astype(float), bias=True) + np.eye(2) / 12)
        contrast = np.abs(np.diff(lab[..., 0], axis=1))[small[:, 1:] & small[:, :-1]]
        return cls(
            centre=((box.left + columns.mean() + 0.5) / width, (box.top + rows.mean() + 0.5) / height),
            box=(box.left / width, box.top / height, box.right / width, box.bottom / height),
            area=len(rows) / (height * width),
            lightness=lightness,
            chroma=np.hypot(a, b),
            hue_deg=np.degrees(np.arctan2(b, a)) % 360,
            filled_box=min(1.0, len(rows) / (long * short)),
            filled_ellipse=min(1.0, len(rows) / (4 * np.pi * float(np.sqrt(variances.prod())))),
            elongation=long / short,
            angle_deg=float(-angle if sides[0] >= sides[1] else 90 - angle) % 180,
            roughness=float(contrast.mean()) if contrast.size else 0.0,
            spread=float(lightness.std()),
            cells=cv2.resize(whole * 255, (_GRID, _GRID), interpolation=cv2.INTER_AREA) > 0,
        )


def _ramp(value: float, false: float, true: float) -> float:
    """Return 0 at ``false`` and beyond, 1 at ``true`` and beyond, linearly in between."""
    return float(np.clip((value - false) / (true - false), 0, 1))


def _colour(word: str, seen: Seen) -> float:
    *modifier, family = word.split()
    if family == "multicoloured":
        return _ramp(max(_share(name, seen)[0] for name in _COLOURS), 1.0, 0.6)
    share, lightness = _share(family, seen)
    score = _ramp(share, 0.05, 0.35)
    if modifier == ["dark"]:
        return min(score, _ramp(lightness, 72, 45))
    return min(score, _ramp(lightness, 35, 60)) if modifier == ["light"] else score


def _share(family: str, seen: Seen) -> tuple[float, float]:
    """Return the share of a region's pixels in a family, and their mean lightness."""
    bounds = _COLOURS[family]
    first, last = bounds[2]
    in_hue = (seen.hue_deg >= first) & (seen.hue_deg <= last)
    if first > last:
        in_hue = (seen.hue_deg >= first) | (seen.hue_deg <= last)
    inside = in_hue & (seen.lightness >= bounds[0][0]) & (seen.lightness <= bounds[0][1])
    inside &= (seen.chroma >= bounds[1][0]) & (seen.chroma <= bounds[1][1])
    return float(inside.mean()), float(seen.lightness[inside].mean()) if inside.any() else 0.0


def _near(value: float, third: int) -> float:
    low, high = ((0, 0.36), (0.36, 0.64), (0.64, 1))[third]
    return 1 - _ramp(max(low - value, value - high), 0.0, 0.2)


def _place(word: str, seen: Seen) -> float:
    x, y = seen.centre
    gaps = {"left": seen.box[0], "top": seen.box[1], "right": 1 - seen.box[2], "bottom": 1 - seen.box[3]}
    distances = {"left": x, "top": y, "right": 1 - x, "bottom": 1 - y}
    if edge := re.fullmatch(r"along the (\w+) edge of", word):
        return min(_ramp(gaps[edge[1]], 0.08, 0.03), _ramp(distances[edge[1]], 0.45, 0.3))
    if "all four edges" in word:
        return _ramp(max(gaps.values()), 0.08, 0.03)
    if word.startswith("covering"):
        return _ramp(seen.area, 0.4, 0.55) if "most" in word else _ramp(seen.area, 0.75, 0.9)
    column = 0 if "left" in word else 2 if "right" in word else 1
    row = 0 if "upper" in word or "top" in word else 2 if "lower" in word or "bottom" in word else 1
    return min(_near(x, column), _near(y, row))


def _extent(stated: float, seen: Seen) -> float:
    return _ramp(abs(np.log(seen.area / stated)), np.log(1.6), np.log(1.1))


def _on_the_way(match: re.Match[str], seen: Seen) -> float:
    x, y = seen.centre
    if match[4]:
        distance = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[match[4]]
        return _ramp(distance, 0.12, 0.05) if match[0].startswith("close") else _ramp(distance, 0.22, 0.12)
    if match[5]:
        offset = {"left of": 0.5 - x, "right of": x - 0.5, "above": 0.5 - y, "below": y - 0.5}[match[5]]
        return _ramp(abs(offset - 0.08), 0.12, 0.0)
    stated = _WAYS[match[2]] + {"over": 0.03, "under": -0.03}.get(match[1], 0)
    value = {"across": x, "down": y, "from the left": x, "from the right": 1 - x}[match[3]]
    return _ramp(abs(value - stated), 0.12, 0.0)


def _beside(direction: str, landmark: str, seen: Seen, regions: Sequence[Seen]) -> float:
    """Score a relation to the region that the name of the landmark fits best.

    Left of it is a cell from which one comes to the landmark on the way to the right, and does not on the way to the
    left.
    """
    attributes = [
        *(lambda other, word=match[0]: _colour(word, other) for match in _COLOUR.finditer(landmark)),
        *(score for word, score in _WORDS.items() if re.search(rf"\b{word}\b", landmark)),
    ]
    turned = {"left of": 0, "above": 1, "right of": 2, "below": 3}[direction]
    own = np.rot90(seen.cells, turned)
    best = 0.0
    for other in regions:
        if other is not seen:
            its = np.rot90(other.cells, turned)
            ahead = np.maximum.accumulate(its[:, ::-1], axis=1)[:, ::-1]
            passed = np.pad(np.maximum.accumulate(its, axis=1)[:, :-1], ((0, 0), (1, 0)))  # they share cells at borders
            share = float((own & ahead & ~passed).sum() / own.sum())
            best = max(best, min([_ramp(share, 0.2, 0.4), *(score(other) for score in attributes)]))
    return best


def _direction(angle_deg: float, seen: Seen) -> float:
    return _ramp(abs((seen.angle_deg - angle_deg + 90) % 180 - 90), 45, 20)


_WORDS: dict[str, Callable[[Seen], float]] = {
    "tiny": lambda seen: _ramp(seen.area, 0.01, 0.001),
    "small": lambda seen: _ramp(seen.area, 0.06, 0.02),
    "large": lambda seen: _ramp(seen.area, 0.08, 0.2),
    "round": lambda seen: min(_ramp(seen.elongation, 2, 1.4), _ramp(seen.filled_ellipse, 0.75, 0.9)),
    "oval": lambda seen: min(_ramp(seen.elongation, 4, 2.5), _ramp(seen.filled_ellipse, 0.75, 0.9)),
    "rectangular": lambda seen: _ramp(seen.filled_box, 0.55, 0.8),
    "square": lambda seen: min(_ramp(seen.filled_box, 0.55, 0.8), _ramp(seen.elongation, 2, 1.3)),
    "triangular": lambda seen: min(_ramp(seen.filled_box, 0.85, 0.65), _ramp(seen.filled_box, 0.3, 0.42)),
    "irregular": lambda seen: _ramp(seen.filled_ellipse, 0.98, 0.85),
    "strip": lambda seen: _ramp(seen.elongation, 1.2, 2),
    "line": lambda seen: _ramp(seen.elongation, 2, 5),
    "horizontal": lambda seen: _direction(0, seen),
    "vertical": lambda seen: _direction(90, seen),
    "slanting": lambda seen: max(_direction(45, seen), _direction(135, seen)),
    "smooth": lambda seen: _ramp(seen.roughness, 5, 1.5),
    "finely textured": lambda seen: _ramp(seen.roughness, 0.5, 2),
    "mottled": lambda seen: _ramp(seen.spread, 3, 7),
    "striped": lambda seen: _ramp(seen.spread, 2, 5),
}
_PLACES = (
    r"along the \w+ edge of|reaching all four edges of|covering (?:nearly all|most) of|in the (?:upper|lower) "
    r"(?:left|right|part)(?: corner)? of|at the (?:top|bottom) of|on the (?:left|right) side of|in the centre of"
)
_PLACE = re.compile(rf"\b({_PLACES}) the image\b")
_ELSEWHERE = re.compile(rf"\b(?:{_PLACES}|within|inside|part of) (?:the|that) (?!image)[^,.;]*")
_BESIDE = re.compile(r"(?<!upper )(?<!lower )\b(left of|right of|above|below) (?:the|an?) (?!image)([^,.;]+)")
_EXTENT = re.compile(rf"\babout (?:({'|'.join(_EXTENTS)})|([\d.]+)%) of the image")
_WAYS = {"a tenth": 0.1, "a fifth": 0.2, "a quarter": 0.25, "a third": 0.333, "two fifths": 0.4, "halfway": 0.5}
_WAYS |= {"three fifths": 0.6, "two thirds": 0.667, "three quarters": 0.75, "four fifths": 0.8, "nine tenths": 0.9}
_WAY = re.compile(
    rf"\b(?:just (over|under) )?({'|'.join(_WAYS)})(?: of the way)? (across|down|from the left|from the right)\b|"
    r"\b(?:close to|near) the (left|right|top|bottom) edge\b|\bslightly (left of|right of|above|below) centre\b"
)
_POINT = re.compile(r"(\d+)% from the left and (\d+)% from the top")
_COLOUR = re.compile(rf"\b(?:(?:dark|light) )?(?:{'|'.join(_COLOURS)})\b|\bmulticoloured\b")
_RANK = re.compile(
    rf"\b(?:(?P<extreme>leftmost|rightmost|topmost|lowest|largest|smallest|brightest|darkest)|"
    rf"(?P<number>{'|'.join(_NUMBERS)}|\d+(?:st|nd|rd|th))\b[^,.]*? from the (?P<side>left|right|top|bottom))\b"
)
_KEYS: dict[str, Callable[[Seen], float]] = {
    "left": lambda seen: seen.centre[0],
    "right": lambda seen: -seen.centre[0],
    "top": lambda seen: seen.centre[1],
    "bottom": lambda seen: -seen.centre[1],
    "leftmost": lambda seen: seen.centre[0],
    "rightmost": lambda seen: -seen.centre[0],
    "topmost": lambda seen: seen.centre[1],
    "lowest": lambda seen: -seen.centre[1],
    "largest": lambda seen: -seen.area,
    "smallest": lambda seen: seen.area,
    "brightest": lambda seen: -float(seen.lightness.mean()),
    "darkest": lambda seen: float(seen.lightness.mean()),
}


def claims(caption: str, regions: Sequence[Seen] = ()) -> Iterator[tuple[str, Callable[[Seen], float]]]:
    """Find the claims of a caption's first sentence on its region itself, each with its score.

    Args:
        caption: caption of a region.
        regions: all regions of the image, for relations; none: those are left out.
    """
    first = re.sub(r"(?<!\d)\. .*", "", caption.lower())
    for match in _BESIDE.finditer(first) if regions else ():
        yield match[0], lambda seen, match=match: _beside(match[1], match[2], seen, regions)  # type: ignore[misc]
    first = _BESIDE.sub(" ", first)
    for match in _PLACE.finditer(first):
        yield match[1], lambda seen, word=match[1]: _place(word, seen)  # type: ignore[misc]
    for match in _EXTENT.finditer(first):
        stated = _EXTENTS[match[1]] if match[1] else float(match[2]) / 100
        yield match[0], lambda seen, stated=stated: _extent(stated, seen)  # type: ignore[misc]
    for match in _POINT.finditer(first):
        x, y = int(match[1]) / 100, int(match[2]) / 100
        yield match[0], lambda seen, x=x, y=y: _ramp(np.hypot(seen.centre[0] - x, seen.centre[1] - y), 0.06, 0.01)  # type: ignore[misc]
    for match in _WAY.finditer(first):
        yield match[0], lambda seen, match=match: _on_the_way(match, seen)  # type: ignore[misc]
    own = _ELSEWHERE.sub(" ", _PLACE.sub(" ", _WAY.sub(" ", first)))
    for match in _COLOUR.finditer(own):
        yield match[0], lambda seen, word=match[0]: _colour(word, seen)  # type: ignore[misc]
    for word, score in _WORDS.items():
        if re.search(rf"\b{word}\b", own):
            yield word, score


def listen(caption: str, regions: Sequence[Seen]) -> int | None:
    """Choose the region that a caption fits best; None if there is no single one."""
    stated = list(claims(caption, regions))
    scores = np.array([sum(np.log(max(score(seen), 0.02)) for _, score in stated) for seen in regions])
    fitting = [index for index, score in enumerate(scores) if score >= scores.max() - np.log(2)]
    rank = _RANK.search(re.sub(r"(?<!\d)\. .*", "", caption.lower()))
    if rank and len(fitting) > 1:
        # The rank is among the regions that the noun phrase fits; all else must fit about as well as anywhere.
        head = list(claims(caption.split(",", maxsplit=1)[0]))
        alike = [index for index, seen in enumerate(regions) if all(score(seen) >= _TRUE for _, score in head)]
        alike.sort(key=lambda index: _KEYS[rank["extreme"] or rank["side"]](regions[index]))
        number = 1 if rank["extreme"] else _NUMBERS.get(rank["number"]) or int(rank["number"][:-2])
        if number <= len(alike) and alike[number - 1] in fitting:
            return alike[number - 1]
    best = int(scores.argmax())
    others = np.delete(scores, best)
    return best if not others.size or scores[best] > others.max() + 1e-6 else None


def false_claims(caption: str, seen: Seen, regions: Sequence[Seen] = ()) -> list[str]:
    """Return the claims of a caption that its region, among those of its image, does not bear out."""
    return [word for word, score in claims(caption, regions) if score(seen) < _TRUE]


def main(argv: Sequence[str]) -> int:
    """Caption the images and print both shares for each source.

    Returns:
        1 if a share is below its minimum, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="ureca bench describe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, help="folders of photographs NAME.jpg with masks NAME.json, as SA-1B has them"
    )
    parser.add_argument("--scenes", type=int, default=20, help="number of drawn scenes (default: %(default)s)")
    parser.add_argument("--segments", action="store_true", help="use masks by segments instead of the given ones")
    parser.add_argument("--min-found", type=float, default=0.85, help="least share of found regions (default 0.85)")
    parser.add_argument("--min-true", type=float, default=0.95, help="least share of true captions (default 0.95)")
    parser.add_argument("--show", type=int, default=0, help="number of missed and of false captions to print")
    options = parser.parse_args(argv)
    below = False
    for name, images in _sources(options):
        found = true = total = 0
        wrong: Counter[str] = Counter()
        shown = []
        for pixels, masks in images:
            settings = TreeSettings(min_area_fraction=0, max_area_fraction=1)
            rows = asyncio.run(curate_regions(pixels, masks, Curator(tree=settings)))
            rows = [row for row in rows if row["status"] == "ok"]
            by_id = {mask.id: mask for mask in masks}
            regions = [Seen.of(pixels, by_id[row["region_id"]]) for row in rows]
            for index, row in enumerate(rows):
                choice, false = listen(row["caption"], regions), false_claims(row["caption"], regions[index], regions)
                found, true, total = found + (choice == index), true + (not false), total + 1
                wrong.update(false)
                if choice != index or false:
                    other = None if choice is None else rows[choice]["caption"]
                    shown.append(f"  {row['caption']}\n    taken for: {other}; false: {', '.join(false) or 'nothing'}")
        if not total:
            continue
        print(f"{name}: {total} captions, {found / total:.1%} found among all regions, {true / total:.1%} true")
        print("  false: " + ", ".join(f"{word} {count}" for word, count in wrong.most_common(8)))
        print("\n".join(shown[: options.show]))
        below |= found / total < options.min_found or true / total < options.min_true
    return int(below)


def _sources(options: argparse.Namespace) -> Iterator[tuple[str, Iterator[tuple[npt.NDArray[np.uint8], list[Mask]]]]]:
    def photographs(folder: Path) -> Iterator[tuple[npt.NDArray[np.uint8], list[Mask]]]:
        for path in sorted(folder.glob("*.jpg")):
            pixels = decode_image(path.read_bytes(), ImageLimits())
            if options.segments:
                yield pixels, SegmentsMaskGenerator().generate(pixels)
            else:
                yield pixels, list(read_annotations(path.with_suffix(".json")))

    def scenes() -> Iterator[tuple[npt.NDArray[np.uint8], list[Mask]]]:
        for index in range(options.scenes):
            drawn = render("train", 0, index, 336, 336)
            yield drawn.pixels, list(drawn.annotations.masks)

    for folder in options.folders:
        yield folder.name, photographs(folder)
    yield "scenes", scenes()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
