"""Settings of the batch commands that a resumed run may change."""

from typing import Any

import pytest
from pydantic import BaseModel

from ureca.config import may_change_keys
from ureca.pipelines.ablation_settings import AblationSettings
from ureca.pipelines.caption_settings import CaptioningSettings
from ureca.pipelines.curate_settings import CurateSettings
from ureca.pipelines.evaluate_settings import ScoringSettings
from ureca.pipelines.train_settings import TrainSettings

BATCH = {
    *("input", "output", "listing", "resources", "shard", "sample", "sample_seed", "limit", "images_per_partition"),
    *("max_error_fraction", "max_worker_crashes", "retry_errors", "overwrite", "accept_changes"),
    *("executor", "max_local_images"),
}
PLAN = {"plan", "planning"}
MASKS = {"masks.checkpoint", "masks.images_in_flight"}
VLLM = {"vllm.tensor_parallel_size", "vllm.gpu_memory_utilization", "vllm.engine_options"}
ENDPOINTS = {
    *("base_urls", "endpoints.api_key_variable", "endpoints.api_key_file", "endpoints.api_key_header"),
    *("endpoints.token_parameter", "endpoints.headers", "endpoints.max_concurrency", "endpoints.max_attempts"),
    *("endpoints.connect_timeout_s", "endpoints.request_timeout_s", "endpoints.initial_backoff_s"),
    *("endpoints.max_wait_s", "endpoints.outage_timeout_s", "endpoints.max_answer_bytes"),
}
MLLM = {
    *("mllm.base_urls", "mllm.api_key_variable", "mllm.api_key_file", "mllm.max_concurrency", "mllm.max_attempts"),
    *("mllm.connect_timeout_s", "mllm.request_timeout_s", "mllm.initial_backoff_s", "mllm.max_wait_s"),
    *("mllm.outage_timeout_s", "mllm.max_answer_bytes", "mllm.seconds_per_answer", "mllm.checkpoint"),
    *("mllm.device", "mllm.max_batch_size", "mllm.tensor_parallel_size", "mllm.gpu_memory_utilization"),
    *("mllm.min_replicas", "mllm.max_replicas", "mllm.requests_per_replica", "mllm.accelerator_type", "mllm.port"),
    *("mllm.token_parameter", "mllm.headers", "mllm.api_key_header"),
}
ENCODERS = {
    *("retrieval.checkpoint", "retrieval.device", "retrieval.batch_size"),
    *("bert_score.model", "bert_score.device", "bert_score.batch_size"),
}
TRAIN = {
    *("paths", "model", "overwrite", "checkpoint", "validation", "trackers", "export", "feature_cache"),
    *("max_error_fraction", "regions", "jsonl"),
    *("resources.gpus_per_worker", "resources.cpus_per_worker", "resources.packers_per_worker"),
    *("resources.cpus_per_packer", "resources.prefetch_bytes", "resources.max_restarts"),
    *("resources.min_workers", "resources.resize_interval_s"),
}
IO: dict[str, Any] = {"input": "in", "output": "out"}


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (CurateSettings(**IO), BATCH | PLAN | MLLM | MASKS | {"embedder.checkpoint"}),
        (
            CaptioningSettings(**IO, model="m"),
            BATCH | PLAN | VLLM | ENDPOINTS | MASKS | {"model", "captioner.batch_size"},
        ),
        (ScoringSettings(**IO), BATCH | MLLM | ENCODERS | {"captions"}),
        (TrainSettings(paths=["in", "out"], model="m"), TRAIN),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseModel) else "keys",
)
def test_resumed_run_may_change_where_and_how_fast_but_not_results(settings: BaseModel, keys: set[str]) -> None:
    assert may_change_keys(settings) == keys


def test_ablation_settings_keep_the_marks_of_curate() -> None:
    assert may_change_keys(AblationSettings(**IO)) >= BATCH | PLAN | MLLM
