"""Partitions of captions scored by an encoder, a listener, BERTScore's model, and the scene."""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from tests.evaluation.tiny_encoders import save_bert, save_dual_encoder
from ureca.curation.protocols import Choice
from ureca.data.in_flight import ImagesInFlight
from ureca.data.manifest import ManifestEntry
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.reuse import list_run, reuse_masks
from ureca.errors import AnswerError
from ureca.evaluation.benchmarks.base import ImageSample
from ureca.evaluation.benchmarks.readers import open_benchmark
from ureca.evaluation.benchmarks.stored import StoredBenchmark
from ureca.evaluation.encoders import DualEncoder
from ureca.evaluation.measures import Measure, Unmeasured
from ureca.evaluation.metrics.bert_score import BertScorer
from ureca.evaluation.predictions import read_jsonl_captions, read_output_captions, write_predictions
from ureca.evaluation.scorer import CaptionScorer, CaptionScores, measure_predictions
from ureca.evaluation.scoring import ScoringStage, stored_predictions, stored_scores
from ureca.evaluation.settings import BenchmarkSettings, BertScoreSettings, DualEncoderSettings
from ureca.evaluation.uniqueness import Retrieved
from ureca.image_limits import ImageLimits
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

    async def choose(self, views: Views, candidates: Collection[int], caption: str, *, shuffle: int = 0) -> Choice:
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
    return StoredBenchmark.open(str(tmp_path / "benchmark"), found, ImageSample(), {})


def score(
    tmp_path: Path, benchmark: StoredBenchmark, captions: Output | None, scorer: CaptionScorer
) -> tuple[list[CaptionScores], dict[str, int], PartitionReport]:
    """Score the benchmark partition by partition; the scores as they are read back, failed images, and the work."""
    scored = Output(str(tmp_path / f"scored-{captions is None}"), JUDGED_DATASET)
    stage = ScoringStage(benchmark.output, captions, scorer, ImagesInFlight(2, ImageLimits()))
    entries = [ManifestEntry.from_row(row) for row in list_run(benchmark.output, with_regions=True).to_pylist()]
    total = PartitionReport()

    async def all_partitions() -> None:
        nonlocal total
        for partition, entry in zip(benchmark.partitions, entries, strict=True):
            rows, report = await stage(reuse_masks(partition, [entry]))
            scored.write_partition(partition, rows, report)
            total = total + report

    asyncio.run(all_partitions())
    return *stored_scores(benchmark, scored), total


def by_name(measures: list[Measure | Unmeasured]) -> dict[str, Measure]:
    return {measure.name: measure for measure in measures if isinstance(measure, Measure)}


def test_stage_with_captions_and_references_fills_in_all_scores(tmp_path: Path, benchmark: StoredBenchmark) -> None:
    """Captions are the references, except for one of another region, one that is blank, and one of nonsense."""
    texts = read_jsonl_captions(str(tmp_path / "scenes" / "captions.jsonl"))
    first, second, third, fourth, *_ = keys = [key for key in texts if key[0].endswith("0")]
    said = dict(texts) | {first: texts[second], second: " ", third: "a dog"}
    captions = Output(str(tmp_path / "captions"), CAPTIONS_DATASET)
    write_predictions(said, benchmark, captions, source="given")
    listener = Matching({texts[key]: int(key[1]) for key in keys}, silent_on=texts[fourth])
    bert_score = BertScoreSettings(model=save_bert(tmp_path / "bert"), device="cpu")
    scorer = CaptionScorer(
        encoder=DualEncoder(DualEncoderSettings(checkpoint=save_dual_encoder(tmp_path / "clip"), device="cpu")),
        listener=listener,
        bert=BertScorer(bert_score),
        max_distractors=3,
    )
    predictions = stored_predictions(benchmark, captions)
    scores, failures, report = score(tmp_path, benchmark, captions, scorer)
    assert failures == {"judge:truncated": 1}
    assert report.seconds["judge"] > 0
    assert len(scores) == len(predictions) == benchmark.num_regions
    unseen = sum(item.image_id == "test_0_000001" for item in predictions)
    assert all(len(asked) <= 4 for asked in listener.asked)

    f1 = {(item.image_id, item.region_id): of.bert_f1 for item, of in zip(predictions, scores, strict=True)}
    assert f1[(second[0], int(second[1]))] == 0
    assert sum(value == pytest.approx(1, abs=1e-4) for value in f1.values()) >= benchmark.num_regions - 3

    reference_scores, failures, _ = score(tmp_path, benchmark, None, scorer)
    assert failures == {"judge:truncated": 1}
    assert {of.resolution for of in reference_scores} == {of.bert_f1 for of in reference_scores} == {None}
    found = by_name(
        measure_predictions(
            predictions,
            scores,
            bert_score=bert_score,
            encoder_name="clip",
            listener_name="matching",
            reference_scores=reference_scores,
        )
    )
    assert found["BERTScore"].value() > 0.9
    assert found["Correct"].value() == pytest.approx(1 - 3 / benchmark.num_regions)
    assert found["Wrong"].value() == pytest.approx(3 / benchmark.num_regions)
    assert found["Not of the language"].value() == pytest.approx(2 / benchmark.num_regions)  # blank, and nonsense
    asked = benchmark.num_regions - unseen
    # One is taken for another, one is blank, one is of nothing; and of one there is no usable answer.
    assert found["Listener"].value() == pytest.approx((asked - 4) / (asked - 1))
    assert found["Listener ceiling"].value() == 1
    assert found["Retrieval R@1"].statistics[:, 1].sum() == found["Retrieval ceiling"].statistics[:, 1].sum() == asked
    place = next(place for place, item in enumerate(predictions) if item.region_id == int(second[1]))
    assert scores[place].retrieved == Retrieved(0.0, 0.0, len(keys))
    assert reference_scores[place].retrieved is not None


def test_measures_region_without_caption_in_unreadable_image_counts_as_failure(
    tmp_path: Path, benchmark: StoredBenchmark
) -> None:
    captions = Output(str(tmp_path / "captions"), CAPTIONS_DATASET)
    texts = {key: text for key, text in read_output_captions(str(tmp_path / "scenes")).items() if key[0].endswith("0")}
    write_predictions(texts, benchmark, captions, source="given")
    encoder = DualEncoder(DualEncoderSettings(checkpoint=save_dual_encoder(tmp_path / "clip"), device="cpu"))
    predictions = stored_predictions(benchmark, captions)
    scores, _, _ = score(tmp_path, benchmark, captions, CaptionScorer(encoder))
    found = by_name(
        measure_predictions(predictions, scores, encoder_name="clip", listener_name="none", reference_scores=scores)
    )
    assert found["Retrieval R@1"].statistics[:, 1].sum() == benchmark.num_regions
    blank = sum(item.is_blank for item in predictions)
    assert found["Listener"].statistics[:, 1].sum() == blank > 0
    assert found["Wrong"].value() == pytest.approx(blank / benchmark.num_regions)
    (Path(benchmark.rows(0)[0]["scene"])).unlink()
    scores, failures, _ = score(tmp_path, benchmark, captions, CaptionScorer())
    assert failures == {"judge:missing_scene": 1}
    assert scores[0].resolution is None
