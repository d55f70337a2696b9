"""The caption stage: common batches, failures as rows, and bugs that are raised."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
from PIL import Image

from tests.captioning.fakes import masked_partition
from ureca.captioning.captioners import EngineCaptioner
from ureca.captioning.continuous import CaptionEngine
from ureca.captioning.stage import CaptionStage
from ureca.data.in_flight import ImagesInFlight
from ureca.data.masked import MaskedPartition
from ureca.data.partitions import PartitionReport
from ureca.image_limits import ImageLimits
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_tiny
from ureca.model.prepared import PreparedImage
from ureca.model.prompt_encoder import PromptEncoder
from ureca.model.region_batch import FinishedRegion, RegionBatch
from ureca.model.settings import CaptionSettings


class Recording(RegionCaptioner):
    """Remembers the sizes, in tiles, of the images of each admission, and the number of images of each batch."""

    calls: list[list[int]]
    most_images: int

    def open_batch(self) -> Any:
        recorder = self

        class RecordingBatch(RegionBatch[Any]):
            held: tuple[Any, ...] = ()

            def admit(self, regions: Iterable[tuple[Any, PreparedImage, int, CaptionSettings]]) -> None:
                admitted = list(regions)
                images = list({id(image): image for _, image, *_ in admitted}.values())
                if images:
                    recorder.calls.append([image.num_tiles for image in images])
                super().admit(admitted)
                self.held = (*self.held, *(key for key, *_ in admitted))

            def step(self, is_wanted: Callable[[Any], bool] | None = None) -> Iterator[FinishedRegion[Any]]:
                recorder.most_images = max(recorder.most_images, len({id(job) for job, _ in self.held}))
                for region in super().step(is_wanted):
                    self.held = tuple(key for key in self.held if key != region.key)
                    yield region

        return RecordingBatch(self.model, self.processor, self.encoder)


@pytest.fixture
def captioner() -> Recording:
    captioner = Recording(*build_tiny())
    captioner.calls, captioner.most_images = [], 0
    return captioner


def run(
    captioner: RegionCaptioner, partitions: list[MaskedPartition], images_in_flight: int = 8, **settings: Any
) -> list[tuple[list[dict[str, Any]], PartitionReport]]:
    async def all_partitions() -> list[tuple[list[dict[str, Any]], PartitionReport]]:
        chosen = CaptionSettings(**{"max_new_tokens": 4} | settings)
        engine = CaptionEngine(captioner, captioner.choose_batch_size(chosen), serves_requests=False)
        stage = CaptionStage(EngineCaptioner(engine, chosen), "tiny 1", ImagesInFlight(images_in_flight, ImageLimits()))
        return list(await asyncio.gather(*map(stage, partitions)))

    return asyncio.run(all_partitions())


def test_stage_with_several_partitions_shares_batches_and_keeps_order(captioner: Recording, tmp_path: Path) -> None:
    partitions = [masked_partition(tmp_path, number, 5) for number in range(2)]
    made = run(captioner, partitions)
    for partition, (rows, report) in zip(partitions, made, strict=True):
        assert [row["image_id"] for row in rows] == [image.entry.image_id for image in partition.images]
        assert all(region["status"] == "ok" for row in rows for region in row["captions"])
        assert {(row["model"], row["proposer"], row["error"]) for row in rows} == {("tiny 1", "drawn", None)}
        assert report.num_new_tokens == sum(region["num_tokens"] for row in rows for region in row["captions"])
        assert report.seconds.keys() == {"masks", "prepare", "caption"}
        assert report.seconds["caption"] > 0
    assert sum(map(len, captioner.calls)) >= 10
    assert captioner.most_images > 1
    alone = run(captioner, partitions[:1], images_in_flight=1)
    assert alone[0][0] == made[0][0]


def test_stage_batches_images_of_similar_size(captioner: Recording, tmp_path: Path) -> None:
    partition = masked_partition(tmp_path, 0, 6)
    wide = []
    for image in partition.images[::2]:
        Image.fromarray(np.zeros((60, 80, 3), np.uint8)).resize((300, 60)).save(image.entry.path)
        mask = image.masks[0].from_array(1, np.ones((60, 300), np.bool_))
        wide.append(type(image)(image.entry, 60, 300, (mask,)))
    mixed = MaskedPartition(
        0, "drawn", tuple(x for pair in zip(wide, partition.images[1::2], strict=True) for x in pair), {}
    )
    run(captioner, [mixed], batch_size=12)
    assert any(len(call) > 2 for call in captioner.calls)
    for call in captioner.calls:
        distances = [abs(size - call[0]) for size in call]
        assert distances == sorted(distances)


def test_stage_encodes_an_image_once_though_its_regions_exceed_the_batch(
    captioner: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = PromptEncoder.encode_image
    monkeypatch.setattr(
        PromptEncoder,
        "encode_image",
        lambda self, tiles, *more: encoded.append(id(tiles)) or encode(self, tiles, *more),
    )
    rows, _ = run(captioner, [masked_partition(tmp_path, 0, 5)], batch_size=3)[0]
    assert all(region["status"] == "ok" for row in rows for region in row["captions"])
    assert len(encoded) == 5


def test_stage_holds_at_most_images_in_flight(captioner: Recording, tmp_path: Path) -> None:
    alive: WeakSet[PreparedImage] = WeakSet()
    most = 0

    def prepare(*arguments: Any) -> PreparedImage:
        nonlocal most
        prepared = RegionCaptioner.prepare(captioner, *arguments)
        alive.add(prepared)
        most = max(most, len(alive))
        return prepared

    captioner.prepare = prepare  # type: ignore[method-assign]
    run(captioner, [masked_partition(tmp_path, number, 8) for number in range(3)], images_in_flight=3)
    assert 1 < most <= 2 * 3  # those of a call that are finished stay until its end
    # The thread that captioned the last image lets go of it after it has delivered the result.
    deadline = time.monotonic() + 60
    while alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive


def test_stage_with_changed_or_missing_files_returns_error_rows(captioner: Recording, tmp_path: Path) -> None:
    partition = masked_partition(tmp_path, 0, 4)
    gone, changed, broken, good = (Path(image.entry.path) for image in partition.images)
    gone.unlink()
    Image.new("RGB", (9, 9)).save(changed)
    broken.write_bytes(good.read_bytes()[:100])
    rows, _ = run(captioner, [partition])[0]
    errors = [row["error"] and f"{row['error']['stage']}:{row['error']['kind']}" for row in rows]
    assert errors == ["read:missing_file", "caption:changed", "read:truncated", None]
    assert [len(row["captions"]) for row in rows] == [0, 0, 0, 4]


def test_stage_with_a_bug_raises_and_frees_slots(captioner: Recording, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("index out of range")

    handle = captioner.model.lm_head.register_forward_hook(fail)
    with pytest.raises(ExceptionGroup) as error:
        run(captioner, [masked_partition(tmp_path, 0, 3)], images_in_flight=1)
    assert error.group_contains(RuntimeError, match="index out of range")
    handle.remove()
    assert run(captioner, [masked_partition(tmp_path, 0, 1)])
