"""Chunks: captioning of an image starts when its masks are ready, before those of its partition."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.drawn import write_corpus
from tests.pipelines.test_graph import settings_of
from ureca.data.in_flight import ImagesInFlight
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedPartition, MaskStage
from ureca.data.output import Output
from ureca.data.reading import Fetched, fetch
from ureca.image_limits import ImageLimits
from ureca.pipelines.curate import CURATE, CurateActor, build_mask_stage, curate
from ureca.pipelines.curate_settings import CurateSettings

_LONGEST_WAIT_S = 60.0


def notes_of(settings: CurateSettings) -> Path:
    """Return the folder of notes about started images."""
    return Path(settings.output).parent / "notes"


def build_waiting_mask_stage(settings: CurateSettings) -> MaskStage:
    """Make masks of an image only once the captioning of the one before it has started."""
    stage = build_mask_stage(settings)

    def generate(number: int, entries: Sequence[ManifestEntry]) -> MaskedPartition:
        for entry in entries:
            before = notes_of(settings) / f"img_{int(entry.image_id[-4:]) - 1:04d}"
            deadline = time.monotonic() + _LONGEST_WAIT_S
            while entry.image_id != "img_0000" and not before.exists():
                assert time.monotonic() < deadline, f"{before.name} waits for {entry.image_id}"
                time.sleep(0.01)
        return stage(number, entries)

    return generate


class NotingCurateActor(CurateActor):
    """Writes a note for each image that it reads, as it starts it."""

    @classmethod
    def build(cls, settings: CurateSettings, images: ImagesInFlight, config_hash: str | None = None) -> Any:
        def fetch_and_note(entries: Sequence[ManifestEntry], limits: ImageLimits) -> Iterator[Fetched]:
            for fetched in fetch(entries, limits):
                (notes_of(settings) / fetched.entry.image_id).touch()
                (Path(settings.output) / "manifest" / ".tmp-of-one-that-died").touch()
                yield fetched

        noting = ImagesInFlight(4, images.limits, fetch=fetch_and_note)
        return super().build(settings, noting, config_hash)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(200)
def test_image_with_masks_is_captioned_before_its_partition_is_complete(tmp_path: Path) -> None:
    ids = write_corpus(tmp_path / "in", 6)
    resources = {"masks": {"num_actors": 1, "images_per_chunk": 1}, "curate": {"num_actors": 1}}
    settings = settings_of(tmp_path, images_per_partition=6, resources=resources)
    notes_of(settings).mkdir()
    command = replace(CURATE, build_mask_stage=build_waiting_mask_stage, row_actor=NotingCurateActor)
    report = curate(settings, command=command)
    assert (report.num_images, report.num_failed, report.num_regions) == (6, 0, 24)
    assert [row["image_id"] for row in Output(settings.output).rows()] == ids
    left = {str(path.relative_to(settings.output)) for path in Path(settings.output).rglob("*") if path.is_file()}
    assert left == {"README.md", "manifest/000000.parquet", "regions/part-000000.parquet", "run.json"}
    assert Output(settings.output).done_partitions() == [0]
