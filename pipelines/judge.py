"""Scoring of a benchmark's captions by models, on Ray Data: a batch command that ``ureca evaluate`` runs.

Operators: stored manifest, scores (actors), written partitions.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa

from ureca.curation.listener import PromptedListener
from ureca.curation.prompts import VERSION as PROMPTS_VERSION
from ureca.data.in_flight import ImagesInFlight
from ureca.data.masked import MaskedPartition
from ureca.data.output import Output
from ureca.data.reuse import list_run, reuse_masks
from ureca.data.run_record import config_hash_of
from ureca.evaluation.benchmarks.stored import StoredBenchmark
from ureca.evaluation.encoders import build_encoder
from ureca.evaluation.measures import Measure, Unmeasured
from ureca.evaluation.metrics.bert_score import BertScorer
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.scorer import CaptionScorer, CaptionScores, measure_predictions
from ureca.evaluation.scoring import ScoringStage, stored_scores
from ureca.evaluation.settings import BertScoreSettings, ScoringListenerConfig
from ureca.hashing import checkpoint_digest, digest
from ureca.io import below
from ureca.llm.openai import check_endpoints
from ureca.llm.settings import OpenAIConfig
from ureca.pipelines.batch.actors import RowActor
from ureca.pipelines.batch.arrangement import engine_concurrency, with_actor_share
from ureca.pipelines.batch.arrow import read_partitions
from ureca.pipelines.batch.graph import BatchCommand
from ureca.pipelines.batch.ray_serve_llm import chat_application
from ureca.pipelines.batch.resources import on_device
from ureca.pipelines.batch.runner import run_batch
from ureca.pipelines.evaluate_settings import EvaluateSettings, ScoringResources, ScoringSettings
from ureca.registry import build_component
from ureca.schema import BENCHMARK_DATASET, CAPTIONS_DATASET, JUDGED_DATASET


class ScoringActor(RowActor[ScoringSettings]):
    """Scores captions; holds the encoder, the listener and BERTScore's model that the settings name."""

    name = "judge"
    dataset = JUDGED_DATASET

    @classmethod
    def build(cls, settings: ScoringSettings, images: ImagesInFlight, config_hash: str | None = None) -> ScoringStage:
        """Build the stage and load its models."""
        return ScoringStage(
            Output(settings.input, BENCHMARK_DATASET),
            None if settings.captions is None else Output(settings.captions, CAPTIONS_DATASET),
            build_scorer(settings, settings.resources.judge.num_gpus),
            images,
        )

    def partitions(self, batch: pa.Table) -> Iterable[MaskedPartition]:
        """Read the partitions of a manifest, with the masks of the benchmark."""
        return (reuse_masks(number, entries) for number, entries in read_partitions(batch))


def build_scorer(settings: ScoringSettings, num_gpus: float) -> CaptionScorer:
    """Load the encoder, the listener and BERTScore's model.

    Args:
        settings: settings of the scores.
        num_gpus: GPUs of this actor.

    Raises:
        SettingsError: a checkpoint or a package is missing, or a model needs a GPU that is not there.
    """
    key = "resources.judge"
    encoder = build_encoder(settings.retrieval and on_device(settings.retrieval, num_gpus, key))
    bert = None if settings.bert_score is None else BertScorer(on_device(settings.bert_score, num_gpus, key))
    if not isinstance(settings.listener, ScoringListenerConfig):
        return CaptionScorer(encoder, bert=bert)
    listener = PromptedListener(
        build_component("chat_model", on_device(settings.mllm, num_gpus, key)), settings.listener
    )
    return CaptionScorer(encoder, listener, bert, settings.listener.max_distractors)


class Scoring:
    """Scores the captions of a benchmark; scores of the same captions under the same config are reused.

    Args:
        settings: settings of the evaluation.
        benchmark: stored benchmark.
        folder: folder of the scores, with one folder for each config and set of captions.
        bert_score: settings of BERTScore; None if it is not measured or its model is missing.
        tell: callback that gets a message about the next step.
    """

    def __init__(
        self,
        settings: EvaluateSettings,
        benchmark: StoredBenchmark,
        folder: str,
        bert_score: BertScoreSettings | None,
        tell: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._benchmark = benchmark
        self._folder = folder
        self._bert_score = bert_score
        self._tell = tell
        self._reference_scores: list[CaptionScores] | None = None

    def measures(
        self, predictions: Sequence[Prediction], captions: str
    ) -> tuple[list[Measure | Unmeasured], list[str]]:
        """Measures of predictions whose captions are in the output at ``captions``, and remarks for the reader."""
        settings = self._settings
        scores, failures = self._score(predictions, captions) if self._has_scorers() else (None, {})
        encoder_name = None if settings.retrieval is None else settings.retrieval.checkpoint
        listener_name = None
        if isinstance(settings.listener, ScoringListenerConfig):
            mllm = settings.mllm
            listener_name = str(getattr(mllm, "model", None) or getattr(mllm, "checkpoint", mllm.kind))
        measures = measure_predictions(
            predictions,
            scores,
            metrics=[metric for metric in settings.metrics if metric != "BERTScore" or settings.bert_score is None],
            duplicates=settings.duplicates,
            bert_score=self._bert_score,
            encoder_name=encoder_name,
            listener_name=listener_name,
            reference_scores=self._references() if encoder_name or listener_name else None,
        )
        if not failures:
            return measures, []
        reasons = ", ".join(f"{count:,} x {kind}" for kind, count in failures.items())
        return measures, [f"Images that could not be looked at to judge captions by: {reasons} (--retry-errors)."]

    def _has_scorers(self) -> bool:
        settings = self._settings
        if (
            settings.retrieval is not None
            or isinstance(settings.listener, ScoringListenerConfig)
            or self._bert_score is not None
        ):
            return True
        return any(row["scene"] for row in self._benchmark.rows(self._benchmark.partitions[0]))

    def _references(self) -> list[CaptionScores]:
        """The scores of the references, for the ceilings; they are the same for all models."""
        if self._reference_scores is None:
            self._tell("ceilings: judging the references")
            self._reference_scores, _ = self._score(None, None)
        return self._reference_scores

    def _score(
        self, predictions: Sequence[Prediction] | None, captions: str | None
    ) -> tuple[list[CaptionScores], dict[str, int]]:
        settings = self._settings
        scoring = ScoringSettings(
            input=self._benchmark.output.path,
            output=self._folder,
            captions=captions,
            bert_score=None if captions is None else self._bert_score,
            retrieval=settings.retrieval,
            listener=settings.listener,
            mllm=settings.mllm,
            image_limits=settings.image_limits,
            images_per_partition=self._benchmark.images_per_partition,
            retry_errors=settings.retry_errors,
            executor=settings.executor,
            resources=ScoringResources(read=settings.resources.read, judge=settings.resources.judge),
        )
        identity = _identity(scoring) | {"said": _digest(predictions)}
        scoring = scoring.model_copy(update={"output": below(self._folder, config_hash_of(scoring, identity))})
        run_batch(JUDGE, scoring, identity=identity)
        return stored_scores(self._benchmark, Output(scoring.output, JUDGED_DATASET))


def _identity(settings: ScoringSettings) -> dict[str, str]:
    """Return the content of what the settings only name: prompts and checkpoints."""
    checkpoints: dict[str, str | None] = {
        "mllm": getattr(settings.mllm, "checkpoint", None),
        "retrieval": None if settings.retrieval is None else settings.retrieval.checkpoint,
        "bert_score": None if settings.bert_score is None else settings.bert_score.model,
    }
    return {"prompts": PROMPTS_VERSION} | {
        name: checkpoint_digest(path) for name, path in checkpoints.items() if path is not None
    }


def _digest(predictions: Sequence[Prediction] | None) -> str:
    """Return a digest of captions; None stands for the references of the benchmark."""
    if predictions is None:
        return "references"
    captions = (
        repr((prediction.image_id, prediction.region_id, prediction.caption, prediction.failure))
        for prediction in predictions
    )
    return digest(captions, num_bytes=8).hex()


def _check_engine(settings: ScoringSettings) -> None:
    """Ask the endpoints of the listener's chat model for the description of two images, once."""
    if isinstance(settings.mllm, OpenAIConfig) and isinstance(settings.listener, ScoringListenerConfig):
        num_tokens = settings.listener.max_new_tokens
        asyncio.run(check_endpoints(settings.mllm, num_images=2, max_new_tokens=num_tokens))


def _list_benchmark(settings: ScoringSettings) -> pa.Table:
    return list_run(Output(settings.input, BENCHMARK_DATASET), with_regions=True)


JUDGE: BatchCommand[ScoringSettings] = BatchCommand(
    name="judge",
    dataset=JUDGED_DATASET,
    list_input=_list_benchmark,
    row_actor=ScoringActor,
    engine_concurrency=lambda settings: engine_concurrency(settings.mllm),
    actor_settings=with_actor_share,
    running=chat_application,
    check_engine=_check_engine,
)
