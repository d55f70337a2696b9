"""Units of captions before those who judge: an encoder, a listener, BERTScore's model, and the scene."""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.tiny_encoders import save_bert, save_dual_encoder
from ureca.curation.protocols import Choice
from ureca.data.manifest import ManifestEntry
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.reuse import list_run, reuse_masks
from ureca.errors import AnswerError
from ureca.evaluation import scoring as collecting
from ureca.evaluation.benchmarks.base import BenchmarkSettings, Sample
from ureca.evaluation.benchmarks.readers import open_benchmark
from ureca.evaluation.benchmarks.stored import StoredBenchmark
from ureca.evaluation.encoders import DualEncoder, DualEncoderSettings
from ureca.evaluation.measures import Measure
from ureca.evaluation.metrics.bert_score import BertScorer, BertScoreSettings
from ureca.evaluation.predictions import read_jsonl_captions, read_output_captions, write_given
from ureca.evaluation.scoring import Scorers, ScoringStage
from ureca.images import ImageLimits
from ureca.masks.views import Views
from ureca.scenes.files import write_scenes
from ureca.schema import CAPTIONS_DATASET, JUDGED_DATASET


class Matching:
    """Knows the caption of each region; has nothing to say of one of them."""

    name = "matching"

    def __init__(self, captions: Mapping[str, int], silent_on: str) -> None:
        self.captions = captions
        self.silent_on = silent_on
        self.asked: list[Collection[int]] = []

    async def choose(self, views: Views, candidates: Collection[int], caption: str) -> Choice:
        assert views.whole().shape == (112, 112, 3)
        self.asked.append(candidates)
        if caption == self.silent_on:
            raise AnswerError("unusable_answer", "it says nothing")
        return self.captions.get(caption, "none")


@pytest.fixture
def benchmark(tmp_path: Path) -> StoredBenchmark:
    """Two scenes, of which the second cannot be decoded."""
    write_scenes(tmp_path / "scenes", 2, split="test", seed=0, width_px=112, height_px=112)
    (tmp_path / "scenes" / "images" / "test_0_000001.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    found = open_benchmark(str(tmp_path / "scenes"), BenchmarkSettings())
    return StoredBenchmark.open(str(tmp_path / "benchmark"), found, Sample(), {})


def judge(
    tmp_path: Path, benchmark: StoredBenchmark, captions: Output | None, judges: Scorers
) -> tuple[collecting.ScoredCaptions, int, PartitionReport]:
    judged = Output(str(tmp_path / f"judged-{captions is None}"), JUDGED_DATASET)
    stage = ScoringStage(benchmark.output, captions, judges, ImageLimits(), 2)
    entries = [ManifestEntry.from_row(row) for row in list_run(benchmark.output, with_regions=True).to_pylist()]
    total = PartitionReport()

    async def all_units() -> None:
        nonlocal total
        for partition, entry in zip(benchmark.partitions, entries, strict=True):
            rows, report = await stage(reuse_masks(partition, [entry]))
            judged.write_partition(partition, rows, report)
            total = total + report

    asyncio.run(all_units())
    return *collecting.judged_of(benchmark, judged), total


def values(measures: list[Measure]) -> dict[str, float]:
    return {measure.name: measure.value() for measure in measures}


def test_captions_and_references_are_judged(tmp_path: Path, benchmark: StoredBenchmark) -> None:
    """Captions: the references, but for one region that is said to be another, one that is blank, one of nonsense."""
    texts = read_jsonl_captions(str(tmp_path / "scenes" / "captions.jsonl"))
    first, second, third, fourth, *_ = keys = [key for key in texts if key[0].endswith("0")]
    said = dict(texts) | {first: texts[second], second: " ", third: "a dog"}
    captions = Output(str(tmp_path / "captions"), CAPTIONS_DATASET)
    write_given(said, benchmark, captions, source="given")
    listener = Matching({texts[key]: int(key[1]) for key in keys}, silent_on=texts[fourth])
    judges = Scorers(
        encoder=DualEncoder(DualEncoderSettings(checkpoint=save_dual_encoder(tmp_path / "clip"), device="cpu")),
        listener=listener,
        bert=BertScorer(BertScoreSettings(model=save_bert(tmp_path / "bert"), device="cpu")),
        max_distractors=3,
    )
    predictions = collecting.predictions_of(benchmark, captions)
    judged, num_failed, report = judge(tmp_path, benchmark, captions, judges)
    assert num_failed == 1
    assert report.seconds["judge"] > 0
    assert len(judged) == len(predictions) == benchmark.num_regions
    unseen = sum(item.image_id == "test_0_000001" for item in predictions)
    assert all(len(asked) <= 4 for asked in listener.asked)

    found = values(collecting.scenes(judged))
    assert found["Correct"] == pytest.approx(1 - 3 / benchmark.num_regions)
    assert found["Wrong"] == pytest.approx(3 / benchmark.num_regions)
    assert found["Not of the language"] == pytest.approx(2 / benchmark.num_regions)  # blank, and nonsense
    scores = {(item.image_id, item.region_id): row["bert_f1"] for item, row in zip(predictions, judged, strict=True)}
    assert scores[(second[0], int(second[1]))] == 0
    assert sum(score == pytest.approx(1, abs=1e-4) for score in scores.values()) >= benchmark.num_regions - 3

    of_references, num_failed, _ = judge(tmp_path, benchmark, None, judges)
    assert num_failed == 1
    assert {row["resolution"] for row in of_references} == {row["bert_f1"] for row in of_references} == {None}
    heard = collecting.listener(predictions, judged, of_references, "matching")
    asked = benchmark.num_regions - unseen
    # One is taken for another, one is blank, one is of nothing; and of one there is no usable answer.
    assert values(heard)["Listener"] == pytest.approx((asked - 4) / (asked - 1))
    assert values(heard)["Listener ceiling"] == 1
    retrieved = collecting.retrieval(predictions, judged, of_references, "clip")
    assert retrieved[0].statistics[:, 1].sum() == retrieved[2].statistics[:, 1].sum() == asked
    place = next(place for place, item in enumerate(predictions) if item.region_id == int(second[1]))
    assert (judged[place]["is_first"], judged[place]["num_candidates"]) == (0.0, len(keys))
    assert of_references[place]["is_first"] is not None


def test_a_region_without_caption_counts_even_if_nobody_can_look(tmp_path: Path, benchmark: StoredBenchmark) -> None:
    captions = Output(str(tmp_path / "captions"), CAPTIONS_DATASET)
    texts = {key: text for key, text in read_output_captions(str(tmp_path / "scenes")).items() if key[0].endswith("0")}
    write_given(texts, benchmark, captions, source="given")
    encoder = DualEncoder(DualEncoderSettings(checkpoint=save_dual_encoder(tmp_path / "clip"), device="cpu"))
    predictions = collecting.predictions_of(benchmark, captions)
    judged, _, _ = judge(tmp_path, benchmark, captions, Scorers(encoder=encoder))
    retrieved = collecting.retrieval(predictions, judged, judged, "clip")
    assert retrieved[0].statistics[:, 1].sum() == benchmark.num_regions
    heard: list[Any] = collecting.listener(predictions, judged, judged, "nobody")
    blank = sum(item.is_blank for item in predictions)
    assert heard[0].statistics[:, 1].sum() == blank > 0
    found = values(collecting.scenes(judged))
    assert found["Wrong"] == pytest.approx(blank / benchmark.num_regions)
    (Path(benchmark.rows(0)[0]["scene"])).unlink()
    judged, num_failed, _ = judge(tmp_path, benchmark, captions, Scorers())
    assert num_failed == 1
    assert judged[0]["resolution"] is None
