"""Images that crash their process: they are identified and quarantined, and the others are processed."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.drawn import write_corpus
from ureca.data.crash_log import CrashLog, NullCrashLog
from ureca.data.in_flight import ImagesInFlight
from ureca.data.listing import list_images
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedImage, MaskedPartition, build_mask_trees
from ureca.data.output import Output
from ureca.data.quarantine import build_with_quarantine, with_quarantine
from ureca.data.reading import Fetched
from ureca.errors import DataError
from ureca.image_limits import ImageLimits

LIMITS = ImageLimits()


class Crash(BaseException):
    """Stand-in for the end of the process: nothing is cleaned up after it."""


class CrashingCrashLog(CrashLog):
    """Crash log of a process that writes nothing more once it has crashed."""

    def begin(self, item: str) -> None:
        if not self.crashed:
            super().begin(item)

    def end(self, item: str, *, completed: bool) -> None:
        if not self.crashed:
            super().end(item, completed=completed)

    crashed = False


def crash_log_of(folder: Path, stage: str, max_crashes: int = 3) -> CrashingCrashLog:
    """Open the crash log as the next process of a stage does."""
    output = Output(str(folder))
    return CrashingCrashLog(output.filesystem, f"{folder}/crash_log", stage, max_crashes)


def entries_of(folder: Path, num_images: int) -> list[ManifestEntry]:
    """Write a corpus and list its images."""
    write_corpus(folder, num_images)
    return [ManifestEntry.from_row(row) for row in list_images(str(folder)).to_pylist()]


class Poisoned:
    """A stage that crashes with some images, in any process."""

    def __init__(self, crash_log: CrashingCrashLog, poison: set[str], seen: list[list[str]]) -> None:
        self._crash_log, self._poison, self._seen = crash_log, poison, seen

    def __call__(self, number: int, entries: Sequence[ManifestEntry]) -> MaskedPartition:
        ids = [entry.image_id for entry in entries]
        if ids:
            self._seen.append(ids)
        if self._poison & {*ids}:
            self._crash_log.crashed = True
            raise Crash
        return MaskedPartition(number, "poisoned", tuple(map(MaskedImage, entries)), {"masks": float(len(ids))})


@pytest.mark.parametrize("max_crashes", [2, 3, 5])
@pytest.mark.parametrize("poison", [{"img_0001"}, {"img_0000", "img_0003"}, {f"img_000{index}" for index in range(4)}])
def test_with_quarantine_after_a_crash_quarantines_the_guilty_images(
    tmp_path: Path, max_crashes: int, poison: set[str]
) -> None:
    entries = entries_of(tmp_path / "in", 4)
    seen: list[list[str]] = []
    num_crashes = 0
    while True:
        crash_log = crash_log_of(tmp_path, "masks", max_crashes)
        try:
            (partition,) = with_quarantine(Poisoned(crash_log, poison, seen), crash_log)(7, entries)
            break
        except Crash:
            num_crashes += 1
    # The first process dies with all; further ones with one image each.
    assert num_crashes == 1 + len(poison) * (max_crashes - 1)
    assert (partition.number, partition.mask_generator) == (7, "poisoned")
    assert [image.entry for image in partition.images] == entries
    errors = {image.entry.image_id: image.error for image in partition.images if image.error is not None}
    assert errors.keys() == poison
    assert {(error.stage, error.kind) for error in errors.values()} == {("masks", "worker_died")}
    assert partition.seconds == {"masks": 4 - len(poison)}


def test_with_quarantine_without_crashes_processes_the_whole_partition(tmp_path: Path) -> None:
    entries = entries_of(tmp_path / "in", 4)
    seen: list[list[str]] = []
    crash_log = crash_log_of(tmp_path, "masks")
    (partition,) = with_quarantine(Poisoned(crash_log, set(), seen), crash_log)(0, entries)
    assert len(partition.images) == 4
    assert seen == [[entry.image_id for entry in entries]]
    assert list((tmp_path / "crash_log").iterdir()) == []


def test_build_with_quarantine_after_crashes_quarantines_the_guilty_image(tmp_path: Path) -> None:
    entries = entries_of(tmp_path / "in", 3)
    partition = MaskedPartition(5, "p", tuple(map(MaskedImage, entries)), {"masks": 1.0})
    for _ in range(4):
        crash_log = crash_log_of(tmp_path, "tree")

        def build_and_crash(some: MaskedPartition, crash_log: CrashingCrashLog = crash_log) -> MaskedPartition:
            if entries[1] in [image.entry for image in some.images]:
                crash_log.crashed = True
                raise Crash
            return build_mask_trees(some, 0.8)

        try:
            built = build_with_quarantine(partition, build_and_crash, crash_log)
        except Crash:
            continue
    assert [image.error and image.error.stage for image in built.images] == [None, "tree", None]
    assert built.seconds.keys() == {"masks", "tree"}


@pytest.mark.parametrize("most", [1, 3, 16])
def test_images_in_flight_after_crashes_quarantines_only_the_guilty_image(tmp_path: Path, most: int) -> None:
    entries = entries_of(tmp_path / "in", 6)
    processes: list[list[frozenset[str]]] = []
    given_up: dict[str, DataError] = {}

    async def process() -> None:
        crash_log = crash_log_of(tmp_path, "curate")
        images = ImagesInFlight(most, LIMITS, crash_log)
        company: set[str] = set()
        companies: list[frozenset[str]] = []
        processes.append(companies)

        async def work(fetched: Fetched) -> None:
            id = fetched.entry.image_id
            company.add(id)
            companies.append(frozenset(company))
            try:
                await asyncio.sleep(0.01)
                if id == "img_0002":
                    crash_log.crashed = True
                    raise Crash
            finally:
                company.remove(id)

        await asyncio.gather(
            images.each(entries[:4], work, given_up.__setitem__), images.each(entries[4:], work, given_up.__setitem__)
        )

    for _ in range(4):
        try:
            asyncio.run(process())
        except BaseExceptionGroup as group:
            assert group.subgroup(Crash) is not None
        except Crash:
            pass
    assert len(processes) == 4
    assert {id: str(error) for id, error in given_up.items()} == {
        "img_0002": "worker_died: 3 workers of the stage curate died while working on it"
    }
    assert set().union(*processes[3]) == {entry.image_id for entry in entries} - {"img_0002"}
    # After the first death few suspects are together, after the second each is alone, until they are done or dead.
    for companies, max_together in zip(processes[1:3], (3, 1), strict=True):
        assert all(len(company) <= max_together for company in companies if "img_0002" in company)
    assert all(len(company) <= most for companies in processes for company in companies)
    asyncio.run(_together(entries, ImagesInFlight(most, LIMITS, crash_log_of(tmp_path, "curate")), most))


async def _together(entries: Sequence[ManifestEntry], images: ImagesInFlight, most: int) -> None:
    """Images beside the one that crashed are no suspects once done: all but the guilty one go together again."""
    company: set[str] = set()
    together = asyncio.Event()

    async def work(fetched: Fetched) -> None:
        company.add(fetched.entry.image_id)
        if len(company) == min(most, len(entries) - 1):
            together.set()
        await asyncio.wait_for(together.wait(), timeout=60)

    given_up: dict[str, DataError] = {}
    await images.each(entries, work, given_up.__setitem__)
    assert given_up.keys() == {"img_0002"}


@pytest.mark.parametrize(("num_images", "partition_size"), [(64, 64), (64, 1), (20, 4)])
def test_images_in_flight_after_one_crash_work_on_several_suspects_together(
    tmp_path: Path, num_images: int, partition_size: int
) -> None:
    entries = entries_of(tmp_path / "in", num_images)
    crashed = crash_log_of(tmp_path, "curate")
    for entry in entries:
        crashed.begin(entry.image_id)
    images = ImagesInFlight(num_images, LIMITS, crash_log_of(tmp_path, "curate"))
    company: set[str] = set()
    most = 0

    async def work(fetched: Fetched) -> None:
        nonlocal most
        company.add(fetched.entry.image_id)
        most = max(most, len(company))
        await asyncio.sleep(0.01)
        company.remove(fetched.entry.image_id)

    async def all_partitions() -> None:
        starts = range(0, num_images, partition_size)
        await asyncio.gather(*(images.each(entries[at : at + partition_size], work, _fail) for at in starts))

    asyncio.run(all_partitions())
    assert most == math.ceil(math.sqrt(num_images))
    assert crash_log_of(tmp_path, "curate").num_crashes(entries[0].image_id) == 0


def _fail(id: str, reason: DataError) -> None:
    raise AssertionError(f"{id}: {reason}")


def test_images_in_flight_do_not_count_crashes_of_machines_that_left(tmp_path: Path) -> None:
    (entry,) = entries_of(tmp_path / "in", 1)
    output = Output(str(tmp_path))
    for node in ("lost", "lost", "lost", "here"):
        output.crash_log("curate", 3, node=node).begin(entry.image_id)
    after = output.crash_log("curate", 3, node="here", has_left={"lost"}.__contains__)
    assert after.num_crashes(entry.image_id) == 1
    assert after.quarantine_error(entry.image_id) is None
    for _ in range(10):  # an image that takes every machine with it is found all the same
        output.crash_log("curate", 3, node="lost").begin(entry.image_id)
    after = output.crash_log("curate", 3, node="here", has_left={"lost"}.__contains__)
    assert after.quarantine_error(entry.image_id) is not None


def test_images_in_flight_without_a_crash_log_processes_all(tmp_path: Path) -> None:
    entries = entries_of(tmp_path / "in", 3)
    seen: list[str] = []

    async def work(fetched: Fetched) -> None:
        seen.append(fetched.entry.image_id)

    asyncio.run(
        ImagesInFlight(2, LIMITS, NullCrashLog()).each(entries, work, lambda id, reason: seen.append("given up"))
    )
    assert sorted(seen) == [entry.image_id for entry in entries]


def test_with_quarantine_in_chunks_yields_the_same_chunks_after_a_crash(tmp_path: Path) -> None:
    """Ray does not ask again for what a process has handed on before it died."""
    entries = entries_of(tmp_path / "in", 5)
    seen: list[list[str]] = []
    processes: list[list[MaskedPartition]] = []
    for _ in range(3):
        crash_log = crash_log_of(tmp_path, "masks", max_crashes=2)
        processes.append([])
        try:
            for partition in with_quarantine(Poisoned(crash_log, {"img_0002"}, seen), crash_log, images_per_chunk=2)(
                7, entries
            ):
                assert seen[-1][-1] == partition.images[-1].entry.image_id  # what is behind it is not begun
                processes[-1].append(partition)
        except Crash:
            continue
    assert [len(partitions) for partitions in processes] == [1, 1, 3]
    for partitions in processes:
        for place, partition in enumerate(partitions):
            assert (partition.number, partition.chunk, partition.num_chunks) == (7, place, 3)
            assert [image.entry for image in partition.images] == entries[2 * place : 2 * place + 2]
    failed = [
        image.entry.image_id for partition in processes[-1] for image in partition.images if image.error is not None
    ]
    assert failed == ["img_0002"]


def test_with_quarantine_of_parquet_rows_makes_one_chunk(tmp_path: Path) -> None:
    entries = [replace(entry, row=row) for row, entry in enumerate(entries_of(tmp_path / "in", 4))]
    crash_log = crash_log_of(tmp_path, "masks")
    (partition,) = with_quarantine(Poisoned(crash_log, set(), []), crash_log, images_per_chunk=1)(0, entries)
    assert (len(partition.images), partition.num_chunks) == (4, 1)
