"""A chat model served on the cluster for the time of a run (``ray.serve.llm``), asked like any other endpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ureca.errors import SettingsError
from ureca.llm.settings import RayServeConfig
from ureca.pipelines.curate_settings import CurateSettings
from ureca.pipelines.evaluate_settings import ScoringSettings

Settings = TypeVar("Settings", CurateSettings, ScoringSettings)

_NAME = "ureca-mllm"
_MAX_IMAGES = 3
"""Largest number of images in a request: verification shows this many."""


@contextmanager
def chat_application(settings: Settings) -> Iterator[Settings]:
    """Serve the model of ``mllm.kind ray_serve`` for the block, within a Ray session.

    The application scales between its replicas with the requests in flight, and ends with the block.

    Yields:
        the settings, with the application's address in place of the model to serve; unchanged if ``mllm`` is of
        another kind.

    Raises:
        SettingsError: ``ray[llm]`` is not installed, or the application does not start.
    """
    if not isinstance(settings.mllm, RayServeConfig):
        yield settings
        return
    import ray

    try:
        from ray import serve
        from ray.serve.llm import LLMConfig, build_openai_app
    except ImportError as error:
        raise SettingsError(
            f"mllm.kind ray_serve needs ray[llm] on the cluster ({error}): pip install 'ureca-ray[ray-serve]'; or name "
            "the address of a server by mllm.kind openai"
        ) from error
    host = ray.util.get_node_ip_address() if len(ray.nodes()) > 1 else "127.0.0.1"  # type: ignore[no-untyped-call]
    try:
        serve.start(http_options={"host": host, "port": settings.mllm.port})
        application = build_openai_app({"llm_configs": [LLMConfig(**served(settings.mllm))]})
        serve.run(application, name=_NAME, route_prefix=f"/{_NAME}")
    except (RuntimeError, ValueError) as error:
        raise SettingsError(f"mllm.checkpoint '{settings.mllm.checkpoint}' cannot be served: {error}") from error
    try:
        mllm = settings.mllm.openai_config(f"http://{host}:{settings.mllm.port}/{_NAME}/v1")
        yield settings.model_copy(update={"mllm": mllm})
    finally:
        serve.delete(_NAME)


def served(settings: RayServeConfig) -> dict[str, Any]:
    """The fields of ``ray.serve.llm.LLMConfig`` for the settings."""
    engine: dict[str, Any] = {
        "tensor_parallel_size": settings.tensor_parallel_size,
        "limit_mm_per_prompt": {"image": _MAX_IMAGES},
        "trust_remote_code": False,
        **settings.engine_options,
    }
    if settings.max_model_len is not None:
        engine["max_model_len"] = settings.max_model_len
    fields: dict[str, Any] = {
        "model_loading_config": {"model_id": settings.checkpoint, "model_source": settings.checkpoint},
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": settings.min_replicas,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": settings.requests_per_replica,
            },
            # Room to wait while further replicas start.
            "max_ongoing_requests": 2 * settings.requests_per_replica,
        },
        "engine_kwargs": engine,
    }
    if settings.accelerator_type is not None:
        fields["accelerator_type"] = settings.accelerator_type
    return fields
