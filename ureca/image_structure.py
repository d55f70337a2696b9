"""Structure of image files, read without decoding: what decoding them will cost, and whether that is acceptable."""

import contextlib
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
_MAX_PROFILES = 16
"""Colour profiles of a PNG, which should have one: each is decompressed, to as much as a megabyte."""

_BYTES_PER_PIXEL = 12
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a stuffed 0xff, nor a fill byte, nor a restart marker
_MARKER = re.compile(rb"\xff[^\xff]")
_MAX_JUNK_BYTES = 65_536
"""Bytes of a JPEG between its segments, where it should have none: each is read alone."""

_MAX_RUN_BYTES = 4
"""Bytes of a run-length encoded BMP for each of its pixels and rows: more only repeat ends of rows."""

_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TIFF_SIDES = (256, 257)  # tags of width and height
_TIFF_PARTS = (273, 324)  # tags of the places of strips and tiles
_MAX_PARTS = 100_000
"""Strips or tiles of a TIFF, which are decoded one by one."""

_MAX_ITEM_TABLE_BYTES = 65_536
_PNM_HEADER = re.compile(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ImageStructure:
    """Structure of an image file.

    Attributes:
        size: width and height as the header states them; None if it states none.
        is_ordinary: True if the cost of decoding is bounded by the length of the file and the number of pixels, so that
            it needs no process of its own.
    """

    size: tuple[int, int] | None
    is_ordinary: bool

    def num_decoding_bytes(self, num_file_bytes: int, max_pixels: int) -> int:
        """Return the memory that decoding takes at most.

        Args:
            num_file_bytes: length of the file.
            max_pixels: largest number of pixels that is decoded; assumed where the header is not read.
        """
        num_pixels = max_pixels if self.size is None else min(max_pixels, self.size[0] * self.size[1])
        return num_decoding_bytes(num_file_bytes, num_pixels)


def num_decoding_bytes(num_file_bytes: int, num_pixels: int) -> int:
    """Return the memory that decoding a file to a number of pixels takes at most."""
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
    if data.startswith(b"GIF8"):
        _check_gif(data)
    elif data.startswith(b"BM"):
        _check_bmp(data)
    return ImageStructure(_stated_size(data), False)


def _read_jpeg(data: bytes) -> ImageStructure:
    position, num_segments, num_scans, num_junk_bytes = 2, 0, 0, 0
    size: tuple[int, int] | None = None
    while position + 4 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xFF:  # junk, or a fill byte
            following = _MARKER.search(data, position)
            num_junk_bytes += (len(data) if following is None else following.start()) - position
            if num_junk_bytes > _MAX_JUNK_BYTES:
                raise ImageError("too_complex", f"JPEG: more than {_MAX_JUNK_BYTES} bytes between its segments")
            position = len(data) if following is None else following.start()
            continue
        if marker == 0xD9:
            break
        num_segments += 1
        _check_count(num_segments, len(data), "segments")
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # padding, and markers without content
            position += 2
            continue
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
    if num_scans > 1 and num_scanned > _MAX_SCANNED_PIXELS:
        raise ImageError(
            "too_complex", f"JPEG: {num_scans} scans of {size} pixels, together more than {_MAX_SCANNED_PIXELS}"
        )
    return ImageStructure(size, size is not None and num_scanned <= _MAX_SCANNED_PIXELS_HERE)


def _read_png(data: bytes) -> ImageStructure:
    if len(data) < 33 or data[12:16] != b"IHDR":
        return ImageStructure(None, False)
    size = struct.unpack_from(">II", data, 16)
    position, num_chunks, num_profiles = 8, 0, 0
    while position + 12 <= len(data):
        num_chunks += 1
        _check_count(num_chunks, len(data), "chunks")
        kind = data[position + 4 : position + 8]
        if kind == b"IEND":
            break
        num_profiles += kind == b"iCCP"
        if num_profiles > _MAX_PROFILES:
            raise ImageError("too_complex", f"PNG: more than {_MAX_PROFILES} colour profiles")
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return ImageStructure((size[0], size[1]), True)


def _check_gif(data: bytes) -> None:
    """Check the number of blocks before the first frame, which are comments and the like; later ones are not read."""
    position, num_blocks = 13, 0
    if len(data) > 10 and data[10] & 0x80:
        position += 3 << (1 + (data[10] & 7))
    while position + 2 < len(data) and data[position] == 0x21:
        position += 2
        while position < len(data):
            num_blocks += 1
            _check_count(num_blocks, len(data), "blocks")
            length = data[position]
            position += 1 + length
            if not length:
                break


def _check_bmp(data: bytes) -> None:
    """Check the length of run-length encoded pixels, which are decoded one by one."""
    if data[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        width, height = (abs(side) for side in _pair("<ii", data, 18))
        most = _MAX_SEGMENTS + _MAX_RUN_BYTES * (width + 1) * (height + 1)
        if len(data) > most:
            raise ImageError("too_complex", f"BMP: {len(data)} bytes of runs for {width} x {height} pixels")


def _stated_size(data: bytes) -> tuple[int, int] | None:
    """Return the size that the header of another format states; the decoder may find another one."""
    size: tuple[int, int] | None = None
    with contextlib.suppress(struct.error):
        if data.startswith(b"GIF8"):
            size = _pair("<HH", data, 6)
        elif data.startswith(b"BM"):
            width, height = _pair("<ii", data, 18)
            size = (abs(width), abs(height))
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            size = _webp_size(data)
        elif data[:2] in (b"II", b"MM"):
            size = _tiff_size(data)
        elif data[4:8] == b"ftyp":  # AVIF and HEIC state the size of each of their items
            found = [match.end() for match in re.finditer(rb"ispe\0{4}", data[:_MAX_ITEM_TABLE_BYTES])]
            items = [_pair(">II", data, place) for place in found]
            size = max(items, key=lambda item: item[0] * item[1], default=None)
        elif (start := data.find(b"\xff\x4f\xff\x51", 0, 1024)) >= 0:  # JPEG 2000
            (right, bottom), (left, top) = _pair(">II", data, start + 8), _pair(">II", data, start + 16)
            size = (max(0, right - left), max(0, bottom - top))
        elif match := _PNM_HEADER.match(data[:1024]):
            size = (int(match[1]), int(match[2]))
    return size if size is not None and size[0] * size[1] else None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = _pair("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    order = "<" if data.startswith(b"II") else ">"
    if data[2:4] not in (b"*\0", b"\0*"):  # BigTIFF
        return None
    (place,) = struct.unpack_from(f"{order}I", data, 4)
    (num_tags,) = struct.unpack_from(f"{order}H", data, place)
    sides: dict[int, int] = {}
    for index in range(num_tags):
        tag, kind = struct.unpack_from(f"{order}HH", data, place + 2 + 12 * index)
        if tag in _TIFF_PARTS:
            (num_parts,) = struct.unpack_from(f"{order}I", data, place + 6 + 12 * index)
            if num_parts > _MAX_PARTS:
                raise ImageError("too_complex", f"TIFF: {num_parts} strips or tiles")
        if tag in _TIFF_SIDES:
            (sides[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, place + 10 + 12 * index)
    return (sides[_TIFF_SIDES[0]], sides[_TIFF_SIDES[1]]) if len(sides) == len(_TIFF_SIDES) else None


def _pair(format: str, data: bytes, place: int) -> tuple[int, int]:
    first, second = struct.unpack_from(format, data, place)
    return first, second


def _check_count(number: int, num_bytes: int, name: str) -> None:
    if number > _MAX_SEGMENTS + num_bytes // _BYTES_PER_SEGMENT:
        raise ImageError("too_complex", f"{num_bytes} bytes in more than {number - 1} {name}")
