"""Image files that were made to cost much: refused before they are decoded, or ended at a limit."""

import io
import os
import struct
import zlib

import numpy as np
import psutil
import pytest
from PIL import Image

from ureca.errors import ImageError
from ureca.image_limits import ImageLimits
from ureca.image_structure import read_structure
from ureca.images import decode_image, decode_layers
from ureca.isolated_decoder import IsolatedDecoder

LIMITS = ImageLimits(max_pixels=40_000_000)


def jpeg(width: int, height: int, *, progressive: bool) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((width, height)).save(file, "JPEG", progressive=progressive)
    return file.getvalue()


def with_scans(data: bytes, number: int) -> bytes:
    """Repeat the last scan of a progressive JPEG."""
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * number + data[-2:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def kind_of(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ImageError) as raised:
        decode_image(data, limits)
    return raised.value.kind


def test_jpeg_with_more_scans_than_an_image_needs_is_refused() -> None:
    small, large = jpeg(64, 48, progressive=True), jpeg(5000, 4000, progressive=True)
    assert kind_of(with_scans(small, 260)) == "too_complex"
    assert kind_of(with_scans(large, 130)) == "too_complex"
    assert decode_image(with_scans(small, 30), LIMITS).shape == (48, 64, 3)
    assert read_structure(large).is_ordinary and not read_structure(with_scans(large, 30)).is_ordinary


@pytest.mark.parametrize("junk", [b"\xff", b"\0", b"ab", b"\xff\x00", b"\xff\x01", b"\xff\xd0"])
def test_jpeg_with_junk_between_its_segments_is_refused(junk: bytes) -> None:
    plain = jpeg(64, 48, progressive=False)
    second = plain.index(b"\xff\xdb")  # the segment after the first
    assert kind_of(plain[:second] + junk * 100_000 + plain[second:]) == "too_complex"
    assert decode_image(plain[:second] + b"\xff" * 30 + plain[second:], LIMITS).shape == (48, 64, 3)


@pytest.mark.parametrize("tag", [273, 324])
def test_tiff_with_more_parts_than_an_image_needs_is_refused(tag: int) -> None:
    entries = b"".join(
        struct.pack("<HHII", *entry) for entry in [(256, 4, 1, 40), (257, 4, 1, 1_000_000), (tag, 4, 1_000_000, 8)]
    )
    assert kind_of(b"II*\0" + struct.pack("<IH", 8, 3) + entries + bytes(4)) == "too_complex"


def test_bmp_with_more_runs_than_pixels_is_refused() -> None:
    file = io.BytesIO()
    Image.new("P", (64, 48)).save(file, "BMP")
    head = bytearray(file.getvalue()[: 54 + 1024])
    head[30:34] = b"\1\0\0\0"
    assert kind_of(bytes(head) + b"\0\0" * 1_000_000) == "too_complex"
    rows = b"".join(bytes([64, row, 0, 0]) for row in range(48))
    assert decode_image(bytes(head) + rows + b"\0\1", LIMITS).shape == (48, 64, 3)


def test_jpeg_with_scans_in_its_thumbnail_is_accepted() -> None:
    thumbnail = with_scans(jpeg(16, 16, progressive=True), 300)[:60_000]
    data = jpeg(64, 48, progressive=False)
    segment = b"\xff\xe5" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    np.testing.assert_array_equal(decode_image(data[:2] + segment + data[2:], LIMITS), decode_image(data, LIMITS))


def test_files_of_many_segments_or_chunks_are_refused() -> None:
    data = jpeg(64, 48, progressive=False)
    assert kind_of(data[:2] + b"\xff\xfe\x00\x02" * 100_000 + data[2:]) == "too_complex"
    assert kind_of(data[:2] + b"\xff\xe1\x00\x02" * 100_000 + data[2:]) == "too_complex"
    image = png(np.zeros((8, 8, 3), np.uint8))
    assert kind_of(image[:33] + chunk(b"tEXt", b"a\0b") * 100_000 + image[33:]) == "too_complex"
    assert kind_of(image[:33] + chunk(b"IDAT", b"") * 100_000 + image[33:]) == "too_complex"
    assert decode_image(image[:33] + chunk(b"tEXt", b"a\0b") * 100 + image[33:], LIMITS).shape == (8, 8, 3)


def test_png_with_many_color_profiles_is_refused() -> None:
    image = png(np.zeros((8, 8, 3), np.uint8))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000)))
    assert kind_of(image[:33] + profile * 17 + image[33:]) == "too_complex"
    assert decode_image(image[:33] + profile + image[33:], LIMITS).shape == (8, 8, 3)


def test_gif_with_more_comments_than_an_image_needs_is_refused() -> None:
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    data = file.getvalue()
    frame = data.index(b"\x2c", 13)
    comment = b"\x21\xfe\x01a\0"
    assert kind_of(data[:frame] + comment * 100_000 + data[frame:]) == "too_complex"
    assert kind_of(data[:frame] + b"\x21\xfe" + b"\x01a" * 100_000 + b"\0" + data[frame:]) == "too_complex"
    assert decode_image(data[:frame] + comment * 100 + data[frame:], LIMITS).shape == (8, 8, 3)
    for end in range(len(data)):
        read_structure(data[:end])


def test_jpeg_of_one_scan_over_the_pixel_limit_is_too_large() -> None:
    data = jpeg(64, 48, progressive=False)
    frame = data.index(b"\xff\xc0") + 5
    assert kind_of(data[:frame] + struct.pack(">HH", 65535, 65535) + data[frame + 4 :]) == "too_many_pixels"


@pytest.mark.parametrize("format", ["GIF", "BMP", "WEBP", "lossless WEBP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_size_in_the_header_of_other_formats_is_read(format: str) -> None:
    file = io.BytesIO()
    image = Image.radial_gradient("L").convert("RGB").resize((60, 34))
    if format.startswith("lossless"):
        image.save(file, "WEBP", lossless=True)
    else:
        image.save(file, format)
    structure = read_structure(file.getvalue())
    assert (structure.size, structure.is_ordinary) == ((60, 34), False)
    for end in range(0, min(80, len(file.getvalue()))):
        read_structure(file.getvalue()[:end])


def test_exif_whose_tags_repeat_a_large_block_is_ignored() -> None:
    tags = [(0x0112, 3, 1, 6), *((1000 + index, 7, 500_000, 20_000) for index in range(400))]
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    block += b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags)) + bytes(4)
    block += bytes(520_000 - len(block))
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    data = png(pixels)
    np.testing.assert_array_equal(decode_image(data[:33] + chunk(b"eXIf", block) + data[33:], LIMITS), pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "RGB", "1"])
def test_strips_give_the_pixels_of_the_whole_image(mode: str) -> None:
    rng = np.random.default_rng(3)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (600, 7), dtype=np.uint16))
        expected = np.repeat(np.rint(np.asarray(image) / 65535 * 255).astype(np.uint8)[..., None], 3, axis=2)
    else:
        channels = 4 if mode.endswith("A") else 3
        image = Image.fromarray(rng.integers(0, 256, (600, 7, channels), dtype=np.uint8)).convert(mode)
        rgba = image.convert("RGBA")
        expected = np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    file = io.BytesIO()
    image.save(file, "PNG")
    np.testing.assert_array_equal(decode_image(file.getvalue(), LIMITS), expected)
    colors, alpha = decode_layers(file.getvalue(), LIMITS)
    if mode in ("RGBA", "LA"):
        layers = np.asarray(image.convert("RGBA"))
        np.testing.assert_array_equal(colors, layers[..., :3])
        np.testing.assert_array_equal(alpha, layers[..., 3])
    else:
        assert alpha is None


def test_decoding_costs_are_known_before_decoding() -> None:
    image = png(np.zeros((300, 400, 3), np.uint8))
    assert read_structure(image).size == (400, 300)
    assert read_structure(jpeg(64, 48, progressive=True)).size == (64, 48)
    assert read_structure(image).num_decoding_bytes(len(image), 10**9) < 12 * 400 * 300 + 10_000
    assert read_structure(b"GIF89a" + bytes(20)).num_decoding_bytes(26, 1000) >= 1000


LOOP = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass"
MEMORY = """
from PIL.GifImagePlugin import GifImageFile
from ureca.images import run_decoder
GifImageFile.__init__ = lambda self, file: bytearray(2**40)
run_decoder()
"""
LEAK = """
import os
from PIL.GifImagePlugin import GifImageFile
from ureca.errors import ImageError
from ureca.images import run_decoder
def fail(self, file):
    raise ImageError("environment", " ".join(sorted(os.environ)))
GifImageFile.__init__ = fail
run_decoder()
"""


@pytest.mark.parametrize(
    ("program", "kind"),
    [(LOOP, "too_complex"), (MEMORY, "out_of_memory"), ("import os; os.abort()", "corrupt"), ("", "corrupt")],
    ids=["endless", "memory", "crash", "exit"],
)
def test_decoder_beyond_its_limits_is_ended(program: str, kind: str) -> None:
    decoder = IsolatedDecoder(("rgb",), program)
    for _ in range(2):  # the next image gets a new process
        with pytest.raises(ImageError) as raised:
            decoder.decode(b"GIF89a" + bytes(100_000), LIMITS, "rgb")
        assert raised.value.kind == kind


def test_decoder_process_has_no_secrets_and_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URECA_SECRET_TOKEN", "secret")
    with pytest.raises(ImageError) as raised:
        IsolatedDecoder(("rgb",), LEAK).decode(b"GIF89a", LIMITS, "rgb")
    assert "PATH" in raised.value.message and "SECRET" not in raised.value.message


def test_formats_of_unknown_cost_survive_a_fork() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "GIF")
    assert decode_image(file.getvalue(), LIMITS).shape == (3, 4, 3)
    child = os.fork()
    if not child:
        os._exit(0 if decode_image(file.getvalue(), LIMITS).shape == (3, 4, 3) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert decode_image(file.getvalue(), LIMITS).shape == (3, 4, 3)


def test_decoder_process_ends_when_it_is_idle_and_another_is_started() -> None:
    decoder = IsolatedDecoder(("rgb",), LEAK, max_idle_s=0.2)
    others = psutil.Process().children()
    for _ in range(2):
        with pytest.raises(ImageError, match="environment"):
            decoder.decode(b"GIF89a", LIMITS, "rgb")
        children = [child for child in psutil.Process().children() if child not in others]
        _, is_alive = psutil.wait_procs(children, timeout=60)
        assert not is_alive
