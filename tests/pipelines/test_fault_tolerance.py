"""Fault tolerance of curate: images that kill workers, full disks, leased outputs, changed configs."""

import asyncio
import errno
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.drawn import drawn_image, png, write_corpus
from tests.pipelines.test_graph import settings_of
from ureca.curation.prompted import PromptedAnnotator
from ureca.curation.protocols import CurationImage
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedPartition, MaskStage, build_mask_trees
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import OutputError
from ureca.pipelines.curate import CURATE, CurateActor, build_mask_stage, curate
from ureca.pipelines.curate_settings import CurateSettings

pytestmark = pytest.mark.usefixtures("ray_cluster")

ONE_ACTOR_EACH = {"masks": {"num_actors": 1}, "curate": {"num_actors": 1}}
FATAL_FOR_MASKS, FATAL_FOR_TREES, FATAL_FOR_CAPTIONS = "img_0003", "img_0006", "img_0008"


def ignore_plan(num_images: int, num_to_do: int) -> None:
    """Take the plan, and do nothing."""


def build_crashing_mask_stage(settings: CurateSettings) -> MaskStage:
    """Masks; one image kills the process."""
    stage = build_mask_stage(settings)

    def generate(number: int, entries: Sequence[ManifestEntry]) -> MaskedPartition:
        if any(entry.image_id == FATAL_FOR_MASKS for entry in entries):
            os.kill(os.getpid(), signal.SIGKILL)
        return stage(number, entries)

    return generate


def build_crashing_trees(partition: MaskedPartition, containment: float) -> MaskedPartition:
    """Trees; one image kills the process."""
    if any(image.entry.image_id == FATAL_FOR_TREES for image in partition.images):
        os.kill(os.getpid(), signal.SIGKILL)
    return build_mask_trees(partition, containment)


class CrashingCurateActor(CurateActor):
    """Captions; an image with a white corner kills the process while others are in flight."""

    @classmethod
    def build(cls, *arguments: Any, **more: Any) -> Any:
        stage = super().build(*arguments, **more)
        short_caption = PromptedAnnotator.short_caption

        async def crash_on_fatal_image(
            self: PromptedAnnotator, image: CurationImage, region_id: int, **context: Any
        ) -> str:
            await asyncio.sleep(0.05)
            if (image.pixels[0, 0] == 255).all():
                os.kill(os.getpid(), signal.SIGKILL)
            return await short_caption(self, image, region_id, **context)

        PromptedAnnotator.short_caption = crash_on_fatal_image  # type: ignore[method-assign]
        return stage


@pytest.mark.timeout(200)
@pytest.mark.parametrize("images_per_chunk", [None, pytest.param(1, marks=pytest.mark.long)])
def test_curate_of_images_that_kill_workers_writes_error_rows(tmp_path: Path, images_per_chunk: int | None) -> None:
    ids = write_corpus(tmp_path / "in", 12)
    pixels, _ = drawn_image(8)
    pixels[0, 0] = 255
    (tmp_path / "in" / f"{FATAL_FOR_CAPTIONS}.png").write_bytes(png(pixels))
    resources = ONE_ACTOR_EACH | {"masks": {"num_actors": 1, "images_per_chunk": images_per_chunk}}
    settings = settings_of(
        tmp_path, images_per_partition=4, max_worker_crashes=2, resources=resources, max_error_fraction=1
    )
    command = replace(
        CURATE,
        build_mask_stage=build_crashing_mask_stage,
        build_trees=build_crashing_trees,
        row_actor=CrashingCurateActor,
    )
    report = curate(settings, command=command)
    rows = {row["image_id"]: row for row in Output(settings.output).rows()}
    assert list(rows) == ids
    errors = {id: (row["error"]["stage"], row["error"]["kind"]) for id, row in rows.items() if row["error"]}
    assert errors == {
        FATAL_FOR_MASKS: ("masks", "worker_died"),
        FATAL_FOR_TREES: ("tree", "worker_died"),
        FATAL_FOR_CAPTIONS: ("curate", "worker_died"),
    }
    assert all(len(row["regions"]) == 4 for id, row in rows.items() if id not in errors)
    assert report.failures == {"masks:worker_died": 1, "tree:worker_died": 1, "curate:worker_died": 1}
    for stage, fatal in (("tree", FATAL_FOR_TREES), ("curate", FATAL_FOR_CAPTIONS)):
        assert f"2 workers of the stage {stage} died" in rows[fatal]["error"]["message"]
    assert not (tmp_path / "out" / "crash_log").exists()
    # Where workers survive them, they are images like any other.
    report = curate(settings.model_copy(update={"retry_errors": True}), ignore_plan)
    assert (report.num_images, report.num_failed, report.num_regions) == (12, 0, 48)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_curate_on_a_full_disk_names_it_and_resumes(tmp_path: Path, small_disk: Path) -> None:
    ids = write_corpus(tmp_path / "in", 12)
    settings = settings_of(tmp_path, images_per_partition=1, resources=ONE_ACTOR_EACH).model_copy(
        update={"output": str(small_disk / "out")}
    )
    free = os.statvfs(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - 90 * 1024))
    with pytest.raises(
        OutputError, match=r"/out/.* cannot be written: .*[Nn]o space left on device.*make room there, and"
    ) as raised:
        curate(settings, ignore_plan)
    assert "\n" not in str(raised.value)
    output = Output(settings.output)
    done = output.done_partitions()
    assert 0 < len(done) < len(ids)
    before = {
        partition: (small_disk / f"out/regions/part-{partition:06d}.parquet").stat().st_mtime_ns for partition in done
    }
    ballast.unlink()
    assert curate(settings, ignore_plan).num_images == len(ids)
    assert [row["image_id"] for row in output.rows()] == ids
    assert all(row["error"] is None for row in output.rows())
    assert before == {
        partition: (small_disk / f"out/regions/part-{partition:06d}.parquet").stat().st_mtime_ns for partition in before
    }


def test_write_partition_on_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a small disk: the boundary to the file system says that it is full."""
    output = Output(str(tmp_path))
    output.write_partition(3, [], PartitionReport())
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OutputError, match=r"No space left on device.*make room there, and give the same command again"):
        output.write_partition(3, [], PartitionReport())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_curate_into_a_leased_output_raises_and_changes_nothing(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", 2)
    settings = settings_of(tmp_path, resources=ONE_ACTOR_EACH)
    output = Output(settings.output)
    with output.lease():
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="is being written by another run"):
                curate(settings.model_copy(update={"overwrite": overwrite}), ignore_plan)
        assert not output.exists()
        assert output.manifest_files() == []


def test_curate_with_another_config_raises_unless_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path / "in", 2)
    settings = settings_of(tmp_path, images_per_partition=1, resources=ONE_ACTOR_EACH)
    curate(settings, ignore_plan)
    output = Output(settings.output)
    (first,) = {row["provenance"]["recipe"] for row in output.rows()}
    write_corpus(tmp_path / "in", 3)
    monkeypatch.setattr("ureca.pipelines.curate.PROMPTS_VERSION", "other")
    with pytest.raises(OutputError, match=r"started with other settings:\n  prompts: '\w+' then, 'other' now\n"):
        curate(settings, ignore_plan)
    assert len(list(output.rows())) == 2
    # Told to, the session goes on, and each row says by which recipe it was made.
    curate(settings.model_copy(update={"accept_changes": True}), ignore_plan)
    hashes = [row["provenance"]["recipe"] for row in output.rows()]
    assert hashes[:2] == [first, first] != hashes[2:]
    run = output.run()
    assert {*run["configs"]} == {*hashes}
    assert [session["config_hash"] for session in run["sessions"]] == [first, hashes[2]]
    assert run["configs"][hashes[2]]["identity"]["prompts"] == "other"
