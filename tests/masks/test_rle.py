"""Run lengths: round trips, every form that COCO has, and strings that no encoder wrote."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from ureca.masks import rle
from ureca.masks.mask import Mask
from ureca.masks.rle import Rle

BoolMask = npt.NDArray[np.bool_]

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=12)
MASKS = arrays.arrays(bool, SHAPES)


def runs_of(mask: BoolMask) -> list[int]:
    """Uncompressed counts, the slow way: outside first, in column order."""
    runs, inside = [0], False
    for pixel in mask.ravel(order="F").tolist():
        if pixel != inside:
            runs.append(0)
            inside = pixel
        runs[-1] += 1
    return runs


def read(counts: object, height: int = 3, width: int = 4) -> Rle:
    return rle.from_coco({"size": [height, width], "counts": counts}, height, width)


def pack(values: list[int]) -> str:
    """The compact string of stored values (runs, or differences from the fourth on), as pycocotools packs them."""
    text = ""
    for value in values:
        rest, more = value, True
        while more:
            group, rest = rest & 31, rest >> 5
            more = rest != (-1 if group & 16 else 0)
            text += chr(48 + (group | 32 if more else group))
    return text


class TestDecodeBox:
    @given(MASKS, st.data())
    def test_decode_box_is_the_crop_of_the_decoded_mask(self, mask: BoolMask, data: st.DataObject) -> None:
        height, width = mask.shape
        top, left = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
        bottom, right = data.draw(st.integers(top, height)), data.draw(st.integers(left, width))
        part = rle.decode_box(rle.encode(mask), left, top, right, bottom)
        assert part.dtype == np.uint8
        assert part.flags.c_contiguous
        np.testing.assert_array_equal(part, mask[top:bottom, left:right] * np.uint8(255))


class TestEncode:
    @given(MASKS)
    @example(np.zeros((1, 1), bool))
    @example(np.ones((1, 1), bool))
    @example(np.zeros((5, 7), bool))
    @example(np.ones((5, 7), bool))
    def test_encode_then_decode_round_trips(self, mask: BoolMask) -> None:
        decoded = rle.decode(rle.encode(mask))
        assert decoded.dtype == np.bool_
        assert decoded.flags.c_contiguous
        np.testing.assert_array_equal(decoded, mask)

    @given(arrays.arrays(st.sampled_from([np.uint8, np.int32, np.float64]), SHAPES, elements=st.integers(0, 3)))
    def test_encode_of_numbers_treats_nonzero_as_inside(self, numbers: npt.NDArray[Any]) -> None:
        np.testing.assert_array_equal(rle.decode(rle.encode(numbers)), numbers != 0)

    def test_encode_of_any_memory_layout_round_trips(self) -> None:
        mask = np.arange(60).reshape(6, 10) % 7 == 0
        for view in (mask.T, mask[::2, ::-1], np.asfortranarray(mask)):
            np.testing.assert_array_equal(rle.decode(rle.encode(view)), view)

    @pytest.mark.parametrize("shape", [(4,), (2, 3, 1), ()])
    def test_encode_of_other_dimensions_raises(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"\[height, width\]"):
            rle.encode(np.zeros(shape))

    @given(MASKS)
    def test_area_and_boxes_match_the_pixels(self, mask: BoolMask) -> None:
        encoded = rle.encode(mask)
        assert rle.area_px(encoded) == mask.sum()
        rows, columns = np.nonzero(mask)
        if not rows.size:
            assert rle.box_xywh(encoded) == rle.inclusive_box_xywh(encoded) == (0, 0, 0, 0)
            return
        x, y, right, bottom = columns.min(), rows.min(), columns.max(), rows.max()
        assert rle.inclusive_box_xywh(encoded) == (x, y, right - x, bottom - y)
        assert rle.box_xywh(encoded) == (x, y, right - x + 1, bottom - y + 1)

    @given(MASKS)
    def test_mask_from_array_computes_area_and_box(self, pixels: BoolMask) -> None:
        mask = Mask.from_array(7, pixels, predicted_iou=1.02, stability_score=0.9)
        np.testing.assert_array_equal(mask.decode(), pixels)
        assert (mask.height_px, mask.width_px) == pixels.shape
        assert mask.area_px == pixels.sum()
        assert mask.bbox_xywh == rle.inclusive_box_xywh(mask.rle)
        assert (mask.id, mask.predicted_iou, mask.stability_score) == (7, 1.02, 0.9)


class TestContainment:
    @given(arrays.arrays(bool, (5, 6)), arrays.arrays(bool, (5, 6)))
    def test_containment_in_matches_the_pixels(self, inner: BoolMask, outer: BoolMask) -> None:
        share = rle.Runs(rle.encode(inner)).containment_in(rle.Runs(rle.encode(outer)))
        assert share == ((inner & outer).sum() / inner.sum() if inner.any() else 0.0)

    def test_containment_in_of_large_masks_matches_pycocotools(self) -> None:
        rng = np.random.default_rng(0)
        rows, columns = np.mgrid[:700, :900]
        discs = [
            rle.encode((rows - rng.uniform(0, 700)) ** 2 + (columns - rng.uniform(0, 900)) ** 2 < rng.uniform(9, 9e4))
            for _ in range(12)
        ]
        shares = [[rle.Runs(inner).containment_in(rle.Runs(outer)) for outer in discs] for inner in discs]
        np.testing.assert_array_equal(shares, coco_mask.iou(discs, discs, [1] * len(discs)))


class TestFromCoco:
    @given(MASKS)
    def test_from_coco_of_compressed_counts_keeps_them(self, mask: BoolMask) -> None:
        encoded = rle.encode(mask)
        assert rle.from_coco(dict(encoded), *mask.shape) == encoded
        assert pack_runs(runs_of(mask)) == encoded["counts"]

    @given(MASKS)
    def test_from_coco_of_uncompressed_counts_compresses_them(self, mask: BoolMask) -> None:
        assert read(runs_of(mask), *mask.shape) == rle.encode(mask)

    @given(st.lists(st.lists(st.floats(-5, 25), min_size=6, max_size=12).filter(lambda p: len(p) % 2 == 0), min_size=1))
    def test_from_coco_of_polygons_matches_pycocotools(self, polygons: list[list[float]]) -> None:
        merged = coco_mask.merge(coco_mask.frPyObjects(polygons, 15, 20))
        read = rle.from_coco(polygons, 15, 20)
        np.testing.assert_array_equal(rle.decode(read), coco_mask.decode(merged).astype(bool))
        assert read["size"] == [15, 20]

    def test_from_coco_of_overlapping_polygons_is_their_union(self) -> None:
        square = [2, 2, 8, 2, 8, 8, 2, 8]
        assert rle.area_px(rle.from_coco([square, [5, 2, 11, 2, 11, 8, 5, 8]], 12, 12)) == 9 * 6

    @given(MASKS, st.data())
    def test_from_coco_with_empty_runs_merges_them(self, mask: BoolMask, data: st.DataObject) -> None:
        """pycocotools computes boxes of billions of pixels where runs of length 0 are left in."""
        runs = runs_of(mask)
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(runs) - 1))
            cut = data.draw(st.integers(0, runs[place]))
            runs[place : place + 1] = [cut, 0, runs[place] - cut]
        expected = rle.encode(mask)
        assert read(runs, *mask.shape) == expected
        assert read(pack_runs(runs), *mask.shape) == expected

    @pytest.mark.parametrize(
        ("segmentation", "complaint"),
        [
            ({"size": [3, 4], "counts": "0" * 79}, "longer than any image of 3 x 4 pixels needs"),
            (None, "with 'size' and 'counts', or a list of polygons"),
            ("324", "with 'size' and 'counts', or a list of polygons"),
            ({"counts": "327"}, "with 'size' and 'counts'"),
            ({"size": [4, 3], "counts": "327"}, r"size is \[4, 3\], the image's \[height, width\] \[3, 4\]"),
            ({"size": "\ud800", "counts": "327"}, r"size is '\\ud800'"),
            ({"size": [3, 4], "counts": None}, "not NoneType"),
            ({"size": [3, 4], "counts": b"327"}, "not bytes"),
            ({"size": [3, 4], "counts": [3, -2, 11]}, "whole numbers"),
            ({"size": [3, 4], "counts": [3, 2.0, 7]}, "whole numbers"),
            ({"size": [3, 4], "counts": [True, 11]}, "whole numbers"),
            ({"size": [3, 4], "counts": [10**400]}, "whole numbers"),
            ({"size": [3, 4], "counts": [3, 2, 6]}, "do not add up to the 12 pixels"),
            ({"size": [3, 4], "counts": []}, "do not add up"),
            ([], "list of polygons is empty"),
            ([1, 1, 2, 2, 3, 1], "flat list of at least three"),
            ([[1, 1, 2, 2]], "flat list of at least three"),
            ([[1, 1, 2, 2, 3, 1, 4]], "flat list of at least three"),
            ([[1, 1, 2, 2, 3, "1"]], "holds numbers only"),
            ([[1, 1, 2, 2, 3, True]], "holds numbers only"),
            ([[1, 1, 2, 2, 3, float("nan")]], "holds numbers only"),
            ([[1, 1, 2, 2, 3, float("-inf")]], "holds numbers only"),
            ([[1, 1, 2, 2, 3, 10**400]], "holds numbers only"),
            ([[1, 1, 2, 2, 3, 1e6]], "none beyond 40"),
        ],
    )
    def test_from_coco_of_invalid_segmentations_raises(self, segmentation: object, complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            rle.from_coco(segmentation, 3, 4)

    def test_from_coco_of_huge_values_keeps_the_message_short(self) -> None:
        with pytest.raises(ValueError, match="size is") as api_error:
            rle.from_coco({"size": ["x" * 10**6] * 100, "counts": "327"}, 3, 4)
        assert len(str(api_error.value)) < 1000

    def test_from_coco_of_an_image_over_32_bits_raises(self) -> None:
        height, width = 2**15, 2**14
        with pytest.raises(ValueError, match="too large"):
            rle.from_coco({"size": [height, width], "counts": [height * width]}, height, width)
        assert rle.area_px(read([0, height * (width - 1)], height, width - 1)) == height * (width - 1)


class TestInvalidCounts:
    def test_pack_matches_pycocotools(self) -> None:
        assert pack([3, 2, 7]) == "327" == read([3, 2, 7])["counts"]

    @pytest.mark.parametrize(
        ("counts", "complaint"),
        [
            ("", "alphabet, or none at all"),
            ("32\x7f", "alphabet"),
            ("3 27", "alphabet"),
            ("32\n7", "alphabet"),
            ("32\x007", "alphabet"),
            ("32é", "alphabet"),
            ("\ud800", "alphabet"),
            ("\uff13\uff12\uff17", "alphabet"),
            ("32P", "end within a run"),
            ("P" * 7 + "0", "longer than any image"),
            ("P" * 1000 + "0", "longer than any image"),
            (pack([3, 2, 6]), "do not add up"),
            (pack([3, 2, 8]), "do not add up"),
            (pack([3, -2, 11]), "do not add up"),
            (pack([3, 4, 4, -5, 6]), "do not add up"),
            (pack([13, 2, -3]), "do not add up"),
        ],
    )
    def test_from_coco_of_corrupt_counts_raises(self, counts: str, complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            read(counts)

    def test_from_coco_with_an_overflowing_sum_raises(self) -> None:
        """Every run fits its 30 bits, none is negative, and the sum is 2^64 + the 10^6 pixels."""
        step, num_steps = 2**28, 370_727
        inside = step * num_steps * (num_steps + 1) // 2
        outside, first = divmod(2**64 + 10**6 - inside, num_steps)
        growing = pack([first, step, outside]) + (pack([step]) + pack([0])) * (num_steps - 1)
        with pytest.raises(ValueError, match="do not add up"):
            read(growing, 1000, 1000)

    @given(MASKS, st.data())
    def test_from_coco_of_truncated_counts_raises(self, mask: BoolMask, data: st.DataObject) -> None:
        counts = rle.encode(mask)["counts"]
        with pytest.raises(ValueError, match="the"):
            read(counts[: data.draw(st.integers(0, len(counts) - 1))], *mask.shape)

    @given(
        st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12), st.integers(1, 6), st.integers(1, 6)
    )
    @example("0<", 3, 4)
    @example("PP1<", 3, 4)
    def test_from_coco_of_random_counts_is_a_mask_or_raises(self, counts: str, height: int, width: int) -> None:
        try:
            read_back = read(counts, height, width)
        except ValueError:
            return
        mask = rle.decode(read_back)
        assert mask.shape == (height, width)
        # Whatever passes is what an encoder would have written of the same pixels, but for the padding of its groups.
        assert rle.area_px(read_back) == mask.sum()
        assert rle.box_xywh(read_back) == rle.box_xywh(rle.encode(mask))

    @given(st.lists(st.integers(0, 8), min_size=1, max_size=8))
    def test_from_coco_accepts_only_runs_that_sum_to_the_pixels(self, runs: list[int]) -> None:
        compressed, uncompressed = pack_runs(runs), runs
        for counts in (compressed, uncompressed):
            if sum(runs) == 12:
                np.testing.assert_array_equal(rle.decode(read(counts)), drawn(runs))
            else:
                with pytest.raises(ValueError, match="pixels"):
                    read(counts)


def pack_runs(runs: list[int]) -> str:
    return pack([run - runs[index - 2] if index > 2 else run for index, run in enumerate(runs)])


def drawn(runs: list[int], height: int = 3, width: int = 4) -> BoolMask:
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(height, width, order="F")


@pytest.mark.parametrize(
    "box",
    [(0, 0, 80, 60), (3, 5, 1, 1), (-4, -9, 20, 30), (70, 50, 99, 99), (10, 0, 5, 60), (90, 3, 5, 5), (3, 3, 0, 4)],
)
def test_encode_box_matches_the_pixels(box: tuple[int, int, int, int]) -> None:
    x, y, width, height = box
    expected = np.zeros((60, 80), np.bool_)
    expected[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = True
    encoded = rle.encode_box(*box, (60, 80))
    assert np.array_equal(rle.decode(encoded), expected)
    assert encoded == rle.encode(expected)
