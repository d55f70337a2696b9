"""Arrow strings of paths and URIs, handled a column at a time."""

from typing import Any

import pyarrow.compute as pc

IMAGE_EXTENSIONS = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "png",
    "webp",
    "tif",
    "tiff",
    "bmp",
    "gif",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
)
ANNOTATION_EXTENSIONS = ("json",)
SHARD_EXTENSIONS = ("tar",)
TABLE_EXTENSIONS = ("parquet",)
LIST_EXTENSIONS = ("txt",)
COMPRESSED_EXTENSIONS = ("tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz", "tar.zst", "tzst")


def has_extension(paths: Any, extensions: tuple[str, ...]) -> Any:
    """Whether each path ends with one of the extensions, in any case."""
    alternatives = "|".join(extension.replace(".", r"\.") for extension in extensions)
    return pc.match_substring_regex(paths, rf"(?i)[^/]\.(?:{alternatives})$")


def stems(paths: Any) -> Any:
    """Last components without the extension: ``a/b.c.jpg`` becomes ``b.c``."""
    return pc.replace_substring_regex(paths, r"(?s)^(?:.*/)?([^/]+?)(?:\.[^./]*)?$", r"\1")


def without_extensions(paths: Any) -> Any:
    """``a/b.c.jpg`` becomes ``a/b.c``."""
    return pc.replace_substring_regex(paths, r"(?s)^(.*/)?([^/]+?)(?:\.[^./]*)?$", r"\1\2")


def folders(paths: Any) -> Any:
    """``a/b.c.jpg`` becomes ``a``."""
    return pc.replace_substring_regex(paths, r"(?s)/[^/]*$", "")


def resolve(paths: Any, folder: str, options: str) -> Any:
    """Absolute paths of this machine and URIs as they are; others are taken from a folder, with its URI's options."""
    is_absolute = pc.match_substring_regex(paths, r"^(/|[a-zA-Z][a-zA-Z0-9+.-]*://)")
    joined = pc.binary_join_element_wise(pc.binary_join_element_wise(folder, paths, "/"), options, "")
    return pc.if_else(is_absolute, paths, joined)


def split_options(paths: Any) -> tuple[Any, Any]:
    """Part URIs from their options (``?region=x``). A path of this machine has none, whatever its name holds."""
    is_uri = pc.match_substring_regex(paths, r"^[a-zA-Z][a-zA-Z0-9+.-]*://")
    bare = pc.if_else(is_uri, pc.replace_substring_regex(paths, r"(?s)\?.*$", ""), paths)
    options = pc.if_else(is_uri, pc.replace_substring_regex(paths, r"(?s)^[^?]*", ""), "")
    return bare, options


def first_duplicates(keys: Any, paths: Any) -> tuple[str, str] | None:
    """The paths of the first two rows that share a key, for the first key that is shared; None: all are distinct."""
    counts = pc.value_counts(keys)
    shared = counts.filter(pc.greater(counts.field("counts"), 1))
    if not len(shared):
        return None
    first, second, *_ = paths.filter(pc.equal(keys, shared.field("values")[0])).slice(0, 2).to_pylist()
    return first, second
