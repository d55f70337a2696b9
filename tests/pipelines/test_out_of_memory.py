"""Commands whose models run out of memory: smaller parts, rows of what does not fit alone, and no endless retries."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.drawn import write_corpus
from tests.pipelines.test_caption_graph import settings_of as caption_settings
from tests.pipelines.test_graph import settings_of
from ureca.curation.embedders import DescriptorEmbedder
from ureca.curation.protocols import CurationImage
from ureca.data.masked import MaskStage, generate_masks
from ureca.data.output import Output
from ureca.image_limits import ImageLimits
from ureca.images import decode_image
from ureca.masks.generators.annotations import AnnotationMaskGenerator
from ureca.model.initialization import save_tiny
from ureca.pipelines.batch.actors import build_fetch
from ureca.pipelines.caption import CAPTION, CaptionActor, caption
from ureca.pipelines.curate import CURATE, CurateActor, curate
from ureca.schema import CAPTIONS_DATASET

ONE_ACTOR = {"masks": {"num_actors": 1}}
EXECUTORS = ["local", pytest.param("ray", marks=pytest.mark.long)]


def no_plan(num_images: int, num_to_do: int) -> None:
    """Takes the plan."""


class CrampedMaskGenerator(AnnotationMaskGenerator):
    """Lacks memory for one image, as a GPU does for a very large one."""

    def __init__(self, image: Path) -> None:
        super().__init__()
        self._refused = decode_image(image.read_bytes(), ImageLimits())

    def generate(self, image: Any, annotation: bytes | None = None, *, orientation: int = 1) -> Any:
        import torch

        if np.array_equal(image, self._refused):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.61 GiB")
        return super().generate(image, annotation, orientation=orientation)


def build_cramped_mask_stage(settings: Any) -> MaskStage:
    generator = CrampedMaskGenerator(Path(settings.input) / "img_0002.png")
    return lambda number, entries: generate_masks(
        number, entries, generator, settings.image_limits, build_fetch(settings)
    )


class CrampedEmbedder(DescriptorEmbedder):
    """Lacks memory for more than one region."""

    def embed_regions(self, image: CurationImage, region_ids: Sequence[int]) -> Any:
        import torch

        if len(region_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return super().embed_regions(image, region_ids)


class CrampedCurateActor(CurateActor):
    """Curates with such an embedder."""

    @classmethod
    def build(cls, *arguments: Any, **options: Any) -> Any:
        stage = super().build(*arguments, **options)
        stage.curator = replace(stage.curator, embedder=CrampedEmbedder())
        return stage


@pytest.mark.parametrize("executor", EXECUTORS)
def test_curate_out_of_memory_is_a_row_and_smaller_parts_and_no_loop(tmp_path: Path, executor: str) -> None:
    write_corpus(tmp_path / "in", 5)
    resources = {**ONE_ACTOR, "curate": {"num_actors": 1}}
    settings = settings_of(tmp_path, images_per_partition=2, resources=resources, executor=executor)
    roomy_settings = settings.model_copy(update={"output": str(tmp_path / "roomy"), "executor": "local"})
    expected = curate(roomy_settings, no_plan)
    command = replace(CURATE, build_mask_stage=build_cramped_mask_stage, row_actor=CrampedCurateActor)
    report = curate(settings, no_plan, command=command)
    assert report.failures == {"masks:out_of_memory": 1}
    assert (report.num_images, report.num_failed, report.num_regions) == (5, 1, expected.num_regions - 4)
    (row,) = [row for row in Output(settings.output).rows() if row["error"]]
    assert row["image_id"] == "img_0002"
    assert row["error"]["message"].startswith("the mask generator on an image of ")
    # The look-alikes are those of an embedder with room.
    roomy = {row["image_id"]: row["regions"] for row in Output(str(tmp_path / "roomy")).rows()}
    for row in Output(settings.output).rows():
        if not row["error"]:
            assert [region["caption"] for region in row["regions"]] == [
                region["caption"] for region in roomy[row["image_id"]]
            ]
    # The same command again meets the image no more, or once where failed images are to be retried.
    assert curate(settings, no_plan, command=command) == report


class CrampedCaptionActor(CaptionActor):
    """Captions on a device with room for two sequences."""

    @classmethod
    def build(cls, *arguments: Any, **options: Any) -> Any:
        import torch

        from ureca.model.decoding import SuffixCache

        prefill = SuffixCache.prefill

        def prefill_some(model: Any, prefixes: Any, suffixes: Any) -> SuffixCache:
            if len(suffixes) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
            return prefill(model, prefixes, suffixes)

        SuffixCache.prefill = prefill_some  # type: ignore[method-assign,assignment]
        return super().build(*arguments, **options)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_caption_out_of_memory_captions_all_regions_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    from ureca.model.decoding import SuffixCache

    monkeypatch.setattr(SuffixCache, "prefill", SuffixCache.prefill)  # undone after the actor has replaced it
    write_corpus(tmp_path / "in", 3)
    save_tiny(tmp_path / "model")
    resources = {**ONE_ACTOR, "caption": {"num_actors": 1}}
    settings = caption_settings(tmp_path, tmp_path / "model", resources=resources, executor=executor)
    command = replace(CAPTION, row_actor=CrampedCaptionActor)
    report = caption(settings, no_plan, command=command)
    assert report.num_failed == 0
    regions = [region for row in Output(settings.output, CAPTIONS_DATASET).rows() for region in row["captions"]]
    assert len(regions) == 12
    assert {region["status"] for region in regions} == {"ok"}
    assert caption(settings, no_plan, command=command) == report
