"""Content of files: compressed, or text in another encoding than UTF-8; and base64 in place of a file."""

import base64
import codecs
import errno
import json
import tempfile
import zlib
from collections.abc import Iterator
from io import BufferedReader
from itertools import chain
from typing import BinaryIO, cast

import pyarrow.fs as pafs

from ureca.io import Location, locate

_GZIP = b"\x1f\x8b"
_CHUNK_BYTES = 2**20
_MAX_TEXT_BYTES = 2**35
_MARK_BYTES = 64  # first bytes of a text, by which its encoding is recognized
_MIN_ZEROS_FRACTION = 0.3  # of all bytes; every second byte of ASCII in UTF-16 is zero
_COMPRESSED = (".bz2", ".zst", ".lz4")  # extensions that Arrow decompresses
_BASE64_OF_URLS = bytes.maketrans(b"-_", b"+/")
_BASE64_PIECE = 2**20  # characters


def iter_chunks(
    location: Location, *, max_bytes: int = _MAX_TEXT_BYTES, chunk_bytes: int = _CHUNK_BYTES
) -> Iterator[bytes]:
    """Yield the content of a file, decompressed where its extension or its first bytes say that it is compressed.

    Args:
        location: the file.
        max_bytes: largest content, so that a small compressed file cannot fill the disk.
        chunk_bytes: number of bytes read at a time.

    Raises:
        OSError: it cannot be read, is damaged, or is larger than ``max_bytes``.
    """
    # Content named .gz that is none, and gzip that is named otherwise, are told by the first bytes.
    compression = None if location.name.lower().endswith(".gz") else "detect"
    with location.filesystem.open_input_stream(location.name, compression=compression) as stream:
        first = stream.read(chunk_bytes)
        chunks: Iterator[bytes] = chain([first], iter(lambda: stream.read(chunk_bytes), b""))
        num_bytes = 0
        for chunk in _gunzip(chunks) if first.startswith(_GZIP) else chunks:
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise OSError(errno.EFBIG, f"the file is larger than {max_bytes} bytes")
            yield chunk


def decompressed(data: bytes, *, max_bytes: int) -> bytes:
    """Return the content of a file that may be compressed by gzip; at most ``max_bytes`` + 1 of it.

    Raises:
        OSError: it is damaged.
    """
    if not data.startswith(_GZIP):
        return data
    parts, num_left = [], max_bytes + 1
    for chunk in _gunzip(iter([data])):
        parts.append(chunk[:num_left])
        num_left -= len(parts[-1])
        if not num_left:
            break
    return b"".join(parts)


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    decoder = zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            left = chunk
            while left:
                if decoder.eof:  # another member follows
                    decoder = zlib.decompressobj(wbits=31)
                if part := decoder.decompress(left, _CHUNK_BYTES):
                    yield part
                left = decoder.unconsumed_tail or decoder.unused_data.lstrip(b"\0")
    except zlib.error as error:
        raise OSError(errno.EIO, f"the compressed file is damaged: {error}") from error
    if not decoder.eof:
        raise OSError(errno.EIO, "the compressed file ends early")


def decode_text(data: bytes) -> str:
    """Decode text in UTF-8, 16 or 32, with or without a mark.

    Raises:
        UnicodeDecodeError: it is in none of them.
    """
    return data.decode(_encoding(data[:_MARK_BYTES]))


def _encoding(head: bytes) -> str:
    """Return the encoding of a text, of which the beginning is given; a few zero bytes do not make it UTF-16 or 32."""
    encoding = json.detect_encoding(head)
    is_marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    share_of_zeros = head.count(0) / max(1, len(head))
    return encoding if is_marked or share_of_zeros > _MIN_ZEROS_FRACTION or encoding.startswith("utf-8") else "utf-8"


def open_lines(path: str) -> BinaryIO:
    """Open a text file for reading its lines, in UTF-8, at any offset.

    One that is compressed, or in UTF-16 or 32, is read from a temporary copy; what is no text in it is replaced.

    Raises:
        InputError: the scheme of the URI is unknown.
        OSError: it cannot be read.
    """
    location = locate(path)
    type = location.filesystem.get_file_info(location.name).type
    if type not in (pafs.FileType.File, pafs.FileType.NotFound):  # opening a pipe would wait for its writer
        raise OSError(errno.EINVAL, f"{path} is not a regular file, but {type.name}")
    file = location.filesystem.open_input_file(location.name)
    head = file.read(_MARK_BYTES)
    file.seek(0)
    encoding = _encoding(head)
    if not head.startswith(_GZIP) and encoding in ("utf-8", "utf-8-sig") and not path.endswith(_COMPRESSED):
        return BufferedReader(file, 1 << 16)
    file.close()
    copy = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - the caller closes it
    decoder: codecs.IncrementalDecoder | None = None
    for chunk in iter_chunks(location):
        if decoder is None:
            decoder = codecs.getincrementaldecoder(_encoding(chunk[:_MARK_BYTES]))("replace")
        copy.write(decoder.decode(chunk).encode("utf-8", "replace"))
    copy.seek(0)
    return copy


def decode_data_url(text: str) -> bytes:
    """Decode base64 text, or a ``data:`` URL of it; also in the alphabet of URLs, and without the padding.

    Raises:
        ValueError: it is neither.
    """
    start = 0
    if text[:5].lower() == "data:":
        start = text.find(",") + 1
        if not text[: max(0, start - 1)].lower().endswith(";base64"):
            raise ValueError("a data: URL has the form data:image/png;base64,...")
    encoded = bytearray()
    try:
        # As bytes, because splitting text at white space would make an object of every character between; in pieces,
        # because copies of the whole would double the memory.
        for index in range(start, len(text), _BASE64_PIECE):
            encoded += text[index : index + _BASE64_PIECE].encode("ascii").translate(_BASE64_OF_URLS, b" \t\r\n\f\v")
        encoded += b"=" * (-len(encoded) % 4)
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise ValueError(f"not base64: {error}") from error
