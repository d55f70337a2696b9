"""Masks as image files: values decide, not colours; files with several values are refused by name."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from tests.bad_corpus import image_cases
from ureca.errors import ImageError
from ureca.image_limits import ImageLimits
from ureca.masks.mask_images import decode_index_image, decode_mask_image

LIMITS = ImageLimits()
HEIGHT, WIDTH = 80, 96
INSIDE = np.zeros((HEIGHT, WIDTH), np.bool_)
INSIDE[34:54, 44:60] = True
GREY = Image.fromarray(INSIDE.astype(np.uint8) * 255)
PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def save(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def palette(indices: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putdata(indices.ravel().tolist())
    table = [0] * 768
    for index, colour in colours.items():
        table[3 * index : 3 * index + 3] = colour
    image.putpalette(table)
    return image


def voc() -> Image.Image:
    indices = INSIDE.astype(np.uint8) * 15
    indices[33, 43:61] = indices[54, 43:61] = indices[33:55, 43] = indices[33:55, 60] = 255
    return palette(indices, {15: (192, 128, 128), 255: (224, 224, 192)})


def two_bits() -> bytes:
    """Return a PNG of 2-bit greys, in which the mask is 1: Pillow scales it to 85."""
    rows = np.pad(INSIDE.astype(np.uint8), ((0, 0), (0, -WIDTH % 4))).reshape(HEIGHT, -1, 4)
    packed = rows[..., 0] << 6 | rows[..., 1] << 4 | rows[..., 2] << 2 | rows[..., 3]
    data = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 2, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def transparent_palette() -> bytes:
    return save(palette(INSIDE.astype(np.uint8), {0: (0, 0, 0), 1: (9, 9, 9)}), transparency=0)


def rgba(colours: Any, alpha: Any) -> Image.Image:
    return Image.fromarray(np.dstack([np.broadcast_to(colours, (HEIGHT, WIDTH, 3)), alpha]).astype(np.uint8))


EXACT: dict[str, Callable[[], bytes]] = {
    "grey 255": lambda: save(GREY),
    "grey 1": lambda: save(Image.fromarray(INSIDE.astype(np.uint8))),
    "one bit": lambda: save(Image.fromarray(INSIDE)),
    "two bits": two_bits,
    "pgm with maximum 1": lambda: b"P5 %d %d 1\n" % (WIDTH, HEIGHT) + INSIDE.astype(np.uint8).tobytes(),
    "palette, black and colour": lambda: save(palette(INSIDE, {1: (200, 0, 0)})),
    "palette, index 0 white": lambda: save(palette(INSIDE, {0: (255, 255, 255)})),
    "palette, index 0 coloured": lambda: save(palette(INSIDE, {0: (68, 1, 84), 1: (253, 231, 37)})),
    "palette, all black": lambda: save(palette(INSIDE, {})),
    "palette gif": lambda: save(palette(INSIDE, {0: (255, 255, 255)}), "GIF"),
    "voc with a void border": lambda: save(voc()),
    "transparent palette": transparent_palette,
    "16 bits, 1": lambda: save(Image.fromarray(INSIDE.astype(np.uint16))),
    "16 bits, 255": lambda: save(Image.fromarray(INSIDE.astype(np.uint16) * 255)),
    "16 bits, 26001": lambda: save(Image.fromarray(INSIDE.astype(np.uint16) * 26001)),
    "16 bits, 65535": lambda: save(Image.fromarray(INSIDE.astype(np.uint16) * 65535)),
    "32 bits, 1": lambda: save(Image.fromarray(INSIDE.astype(np.int32)), "TIFF"),
    "float 1": lambda: save(Image.fromarray(INSIDE.astype(np.float32)), "TIFF"),
    "probabilities": lambda: save(Image.fromarray(np.where(INSIDE, 0.93, 0.04).astype(np.float32)), "TIFF"),
    "red on black": lambda: save(Image.fromarray(INSIDE[..., None] * np.array([200, 0, 0], np.uint8))),
    "grey with alpha": lambda: save(Image.merge("LA", (Image.new("L", GREY.size, 255), GREY))),
    "photograph cut out": lambda: save(rgba(PHOTOGRAPH, INSIDE * 255)),
    "white on opaque black": lambda: save(rgba(INSIDE[..., None] * 255, np.full_like(INSIDE, 255, np.uint8))),
    "black paint on transparent": lambda: save(rgba(0, INSIDE * 255)),
    "white paint on transparent black": lambda: save(rgba(INSIDE[..., None] * 255, INSIDE * 255)),
    "paint half transparent": lambda: save(rgba(0, INSIDE * 127)),
    "lossless webp": lambda: save(GREY, "WEBP", lossless=True),
    "bmp": lambda: save(GREY, "BMP"),
}


@pytest.mark.parametrize("name", EXACT)
def test_decode_mask_image_of_one_value_gives_the_mask(name: str) -> None:
    assert (decode_mask_image(EXACT[name](), LIMITS) == INSIDE).all()


DISC = np.hypot(*(np.mgrid[:480, :640] - np.array([240, 320])[:, None, None])) < 150


def soft(blur_px: float) -> Image.Image:
    return Image.fromarray(DISC.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(blur_px))


LOSSY: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: save(Image.fromarray(DISC.astype(np.uint8) * 255), "JPEG", quality=75),
    "jpeg of colours": lambda: save(
        Image.fromarray(DISC[..., None] * np.array([255, 40, 40], np.uint8)), "JPEG", quality=75
    ),
    "webp": lambda: save(Image.fromarray(DISC.astype(np.uint8) * 255), "WEBP", quality=80),
    "png of a jpeg": lambda: save(Image.open(io.BytesIO(LOSSY["jpeg"]()))),
    "resized": lambda: save(soft(0).resize((1280, 960)).resize((640, 480), Image.Resampling.BICUBIC)),
    "feathered": lambda: save(soft(6)),
    "feathered in colour": lambda: save(Image.merge("RGB", (soft(3), *[Image.new("L", (640, 480))] * 2))),
    "feathered 16 bits": lambda: save(Image.fromarray(np.asarray(soft(3)).astype(np.uint16) * 257)),
    "soft alpha": lambda: save(Image.merge("LA", (Image.new("L", (640, 480), 255), soft(3)))),
}


@pytest.mark.parametrize("name", LOSSY)
def test_decode_mask_image_with_soft_edges_is_cut_at_half_the_maximum(name: str) -> None:
    inside = decode_mask_image(LOSSY[name](), LIMITS)
    assert (inside ^ DISC).sum() < 0.01 * DISC.sum()
    rows, columns = np.nonzero(inside)
    assert abs(int(rows.min()) - 91) <= 1 and abs(int(columns.max()) - 469) <= 1


@pytest.mark.parametrize("options", [("JPEG", 75), ("JPEG", 95), ("WEBP", 75)])
def test_decode_mask_image_of_a_small_lossy_mask_keeps_its_area(options: tuple[str, int]) -> None:
    inside = decode_mask_image(save(GREY, options[0], quality=options[1]), LIMITS)
    assert (inside ^ INSIDE).sum() <= 16


def labels(*values: int) -> np.ndarray:
    """Return an index image: vertical bands of the values on a background of 0."""
    image = np.zeros((HEIGHT, WIDTH), np.int64)
    for place, value in enumerate(values):
        image[10:60, 8 + 20 * place : 22 + 20 * place] = value
    return image


SEVERAL: dict[str, bytes] = {
    "grey labels": save(Image.fromarray(labels(1, 2, 3).astype(np.uint8))),
    "bright grey labels": save(Image.fromarray(labels(80, 160, 240).astype(np.uint8))),
    "grey labels and a void": save(Image.fromarray(labels(1, 15, 255).astype(np.uint8))),
    "trimap": save(Image.fromarray(labels(128, 255).astype(np.uint8))),
    "palette": save(palette(labels(1, 2, 255), {1: (9, 9, 9)})),
    "16 bits": save(Image.fromarray(labels(1000, 26001, 65535).astype(np.uint16))),
    "32 bits": save(Image.fromarray(labels(1, 2).astype(np.int32)), "TIFF"),
    "floats": save(Image.fromarray(labels(1, 2).astype(np.float32)), "TIFF"),
    "two greys without a background": save(Image.fromarray(np.where(INSIDE, 200, 100).astype(np.uint8))),
    "grey jpeg": save(Image.fromarray(labels(120, 250).astype(np.uint8)), "JPEG"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_decode_mask_image_of_an_index_image_is_refused_by_name(name: str) -> None:
    with pytest.raises(ImageError, match="mask_value") as raised:
        decode_mask_image(SEVERAL[name], LIMITS)
    assert raised.value.kind == "several_mask_values"


def test_decode_mask_image_names_the_values_of_an_index_image() -> None:
    with pytest.raises(ImageError, match=r"the values 0, 1, 2, 3\."):
        decode_mask_image(SEVERAL["grey labels"], LIMITS)
    many = save(Image.fromarray(np.arange(20, dtype=np.uint8).repeat(200).reshape(40, 100)))
    with pytest.raises(ImageError, match="the values 0, 1, 2, 3, 4, 5, 6, 7 and others"):
        decode_mask_image(many, LIMITS)


def test_decode_mask_image_with_a_value_takes_its_pixels_only() -> None:
    for name, value, place in [("grey labels", 2, 1), ("palette", 255, 2), ("16 bits", 26001, 1), ("floats", 2, 1)]:
        inside = decode_mask_image(SEVERAL[name], LIMITS, mask_value=value)
        assert (inside == (labels(*range(1, place + 2)) == place + 1)).all(), name
    colours = np.zeros((4, 5, 3), np.uint8)
    colours[1, 2] = (7, 1, 2)
    inside = decode_mask_image(save(Image.fromarray(colours)), LIMITS, mask_value=7 + 256 + 2 * 65536)
    assert inside.sum() == 1 and inside[1, 2]


def test_decode_mask_image_with_an_absent_value_names_those_there_are() -> None:
    with pytest.raises(ImageError, match="no pixel has the value 9; there are 0, 1, 2, 3") as raised:
        decode_mask_image(SEVERAL["grey labels"], LIMITS, mask_value=9)
    assert raised.value.kind == "unknown_mask_value"


@pytest.mark.parametrize(
    "image", [Image.new("L", (9, 8)), Image.new("1", (9, 8)), Image.new("I;16", (9, 8)), Image.new("RGB", (9, 8))]
)
def test_decode_mask_image_of_nothing_is_empty(image: Image.Image) -> None:
    assert not decode_mask_image(save(image), LIMITS).any()


def test_decode_mask_image_of_one_value_everywhere_is_full() -> None:
    assert decode_mask_image(save(Image.new("L", (9, 8), 255)), LIMITS).all()
    assert decode_mask_image(save(Image.new("L", (64, 64), 255), "JPEG"), LIMITS).all()
    assert not decode_mask_image(save(Image.new("L", (64, 64)), "JPEG"), LIMITS).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_decode_mask_image_of_impossible_floats_is_corrupt(value: float) -> None:
    pixels = INSIDE.astype(np.float32) * 0.5
    pixels[0, 0] = value
    with pytest.raises(ImageError, match="corrupt"):
        decode_mask_image(save(Image.fromarray(pixels), "TIFF"), LIMITS)


def test_decode_mask_image_applies_the_orientation_unless_told_otherwise() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = save(GREY, exif=exif)
    assert (decode_mask_image(data, LIMITS) == np.rot90(INSIDE, -1)).all()
    assert (decode_mask_image(data, LIMITS, upright=False) == INSIDE).all()


@given(
    shapes=st.lists(st.tuples(*[st.integers(0, 90)] * 4), min_size=1, max_size=5),
    value=st.sampled_from([1, 2, 128, 255, 256, 1000, 65535]),
)
@settings(deadline=None, max_examples=50)
def test_decode_mask_image_any_mask_in_any_lossless_form_comes_back(
    shapes: list[tuple[int, int, int, int]], value: int
) -> None:
    canvas = Image.new("1", (WIDTH, HEIGHT))
    for x0, y0, x1, y1 in shapes:
        ImageDraw.Draw(canvas).ellipse((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1)
    inside = np.asarray(canvas)
    forms = [
        save(Image.fromarray((inside * value).astype(np.uint16))),
        save(Image.fromarray((inside * value).astype(np.int32)), "TIFF"),
        save(palette(inside * (value % 256 or 1), {0: (1, 2, 3)})),
        save(Image.fromarray(inside), "TIFF"),
        save(Image.fromarray((inside * min(value, 255)).astype(np.uint8)), "WEBP", lossless=True),
    ]
    for data in forms:
        assert (decode_mask_image(data, LIMITS) == inside).all()


@given(st.integers(2, 30), st.integers(1, 65535), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_decode_index_image_any_labels_come_back(number: int, largest: int, random: Any) -> None:
    values = np.array([random.randint(0, largest) for _ in range(number * 7)]).reshape(number, 7)
    assert (decode_index_image(save(Image.fromarray(values.astype(np.uint16))), LIMITS) == values).all()
    packed = np.stack([values % 256, values // 256, np.zeros_like(values)], axis=2).astype(np.uint8)
    assert (decode_index_image(save(Image.fromarray(packed)), LIMITS, packed_colours=True) == values).all()
    assert (decode_index_image(save(palette(values % 256, {})), LIMITS) == values % 256).all()


def test_decode_index_image_packs_equal_colours_where_asked() -> None:
    data = save(Image.fromarray(np.full((4, 5, 3), 3, np.uint8)))
    assert (decode_index_image(data, LIMITS) == 3).all()
    assert (decode_index_image(data, LIMITS, packed_colours=True) == 3 * 0x010101).all()


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "WEBP", "quality": 80}])
def test_decode_index_image_of_lossy_labels_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ImageError) as raised:
        decode_index_image(save(Image.fromarray(labels(1, 2).astype(np.uint8)), **options), LIMITS)
    assert raised.value.kind == "lossy_labels"


@pytest.mark.parametrize("name", CASES := image_cases())
def test_decode_mask_image_of_the_bad_corpus_gives_a_mask_or_an_image_error(name: str) -> None:
    for decode in (decode_mask_image, decode_index_image):
        try:
            assert decode(CASES[name][0], LIMITS).ndim == 2
        except ImageError:
            continue


@given(st.binary(max_size=40), st.integers(0, 400))
@settings(deadline=None, max_examples=100)
def test_decode_mask_image_of_damaged_files_gives_a_mask_or_an_image_error(noise: bytes, place: int) -> None:
    for name in ("palette gif", "two bits", "transparent palette", "float 1", "lossless webp"):
        data = EXACT[name]()
        try:
            assert decode_mask_image(data[:place] + noise + data[place + len(noise) :], LIMITS).dtype == np.bool_
        except ImageError:
            continue
