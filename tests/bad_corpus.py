"""A folder of everything that goes wrong with image and annotation files, made by code, with what should come of it."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT_PX, WIDTH_PX = 48, 64

Size = tuple[int, int]
"""Height and width in pixels of an image that can be decoded."""


def write_bad_corpus(folder: Path) -> dict[str, str]:
    """Write images, the good ones with annotations beside them, and return the expected outcome by image id.

    An outcome is ``ok``, or the ``stage:kind`` of the error row. Those of the stage ``propose`` come from annotation
    files alone: with a proposer that reads none, their images are ``ok``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    for name, (data, size_or_error) in image_cases().items():
        path = folder / name
        path.write_bytes(data)
        if isinstance(size_or_error, str):
            outcomes[path.stem] = size_or_error
        else:
            path.with_suffix(".json").write_text(json.dumps(_sa1b(*size_or_error)))
            outcomes[path.stem] = "ok"
    for stem, (content, outcome) in annotation_cases().items():
        (folder / f"{stem}.png").write_bytes(_save(_photo(), "PNG"))
        (folder / f"{stem}.json").write_bytes(content)
        outcomes[stem] = outcome
    (folder / "link_to_nothing.jpg").symlink_to("nowhere.jpg")
    outcomes["link_to_nothing"] = "read:missing_file"
    return outcomes


def image_cases() -> dict[str, tuple[bytes, Size | str]]:
    """Content of an image file by name, with its size in pixels or the error that it ends in."""
    size = (HEIGHT_PX, WIDTH_PX)
    photo = _photo()
    jpeg, progressive = _save(photo, "JPEG"), _save(photo, "JPEG", progressive=True)
    png, webp = _save(photo, "PNG"), _save(photo, "WEBP")
    frames = [photo, photo.rotate(180)]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "read:truncated"),
        "truncated_header.jpg": (jpeg[:30], "read:truncated"),
        "truncated_progressive.jpg": (progressive[: len(progressive) // 2], "read:truncated"),
        "truncated.webp.webp": (webp[: len(webp) // 2], "read:truncated"),
        "zero_bytes.png": (b"", "read:empty_file"),
        "text.jpg": (b"This is no photograph.\n", "read:not_an_image"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "read:not_an_image"),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "read:not_an_image"),
        "signature_only.gif": (b"GIF89a", "read:truncated"),
        "png_called.jpg": (png, size),
        "name with ünïcode 名, spaces\nand a line break.png": (png, size),
        "two.dots.png": (png, size),
        "garbage_tail.jpg": (jpeg + bytes(range(256)) * 8, size),
        "cmyk.jpg": (_save(photo.convert("CMYK"), "JPEG"), size),
        "grey_16_bit.png": (_save(Image.fromarray(_ramp().astype(np.uint16) * 257), "PNG"), size),
        "grey_float.tiff": (_save(Image.fromarray(_ramp().astype(np.float32) / 255), "TIFF"), size),
        "grey_int32.tiff": (_save(Image.fromarray(_ramp().astype(np.int32) - 100), "TIFF"), size),
        "grey_alpha.png": (_save(_with_alpha(photo.convert("L")), "PNG"), size),
        "alpha.webp": (_save(_with_alpha(photo), "WEBP"), size),
        "palette_transparent.png": (_save(photo.quantize(16), "PNG", transparency=0), size),
        "one_bit.png": (_save(photo.convert("1"), "PNG"), size),
        "one_pixel.png": (_save(photo.crop((0, 0, 1, 1)), "PNG"), (1, 1)),
        "animated.gif": (_save(photo, "GIF", save_all=True, append_images=frames), size),
        "animated.webp.webp": (_save(photo, "WEBP", save_all=True, append_images=frames), size),
        "turned_by_exif.jpg": (_save(photo, "JPEG", exif=rotated), (WIDTH_PX, HEIGHT_PX)),
        "malformed_exif.jpg": (_save(photo, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40), size),
        "large_profile.jpg": (_save(photo, "JPEG", icc_profile=bytes(1 << 20)), size),
        "bomb_header.png": (_png(60_000, 60_000, zlib.compress(b"\0")), "read:too_many_pixels"),
        "bomb_pixels.png": (_png(20_000, 20_000, zlib.compress(bytes(20_000 * 2501), 9)), "read:too_many_pixels"),
        "bomb_text.png": (_png(8, 8, zlib.compress(bytes(8 * 2)), text_bytes=1 << 26), "read:corrupt"),
        "bomb.bmp": (_bmp(2**31 - 1, 2**31 - 1), "read:too_many_pixels"),
        "broken_stream.png": (_png(64, 64, b"\x78\x9c" + b"\xff" * 64), "read:corrupt"),
    }


def annotation_cases() -> dict[str, tuple[bytes, str]]:
    """Content of an annotation file by stem, with the outcome; the image beside it is good."""
    height, width = HEIGHT_PX, WIDTH_PX
    box = [4, 4, 20, 4, 20, 20.5, 4, 20]
    good = _sa1b(height, width)
    masks = good["annotations"]

    def with_mask(**values: Any) -> bytes:
        return json.dumps(good | {"annotations": [masks[0] | values]}).encode()

    def with_counts(counts: object) -> bytes:
        return with_mask(segmentation={"size": [height, width], "counts": counts})

    malformed = "masks:malformed"
    return {
        "json_cut": (json.dumps(good).encode()[:-9], malformed),
        "json_empty_file": (b"", malformed),
        "json_not_utf8": (b'{"image": "\xff\xfe"}', malformed),
        "json_of_something_else": (b'[{"caption": "a cat"}]', malformed),
        "json_deeply_nested": (b"[" * 200_000, malformed),
        "json_nan": (with_mask(bbox=[0, 0, float("nan"), 1]), "ok"),
        "json_infinity": (with_mask(predicted_iou=float("inf")), "ok"),
        "json_huge_float": (with_mask(area=1).replace(b'"area": 1', b'"area": 1e999'), "ok"),
        "json_huge_id": (with_mask(id=10**30), "ok"),
        "rle_too_long": (with_counts([0, 10**18]), "ok"),
        "rle_negative": (with_counts([height * width + 5, -5]), "ok"),
        "rle_hostile_text": (with_counts("o" * 4000), "ok"),
        "rle_outside_alphabet": (with_counts("\u0000\u4e2d"), "ok"),
        "polygon_far_outside": (with_mask(segmentation=[[0, 0, 1e12, 0, 1e12, 1e12]]), "ok"),
        "size_of_another_image": (json.dumps(_sa1b(width, height)).encode(), "masks:size_mismatch"),
        "no_masks": (json.dumps(good | {"annotations": []}).encode(), "ok"),
        "duplicate_ids": (json.dumps(good | {"annotations": [masks[0]] * 2}).encode(), "ok"),
        "polygons": (with_mask(segmentation=[box]), "ok"),
        "crowd": (with_mask(iscrowd=1), "ok"),
    }


def _photo() -> Image.Image:
    """Smooth enough for JPEG, of many colours."""
    y, x = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    return Image.fromarray(np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8))


def _ramp() -> np.ndarray:
    """Greys 0 to 255, [H, W]."""
    return np.linspace(0, 255, HEIGHT_PX * WIDTH_PX).round().reshape(HEIGHT_PX, WIDTH_PX)


def _with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.fromarray(_ramp().astype(np.uint8)))
    return image


def _save(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _png(width: int, height: int, pixels: bytes, text_bytes: int = 0) -> bytes:
    """A PNG of one bit a pixel with this compressed data, and a compressed text chunk of zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(text_bytes), 9)) if text_bytes else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(header), 0, 0, 14 + len(header)) + header


def _sa1b(height: int, width: int) -> dict[str, Any]:
    """Annotations of the left half of an image and of the whole; runs go down the columns."""
    half = height * (width // 2)
    runs = [[0, height * width]] + ([[0, half, height * width - half]] if half else [])
    return {
        "image": {"image_id": 1, "width": width, "height": height, "file_name": "photo.jpg"},
        "annotations": [
            {"id": id, "segmentation": {"size": [height, width], "counts": counts}, "predicted_iou": 1.01}
            for id, counts in enumerate(runs)
        ],
    }
