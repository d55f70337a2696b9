"""The second judgement of captions: claims, truth, and the choice of a region."""

import numpy as np
import pytest

from benchmarks import describe as bench
from ureca.masks.mask import Mask

HEIGHT, WIDTH = 100, 150


def seen(*boxes: tuple[int, int, int, int, tuple[int, int, int]]) -> list[bench.Seen]:
    """Regions that are rectangles: left, top, right, bottom, colour."""
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    masks = []
    for id, (left, top, right, bottom, colour) in enumerate(boxes):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[top:bottom, left:right] = True
        pixels[mask] = colour
        masks.append(Mask.from_array(id, mask))
    return [bench.Seen.of(pixels, mask) for mask in masks]


RED, BLUE = (210, 30, 30), (40, 60, 200)
ROW = [(10 + 30 * index, 40, 30 + 30 * index, 60, (RED, BLUE, RED)[index]) for index in range(3)]


@pytest.mark.parametrize(
    ("caption", "false"),
    [
        ("A red patch on the left side of the image. It holds a green patch.", []),
        ("A blue patch on the left side of the image.", ["blue"]),
        ("A red patch on the right side of the image.", ["on the right side of"]),
        ("A red patch, about a quarter of the image.", ["about a quarter of the image"]),
        ("A red patch in the lower part of the image.", ["in the lower part of"]),
        ("A red patch, about a thirtieth of the image, a tenth of the way across and halfway down.", []),
        (
            "A red patch, just over a tenth of the way across and just under a third of the way down.",
            ["just under a third of the way down"],
        ),
        ("A red patch, close to the right edge.", ["close to the right edge"]),
        ("A large smooth red line.", ["large", "line"]),
        ("A red patch at the top of the blue area.", []),
    ],
)
def test_false_claims_are_those_that_the_pixels_do_not_bear_out(caption: str, false: list[str]) -> None:
    assert sorted(bench.false_claims(caption, seen(*ROW)[0])) == sorted(false)


@pytest.mark.parametrize(
    ("caption", "chosen"),
    [
        ("A blue patch.", 1),
        ("A red patch.", None),
        ("A red patch on the right side of the image.", 2),
        ("The second red patch from the left.", 2),
        ("The leftmost red patch.", 0),
        ("A patch a third of the way across and halfway down.", 1),
        ("A patch just under a fifth of the way across.", 0),
        ("A patch halfway across and halfway down; it is blue.", 1),
        ("A red patch, left of the blue patch.", 0),
        ("A red patch, right of a blue patch.", 2),
        ("A red patch, above the blue patch.", None),
        ("A thing.", None),
    ],
)
def test_listen_chooses_the_only_region_that_fits_best(caption: str, chosen: int | None) -> None:
    assert bench.listen(caption, seen(*ROW)) == chosen


@pytest.mark.parametrize(("direction", "holds"), [("left of", True), ("right of", False), ("above", False)])
def test_relations_are_claims(direction: str, holds: bool) -> None:
    regions = seen(*ROW)
    caption = f"A red patch on the left side of the image, {direction} the blue patch."
    assert bench.false_claims(caption, regions[0], regions) == ([] if holds else [f"{direction} the blue patch"])


def test_bench_describe_of_scenes_meets_its_minima(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--scenes", "2"]) == 0
    assert "found among all regions" in capsys.readouterr().out
    assert bench.main(["--scenes", "1", "--min-found", "1.1"]) == 1
