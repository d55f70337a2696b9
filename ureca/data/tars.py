"""Images in uncompressed tar archives, as SA-1B and WebDataset publish them, listed by their headers alone."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ureca.data.manifest import MANIFEST, make_manifest
from ureca.data.paths import (
    ANNOTATION_EXTENSIONS,
    Sieve,
    has_extension,
    image_extensions,
    stems,
    without_extensions,
)
from ureca.errors import InputError
from ureca.io import Location

_BLOCK = 512  # bytes; a tar is made of such blocks
_MAX_EXTENDED_BYTES = 1 << 20  # largest long name, or block of extended attributes
_NUM_LOCAL_THREADS = 4  # more would compete for the interpreter: scanning a file in memory is pure Python
_NUM_REMOTE_THREADS = 32  # each header is a request, which only waits for the network
_FILES = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_SPARSE = b"S"  # GNU's sparse files, which have further headers of their own
_EXTENDED = (b"x", b"g", b"L", b"K")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class TarMember(NamedTuple):
    """A regular file in a tar.

    Attributes:
        name: name within the archive, without a leading ``./``.
        offset: offset of the data, in bytes.
        size: size of the data, in bytes, as stated in the header: a truncated archive may end earlier. None: the
            archive cannot be read from ``offset`` on.
    """

    name: str
    offset: int
    size: int | None


_HERE = re.compile(rb"(?<![^/])(?:\./)+")
_VISIBLE = re.compile(rb"(?:[^./][^/]*/)*(?:[^./][^/]*|\._[^/]+)", re.DOTALL)

_MEMBERS = pa.schema([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])


def list_tars(
    location: Location,
    names: Any,
    *,
    with_annotations: bool,
    sieve: Sieve | None = None,
    prefixes: Sequence[str] | None = None,
) -> pa.Table:
    """List the images in tar archives; ``a.json`` is the annotation of ``a.jpg`` in the same archive.

    An archive that is damaged or truncated within a header gets one more row, ``shard@<offset>``, which becomes an
    error row.

    Args:
        location: location whose file system holds the archives.
        names: names of the archives, Arrow strings.
        with_annotations: look for annotations.
        sieve: selection of the members; None: those of macOS and Synology are left out.
        prefixes: for each archive, the beginning of its ids, which a member's name without its extension follows;
            None: an id is the stem of the member.

    Returns:
        Table of the schema ``MANIFEST``, in the order of the archives and their members.

    Raises:
        InputError: an archive cannot be opened, or is compressed.
    """
    sieve = sieve or Sieve()

    def list_one(name: str, prefix: str | None) -> pa.Table:
        return _list_tar(location, name, with_annotations, sieve, prefix)

    num_threads = _NUM_LOCAL_THREADS if location.is_local else _NUM_REMOTE_THREADS
    with ThreadPoolExecutor(num_threads) as pool:
        return pa.concat_tables(
            [
                MANIFEST.empty_table(),
                *pool.map(list_one, names.to_pylist(), prefixes or [None] * len(names)),
            ]
        )


def _list_tar(location: Location, tar_name: str, with_annotations: bool, sieve: Sieve, prefix: str | None) -> pa.Table:
    uri = location.uris(pa.scalar(tar_name)).as_py()
    path = location.paths(pa.scalar(tar_name)).as_py()
    try:
        with location.open(tar_name) as file:
            if file.read_at(6, 0).startswith(_COMPRESSED):
                raise InputError(
                    f"{uri}: the tar is compressed, so its members cannot be read one by one. Unpack it to a plain .tar"
                )
            members = list(scan(file))
    except OSError as error:
        raise InputError(f"{uri}: the archive cannot be read: {error}") from error

    table = pa.Table.from_arrays(
        [pa.array([member[index] for member in members], field.type) for index, field in enumerate(_MEMBERS)],
        schema=_MEMBERS,
    )
    damage = table.filter(pc.field("size").is_null())
    table = table.filter(pc.field("size").is_valid())
    table = table.filter(sieve.keep(table["name"]))
    is_image = has_extension(table["name"], image_extensions())
    images = table.filter(is_image)
    is_annotation = has_extension(table["name"], ANNOTATION_EXTENSIONS if with_annotations else ())
    annotations = table.filter(is_annotation)
    sieve.count_extensions(table.filter(pc.invert(pc.or_(is_image, is_annotation)))["name"])
    pairs = pc.index_in(
        without_extensions(images["name"]),
        value_set=without_extensions(annotations["name"]).combine_chunks(),
    )
    places = pc.binary_join_element_wise("@", damage["offset"].cast(pa.string()), "")
    return pa.concat_tables(
        [
            make_manifest(
                image_id=stems(images["name"])
                if prefix is None
                else pc.binary_join_element_wise(prefix, without_extensions(images["name"]), "/"),
                uri=pc.binary_join_element_wise(uri, images["name"], "/"),
                path=pa.repeat(path, len(images)),
                offset=images["offset"],
                size=images["size"],
                annotation_path=pc.if_else(pairs.is_valid(), path, pa.scalar(None, pa.string())),
                annotation_offset=annotations["offset"].take(pairs),
                annotation_size=annotations["size"].take(pairs),
                annotation_uri=pc.binary_join_element_wise(uri, annotations["name"].take(pairs), "/"),
            ),
            make_manifest(
                image_id=pc.binary_join_element_wise(
                    stems(pa.scalar(tar_name)) if prefix is None else prefix, places, ""
                ),
                uri=pc.binary_join_element_wise(uri, places, ""),
                path=pa.repeat(path, len(damage)),
                offset=damage["offset"],
            ),
        ]
    )


def scan(file: pa.NativeFile) -> Iterator[TarMember]:
    """Yield the regular files of a tar, in order, reading its headers and skipping the data.

    Links, devices, folders and hidden files are left out, and so are absolute names and names with ``..``. Long names
    and sizes are read in GNU's and in POSIX' form. A damaged or truncated header, or a sparse file, ends the scan with
    a member without size; an archive without its end mark is accepted.
    """
    length = file.size()
    offset = 0
    extended: dict[str, bytes] = {}
    while offset < max(length, 1):
        block = file.read_at(_BLOCK, offset)
        if block[:1] == b"\0" and len(block) == _BLOCK and not any(block):
            return
        try:
            type, name, size = _parse_header(block)
            if type in _EXTENDED:
                extended |= _parse_extended(type, file.read_at(min(size, _MAX_EXTENDED_BYTES), offset + _BLOCK))
            else:
                name, size = extended.get("path", name), int(extended.get("size", size))
                extended = {}
            if type == _SPARSE or not 0 <= size < 2**62:
                raise ValueError("the end of the file is unknown")
        except ValueError:
            yield TarMember("", offset, None)
            return
        data_offset = offset + _BLOCK
        offset = data_offset + (0 if type in _WITHOUT_DATA else -(-size // _BLOCK) * _BLOCK)
        if type in _FILES and (safe_name := _safe(name)):
            yield TarMember(safe_name, data_offset, size)


def _parse_header(block: bytes) -> tuple[bytes, bytes, int]:
    """Parse type, name and size of a header. The parser of ``tarfile`` takes ten times as long.

    Raises:
        ValueError: the block is not a header.
    """
    if len(block) < _BLOCK or sum(block) - sum(block[148:156]) + 8 * ord(" ") != _number(block[148:156]):
        raise ValueError("not a tar header")
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return block[156:157], name, _number(block[124:136])


def _number(field: bytes) -> int:
    """Parse a number in octal digits or, with the first bit set, in base 256."""
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.partition(b"\0")[0].strip() or b"0", 8)


def _parse_extended(type: bytes, content: bytes) -> dict[str, bytes]:
    """Parse GNU's L header (a name) or POSIX' x header (lines ``<length> <key>=<value>``), about the next file."""
    if type == b"L":
        return {"path": content.partition(b"\0")[0]}
    values = {}
    while type == b"x" and content:
        length = int(content.partition(b" ")[0])
        key, _, value = content[:length].partition(b" ")[2].removesuffix(b"\n").partition(b"=")
        values[key.decode("utf-8", "backslashreplace")] = value
        content = content[max(length, 1) :]
    return values


def _safe(name: bytes) -> str:
    """Return the name without any ``./``; empty for a folder, a hidden file, or one outside of the archive's folder."""
    name = _HERE.sub(b"", name)
    return name.decode("utf-8", "backslashreplace") if _VISIBLE.fullmatch(name) else ""
