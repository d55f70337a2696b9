"""Output folder of a run: its manifest, lease, crash log, run record and dataset, read and written by any process."""

import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ureca import __version__, io, parquet
from ureca.data.crash_log import CrashLog
from ureca.data.known_images import IMAGE_STATE, compare_known, image_states
from ureca.data.lease import LEASE_NAME, LeaseFile
from ureca.data.manifest import MANIFEST, ManifestEntry, as_manifest, select
from ureca.data.partitions import (
    PARTITIONS,
    PartitionReport,
    new_images,
    partitions_of,
    read_report,
    write_chunks,
    write_part,
)
from ureca.data.reading import fetch
from ureca.data.settings import ALL_IMAGES, ImageSelection
from ureca.errors import DataError, OutputError
from ureca.image_limits import ImageLimits
from ureca.images import try_decode_image
from ureca.io import locate
from ureca.schema import DATASETS, PROVENANCE, REGION, REGIONS_DATASET, Dataset
from ureca.wording import quantity

logger = logging.getLogger(__name__)

_MANIFEST = "manifest"
_ANNOTATIONS = "annotations"
_STATES = "files"  # column of a stored manifest, beside those of ``PARTITIONS``
_CRASH_LOG = "crash_log"
_RUN = "run.json"
_PART_NAME = re.compile(r"part-(\d+)\.parquet")
_PARTITIONS_PER_ROW_GROUP = 256


class Output:
    """Output folder of a run, on a disk or in an object store. It holds no state: any process can have one.

    Args:
        path: local path or URI of the folder, which need not exist.
        dataset: kind of dataset that the folder holds.

    Attributes:
        path: path or URI, as given.
        dataset: kind of dataset that the folder holds.
        filesystem: Arrow file system of the folder; ``manifest_files`` and ``part_files`` are names within it.

    Raises:
        InputError: the scheme of the URI is unknown, or its file system cannot be reached.
    """

    def __init__(self, path: str, dataset: Dataset = REGIONS_DATASET) -> None:
        self.path = path
        self.dataset = dataset
        self._location = locate(path)
        self.filesystem = self._location.filesystem
        self._folder = self._location.name

    @classmethod
    def of_run(cls, path: str) -> Self:
        """Open the output of an existing run, with the kind of dataset that its run.json names.

        Raises:
            OutputError: there is no run, it cannot be read, or its kind of dataset is unknown to this version.
        """
        name = cls(path).run().get("dataset", REGIONS_DATASET.name)
        if name not in DATASETS:
            raise OutputError(
                f"{path} holds a dataset {name!r}, which this version does not know; read it with the version that "
                "wrote it"
            )
        return cls(path, DATASETS[name])

    # The manifest: the images of each partition

    def add_images(
        self,
        manifest: pa.Table,
        images_per_partition: int | None,
        selection: ImageSelection = ALL_IMAGES,
        *,
        accept_changes: bool = False,
    ) -> int:
        """Add the selected images that are not in the manifest yet, as new partitions.

        Images whose ids are in the manifest are compared with those by ``ureca.data.known_images.compare_known``.

        Args:
            manifest: images of the input, schema ``MANIFEST``.
            images_per_partition: size of the new partitions; None: chosen by ``ureca.data.partitions.partitions_of``.
            selection: selection of the images of the input to process.
            accept_changes: keep the rows of images that the input no longer has under their ids, with a warning.

        Returns:
            Number of new images.

        Raises:
            OutputError: the folder holds images that are not selected (see ``ureca.data.manifest.select``), or other
                images under the same ids.
            InputError: no image is selected.
        """
        files = self.manifest_files()
        known = self.held_ids()
        selected = select(manifest, selection, known)
        if len(known):
            self._check_known(selected, accept_changes)
        new = new_images(selected, known)
        if new.num_rows:
            partitions = partitions_of(new, len(self.partition_sizes()), images_per_partition)
            offsets = partitions["images"].combine_chunks().offsets
            states = pa.ListArray.from_arrays(offsets, image_states(new))
            partitions = partitions.append_column(_STATES, states)
            path = f"{self._folder}/{_MANIFEST}/{len(files):06d}.parquet"
            io.write_table(self.filesystem, path, partitions, _PARTITIONS_PER_ROW_GROUP)
        return int(new.num_rows)

    def _check_known(self, manifest: pa.Table, accept_changes: bool) -> None:
        """Compare images with those of the same ids that the output holds, and store where they are now.

        Raises:
            OutputError: some that are done are others by now, or have other annotations, and this is not accepted.
        """
        tables = []
        for path in self.manifest_files():
            partitions = parquet.read_table(self.filesystem, path)
            images = as_manifest(pc.list_flatten(partitions["images"]))
            tables.append(images.append_column("state", pa.chunked_array([_states(partitions)])))
        known = compare_known(manifest, pa.concat_tables(tables))
        if not known.moved:
            return
        # A file that was mended since its image failed is no other image: the image is not done.
        failed = {id for ids in self.failed_images().values() for id in ids}
        to_do = self._ids_to_do()
        others = [image for image in known.others if image.image_id not in failed]
        redone = [image for image in known.annotated_otherwise if image.image_id not in failed | to_do]
        uncertain = [image for image in known.uncertain if image.image_id not in failed]
        if others:
            message = (
                f"{quantity(len(others), 'image of INPUT has', 'images of INPUT have')} the ids of other images that "
                f"{self.path} holds, such as "
                f"{others[0].listed} with the id of {others[0].held}"
            )
            if not accept_changes:
                raise OutputError(
                    f"{message}. They would be taken for done: name another OUTPUT, tell images of several folders "
                    "apart with --listing.ids path (in a new OUTPUT), begin again with --overwrite, or keep the rows "
                    "of the earlier images with --accept-changes"
                )
            logger.warning("%s: the rows of the earlier images are kept", message)
        if redone:
            message = (
                f"{quantity(len(redone), 'image')} that {self.path} holds {'has' if len(redone) == 1 else 'have'} "
                "other annotations than when processed, "
                f"such as {redone[0].image_id!r}: {redone[0].listed} "
                + ("was changed" if redone[0].listed == redone[0].held else f"(then {redone[0].held})")
            )
            if not accept_changes:
                raise OutputError(
                    f"{message}. They would be taken for done: name another OUTPUT, begin again with --overwrite, or "
                    "keep the rows of the earlier annotations with --accept-changes"
                )
            logger.warning("%s: the rows of the earlier annotations are kept", message)
        if uncertain:
            logger.warning(
                "%s since %s got their ids, such as %s, or their annotations: their rows "
                "are kept; begin again with --overwrite if the images are others",
                quantity(
                    len(uncertain),
                    "image of INPUT was modified, or lies elsewhere,",
                    "images of INPUT were modified, or lie elsewhere,",
                ),
                self.path,
                uncertain[0].listed,
            )
        annotated = {image.image_id for image in known.annotated_otherwise}
        self._update_images(manifest, known.moved & (failed | (to_do & annotated)))

    def _ids_to_do(self) -> set[str]:
        """Return the ids of the images of the partitions without a file."""
        done = set(self.done_partitions())
        return {
            image["image_id"]
            for path in self.manifest_files()
            for row in parquet.read_table(
                self.filesystem, path, ["partition", "images.list.element.image_id"]
            ).to_pylist()
            if row["partition"] not in done
            for image in row["images"]
        }

    def _update_images(self, manifest: pa.Table, ids: Collection[str]) -> None:
        """Store where some images are now, and the present state of their files, with which later runs compare."""
        if not ids:
            return
        now = manifest.filter(pc.is_in(manifest["image_id"], value_set=pa.array(sorted(ids), pa.string())))
        now_ids, now_images = now["image_id"].combine_chunks(), now.select(MANIFEST.names).to_struct_array()
        now_states = image_states(now)
        if isinstance(now_images, pa.ChunkedArray):
            now_images = pa.concat_arrays(now_images.chunks)
        for path in self.manifest_files():
            partitions = parquet.read_table(self.filesystem, path)
            offsets = partitions["images"].combine_chunks().offsets
            images = pc.list_flatten(partitions["images"].combine_chunks()).cast(pa.struct(MANIFEST))
            places = pc.index_in(pc.struct_field(images, "image_id"), value_set=now_ids)
            if places.null_count == len(places):
                continue
            # Places within one array of what was there, then of what is there now.
            chosen = pc.if_else(places.is_valid(), pc.add(places, len(images)), pa.array(np.arange(len(images))))
            columns = [
                pa.ListArray.from_arrays(offsets, pa.concat_arrays([held, listed]).take(chosen))
                for held, listed in ((images, now_images), (_states(partitions), now_states))
            ]
            updated = pa.table([partitions["partition"], columns[0]], schema=PARTITIONS).append_column(
                _STATES, columns[1]
            )
            io.write_table(self.filesystem, path, updated, _PARTITIONS_PER_ROW_GROUP)

    def manifest_files(self) -> list[str]:
        """List the stored manifests, as names in the file system, oldest first."""
        names = io.list_names(self.filesystem, f"{self._folder}/{_MANIFEST}")
        return [f"{self._folder}/{_MANIFEST}/{name}" for name in names]

    def manifest_chunks(self) -> list[tuple[str, int]]:
        """List the row groups of the stored manifests: name of the file, and index of the row group."""
        return [
            (path, row_group)
            for path in self.manifest_files()
            for row_group in range(parquet.num_row_groups(self.filesystem, path))
        ]

    def read_manifest(self, path: str) -> pa.Table:
        """Read the partitions in one of ``manifest_files``; schema ``PARTITIONS``."""
        # The cast is for tables of earlier versions.
        return parquet.read_table(self.filesystem, path, PARTITIONS.names).cast(PARTITIONS)

    def part_paths(self) -> dict[int, str]:
        """Return the path or URI of the file of each finished partition, by its number."""
        return {
            partition: self._location.paths(pa.scalar(self._part(partition))).as_py()
            for partition in self.done_partitions()
        }

    def read_manifest_chunk(self, path: str, row_group: int) -> pa.Table:
        """Read the partitions in one of ``manifest_chunks``; schema ``PARTITIONS``."""
        return parquet.read_row_group(self.filesystem, path, row_group).select(PARTITIONS.names).cast(PARTITIONS)

    def partition_sizes(self) -> dict[int, int]:
        """Return the number of images of each partition, by its number."""
        sizes: dict[int, int] = {}
        for path in self.manifest_files():
            columns = ["partition", "images.list.element.image_id"]
            partitions = parquet.read_table(self.filesystem, path, columns)
            sizes |= zip(
                partitions["partition"].to_pylist(), pc.list_value_length(partitions["images"]).to_pylist(), strict=True
            )
        return sizes

    def done_partitions(self) -> list[int]:
        """Return the numbers of the finished partitions, those with a file, ascending."""
        names = io.list_names(self.filesystem, self._parts)
        return sorted(int(part[1]) for name in names if (part := _PART_NAME.fullmatch(name)))

    def damaged_parts(self) -> dict[int, str]:
        """Return the names of the parts that are no whole Parquet files, by their partition.

        A power cut, a full quota or a copy that was interrupted leaves such files; they count as not done.
        """
        parts = self.parts()

        def is_damaged(part: str) -> bool:
            try:
                return not parquet.is_whole(self.filesystem, part)
            except FileNotFoundError:  # removed since the listing
                return False

        with ThreadPoolExecutor(max_workers=16) as pool:  # one small request each to an object store
            are_damaged = pool.map(is_damaged, parts.values())
            damaged = [number for number, each in zip(parts, are_damaged, strict=True) if each]
        return {number: parts[number] for number in sorted(damaged)}

    def remove_damaged_parts(self) -> list[str]:
        """Remove the ``damaged_parts``, so that their images are processed again; returns their names."""
        names = list(self.damaged_parts().values())
        for name in names:
            self.filesystem.delete_file(name)
        return names

    def failed_images(self) -> dict[int, set[str]]:
        """Return the ids of the images that have an error or a failed region, by partition."""
        failed: dict[int, set[str]] = {}
        for partition in self.done_partitions():
            columns = ["image_id", "error", f"{self.dataset.name}.list.element.status"]
            for row in parquet.read_table(self.filesystem, self._part(partition), columns).to_pylist():
                statuses = (region["status"] for region in row[self.dataset.name])
                if row["error"] or any(status.startswith("failed:") for status in statuses):
                    failed.setdefault(partition, set()).add(row["image_id"])
        return failed

    # Lease and crash log

    def lease(self, on_wait: Callable[[str], None] = lambda text: None) -> AbstractContextManager[str]:
        """Hold the lease of the folder for the block; see ``ureca.data.lease.LeaseFile.hold``.

        Raises:
            OutputError: another session holds it, or the folder cannot be written to.
        """
        return self.lease_file().hold(on_wait)

    def check_lease(self, session: str) -> None:
        """Check that a session still holds the lease.

        Raises:
            RuntimeError: another session has taken over the folder; this one must not write any more.
        """
        self.lease_file().check(session)

    def heartbeat_s(self) -> float | None:
        """Return the time of the last heartbeat of the lease, in seconds since 1970; None: nobody holds it."""
        lease = self.filesystem.get_file_info(f"{self._folder}/{LEASE_NAME}")
        return lease.mtime_ns / 1e9 if lease.is_file else None

    def lease_file(self, **options: Any) -> LeaseFile:
        """Return the lease of the folder; ``options`` are those of ``ureca.data.lease.LeaseFile``."""
        return LeaseFile(self.filesystem, f"{self._folder}/{LEASE_NAME}", self.path, **options)

    def crash_log(self, stage: str, max_crashes: int, **options: Any) -> CrashLog:
        """Open the crash log of a stage.

        Args:
            stage: name of the stage.
            max_crashes: number of crashes after which an image is quarantined.
            **options: options of ``ureca.data.crash_log.CrashLog``.
        """
        return CrashLog(self.filesystem, f"{self._folder}/{_CRASH_LOG}", stage, max_crashes, **options)

    def remove_crash_log(self) -> None:
        """Remove the crash logs of all stages, when a session begins or has ended."""
        io.remove_folder(self.filesystem, f"{self._folder}/{_CRASH_LOG}")

    # Writing

    def write_partition(self, partition: int, rows: Sequence[Mapping[str, Any]], work: PartitionReport) -> None:
        """Write the rows of a partition at once; see ``ureca.data.partitions.write_part``."""
        write_part(self.filesystem, self._part(partition), rows, self.dataset, work)

    def write_chunks(self, partition: int, chunks: Sequence[pa.Table], report: PartitionReport) -> None:
        """Write a partition whose rows came in chunks; see ``ureca.data.partitions.write_chunks``."""
        write_chunks(self.filesystem, self._part(partition), chunks, self.dataset, report)

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Write run.json."""
        text = json.dumps(run, indent=2, ensure_ascii=False)
        io.write_bytes(self.filesystem, f"{self._folder}/{_RUN}", text.encode())

    def remove_temporary(self) -> None:
        """Remove the temporary files and the crash log that killed writers have left."""
        for folder in (self._folder, self._parts, f"{self._folder}/{_MANIFEST}"):
            io.remove_temporary(self.filesystem, folder)
        self.remove_crash_log()

    def remove(self) -> None:
        """Remove everything that this class writes, except the lease, and nothing else."""
        self.remove_crash_log()
        for folder in (self._parts, f"{self._folder}/{_MANIFEST}", f"{self._folder}/{_ANNOTATIONS}"):
            for name in io.list_names(self.filesystem, folder):
                self.filesystem.delete_file(f"{folder}/{name}")
        if self.exists():
            self.filesystem.delete_file(f"{self._folder}/{_RUN}")

    # Reading

    @property
    def annotation_folder(self) -> str:
        """Path or URI of the folder for the annotations that are cut out of COCO files."""
        return io.below(self.path, _ANNOTATIONS)

    def exists(self) -> bool:
        """Tell whether the folder holds a run."""
        return bool(self.filesystem.get_file_info(f"{self._folder}/{_RUN}").is_file)

    def run(self) -> dict[str, Any]:
        """Read run.json.

        Raises:
            OutputError: it does not exist, or cannot be read.
        """
        try:
            run = io.read_parsed(self.filesystem, f"{self._folder}/{_RUN}", json.loads)
        except (FileNotFoundError, NotADirectoryError) as error:
            found = self.filesystem.get_file_info(self._folder)
            reason = (
                "it is a file" if found.is_file else f"it has no {_RUN}" if found.type else "there is no such folder"
            )
            raise OutputError(f"{self.path} is not the output of a run: {reason}") from error
        except OSError as error:
            reason = str(error).partition(". Detail:")[0]  # Arrow repeats the error there
            raise OutputError(f"{self.path} is not the output of a run: {_RUN} cannot be read ({reason})") from error
        except ValueError as error:
            raise OutputError(f"{self.path} is not the output of a run: {_RUN} is not JSON ({error})") from error
        if not isinstance(run, dict):
            raise OutputError(f"{self.path} is not the output of a run: {_RUN} holds no object")
        return run

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as Python values, in the manifest's order, one partition in memory at a time."""
        for partition in self.done_partitions():
            yield from self.partition_rows(partition)

    def partition_rows(self, partition: int) -> list[dict[str, Any]]:
        """Read the rows of a finished partition."""
        rows: list[dict[str, Any]] = parquet.read_table(self.filesystem, self._part(partition)).to_pylist()
        return rows

    def parts(self) -> dict[int, str]:
        """Return the files of the finished partitions, as names in the file system, by their number."""
        return {partition: self._part(partition) for partition in self.done_partitions()}

    def part_files(self) -> list[str]:
        """List the files of the finished partitions, as names in the file system."""
        return list(self.parts().values())

    def region_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows in the schema ``REGIONS``, converted from captions or a benchmark."""
        rows = self.rows()
        return rows if self.dataset is REGIONS_DATASET else map(as_regions_row, rows)

    def placed_partitions(self) -> Iterator[list[tuple[dict[str, Any], ManifestEntry]]]:
        """Yield the rows of each finished partition in the schema ``REGIONS``, with the places of their images."""
        done = set(self.done_partitions())
        for path in self.manifest_files():
            for partition in self.read_manifest(path).to_pylist():
                if partition["partition"] in done:
                    entries = {row["image_id"]: ManifestEntry.from_row(row) for row in partition["images"]}
                    rows = self.partition_rows(partition["partition"])
                    if self.dataset is not REGIONS_DATASET:
                        rows = [as_regions_row(row) for row in rows]
                    yield [(row, entries[row["image_id"]]) for row in rows]

    def report(self, partitions: Iterable[int] | None = None) -> PartitionReport:
        """Add up the reports of some partitions; None: of all that are finished."""
        paths = [self._part(partition) for partition in (self.done_partitions() if partitions is None else partitions)]
        total = PartitionReport()
        with ThreadPoolExecutor(max_workers=16) as pool:  # a footer is one small request to an object store
            for report in pool.map(lambda path: read_report(self.filesystem, path), paths):
                total = total + report
        return total

    def pixels(self, image_ids: Sequence[str]) -> Iterator[tuple[str, npt.NDArray[np.uint8] | DataError]]:
        """Yield some images, decoded again from their source: the id, and uint8 RGB [H, W, 3] or the error."""
        limits = ImageLimits()
        wanted = pa.array(image_ids, pa.string())
        for path in self.manifest_files():
            images = pc.list_flatten(parquet.read_table(self.filesystem, path, ["images"])["images"])
            table = pa.Table.from_struct_array(images)
            rows = table.filter(pc.is_in(table["image_id"], wanted)).to_pylist()
            for fetched in fetch([ManifestEntry.from_row(row) for row in rows], limits):
                yield fetched.entry.image_id, try_decode_image(fetched.image, limits)

    def held_ids(self) -> pa.ChunkedArray:
        """Return the ids of the images of all partitions, finished or not."""
        ids: list[pa.Array] = []
        for path in self.manifest_files():
            partitions = parquet.read_table(self.filesystem, path, ["images.list.element.image_id"])
            ids += pc.struct_field(pc.list_flatten(partitions["images"]), "image_id").chunks
        return pa.chunked_array(ids, pa.string())

    @property
    def _parts(self) -> str:
        return f"{self._folder}/{self.dataset.name}"

    def _part(self, partition: int) -> str:
        return f"{self._parts}/part-{partition:06d}.parquet"


def _states(partitions: pa.Table) -> pa.StructArray:
    """Return the states of the images of a stored manifest, in their order; earlier versions wrote fewer, or none."""
    if _STATES not in partitions.schema.names:
        return pa.nulls(pc.sum(pc.list_value_length(partitions["images"])).as_py() or 0, IMAGE_STATE)
    return pc.list_flatten(partitions[_STATES].combine_chunks()).cast(IMAGE_STATE)


_NOTHING: dict[str, Any] = {field.name: None for field in REGION}


def as_regions_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a row of the schema ``CAPTIONS`` or ``BENCHMARK`` to ``REGIONS``, with one unchecked caption per region.

    Regions of an image without a mask tree are all at the top level. The caption of a benchmark's region is its first
    reference.
    """
    regions = row["benchmark"] if "benchmark" in row else row["captions"]
    provenance = dict.fromkeys(field.name for field in PROVENANCE)
    provenance |= {"proposer": row.get("proposer"), "annotator": row.get("model"), "ureca": __version__}
    provenance["recipe"] = row.get("recipe")
    return {
        **{name: row[name] for name in ("image_id", "uri", "height", "width", "error")},
        "regions": [_as_region(region) for region in regions],
        "provenance": provenance,
    }


def _as_region(region: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in region.items() if name in _NOTHING}
    parent_id, depth = region["parent_id"], region["depth"]
    caption = region["caption"] if "caption" in region else next(iter(region["references"]), None)
    return {
        **_NOTHING,
        "lookalike_ids": [],
        **known,
        "parent_id": -1 if parent_id is None else parent_id,
        "depth": 0 if depth is None else depth,
        "caption": caption,
        "verdict": "unchecked",
    }
