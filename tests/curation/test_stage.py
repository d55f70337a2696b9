"""The curation stage: order of rows, limits, and images that fail."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.drawn import drawn_image, png, write_corpus
from ureca.curation.curator import Curator
from ureca.curation.listener import PromptedListener
from ureca.curation.prompted import PromptedAnnotator
from ureca.curation.protocols import Choice, CurationImage, LookAlike, RegionCrop, Verdict
from ureca.curation.settings import ListeningSettings, PromptedConfig, PromptedListenerSettings
from ureca.curation.stage import CurateStage
from ureca.data.in_flight import ImagesInFlight
from ureca.data.listing import list_images
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedPartition, build_mask_trees, generate_masks
from ureca.image_limits import ImageLimits
from ureca.llm.fake import FakeChatModel
from ureca.llm.settings import FakeConfig
from ureca.masks.generators.annotations import AnnotationMaskGenerator
from ureca.masks.mask import Mask

LIMITS = ImageLimits()


class CountingAnnotator:
    """Captions are numbers; counts the images that are captioned at the same time."""

    name = "counting"

    def __init__(self) -> None:
        self.images: dict[int, int] = {}
        self.most_images = 0
        self.num_captions = 0

    async def short_caption(
        self, image: CurationImage, region_id: int, *, parent_caption: str | None, sibling_captions: Sequence[str]
    ) -> str:
        self.images[id(image)] = self.images.get(id(image), 0) + 1
        self.most_images = max(self.most_images, len(self.images))
        await asyncio.sleep(0.002)
        self.images[id(image)] -= 1
        if not self.images[id(image)]:
            del self.images[id(image)]
        self.num_captions += 1
        return f"caption {self.num_captions}"

    async def detailed_caption(
        self, image: CurationImage, region_id: int, *, short_caption: str, child_captions: Sequence[str]
    ) -> str:
        return f"{short_caption} in detail"

    async def unique_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        caption: str,
        lookalikes: Sequence[LookAlike],
        confused_with: Choice | None = None,
    ) -> str:
        return f"{caption}, and no other"

    async def verify(self, image: CurationImage, region_id: int, *, caption: str) -> Verdict:
        return Verdict(True, "counted")


class OneHotEmbedder:
    """No two regions look alike."""

    name = "one-hot"

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        return np.eye(len(crops), dtype=np.float32)


class BuggyEmbedder:
    """A bug, which is nobody's data."""

    name = "buggy"

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        raise ZeroDivisionError


class FixedMaskGenerator:
    """The drawn image's masks for any image."""

    name = "fixed"

    def generate(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        return drawn_image(0)[1]


def entries_of(folder: Path, annotations: str | None = "beside") -> list[ManifestEntry]:
    """The manifest of a folder."""
    return [ManifestEntry.from_row(row) for row in list_images(str(folder), annotations=annotations).to_pylist()]


def masked_partition(entries: Sequence[ManifestEntry]) -> MaskedPartition:
    """Build a partition with masks and trees."""
    return build_mask_trees(generate_masks(7, entries, AnnotationMaskGenerator(), LIMITS), 0.8)


def stage_of(annotator: CountingAnnotator | None = None, images_in_flight: int = 16) -> CurateStage:
    """A stage that captions by counting."""
    curator = Curator(annotator=annotator or CountingAnnotator(), embedder=OneHotEmbedder())
    return CurateStage(curator, ImagesInFlight(images_in_flight, LIMITS))


def test_stage_rows_keep_the_order_and_have_provenance(tmp_path: Path) -> None:
    ids = write_corpus(tmp_path, 5)
    rows, work = asyncio.run(stage_of()(masked_partition(entries_of(tmp_path))))
    assert [row["image_id"] for row in rows] == ids
    assert rows[0]["provenance"] | {"ureca": ""} == {
        "proposer": "annotations",
        "annotator": "counting",
        "embedder": "one-hot",
        "listener": None,
        "verifier": None,
        "ureca": "",
        "recipe": None,
    }
    assert work.seconds.keys() == {"masks", "tree", "curate"}


def test_stage_invalid_responses_are_in_the_report(tmp_path: Path) -> None:
    write_corpus(tmp_path, 2)
    model = FakeChatModel(FakeConfig(malformed_fraction=0.4))
    annotator = PromptedAnnotator(model, PromptedConfig(max_attempts=9))
    listener = PromptedListener(model, PromptedListenerSettings())
    curator = Curator(annotator, OneHotEmbedder(), listener=listener, listening=ListeningSettings(include_all=True))
    rows, work = asyncio.run(CurateStage(curator, ImagesInFlight(4, LIMITS))(masked_partition(entries_of(tmp_path))))
    assert {row["provenance"]["listener"] for row in rows} == {listener.name}
    assert work.invalid_responses["unusable_answer"] > 0
    assert work.num_calls > sum(work.invalid_responses.values())


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_stage_images_in_flight_are_limited_over_all_partitions(tmp_path: Path, limit: int) -> None:
    write_corpus(tmp_path, 8)
    entries = entries_of(tmp_path)
    annotator = CountingAnnotator()
    stage = stage_of(annotator, limit)

    async def both() -> None:
        await asyncio.gather(stage(masked_partition(entries[:4])), stage(masked_partition(entries[4:])))

    asyncio.run(both())
    assert 1 <= annotator.most_images <= limit
    assert limit == 1 or annotator.most_images > 1
    assert annotator.num_captions == 8 * 4


def test_stage_rows_of_parquet_files_keep_the_order_of_the_manifest(tmp_path: Path) -> None:
    images = [png(drawn_image(seed)[0]) for seed in range(6)]
    table = pa.table({"image_id": [f"row{index}" for index in range(6)], "image": images})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=2)
    entries = entries_of(tmp_path, annotations=None)[::-1]
    partition = build_mask_trees(generate_masks(0, entries, FixedMaskGenerator(), LIMITS), 0.8)
    assert [image.entry.image_id for image in partition.images] == [f"row{index}" for index in range(5, -1, -1)]
    rows, _ = asyncio.run(stage_of()(partition))
    assert [row["image_id"] for row in rows] == [f"row{index}" for index in range(5, -1, -1)]
    assert all(row["error"] is None and len(row["regions"]) == 4 for row in rows)


def test_stage_missing_or_changed_image_is_an_error_row(tmp_path: Path) -> None:
    write_corpus(tmp_path, 3)
    partition = masked_partition(entries_of(tmp_path))
    (tmp_path / "img_0000.png").unlink()
    (tmp_path / "img_0001.png").write_bytes(png(np.zeros((3, 3, 3), np.uint8)))
    rows, _ = asyncio.run(stage_of()(partition))
    errors = [row["error"] and (row["error"]["stage"], row["error"]["kind"]) for row in rows]
    assert errors == [("curate", "missing_file"), ("curate", "changed"), None]
    assert [len(row["regions"]) for row in rows] == [0, 0, 4]


def test_stage_errors_of_mask_generation_pass_through(tmp_path: Path) -> None:
    write_corpus(tmp_path, 2)
    (tmp_path / "img_0000.json").write_text("{")
    rows, _ = asyncio.run(stage_of()(masked_partition(entries_of(tmp_path))))
    assert rows[0]["error"]["stage"] == "masks"
    assert (rows[0]["height"], rows[0]["width"]) == (60, 80)
    assert rows[1]["error"] is None


def test_stage_bug_is_raised_and_frees_its_slot(tmp_path: Path) -> None:
    write_corpus(tmp_path, 3)
    partition = masked_partition(entries_of(tmp_path))
    stage = CurateStage(Curator(annotator=CountingAnnotator(), embedder=BuggyEmbedder()), ImagesInFlight(1, LIMITS))

    async def twice() -> list[BaseException]:
        failures = []
        for _ in range(2):
            with pytest.raises(ExceptionGroup) as raised:
                await asyncio.wait_for(stage(partition), timeout=30)
            failures.append(raised.value)
        return failures

    for failure in asyncio.run(twice()):
        assert failure.subgroup(ZeroDivisionError) is not None


def test_stage_partition_without_good_images_makes_no_request(tmp_path: Path) -> None:
    write_corpus(tmp_path, 1)
    partition = masked_partition(entries_of(tmp_path))
    (tmp_path / "img_0000.png").write_bytes(b"")
    failed = generate_masks(0, [partition.images[0].entry], AnnotationMaskGenerator(), LIMITS)
    annotator = CountingAnnotator()
    rows, _ = asyncio.run(stage_of(annotator)(replace(failed, number=3)))
    assert rows[0]["error"]["kind"] == "empty_file"
    assert annotator.num_captions == 0
