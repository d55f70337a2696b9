"""Judging captions of a benchmark as a Ray Data graph: stored manifest -> judgements, written unit by unit."""

from collections.abc import Iterable

import pyarrow as pa
from ray.data import Dataset

from pipelines.actors import WritingActor
from pipelines.blocks import TablesToTables, pending_rows, read_units
from pipelines.pools import Work, images_in_flight, plan_pools
from pipelines.session import Cluster
from ureca.captioning.adopt import adopt
from ureca.curation.listener import PromptedListener
from ureca.curation.stages import ProposedUnit
from ureca.dataset import Output
from ureca.dataset.attempts import Attempts
from ureca.evaluation.judging import Judges, JudgeStage
from ureca.evaluation.metrics.bert_score import BertScorer
from ureca.schema import BENCHMARK_DATASET, CAPTIONS_DATASET, JUDGED_DATASET
from ureca.settings.components import build_chat_model, build_encoder
from ureca.settings.judging import Asking, JudgeSettings


class JudgeActor(WritingActor[JudgeSettings]):
    """Holds an encoder, a listener and BERTScore's model, as far as they are asked."""

    name = "judge"
    dataset = JUDGED_DATASET

    def build(
        self, settings: JudgeSettings, images_in_flight: int, attempts: Attempts, recipe: str | None
    ) -> JudgeStage:
        """Build the stage, with what it loads."""
        return JudgeStage(
            Output(settings.input, BENCHMARK_DATASET),
            None if settings.captions is None else Output(settings.captions, CAPTIONS_DATASET),
            build_judges(settings),
            settings.image_limits,
            images_in_flight,
            attempts,
        )

    def units(self, batch: pa.Table) -> Iterable[ProposedUnit]:
        """Units of a manifest, with the masks of the benchmark."""
        return (adopt(number, entries) for number, entries in read_units(batch))


def build_judges(settings: JudgeSettings) -> Judges:
    """Load those who judge.

    Raises:
        SettingsError: a checkpoint or a package is missing.
    """
    judges = Judges(
        encoder=build_encoder(settings.retrieval),
        bert=None if settings.bert_score is None else BertScorer(settings.bert_score),
    )
    if not isinstance(settings.listener, Asking):
        return judges
    listener = PromptedListener(build_chat_model(settings.mllm), settings.listener)
    return Judges(judges.encoder, listener, judges.bert, settings.listener.max_distractors)


def graph(
    pieces: Dataset,
    keep: TablesToTables,
    settings: JudgeSettings,
    work: Work,
    cluster: Cluster,
) -> Dataset:
    """The stages over a dataset of stored manifests; arguments and result as ``pipelines.caption.graph``."""
    resources = settings.resources
    (pool,) = plan_pools(resources, work, cluster)
    images = images_in_flight(resources.judge, pool.initial_size or 1, None)
    pending = pending_rows(pieces, settings.output, keep, resources.read.num_cpus)
    return pending.map_batches(
        JudgeActor,
        fn_constructor_args=(settings, images, work.session),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.judge.num_cpus,
        num_gpus=resources.judge.num_gpus,
        compute=pool,
    )
