"""The views: what is sharp, what is blurred, and where the contours run."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ImageFilter
from skimage.color import rgb2lab

from benchmarks.tree import random_masks
from benchmarks.views import PlainViews, photograph
from ureca.masks.mask import Mask
from ureca.masks.views import TARGET_BLUE, YELLOW, Box, Views, mark_colours

BoolMask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 120, 160


def rectangle(top: int, bottom: int, left: int, right: int, *size: int) -> BoolMask:
    """Rows top to bottom - 1, columns left to right - 1, in a picture of another size where one is given."""
    pixels = np.zeros(size or (HEIGHT, WIDTH), bool)
    pixels[top:bottom, left:right] = True
    return pixels


def noise(height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """Greys below 200, so that no pixel has the colour of a contour."""
    grey = np.random.default_rng(0).integers(0, 200, (height, width, 1), dtype=np.uint8)
    return np.repeat(grey, 3, axis=2)


def views_of(pixels: Pixels, *masks: BoolMask, max_side_px: int = 1024, min_crop_px: int = 0) -> Views:
    """Ids count from 0. Small crops are not enlarged unless a test asks for it: their pixels are those of the image."""
    by_id = {id: Mask.from_array(id, mask) for id, mask in enumerate(masks)}
    return Views(pixels, by_id, max_side_px=max_side_px, min_crop_px=min_crop_px)


def has_colour(view: Pixels, colour: tuple[int, int, int]) -> BoolMask:
    return np.asarray((view == colour).all(axis=2))


def of_an_index(view: Pixels) -> BoolMask:
    """The white border of an index: brighter than the noise, while every contour has a dark channel."""
    return np.asarray((view > 200).all(axis=2))


PARENT = rectangle(20, 100, 30, 130)
PART = rectangle(40, 80, 50, 90)
RING = PART & ~rectangle(55, 65, 65, 75)


class TestBoxes:
    def test_box_around_masks_covers_them(self) -> None:
        first, second = Mask.from_array(0, rectangle(3, 9, 5, 6)), Mask.from_array(1, rectangle(1, 4, 8, 20))
        assert Box.around([first]) == Box(left=5, top=3, right=6, bottom=9)
        assert Box.around([first, second]) == Box(left=5, top=1, right=20, bottom=9)
        assert Box.around([first]).rows_and_columns == (slice(3, 9), slice(5, 6))

    def test_box_around_an_empty_mask_ignores_it(self) -> None:
        empty = Mask.from_array(2, rectangle(0, 0, 0, 0))
        assert Box.around([empty, Mask.from_array(0, rectangle(3, 9, 5, 6))]) == Box(5, 3, 6, 9)

    def test_crop_ignores_the_box_of_the_file(self) -> None:
        drawn = Mask.from_array(0, PART)
        lying = Mask(0, drawn.rle, (0.0, 0.0, 5.0, 5.0), drawn.area_px)
        assert Views(noise(), {0: lying}, min_crop_px=0).crop(0).shape == (40, 40, 3)


class TestContours:
    def test_contour_is_three_pixels_wide_with_one_outside(self) -> None:
        pixels = noise()
        view = views_of(pixels, PART).whole_with_contour(0)
        expected = rectangle(39, 81, 49, 91) & ~rectangle(42, 78, 52, 88)
        np.testing.assert_array_equal(has_colour(view, YELLOW), expected)
        np.testing.assert_array_equal(view[~expected], pixels[~expected])

    def test_contour_at_the_image_edge_is_closed(self) -> None:
        view = views_of(noise(), rectangle(0, HEIGHT, 0, WIDTH)).whole_with_contour(0)
        expected = ~rectangle(2, HEIGHT - 2, 2, WIDTH - 2)
        np.testing.assert_array_equal(has_colour(view, YELLOW), expected)

    def test_contour_of_a_hole_is_drawn(self) -> None:
        yellow = has_colour(views_of(noise(), RING).whole_with_contour(0), YELLOW)
        assert yellow[55, 65:75].all()
        assert yellow[56:64, 66:74].sum() == 0

    def test_contour_of_a_shrunk_view_has_the_same_width(self) -> None:
        """3 px as the model sees them: the image is shrunk first, then the contour is drawn."""
        mask = rectangle(200, 800, 400, 1200, 1000, 1600)
        view = views_of(noise(1000, 1600), mask, max_side_px=160).whole_with_contour(0)
        assert view.shape == (100, 160, 3)
        expected = rectangle(19, 81, 39, 121, 100, 160) & ~rectangle(22, 78, 42, 118, 100, 160)
        np.testing.assert_array_equal(has_colour(view, YELLOW), expected)

    def test_contour_of_a_thin_line_in_a_shrunk_view_is_drawn(self) -> None:
        line = rectangle(0, 1000, 703, 704, 1000, 1600)
        view = views_of(noise(1000, 1600), line, max_side_px=160).whole_with_contour(0)
        yellow = has_colour(view, YELLOW)
        assert yellow[:, 69:72].all()
        assert yellow.sum() == 3 * 100

    def test_contour_of_one_pixel_in_a_shrunk_view_is_drawn(self) -> None:
        """Its share of a shrunk pixel is below one step of 8 bits."""
        dot = rectangle(1001, 1002, 501, 502, 2000, 2000)
        yellow = has_colour(views_of(noise(2000, 2000), dot, max_side_px=50).whole_with_contour(0), YELLOW)
        np.testing.assert_array_equal(yellow, rectangle(24, 27, 11, 14, 50, 50))


class TestCrops:
    @pytest.mark.parametrize("mask", [PART, RING], ids=["rectangle", "ring"])
    def test_crop_is_sharp_inside_and_blurred_outside(self, mask: BoolMask) -> None:
        pixels = noise()
        view = views_of(pixels, mask).crop(0)
        assert view.shape == (40, 40, 3)
        inside = mask[40:80, 50:90]
        np.testing.assert_array_equal(view[inside], pixels[40:80, 50:90][inside])
        if not inside.all():
            blurred = view[~inside].astype(int)
            assert np.ptp(blurred) < 40 < np.ptp(pixels[40:80, 50:90][~inside])

    def test_crop_background_is_the_blurred_image(self) -> None:
        """Left half dark, right half bright: a blur of sigma 100 px is brighter on the right, with no edge left."""
        pixels = np.zeros((400, 800, 3), np.uint8)
        pixels[:, 400:] = 255
        corners = rectangle(0, 1, 0, 1, 400, 800) | rectangle(399, 400, 799, 800, 400, 800)
        view = views_of(pixels, corners).crop(0)
        row = view[200, :, 0].astype(int)
        assert (np.diff(row) >= 0).all()
        assert np.diff(row).max() <= 3
        # The cumulative normal distribution, one and two standard deviations off the edge.
        np.testing.assert_allclose(
            row[[200, 300, 400, 500, 600]], 255 * np.array([0.023, 0.159, 0.5, 0.841, 0.977]), atol=8
        )

    def test_crop_with_mask_shrinks_both(self) -> None:
        pixels, mask = views_of(noise(), RING).crop_with_mask(0, max_side_px=20)
        assert (pixels.shape, mask.shape) == ((20, 20, 3), (20, 20))
        expected = ~rectangle(8, 12, 8, 12, 20, 20)
        expected[[7, 12], 7:13] = mask[[7, 12], 7:13]  # half covered pixels may go either way
        expected[7:13, [7, 12]] = mask[7:13, [7, 12]]
        np.testing.assert_array_equal(mask, expected)

    def test_crop_with_mask_of_tiny_regions_keeps_their_pixels(self) -> None:
        dots = rectangle(0, 1, 0, 1, 3000, 3000) | rectangle(2999, 3000, 2999, 3000, 3000, 3000)
        _, mask = views_of(np.zeros((3000, 3000, 3), np.uint8), dots).crop_with_mask(0, max_side_px=60)
        np.testing.assert_array_equal(np.argwhere(mask), [[0, 0], [59, 59]])

    def test_part_in_parent_shows_the_contour_in_the_parents_crop(self) -> None:
        pixels = noise()
        round_parent = PARENT & ~rectangle(20, 30, 30, 40)
        view = views_of(pixels, round_parent, PART).part_in_parent(1, 0)
        assert view.shape == (80, 100, 3)
        yellow = has_colour(view, YELLOW)
        expected = rectangle(39, 81, 49, 91) & ~rectangle(42, 78, 52, 88)
        np.testing.assert_array_equal(yellow, expected[20:100, 30:130])
        sharp = round_parent[20:100, 30:130] & ~yellow
        np.testing.assert_array_equal(view[sharp], pixels[20:100, 30:130][sharp])
        assert np.ptp(view[:10, :10].astype(int)) < 40

    def test_part_in_parent_beyond_the_parent_is_cut_off(self) -> None:
        part = rectangle(40, 80, 110, 140)
        yellow = has_colour(views_of(noise(), PARENT, part).part_in_parent(1, 0), YELLOW)
        expected = (rectangle(39, 81, 109, 141) & ~rectangle(42, 78, 112, 128))[20:100, 30:130]
        np.testing.assert_array_equal(yellow, expected)


class TestLookalikes:
    def several(self, count: int) -> list[BoolMask]:
        return [rectangle(20, 50, 10 + 40 * index, 40 + 40 * index, 80, 40 * count + 20) for index in range(count)]

    def colours_of(self, view: Pixels, masks: list[BoolMask]) -> list[tuple[int, ...]]:
        """Return the colour of each contour at the middle of its upper side; masks have the view's coordinates."""
        return [tuple(int(value) for value in view[1, int(np.flatnonzero(mask.any(axis=0)).mean())]) for mask in masks]

    def test_lookalikes_crops_the_union_with_the_target_in_blue(self) -> None:
        masks = self.several(3)
        view = views_of(noise(80, 140), *masks).lookalikes(1, [0, 2])
        assert view.shape == (30, 110, 3)
        colours = self.colours_of(view, [mask[20:50, 10:120] for mask in masks])
        assert colours[1] == TARGET_BLUE
        assert len(set(colours)) == 3

    def test_lookalikes_of_twenty_regions_have_distinct_colours(self) -> None:
        masks = self.several(20)
        view = views_of(noise(80, 820), *masks).lookalikes(0, list(range(1, 20)))
        colours = self.colours_of(view, [mask[20:50, 10:810] for mask in masks])
        assert len(set(colours)) == 20
        blue = np.array(colours[0])
        assert min(np.abs(np.array(other) - blue).sum() for other in colours[1:]) > 100

    def test_lookalikes_draws_the_target_last(self) -> None:
        outer, inner = rectangle(20, 60, 20, 60), rectangle(20, 60, 20, 60)
        view = views_of(noise(), outer, inner).lookalikes(1, [0])
        assert (view[0] == TARGET_BLUE).all()

    def test_lookalikes_indices_are_at_the_centres(self) -> None:
        masks = [rectangle(10, 60, 10, 60), rectangle(10, 60, 90, 140)]
        views = views_of(noise(), *masks)
        rows, columns = np.nonzero(of_an_index(views.lookalikes(0, [1])))
        centres = [columns < 65, columns >= 65]
        for near, column in zip(centres, (25, 105), strict=True):
            assert abs(rows[near].mean() - 25) < 3
            assert abs(columns[near].mean() - column) < 3

    def test_lookalikes_index_of_a_ring_is_on_the_ring(self) -> None:
        rows, columns = np.nonzero(of_an_index(views_of(noise(), RING).lookalikes(0, [])))
        assert np.hypot(rows.mean() - 20, columns.mean() - 20) > 4

    def test_lookalikes_index_in_a_narrow_view_is_inside(self) -> None:
        """A strip of 3 x 4000 is shrunk by more in one direction than in the other."""
        strip = rectangle(0, 4000, 0, 3, 4000, 3)
        marked = views_of(np.zeros((4000, 3, 3), np.uint8), strip, max_side_px=1000).lookalikes(0, [])
        assert marked.shape == (1000, 1, 3)
        index = np.flatnonzero((marked[:, 0] != TARGET_BLUE).any(axis=1))
        assert abs(index.mean() - 500) < 20

    def test_lookalikes_number_stands_farthest_from_the_border(self) -> None:
        """A long handle draws the centre of mass out of the wide end, but not the number."""
        pan = rectangle(40, 50, 10, 110) | rectangle(25, 65, 110, 150)
        rows, columns = np.nonzero(of_an_index(views_of(noise(), pan).lookalikes(0, [])))
        assert abs(rows.mean() - (45 - 25)) < 3
        assert abs(columns.mean() - (130 - 10)) < 5

    def test_lookalikes_number_of_a_region_at_the_images_edge_keeps_off_the_edge(self) -> None:
        rows, columns = np.nonzero(of_an_index(views_of(noise(), rectangle(0, 60, 0, 60)).lookalikes(0, [])))
        assert abs(rows.mean() - 30) < 3
        assert abs(columns.mean() - 30) < 3


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
COLOUR_VISION = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


class TestMarkColours:
    @pytest.mark.parametrize(("count", "between", "from_target"), [(9, 20, 40), (24, 12, 25)])
    @pytest.mark.parametrize("vision", COLOUR_VISION)
    def test_mark_colours_are_far_apart(self, vision: str, count: int, between: float, from_target: float) -> None:
        """In CIELAB, in which a difference of 2 is just visible and the primary colours are 100 apart."""
        seen = (np.array(mark_colours(count)) / 255) ** 2.2 @ COLOUR_VISION[vision].T
        lab = rgb2lab(np.clip(seen, 0, 1)[None] ** (1 / 2.2))[0]
        distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(count)
        assert distances.min() > between
        assert distances[0].min() > from_target

    @pytest.mark.parametrize("count", [1, 2, 24, 60])
    def test_mark_colours_begin_with_the_targets_blue_and_are_distinct(self, count: int) -> None:
        colours = mark_colours(count)
        assert colours[0] == TARGET_BLUE
        assert len(set(colours)) == count


class TestAgainstPlainViews:
    """The plain views decode every mask to the size of the image and shrink what they drew."""

    @pytest.mark.parametrize(("size", "max_side_px"), [((300, 400), 200), ((310, 397), 173), ((300, 400), 1024)])
    def test_views_equal_the_plain_ones_within_rounding(self, size: tuple[int, int], max_side_px: int) -> None:
        masks = random_masks(12, *size, seed=1)
        pixels = photograph(*size, masks, seed=1)
        by_id = {mask.id: mask for mask in masks}
        views = Views(pixels, by_id, max_side_px=max_side_px, min_crop_px=0)
        plain = PlainViews(pixels, by_id, max_side_px=max_side_px)
        for id in by_id:
            other = (id + 5) % len(by_id)
            pairs = [
                (views.whole_with_contour(id), plain.whole_with_contour(id)),
                (views.crop(id), plain.crop(id)),
                (views.part_in_parent(other, id), plain.part_in_parent(other, id)),
                (views.lookalikes(id, [other, (id + 7) % 12]), plain.lookalikes(id, [other, (id + 7) % 12])),
            ]
            for fast, slow in pairs:
                difference = np.abs(fast.astype(int) - slow).max(axis=-1)
                # A pixel of which almost exactly half lies inside may be in the contour of one side only.
                assert (difference > 2).mean() <= 0.001

    def test_whole_of_a_large_image_is_its_average(self) -> None:
        pixels = photograph(300, 400, [], seed=2)
        view = views_of(pixels, PART, max_side_px=100).whole()
        expected = pixels.reshape(75, 4, 100, 4, 3).mean(axis=(1, 3))
        assert np.abs(view - expected).max() <= 1


class TestEnlarging:
    def test_small_crops_are_enlarged_before_contours_are_drawn(self) -> None:
        views = views_of(noise(), PARENT, PART, min_crop_px=400)
        shapes = [views.crop(0).shape, views.part_in_parent(1, 0).shape, views.lookalikes(0, [1]).shape]
        assert shapes == [(320, 400, 3)] * 3  # the parent's box is 80 x 100
        yellow = has_colour(views.part_in_parent(1, 0), YELLOW)
        rows, columns = np.flatnonzero(yellow.any(axis=1)), np.flatnonzero(yellow.any(axis=0))
        # Four times the part's place in the parent, and a line of 3 px, not of 12.
        np.testing.assert_allclose([rows[0], rows[-1], columns[0], columns[-1]], [79, 240, 79, 240], atol=1)
        assert yellow[160].sum() == 6

    def test_enlarged_crop_is_the_region_in_the_blurred_background(self) -> None:
        pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
        pixels[RING] = 200
        view = views_of(pixels, RING, min_crop_px=400).crop(0)
        assert view.shape == (400, 400, 3)
        assert (view[20:80, 20:380] == 200).all()
        assert (view[170:230, 170:230] < 90).all()

    def test_default_enlarges_crops_to_448_px(self) -> None:
        by_id = {0: Mask.from_array(0, PART), 1: Mask.from_array(1, PART)}
        views = Views(noise(), by_id)
        assert [view.shape for view in (views.crop(0), views.lookalikes(0, [1]))] == [(448, 448, 3)] * 2
        assert views.whole_with_contour(0).shape == (HEIGHT, WIDTH, 3)

    def test_enlarged_crops_stay_within_max_side(self) -> None:
        assert views_of(noise(), PART, max_side_px=100, min_crop_px=448).crop(0).shape == (100, 100, 3)

    def test_crop_with_mask_is_not_enlarged(self) -> None:
        pixels, mask = views_of(noise(), PART, min_crop_px=448).crop_with_mask(0, max_side_px=448)
        assert (pixels.shape, mask.shape) == ((40, 40, 3), (40, 40))

    def test_enlarged_contour_of_one_pixel_is_drawn(self) -> None:
        dot = rectangle(50, 51, 60, 61)
        views = views_of(noise(), PARENT, dot, min_crop_px=400)
        rows, columns = np.nonzero(has_colour(views.part_in_parent(1, 0), YELLOW))
        assert abs(rows.mean() - 4 * 30.5) < 3
        assert abs(columns.mean() - 4 * 30.5) < 3


class TestSizes:
    def render_all(self, views: Views) -> list[Pixels]:
        return [
            views.whole(),
            views.whole_with_contour(0),
            views.crop(0),
            views.part_in_parent(1, 0),
            views.lookalikes(0, [1]),
        ]

    @pytest.mark.parametrize("max_side_px", [1, 2, 7, 64])
    @pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (1, 300), (300, 1), (5, 5)])
    def test_views_never_exceed_max_side(self, max_side_px: int, shape: tuple[int, int]) -> None:
        everything = np.ones(shape, bool)
        for view in self.render_all(views_of(noise(*shape), everything, everything, max_side_px=max_side_px)):
            assert view.dtype == np.uint8
            assert max(view.shape[:2]) == min(max_side_px, max(shape))
            assert view.shape[2] == 3

    def test_views_below_max_side_are_not_enlarged(self) -> None:
        shapes = [view.shape[:2] for view in self.render_all(views_of(noise(), PARENT, PART))]
        assert shapes == [(HEIGHT, WIDTH), (HEIGHT, WIDTH), (80, 100), (80, 100), (80, 100)]

    def test_whole_is_the_unchanged_image(self) -> None:
        views = views_of(noise(), PART)
        views.whole_with_contour(0)
        np.testing.assert_array_equal(views.whole(), noise())

    def test_views_of_one_pixel_are_drawn(self) -> None:
        views = views_of(np.full((1, 1, 3), 7, np.uint8), np.ones((1, 1), bool), np.ones((1, 1), bool))
        assert [view.tolist() for view in self.render_all(views)[:4]] == [
            [[[7, 7, 7]]],
            [[list(YELLOW)]],
            [[[7, 7, 7]]],
            [[list(YELLOW)]],
        ]

    def test_views_with_max_side_below_one_raises(self) -> None:
        with pytest.raises(ValueError, match="max_side_px is at least 1"):
            views_of(noise(), PART, max_side_px=0)


class TestBackground:
    @pytest.fixture
    def num_blurs(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
        made: list[object] = []
        blur = ImageFilter.GaussianBlur

        def counted(*arguments: float) -> ImageFilter.GaussianBlur:
            made.append(arguments)
            return blur(*arguments)

        monkeypatch.setattr(ImageFilter, "GaussianBlur", counted)
        return lambda: len(made)

    def test_background_of_many_views_and_threads_is_blurred_once(self, num_blurs: Callable[[], int]) -> None:
        views = views_of(noise(), PARENT, PART, RING)
        with ThreadPoolExecutor(8) as threads:
            crops = list(threads.map(views.crop, [0, 1, 2] * 8))
        views.part_in_parent(1, 0)
        assert num_blurs() == 1
        for crop in crops[::3]:
            np.testing.assert_array_equal(crop, crops[0])

    def test_background_without_a_crop_is_not_blurred(self, num_blurs: Callable[[], int]) -> None:
        views = views_of(noise(), PARENT, PART)
        views.whole_with_contour(0)
        views.lookalikes(0, [1])
        assert num_blurs() == 0
