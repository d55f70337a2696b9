"""Index of the regions of a run: filters, order and histograms over millions of regions, without reading them again.

The columns that filters need are gathered once from the Parquet files (the masks are not read), kept in one Arrow file
in the user's cache, and mapped into memory.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
from pydantic import BaseModel, ConfigDict, Field

from ureca import __version__, io, parquet
from ureca.data.corrections import Correction, Corrections
from ureca.data.output import Output
from ureca.hashing import digest

logger = logging.getLogger(__name__)

STATES = ("accepted", "self_checked", "unchecked", "rejected", "failed", "skipped")
"""States of a region: its verdict if it has a caption, else the beginning of its status."""

SIZE_EDGES = (0.0, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Lower edges of the bins of the sizes, as fractions of the image."""

LENGTH_EDGES = (0, 1, 3, 6, 9, 12, 16, 20, 25, 30, 40, 60)
"""Lower edges of the bins of the lengths, in words."""

_MAX_DEPTH = 32
_MAX_CATEGORIES = 200
_NUM_CACHED_RESULTS = 8
_VERSION = 1  # of the index files; raise it with every change of their columns
_FINGERPRINT = b"ureca.view"

_COLUMNS = pa.schema(
    [
        pa.field("image", pa.int32()),  # row of the images, in order
        pa.field("region_id", pa.int64()),
        pa.field("depth", pa.int16()),
        pa.field("size", pa.float32()),  # fraction of the image
        pa.field("num_words", pa.uint16()),
        pa.field("state", pa.uint8()),
        pa.field("has_lookalikes", pa.bool_()),
        pa.field("is_repeated", pa.bool_()),
        pa.field("category", pa.string()),
        pa.field("caption", pa.string()),
    ]
)
_IMAGES = pa.schema([pa.field("image_id", pa.string()), pa.field("partition", pa.int32()), pa.field("row", pa.int32())])


class Query(BaseModel):
    """Filters and order of regions. A region has to pass every filter that is set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    states: tuple[Literal["accepted", "self_checked", "unchecked", "rejected", "failed", "skipped"], ...] = ()
    unique: bool | None = Field(default=None, description="false: another region of the image has the same caption")
    lookalikes: bool | None = Field(default=None, description="true: the region has look-alikes; false: it has none")
    corrected: bool | None = Field(default=None, description="true: the journal has a correction; false: it has none")
    min_depth: int | None = Field(default=None, ge=0)
    max_depth: int | None = Field(default=None, ge=0)
    min_size: float | None = Field(default=None, ge=0, le=1, description="smallest area, as a fraction of the image")
    max_size: float | None = Field(default=None, ge=0, le=1, description="largest area, as a fraction of the image")
    min_words: int | None = Field(default=None, ge=0)
    max_words: int | None = Field(default=None, ge=0)
    category: str | None = Field(default=None, max_length=200)
    text: str = Field(default="", max_length=200, description="words that the caption contains, in any order and case")
    image_id: str | None = Field(default=None, max_length=4096)
    sort: Literal["order", "size", "words", "depth", "caption"] = "order"
    descending: bool = False


@dataclass(frozen=True)
class FoundRegion:
    """A region of a result, as the index knows it.

    Attributes:
        position: place in the index.
        image: row of its image.
        state: one of ``STATES``.
        size: fraction of the image.
    """

    position: int
    image: int
    image_id: str
    region_id: int
    caption: str | None
    state: str
    depth: int
    size: float
    category: str | None
    is_repeated: bool
    correction: Correction | None


class ViewIndex:
    """Regions of a run with the corrections of its journal.

    Args:
        regions: table of all regions.
        images: table of all images that have regions.
        corrections: corrections of the journal.
        num_failed_images: number of images without regions because of an error.
    """

    def __init__(self, regions: pa.Table, images: pa.Table, corrections: Corrections, num_failed_images: int) -> None:
        self._images = images
        self._image = _numpy(regions["image"])
        self._region_id = _numpy(regions["region_id"])
        self._depth = _numpy(regions["depth"])
        self._size = _numpy(regions["size"])
        self._lookalikes = regions["has_lookalikes"].to_numpy()
        encoded = regions["category"].combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], pa.string()).dictionary_encode()
        self._categories: list[str] = encoded.dictionary.to_pylist()
        self._category = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        self._caption: pa.ChunkedArray = regions["caption"]
        # Changed by corrections.
        self._words = _numpy(regions["num_words"]).copy()
        self._state = _numpy(regions["state"]).copy()
        self._repeated = regions["is_repeated"].to_numpy().copy()
        self._first = np.searchsorted(self._image, np.arange(images.num_rows + 1))
        self._corrections: dict[int, Correction] = {}
        self._original_state: dict[int, int] = {}
        self._results: OrderedDict[tuple[Query, int], npt.NDArray[np.int64]] = OrderedDict()
        self._lock = threading.Lock()
        self._rank: npt.NDArray[np.int32] | None = None
        self._ranking = threading.Lock()
        self.num_failed_images = num_failed_images
        self._apply_journal(corrections)

    @property
    def num_regions(self) -> int:
        """Number of regions of the run."""
        return len(self._image)

    @property
    def num_images(self) -> int:
        """Number of images that have regions."""
        return int(self._images.num_rows)

    def image_place(self, image: int) -> tuple[str, int, int]:
        """Return the id of an image, its partition, and its row there."""
        row = self._images.slice(image, 1).to_pylist()[0]
        return row["image_id"], row["partition"], row["row"]

    def positions_of(self, image: int) -> range:
        """Return the places of the regions of an image."""
        return range(int(self._first[image]), int(self._first[image + 1]))

    def correction(self, position: int) -> Correction | None:
        """Return the correction of a region."""
        return self._corrections.get(position)

    def find(self, query: Query, version: int = 0) -> npt.NDArray[np.int64]:
        """Return the places of the regions that pass a query's filters, in its order.

        Args:
            query: filters and order.
            version: number of the result. Corrections do not change a result, so that its pages stay as they are;
                another number finds again.

        Returns:
            Array int64 [N].
        """
        key = (query, version)
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        found = self._sort(np.flatnonzero(self._mask(query)), query)
        with self._lock:
            self._results[key] = found
            while len(self._results) > _NUM_CACHED_RESULTS:
                self._results.popitem(last=False)
        return found

    def regions(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> list[FoundRegion]:
        """Return the regions at some places."""
        places = np.asarray(positions, np.int64)
        captions = self._caption.take(pa.array(places)).to_pylist()
        image_ids = self._images["image_id"].take(pa.array(self._image[places])).to_pylist()
        found = []
        for position, caption, image_id in zip(places.tolist(), captions, image_ids, strict=True):
            correction = self._corrections.get(position)
            category = int(self._category[position])
            found.append(
                FoundRegion(
                    position=position,
                    image=int(self._image[position]),
                    image_id=image_id,
                    region_id=int(self._region_id[position]),
                    caption=_corrected_caption(caption, correction),
                    state=STATES[self._state[position]],
                    depth=int(self._depth[position]),
                    size=float(self._size[position]),
                    category=None if category < 0 else self._categories[category],
                    is_repeated=bool(self._repeated[position]),
                    correction=correction,
                )
            )
        return found

    def histograms(self, query: Query, version: int = 0) -> dict[str, Any]:
        """Count the found regions by state, depth, size, length and category; arguments as in ``find``.

        Returns:
            For each, a list of bins with their lower edges (or values) and numbers of regions.
        """
        found = self.find(query, version)
        states = np.bincount(self._state[found], minlength=len(STATES))
        depths = np.bincount(np.minimum(self._depth[found], _MAX_DEPTH))
        sizes = np.bincount(np.digitize(self._size[found], SIZE_EDGES) - 1, minlength=len(SIZE_EDGES))
        words = np.bincount(np.digitize(self._words[found], LENGTH_EDGES) - 1, minlength=len(LENGTH_EDGES))
        named = self._category[found]
        counts = np.bincount(named[named >= 0], minlength=len(self._categories))
        largest = np.argsort(-counts, kind="stable")[:_MAX_CATEGORIES]
        return {
            "num_regions": len(found),
            "num_images": len(np.unique(self._image[found])),
            "states": dict(zip(STATES, states.tolist(), strict=True)),
            "depths": depths.tolist(),
            "sizes": list(zip(SIZE_EDGES, sizes.tolist(), strict=True)),
            "words": list(zip(LENGTH_EDGES, words.tolist(), strict=True)),
            "categories": [(self._categories[index], int(counts[index])) for index in largest if counts[index]],
        }

    def correct(self, position: int, correction: Correction) -> None:
        """Apply a correction to a region, in memory."""
        with self._lock:
            self._set(position, None if correction.action == "restore" else correction)

    def original_caption(self, position: int) -> str | None:
        """Return the caption of a region in the dataset."""
        caption: str | None = self._caption[position].as_py()
        return caption

    def _apply_journal(self, corrections: Corrections) -> None:
        by_image: dict[str, list[Correction]] = {}
        for correction in corrections:
            by_image.setdefault(correction.image_id, []).append(correction)
        if not by_image:
            return
        wanted = pa.array(list(by_image), pa.string())
        rows = np.flatnonzero(pc.is_in(self._images["image_id"], value_set=wanted).to_numpy())
        for row in rows.tolist():
            places = {int(self._region_id[position]): position for position in self.positions_of(row)}
            for correction in by_image[self._images["image_id"][row].as_py()]:
                position = places.get(correction.region_id)
                if position is not None and self.original_caption(position) == correction.original:
                    self._set(position, correction)

    def _set(self, position: int, correction: Correction | None) -> None:
        original_state = self._original_state.setdefault(position, int(self._state[position]))
        if correction is None:
            self._corrections.pop(position, None)
            self._state[position] = original_state
        else:
            self._corrections[position] = correction
            captioned = original_state < STATES.index("failed") or correction.action == "correct"
            state = "rejected" if correction.action == "reject" else "accepted"
            self._state[position] = STATES.index(state) if captioned else original_state
        caption = _corrected_caption(self.original_caption(position), correction)
        self._words[position] = len((caption or "").split())
        places = self.positions_of(int(self._image[position]))
        captions = [
            _corrected_caption(text, self._corrections.get(place))
            for place, text in zip(places, self._caption[places.start : places.stop].to_pylist(), strict=True)
        ]
        normal = [None if text is None else text.strip().lower() for text in captions]
        for place, text in zip(places, normal, strict=True):
            self._repeated[place] = text is not None and normal.count(text) > 1

    def _mask(self, query: Query) -> npt.NDArray[np.bool_]:
        mask = np.ones(self.num_regions, np.bool_)
        if query.states:
            mask &= np.isin(self._state, [STATES.index(state) for state in query.states])
        for flag, values in ((query.unique, ~self._repeated), (query.lookalikes, self._lookalikes)):
            if flag is not None:
                mask &= values if flag else ~values
        if query.unique:
            mask &= self._state < STATES.index("failed")
        if query.corrected is not None:
            corrected = np.zeros(self.num_regions, np.bool_)
            corrected[list(self._corrections)] = True
            mask &= corrected if query.corrected else ~corrected
        for column, least, most in (
            (self._depth, query.min_depth, query.max_depth),
            (self._size, query.min_size, query.max_size),
            (self._words, query.min_words, query.max_words),
        ):
            if least is not None:
                mask &= column >= least
            if most is not None:
                mask &= column <= most
        if query.category is not None:
            known = query.category in self._categories
            mask &= self._category == self._categories.index(query.category) if known else False
        if query.image_id is not None:
            rows = np.flatnonzero(pc.equal(self._images["image_id"], query.image_id).to_numpy())
            mask &= np.isin(self._image, rows)
        for word in query.text.lower().split():
            self._keep_containing(mask, word)
        return mask

    def _keep_containing(self, mask: npt.NDArray[np.bool_], word: str) -> None:
        """Clear the mask where a caption does not contain a word, whose case does not matter."""
        places = np.flatnonzero(mask)
        corrected = {
            position: (correction.caption or "").lower()
            for position, correction in self._corrections.items()
            if correction.action == "correct" and mask[position]
        }
        # Only regions that passed the other filters are searched, unless these are nearly all.
        is_most = len(places) > 0.7 * len(mask)
        searched = self._caption if is_most else self._caption.take(pa.array(places))
        contains = pc.match_substring(searched, word, ignore_case=True).fill_null(False).to_numpy()
        if is_most:
            contains = contains[places]
        mask[places] = contains
        for position, caption in corrected.items():
            mask[position] = word in caption

    def _caption_rank(self) -> npt.NDArray[np.int32]:
        """Return the place of each caption in alphabetical order, computed once; regions without one are at its end."""
        with self._ranking:
            if self._rank is None:
                encoded = _one_chunk(self._caption).dictionary_encode()
                order = pc.sort_indices(encoded.dictionary).to_numpy()
                ranks = np.empty(len(order) + 1, np.int32)
                ranks[order] = np.arange(len(order), dtype=np.int32)
                ranks[-1] = len(order)
                codes = encoded.indices.fill_null(len(order)).to_numpy(zero_copy_only=False)
                self._rank = ranks[codes]
            return self._rank

    def _sort(self, places: npt.NDArray[np.int64], query: Query) -> npt.NDArray[np.int64]:
        if query.sort == "order":
            return places[::-1] if query.descending else places
        if query.sort == "caption":
            return self._sort_by(self._caption_rank(), places, query)
        columns = {"size": self._size, "words": self._words, "depth": self._depth}
        return self._sort_by(columns[query.sort], places, query)

    @staticmethod
    def _sort_by(column: npt.NDArray[Any], places: npt.NDArray[np.int64], query: Query) -> npt.NDArray[np.int64]:
        values = column[places].astype(np.float64)
        return places[np.argsort(-values if query.descending else values, kind="stable")]


def open_index(output: Output, cache: Path | None = None) -> ViewIndex:
    """Open the index of a run, and build it first if the dataset has changed since.

    Args:
        output: output of the run.
        cache: folder for index files; None: ``ureca/view`` in the user's cache. An index that cannot be kept is built
            again next time.

    Raises:
        OutputError: the output cannot be read.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ureca" / "view"
    infos = output.filesystem.get_file_info(output.part_files())
    parts = [(info.path, info.size, info.mtime_ns) for info in infos]
    fingerprint = digest([repr((_VERSION, __version__, output.path, parts))]).hex()
    name = digest([str(Path(output.path).absolute())], num_bytes=12).hex()
    paths = [cache / f"{name}.{kind}.arrow" for kind in ("regions", "images")]
    regions, images = (_map_table(path, fingerprint) for path in paths)
    if regions is None or images is None:
        regions, images = build_tables(output)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            for path, table in zip(paths, (regions, images), strict=True):
                _write_mapped(path, table, fingerprint)
        except OSError as error:
            logger.warning("the index is not kept: %s", error)
    num_failed = output.report().num_failed
    return ViewIndex(regions, images, Corrections.of_output(output.path), num_failed)


def build_tables(output: Output) -> tuple[pa.Table, pa.Table]:
    """Gather the columns of all regions and of their images from the files of a run; masks are not read."""
    regions, images = [], []
    num_images = 0
    for partition, path in output.parts().items():
        row_of_region, region_table, ids = _regions_of_part(output, path)
        has_regions = np.unique(row_of_region)
        numbers = np.full(len(ids), -1, np.int32)
        numbers[has_regions] = np.arange(num_images, num_images + len(has_regions), dtype=np.int32)
        num_images += len(has_regions)
        regions.append(region_table.set_column(0, "image", pa.array(numbers[row_of_region], pa.int32())))
        images.append(
            pa.table(
                [
                    ids.take(pa.array(has_regions)),
                    pa.array(np.full(len(has_regions), partition), pa.int32()),
                    pa.array(has_regions, pa.int32()),
                ],
                schema=_IMAGES,
            )
        )
    return (
        pa.concat_tables(regions).combine_chunks() if regions else _COLUMNS.empty_table(),
        pa.concat_tables(images).combine_chunks() if images else _IMAGES.empty_table(),
    )


def _regions_of_part(output: Output, path: str) -> tuple[npt.NDArray[np.int64], pa.Table, pa.Array]:
    """Return the row of each region, its other columns (``image`` is empty), and the ids of the images."""
    name = output.dataset.name
    wanted = (
        "region_id",
        "depth",
        "area_px",
        "caption",
        "verdict",
        "status",
        "lookalike_ids",
        "category",
        "references",
    )
    known = {field.name for field in output.dataset.schema.field(name).type.value_type}
    columns = [
        "image_id",
        "height",
        "width",
        *(f"{name}.list.element.{column}" for column in wanted if column in known),
    ]
    table = parquet.read_table(output.filesystem, path, columns).combine_chunks()
    lists = _one_chunk(table[name])
    structs = lists.flatten()
    row_of_region = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    num_regions = len(structs)
    fields = {field.name for field in structs.type}

    def column(name: str, type: pa.DataType) -> pa.Array:
        return pc.struct_field(structs, name).cast(type) if name in fields else pa.nulls(num_regions, type)

    height, width = (table[side].cast(pa.float64()).fill_null(0).to_numpy() for side in ("height", "width"))
    image_area_px = np.maximum(height * width, 1)
    caption = column("caption", pa.string())
    if "references" in fields:  # a benchmark: show the first reference of each region
        references = pc.struct_field(structs, "references")
        lengths = pc.list_value_length(references).fill_null(0).to_numpy(zero_copy_only=False)
        first = [texts[0].as_py() if length else None for texts, length in zip(references, lengths, strict=True)]
        caption = pa.array(first, pa.string())
    size = column("area_px", pa.int64()).to_numpy(zero_copy_only=False) / image_area_px[row_of_region]
    lookalikes = (
        pc.greater(pc.list_value_length(pc.struct_field(structs, "lookalike_ids")), 0).fill_null(False)
        if "lookalike_ids" in fields
        else pa.array(np.zeros(num_regions, np.bool_))
    )
    regions = pa.table(
        [
            pa.nulls(num_regions, pa.int32()),
            column("region_id", pa.int64()),
            column("depth", pa.int16()).fill_null(0),
            pa.array(np.minimum(np.nan_to_num(size), 1), pa.float32()),
            _num_words(caption),
            pa.array(_states(column("verdict", pa.string()), column("status", pa.string())), pa.uint8()),
            lookalikes,
            pa.array(_repeated(row_of_region, caption)),
            column("category", pa.string()),
            caption,
        ],
        schema=_COLUMNS,
    )
    return row_of_region, regions, _one_chunk(table["image_id"])


def _num_words(caption: pa.Array) -> pa.Array:
    """Count the words of each caption, uint16; 0 without one."""
    trimmed = pc.utf8_trim_whitespace(caption)
    words = pc.list_value_length(pc.utf8_split_whitespace(trimmed)).fill_null(0)
    # Arrow splits an empty text into one empty word.
    words = pc.if_else(pc.equal(pc.utf8_length(trimmed), 0).fill_null(False), 0, words)
    return pc.min_element_wise(words, 65535).cast(pa.uint16())


def _states(verdict: pa.Array, status: pa.Array) -> npt.NDArray[np.uint8]:
    """Return the index in ``STATES`` of the state of each region, from columns of strings."""
    codes = pc.index_in(verdict.fill_null("unchecked"), value_set=pa.array(STATES)).fill_null(STATES.index("unchecked"))
    states: npt.NDArray[np.uint8] = codes.to_numpy(zero_copy_only=False).astype(np.uint8)
    states[pc.starts_with(status, "failed").to_numpy(zero_copy_only=False)] = STATES.index("failed")
    states[pc.starts_with(status, "skipped").to_numpy(zero_copy_only=False)] = STATES.index("skipped")
    return states


def _repeated(row_of_region: npt.NDArray[np.int64], caption: pa.Array) -> npt.NDArray[np.bool_]:
    """For each region: true if another region of its image has the same caption, whatever its case."""
    encoded = pc.utf8_lower(pc.utf8_trim_whitespace(caption)).dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    keys = row_of_region * (len(encoded.dictionary) + 1) + codes
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray((counts[inverse] > 1) & (codes >= 0))


def _corrected_caption(caption: str | None, correction: Correction | None) -> str | None:
    return correction.caption if correction is not None and correction.action == "correct" else caption


def _numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return the values of a column without nulls, without a copy where it has one chunk."""
    return np.asarray(_one_chunk(column).to_numpy(zero_copy_only=False))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    chunks = column.combine_chunks()
    return pa.concat_arrays(chunks.chunks) if isinstance(chunks, pa.ChunkedArray) and chunks.num_chunks else chunks


def _write_mapped(path: Path, table: pa.Table, fingerprint: str) -> None:
    table = table.replace_schema_metadata({_FINGERPRINT: fingerprint.encode()})
    with (
        io.replacing(path, overwrite=True) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def _map_table(path: Path, fingerprint: str) -> pa.Table | None:
    """Map a stored table into memory; None if there is none of this state of the dataset."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid):
        return None
    return table if (table.schema.metadata or {}).get(_FINGERPRINT) == fingerprint.encode() else None
