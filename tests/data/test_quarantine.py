"""Images that take down the process that works on them: found out, and given up, without the others."""

import asyncio
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
from ureca.images import ImageLimits

LIMITS = ImageLimits()


class Death(BaseException):
    """What stands for the end of the process here: nothing is cleaned up after it."""


class Mortal(CrashLog):
    """Marks of a process that does nothing more once it is dead."""

    def begin(self, item: str) -> None:
        if not self.dying:
            super().begin(item)

    def end(self, item: str, *, completed: bool) -> None:
        if not self.dying:
            super().end(item, completed=completed)

    dying = False


def mortal(folder: Path, stage: str, max_crashes: int = 3) -> Mortal:
    """What the next process of a stage knows."""
    output = Output(str(folder))
    return Mortal(output.filesystem, f"{folder}/crash_log", stage, max_crashes)


def entries_of(folder: Path, num_images: int) -> list[ManifestEntry]:
    """The manifest of a corpus with so many images."""
    write_corpus(folder, num_images)
    return [ManifestEntry.from_row(row) for row in list_images(str(folder)).to_pylist()]


class Poisoned:
    """A stage that dies of some images, in whatever process it runs."""

    def __init__(self, crash_log: Mortal, poison: set[str], seen: list[list[str]]) -> None:
        self._crash_log, self._poison, self._seen = crash_log, poison, seen

    def __call__(self, number: int, entries: Sequence[ManifestEntry]) -> MaskedPartition:
        ids = [entry.image_id for entry in entries]
        if ids:
            self._seen.append(ids)
        if self._poison & {*ids}:
            self._crash_log.dying = True
            raise Death
        return MaskedPartition(number, "poisoned", tuple(map(MaskedImage, entries)), {"masks": float(len(ids))})


@pytest.mark.parametrize("max_crashes", [2, 3, 5])
@pytest.mark.parametrize("poison", [{"img_0001"}, {"img_0000", "img_0003"}, {f"img_000{index}" for index in range(4)}])
def test_a_unit_goes_image_by_image_until_the_guilty_are_given_up(
    tmp_path: Path, max_crashes: int, poison: set[str]
) -> None:
    entries = entries_of(tmp_path / "in", 4)
    seen: list[list[str]] = []
    num_crashes = 0
    while True:
        crash_log = mortal(tmp_path, "masks", max_crashes)
        try:
            (partition,) = with_quarantine(Poisoned(crash_log, poison, seen), crash_log)(7, entries)
            break
        except Death:
            num_crashes += 1
    # The first process dies with all; further ones with one image each.
    assert num_crashes == 1 + len(poison) * (max_crashes - 1)
    assert (partition.number, partition.mask_generator) == (7, "poisoned")
    assert [image.entry for image in partition.images] == entries
    errors = {image.entry.image_id: image.error for image in partition.images if image.error is not None}
    assert errors.keys() == poison
    assert {(error.stage, error.kind) for error in errors.values()} == {("masks", "worker_died")}
    assert partition.seconds == {"masks": 4 - len(poison)}


def test_what_nobody_dies_of_goes_as_a_unit(tmp_path: Path) -> None:
    entries = entries_of(tmp_path / "in", 4)
    seen: list[list[str]] = []
    crash_log = mortal(tmp_path, "masks")
    (partition,) = with_quarantine(Poisoned(crash_log, set(), seen), crash_log)(0, entries)
    assert len(partition.images) == 4
    assert seen == [[entry.image_id for entry in entries]]
    assert list((tmp_path / "crash_log").iterdir()) == []


def test_trees_too(tmp_path: Path) -> None:
    entries = entries_of(tmp_path / "in", 3)
    partition = MaskedPartition(5, "p", tuple(map(MaskedImage, entries)), {"masks": 1.0})
    for _ in range(4):
        crash_log = mortal(tmp_path, "tree")

        def plant_mortally(some: MaskedPartition, crash_log: Mortal = crash_log) -> MaskedPartition:
            if entries[1] in [image.entry for image in some.images]:
                crash_log.dying = True
                raise Death
            return build_mask_trees(some, 0.8)

        try:
            built = build_with_quarantine(partition, plant_mortally, crash_log)
        except Death:
            continue
    assert [image.error and image.error.stage for image in built.images] == [None, "tree", None]
    assert built.seconds.keys() == {"masks", "tree"}


@pytest.mark.parametrize("most", [1, 3, 16])
def test_in_flight_the_guilty_one_is_found_and_others_are_done(tmp_path: Path, most: int) -> None:
    entries = entries_of(tmp_path / "in", 6)
    processes: list[list[frozenset[str]]] = []
    given_up: dict[str, DataError] = {}

    async def process() -> None:
        crash_log = mortal(tmp_path, "curate")
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
                    crash_log.dying = True
                    raise Death
            finally:
                company.remove(id)

        await asyncio.gather(
            images.each(entries[:4], work, given_up.__setitem__), images.each(entries[4:], work, given_up.__setitem__)
        )

    for _ in range(4):
        try:
            asyncio.run(process())
        except BaseExceptionGroup as group:
            assert group.subgroup(Death) is not None
        except Death:
            pass
    assert len(processes) == 4
    assert {id: str(error) for id, error in given_up.items()} == {
        "img_0002": "worker_died: 3 workers of the stage curate died while they worked on it"
    }
    assert set().union(*processes[3]) == {entry.image_id for entry in entries} - {"img_0002"}
    # After the first death the suspects are alone, until they are done or dead.
    assert all(
        company == {"img_0002"} for companies in processes[1:3] for company in companies if "img_0002" in company
    )
    assert all(len(company) <= most for companies in processes for company in companies)
    asyncio.run(_together(entries, ImagesInFlight(most, LIMITS, mortal(tmp_path, "curate")), most))


async def _together(entries: Sequence[ManifestEntry], images: ImagesInFlight, most: int) -> None:
    """Whoever was in company of a death is no suspect once it was done: all but the guilty one go together again."""
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


def test_without_marks_nothing_is_suspected(tmp_path: Path) -> None:
    entries = entries_of(tmp_path / "in", 3)
    seen: list[str] = []

    async def work(fetched: Fetched) -> None:
        seen.append(fetched.entry.image_id)

    asyncio.run(
        ImagesInFlight(2, LIMITS, NullCrashLog()).each(entries, work, lambda id, reason: seen.append("given up"))
    )
    assert sorted(seen) == [entry.image_id for entry in entries]


def test_pieces_come_one_by_one_and_are_the_same_after_a_death(tmp_path: Path) -> None:
    """Ray does not ask again for what a process has handed on before it died."""
    entries = entries_of(tmp_path / "in", 5)
    seen: list[list[str]] = []
    processes: list[list[MaskedPartition]] = []
    for _ in range(3):
        crash_log = mortal(tmp_path, "masks", max_crashes=2)
        processes.append([])
        try:
            for partition in with_quarantine(Poisoned(crash_log, {"img_0002"}, seen), crash_log, images_per_chunk=2)(
                7, entries
            ):
                assert seen[-1][-1] == partition.images[-1].entry.image_id  # what is behind it is not begun
                processes[-1].append(partition)
        except Death:
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


def test_images_that_lie_in_one_file_stay_together(tmp_path: Path) -> None:
    entries = [replace(entry, row=row) for row, entry in enumerate(entries_of(tmp_path / "in", 4))]
    crash_log = mortal(tmp_path, "masks")
    (partition,) = with_quarantine(Poisoned(crash_log, set(), []), crash_log, images_per_chunk=1)(0, entries)
    assert (len(partition.images), partition.num_chunks) == (4, 1)
