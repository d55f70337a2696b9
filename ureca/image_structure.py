"""Structure of image files, read without decoding: what decoding them will cost, and whether that is acceptable."""

import re
import struct
from dataclasses import dataclass

from ureca.errors import ImageError

_MAX_SEGMENTS = 10_000
"""Segments of a JPEG, or chunks of a PNG, that a file may have beyond one per ``_BYTES_PER_SEGMENT``."""

_BYTES_PER_SEGMENT = 1024
_MAX_SCANS = 256
_MAX_SCANNED_PIXELS = 2_500_000_000
"""Scans of a JPEG x its pixels: every scan visits every pixel, even if it holds no data."""

_MAX_SCANNED_PIXELS_HERE = 600_000_000
_BYTES_PER_PIXEL = 12
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a stuffed 0xff, nor a fill byte, nor a restart marker
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ImageStructure:
    """Structure of an image file.

    Attributes:
        size: Width and height as the header states them; None if this module does not read the format.
        is_ordinary: True if the cost of decoding is bounded by the length of the file and the number of pixels, so that
            it needs no process of its own.
    """

    size: tuple[int, int] | None
    is_ordinary: bool

    def num_decoding_bytes(self, num_file_bytes: int, max_pixels: int) -> int:
        """Return the memory that decoding takes at most.

        Args:
            num_file_bytes: Length of the file.
            max_pixels: Largest number of pixels that is decoded; assumed where the header is not read.
        """
        num_pixels = max_pixels if self.size is None else min(max_pixels, self.size[0] * self.size[1])
        return num_file_bytes + _BYTES_PER_PIXEL * num_pixels


def read_structure(data: bytes) -> ImageStructure:
    """Read the structure of an image file; takes milliseconds.

    A malformed JPEG or PNG is read up to the damage.

    Raises:
        ImageError: ``too_complex``: more scans, segments or chunks than any image needs.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _read_jpeg(data)
    if data.startswith(_PNG):
        return _read_png(data)
    return ImageStructure(None, False)


def _read_jpeg(data: bytes) -> ImageStructure:
    position, num_segments, num_scans = 2, 0, 0
    size: tuple[int, int] | None = None
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            following = re.compile(rb"[^\xff]").search(data, position)
            position = len(data) if following is None else following.start() - 1
            continue
        if marker == 0xD9:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without content
            position += 2
            continue
        num_segments += 1
        _check_count(num_segments, len(data), "segments")
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in _FRAME_HEADERS and position + 9 <= len(data):
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = (width, height)
        position += 2 + length
        if marker == 0xDA:
            num_scans += 1
            if num_scans > _MAX_SCANS:
                raise ImageError("too_complex", f"JPEG: more than {_MAX_SCANS} scans")
            end = _SCAN_END.search(data, position)
            if end is None:
                break
            position = end.start()
    num_scanned = num_scans * (size[0] * size[1] if size else 0)
    if num_scanned > _MAX_SCANNED_PIXELS:
        raise ImageError(
            "too_complex", f"JPEG: {num_scans} scans of {size} pixels, together more than {_MAX_SCANNED_PIXELS}"
        )
    return ImageStructure(size, size is not None and num_scanned <= _MAX_SCANNED_PIXELS_HERE)


def _read_png(data: bytes) -> ImageStructure:
    if len(data) < 33 or data[12:16] != b"IHDR":
        return ImageStructure(None, False)
    size = struct.unpack_from(">II", data, 16)
    position, num_chunks = 8, 0
    while position + 12 <= len(data):
        num_chunks += 1
        _check_count(num_chunks, len(data), "chunks")
        if data[position + 4 : position + 8] == b"IEND":
            break
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return ImageStructure((size[0], size[1]), True)


def _check_count(number: int, num_bytes: int, name: str) -> None:
    if number > _MAX_SEGMENTS + num_bytes // _BYTES_PER_SEGMENT:
        raise ImageError("too_complex", f"{num_bytes} bytes in more than {number - 1} {name}")
