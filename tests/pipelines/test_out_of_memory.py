"""Commands whose models run out of memory: smaller parts, rows of what does not fit alone, and no endless retries."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.drawn import HEIGHT, WIDTH, png, write_corpus
from ureca.curation.embedders import DescriptorEmbedder
from ureca.curation.protocols import CurationImage
from ureca.data.masked import MaskStage, generate_masks
from ureca.data.output import Output
from ureca.evaluation.encoders import ColourWordEncoder
from ureca.evaluation.scorer import CaptionScorer
from ureca.jobs.cli import main
from ureca.masks.generators.annotations import AnnotationMaskGenerator
from ureca.model.decoding import SuffixCache
from ureca.model.initialization import save_tiny
from ureca.model.prompt_encoder import PromptEncoder
from ureca.pipelines import caption as caption_pipeline
from ureca.pipelines import curate as curate_pipeline
from ureca.pipelines import evaluate as evaluate_pipeline
from ureca.pipelines import judge as judge_pipeline
from ureca.pipelines.batch.actors import build_fetch
from ureca.pipelines.caption import CAPTION, CaptionActor, caption
from ureca.pipelines.curate import CURATE, CurateActor, curate
from ureca.pipelines.judge import JUDGE, ScoringActor
from ureca.scenes.files import write_scenes
from ureca.schema import CAPTIONS_DATASET

LACK = "CUDA out of memory. Tried to allocate 28.61 GiB"
WHITE = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
ONE_ACTOR = [f"--resources.{name}.num-actors=1" for name in ("masks", "curate", "caption", "judge")]


@pytest.fixture(params=["local", pytest.param("ray", marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def executor(request: pytest.FixtureRequest) -> str:
    """An executor; Ray's is the tests' cluster."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return str(request.param)


def is_white(pixels: Any) -> bool:
    """Tells the image, or its tiles, for which there never is enough memory."""
    return bool((pixels == 255).all())


def rows_of(folder: Path, dataset: Any = None) -> dict[str, Any]:
    output = Output(str(folder)) if dataset is None else Output(str(folder), dataset)
    return {row["image_id"]: row for row in output.rows()}


def captions_of(row: Any) -> list[Any]:
    return [region["caption"] for region in row.get("regions", row.get("captions"))]


def rerun_then_retry_with_room(
    arguments: list[str], num_images: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """Repeat a command that one image had too little memory for: as it was, then with ``--retry-errors`` and room.

    The first leaves the image alone, the second does it; what the second printed and logged is returned.
    """
    assert main(arguments) == 1
    assert f"{num_images} images, {num_images} done before, 0 to do" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*arguments, "--retry-errors"]) == 0
    told = capsys.readouterr()
    assert f"{num_images} images, {num_images - 1} done before, 1 to do" in told.err
    return told.out, told.err


class CrampedMaskGenerator(AnnotationMaskGenerator):
    """Lacks memory for one image, as a GPU does for a very large one."""

    def generate(self, image: Any, annotation: bytes | None = None, *, orientation: int = 1) -> Any:
        if is_white(image):
            raise torch.OutOfMemoryError(LACK)
        return super().generate(image, annotation, orientation=orientation)


def build_cramped_mask_stage(settings: Any) -> MaskStage:
    return partial(
        generate_masks,
        mask_generator=CrampedMaskGenerator(),
        limits=settings.image_limits,
        fetch=build_fetch(settings),
    )


class CrampedEmbedder(DescriptorEmbedder):
    """Lacks memory for more than one region, and for those of a black image."""

    def embed_regions(self, image: CurationImage, region_ids: Sequence[int]) -> Any:
        if len(region_ids) > 1 or not image.pixels.any():
            raise torch.OutOfMemoryError(LACK)
        return super().embed_regions(image, region_ids)


class CrampedCurateActor(CurateActor):
    """Curates with such an embedder."""

    @classmethod
    def build(cls, *arguments: Any, **options: Any) -> Any:
        stage = super().build(*arguments, **options)
        stage.curator = replace(stage.curator, embedder=CrampedEmbedder())
        return stage


def test_curate_out_of_memory_is_a_row_and_smaller_parts_and_no_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], executor: str
) -> None:
    write_corpus(tmp_path / "in", 5)
    (tmp_path / "in" / "img_0002.png").write_bytes(png(WHITE))
    (tmp_path / "in" / "img_0003.png").write_bytes(png(np.zeros_like(WHITE)))
    out = tmp_path / "out"
    flags = ["--listing.annotations", "beside", "--masks.kind", "annotations", "--annotator.kind", "prompted"]
    flags += ["--images-per-partition", "2"]
    assert main(["curate", str(tmp_path / "in"), str(tmp_path / "roomy"), *flags, "--executor", "local"]) == 0
    roomy = rows_of(tmp_path / "roomy")
    capsys.readouterr()

    command = replace(CURATE, build_mask_stage=build_cramped_mask_stage, row_actor=CrampedCurateActor)
    monkeypatch.setattr(curate_pipeline, "curate", partial(curate, command=command))
    arguments = ["curate", str(tmp_path / "in"), str(out), *flags, "--executor", executor, *ONE_ACTOR[:2]]
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert "images             5, of which 1 failed" in told.out
    assert re.search(r"failures +1 x masks:out_of_memory: the mask generator on an image of .*28\.61 GiB", told.out)
    assert re.search(r"kept as before +4 x lookalikes:out_of_memory: there is not enough memory to embed", told.out)
    assert "--retry-errors" in told.err
    rows = rows_of(out)
    assert {id: row["error"] and row["error"]["kind"] for id, row in rows.items()} == {
        id: "out_of_memory" if id == "img_0002" else None for id in roomy
    }
    # The look-alikes are those of an embedder with room.
    for id in ("img_0000", "img_0001", "img_0004"):
        assert captions_of(rows[id]) == captions_of(roomy[id])
    assert None not in captions_of(rows["img_0003"])

    printed, _ = rerun_then_retry_with_room(arguments, 5, monkeypatch, capsys)
    assert "failures" not in printed
    assert captions_of(rows_of(out)["img_0002"]) == captions_of(roomy["img_0002"])


class CrampedCaptionActor(CaptionActor):
    """Captions on a device with room for two sequences, and none for a white image."""

    @classmethod
    def build(cls, *arguments: Any, **options: Any) -> Any:
        prefill, encode_image = SuffixCache.prefill, PromptEncoder.encode_image

        def prefill_some(model: Any, prefixes: Any, suffixes: Any) -> SuffixCache:
            if len(suffixes) > 2:
                raise torch.OutOfMemoryError(LACK)
            return prefill(model, prefixes, suffixes)

        def encode_some(self: Any, tiles: Any, *arguments: Any) -> Any:
            if is_white(tiles):
                raise torch.OutOfMemoryError(LACK)
            return encode_image(self, tiles, *arguments)

        SuffixCache.prefill = prefill_some  # type: ignore[method-assign,assignment]
        PromptEncoder.encode_image = encode_some  # type: ignore[method-assign]
        return super().build(*arguments, **options)


@pytest.fixture
def cramped_captioner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The caption command on such a device; what its actor replaces in this process is put back."""
    monkeypatch.setattr(SuffixCache, "prefill", SuffixCache.prefill)
    monkeypatch.setattr(PromptEncoder, "encode_image", PromptEncoder.encode_image)
    return partial(caption, command=replace(CAPTION, row_actor=CrampedCaptionActor))


def test_caption_out_of_memory_captions_the_rest_in_smaller_batches(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cramped_captioner: Any,
    executor: str,
) -> None:
    write_corpus(tmp_path / "in", 3)
    (tmp_path / "in" / "img_0001.png").write_bytes(png(WHITE))
    save_tiny(tmp_path / "model")
    out = tmp_path / "out"
    arguments = ["caption", str(tmp_path / "in"), str(out), "--model", str(tmp_path / "model")]
    arguments += ["--listing.annotations", "beside", "--masks.kind", "annotations", "--captioner.max-new-tokens", "4"]
    arguments += ["--executor", executor, ONE_ACTOR[0], ONE_ACTOR[2]]
    monkeypatch.setattr(caption_pipeline, "caption", cramped_captioner)
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert "captioned regions  8, and 4 that failed" in told.out
    assert re.search(r"failures +4 x caption:out_of_memory", told.out)
    assert "--retry-errors" in told.err
    statuses = {
        id: {region["status"] for region in row["captions"]} for id, row in rows_of(out, CAPTIONS_DATASET).items()
    }
    assert statuses == {"img_0000": {"ok"}, "img_0001": {"failed:caption:out_of_memory"}, "img_0002": {"ok"}}

    printed, _ = rerun_then_retry_with_room(arguments, 3, monkeypatch, capsys)
    assert "failures" not in printed


class CrampedEncoder(ColourWordEncoder):
    """Lacks memory for a white image."""

    def encode_images(self, images: Sequence[Any]) -> Any:
        if all(map(is_white, images)):
            raise torch.OutOfMemoryError(LACK)
        return super().encode_images(images)


class CrampedScoringActor(ScoringActor):
    """Scores with such an encoder."""

    @classmethod
    def build(cls, *arguments: Any, **options: Any) -> Any:
        stage = super().build(*arguments, **options)
        stage.scorer = CaptionScorer(CrampedEncoder())
        return stage


def test_evaluate_out_of_memory_is_named_in_the_table_and_retried(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cramped_captioner: Any,
    executor: str,
) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "out"
    write_scenes(scenes, 2, split="test", seed=0, width_px=112, height_px=112)
    (scenes / "images" / "test_0_000001.png").write_bytes(png(np.full((112, 112, 3), 255, np.uint8)))
    save_tiny(tmp_path / "model")
    arguments = ["evaluate", str(scenes), str(out), f"Tiny={tmp_path / 'model'}", f"People={scenes}/captions.jsonl"]
    arguments += ["--captioner.max-new-tokens", "3", "--metrics", "BLEU", "--retrieval.checkpoint", "colour-words"]
    arguments += ["--executor", executor, "--table.num-resamples", "100", ONE_ACTOR[0], *ONE_ACTOR[2:]]
    monkeypatch.setattr(evaluate_pipeline, "caption", cramped_captioner)
    monkeypatch.setattr(judge_pipeline, "JUDGE", replace(JUDGE, row_actor=CrampedScoringActor))
    assert main(arguments) == 1
    told = capsys.readouterr()
    (lost,) = (
        len(row["benchmark"])
        for row in Output.of_run(str(out / "benchmark")).rows()
        if row["image_id"] == "test_0_000001"
    )
    assert f"Tiny: 0 of 2 images and {lost} regions failed ({lost} x caption:out_of_memory)" in told.err
    remark = "Images that could not be looked at to judge captions by: 1 x judge:out_of_memory (--retry-errors)."
    assert [line for line in told.out.splitlines() if remark in line] == [
        f"People: {remark}"
    ]  # blanks are not looked at
    assert (out / "table.html").is_file()

    printed, logged = rerun_then_retry_with_room(arguments, 2, monkeypatch, capsys)
    assert ":out_of_memory" not in printed + logged
    assert '"People"' in (table := (out / "table.json").read_text()) and "out_of_memory" not in table
