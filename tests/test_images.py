"""Decoding: what good files become, and that bad ones end in an ImageError and nothing else."""

import io
import struct
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from tests.bad_corpus import HEIGHT_PX, WIDTH_PX, image_cases
from ureca.errors import ImageError
from ureca.image_limits import ImageLimits
from ureca.images import decode_image, decode_layers, encode_jpeg, optional_extensions, stored_frame

LIMITS = ImageLimits()
CASES = image_cases()


def save(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decode(image: Image.Image, format: str = "PNG", **options: Any) -> np.ndarray:
    return decode_image(save(image, format, **options), LIMITS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_decode_image_of_the_bad_corpus_gives_the_expected_outcome(name: str) -> None:
    data, expected = CASES[name]
    if isinstance(expected, str):
        with pytest.raises(ImageError) as error:
            decode_image(data, LIMITS)
        assert f"read:{error.value.kind}" == expected
    else:
        pixels = decode_image(data, LIMITS)
        assert pixels.shape == (*expected, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.writeable


PHOTO = np.random.default_rng(7).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM"])
def test_decode_image_of_lossless_formats_keeps_every_pixel(format: str) -> None:
    np.testing.assert_array_equal(decode(Image.fromarray(PHOTO), format), PHOTO)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
    9: lambda a: a,  # no orientation that exists
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_decode_image_with_exif_orientation_applies_it_once(
    orientation: int, format: str, options: dict[str, Any]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(PHOTO)
    np.testing.assert_array_equal(decode(stored, format, exif=exif, **options), UPRIGHT[orientation](PHOTO))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])  # ordinary images, and those that are decoded elsewhere
def test_stored_frame_is_read_from_the_header(mode: str) -> None:
    for format, orientation in (("PNG", 3), ("TIFF", 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image, file = Image.new(mode, (4, 3)), io.BytesIO()
        image.save(file, format, exif=exif)
        assert stored_frame(file.getvalue(), ImageLimits()) == (3, 4, orientation)
        image.save(plain := io.BytesIO(), format)
        assert stored_frame(plain.getvalue(), ImageLimits()) == (3, 4, 1)


def test_decode_image_with_transparency_blends_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (0, 128, 255)
    np.testing.assert_array_equal(decode(Image.fromarray(rgba))[0, :, 0], [255, 127, 0])
    grey_alpha = Image.fromarray(rgba).convert("LA")
    np.testing.assert_array_equal(decode(grey_alpha)[0, :, 1], [255, 127, 0])
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(palette, transparency=0), [[[255, 255, 255], [40, 50, 60]]])
    np.testing.assert_array_equal(decode(palette.convert("RGB"), transparency=(10, 20, 30))[0, 0], [255, 255, 255])


@pytest.mark.parametrize(
    ("greys", "expected"),
    [
        (np.array([[0, 257, 32896, 65535]], np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 257, 32896, 65535]], np.int32), [0, 1, 128, 255]),
        (np.array([[-10, 0, 10]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, np.nan, 200, np.inf, -np.inf]], np.float32), [0, 0, 255, 255, 0]),
        (np.array([[-3e38, 0, 3e38]], np.float32), [0, 128, 255]),
        (np.array([[7, 7]], np.float32), [0, 0]),
        (np.array([[np.nan]], np.float32), [0]),
    ],
)
def test_decode_image_of_deep_greys_scales_them(greys: np.ndarray, expected: list[int]) -> None:
    pixels = decode(Image.fromarray(greys), "TIFF")
    np.testing.assert_array_equal(pixels[0], np.repeat(np.array(expected)[:, None], 3, axis=1))


def test_decode_image_of_16_bit_png_and_pgm_agrees() -> None:
    greys = np.array([[0, 257, 65535]], np.uint16)
    pgm = b"P5 3 1 65535\n" + greys.astype(">u2").tobytes()
    assert decode(Image.fromarray(greys))[0, :, 0].tolist() == [0, 1, 255]
    assert decode_image(pgm, LIMITS)[0, :, 0].tolist() == [0, 1, 255]


def test_decode_image_of_one_bit_and_cmyk_returns_rgb() -> None:
    assert decode(Image.new("1", (2, 2), 1)).max() == 255
    np.testing.assert_array_equal(decode(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [[[255, 0, 0]]])


def test_decode_image_of_an_animation_returns_the_first_frame() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for format, options in [("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]:
        pixels = decode(red, format, save_all=True, append_images=[blue], **options)
        assert pixels[0, 0].tolist() == [255, 0, 0], format


def test_decode_image_at_the_limits_accepts_and_above_raises() -> None:
    data = save(Image.fromarray(PHOTO))
    assert decode_image(data, ImageLimits(max_bytes=len(data), max_pixels=600)).shape == (20, 30, 3)
    with pytest.raises(ImageError, match="30 x 20 pixels, the limit is 599") as error:
        decode_image(data, ImageLimits(max_pixels=599))
    assert error.value.kind == "too_many_pixels"
    with pytest.raises(ImageError, match="the limit is") as error:
        decode_image(data, ImageLimits(max_bytes=len(data) - 1))
    assert error.value.kind == "too_many_bytes"


def test_decode_image_ignores_the_pixel_limit_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("PNG", "JPEG", "BMP", "PPM", "GIF"):
            assert decode(Image.fromarray(PHOTO), format).shape == (20, 30, 3), format
    assert Image.MAX_IMAGE_PIXELS == 10


def test_decode_image_of_a_tiff_with_a_huge_tile_raises() -> None:
    entries = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 322: 20_000, 323: 20_000, 324: 8, 325: 64}
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries.items())
    data = struct.pack("<2sHI", b"II", 42, 8) + ifd + bytes(4)
    with pytest.raises(ImageError) as error:
        decode_image(data, LIMITS)
    assert error.value.kind == "too_many_pixels"


@pytest.mark.parametrize(("name", "value"), [("max_bytes", 0), ("max_pixels", -1), ("max_pixel", 5)])
def test_image_limits_with_impossible_values_name_the_setting(name: str, value: int) -> None:
    with pytest.raises(ValidationError, match=name):
        ImageLimits(**{name: value})


def _seeds() -> list[bytes]:
    photo = Image.fromarray(PHOTO[:12, :16])
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    seeds = [save(photo, format) for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")]
    seeds += [save(photo, "JPEG", progressive=True, exif=exif, icc_profile=bytes(300))]
    seeds += [save(photo, "TIFF", compression=compression) for compression in ("tiff_lzw", "jpeg", "tiff_deflate")]
    seeds += [save(photo.quantize(7), "PNG", transparency=1, exif=exif), save(photo.convert("CMYK"), "JPEG")]
    seeds += [save(photo, format, save_all=True, append_images=[photo.rotate(90)]) for format in ("GIF", "WEBP", "PNG")]
    return [*seeds, save(Image.fromarray(PHOTO[..., 0].astype(np.int32)), "TIFF"), save(photo.convert("1"), "PPM")]


SEEDS = _seeds()


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=600, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=6), st.integers(0, 8)), min_size=1, max_size=6),
    end=st.one_of(st.none(), st.integers(1, 4000)),
)
def test_decode_image_of_damaged_files_decodes_or_raises_image_error(
    seed: bytes, edits: list[tuple[int, bytes, int]], end: int | None
) -> None:
    data = seed
    for position, new, num_removed in edits:
        start = position % len(data) if data else 0
        data = data[:start] + new + data[start + num_removed :]
    check_decodes_or_raises_image_error(data[:end])


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300, deadline=None)
@given(signature=st.sampled_from([seed[:8] for seed in SEEDS]), rest=st.binary(max_size=400))
def test_decode_image_of_noise_decodes_or_raises_image_error(signature: bytes, rest: bytes) -> None:
    check_decodes_or_raises_image_error(signature + rest)


def check_decodes_or_raises_image_error(data: bytes) -> None:
    try:
        pixels = decode_image(data, ImageLimits(max_pixels=100_000))
    except ImageError as error:
        assert error.kind in {
            "empty_file", "not_an_image", "too_many_pixels", "too_complex", "truncated", "corrupt", "out_of_memory"
        }  # fmt: skip
    else:
        assert pixels.ndim == 3
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert pixels.shape[0] * pixels.shape[1] <= 100_000


def test_image_cases_are_deterministic() -> None:
    assert image_cases() == CASES
    assert (HEIGHT_PX, WIDTH_PX) == (48, 64)


def test_decode_layers_keeps_colours_beneath_transparency() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    colours, alpha = decode_layers(save(Image.fromarray(rgba)), LIMITS)
    assert alpha is not None
    assert (colours == rgba[..., :3]).all() and (alpha == rgba[..., 3]).all()


def test_decode_layers_of_an_opaque_image_returns_its_pixels() -> None:
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    colours, alpha = decode_layers(save(photograph), LIMITS)
    assert alpha is None
    assert (colours == decode(photograph)).all()


def test_encode_jpeg_round_trips_with_thin_coloured_lines() -> None:
    pixels = np.full((60, 80, 3), (120, 130, 140), np.uint8)
    pixels[30:33] = (255, 255, 0)
    decoded = decode_image(encode_jpeg(pixels, 95), ImageLimits())
    assert np.abs(decoded.astype(int) - pixels).max() < 20  # halved colour resolution is off by 60 and more


def test_encode_jpeg_of_lower_quality_is_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert len(encode_jpeg(noise, 30)) < len(encode_jpeg(noise, 90))


def test_encode_jpeg_beyond_the_formats_size_raises() -> None:
    with pytest.raises(ValueError, match="65535"):
        encode_jpeg(np.zeros((1, 65536, 3), np.uint8), 90)


NEWER = {"AVIF": "avif", "JPEG2000": "jp2"} | ({"HEIF": "heic"} if "heic" in optional_extensions() else {})


@pytest.mark.parametrize("format", NEWER)
def test_decode_image_of_newer_formats_gives_the_pixels(format: str) -> None:
    if format == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif")
        file = io.BytesIO()
        pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 40, 40))).save(file, quality=95)
        data = file.getvalue()
    else:
        data = save(Image.new("RGB", (64, 48), (200, 40, 40)), format)
    pixels = decode_image(data, LIMITS)
    assert pixels.shape == (48, 64, 3) and np.abs(pixels.astype(int) - (200, 40, 40)).max() < 8
    with pytest.raises(ImageError, match="too_many_pixels"):
        decode_image(data, ImageLimits(max_pixels=1000))
    for end in range(1, len(data), 37):
        try:
            decode_image(data[:end], LIMITS)
        except ImageError:
            continue


def test_decode_image_of_heic_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="the extra heif"):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", LIMITS)
    with pytest.raises(ImageError, match="no image format"):
        decode_image(b"\0\0\0\x0cJXL \r\n\x87\n\0\0", LIMITS)
