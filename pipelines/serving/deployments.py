"""Deployments of Ray Serve: ingress, captioner, segmenter and batch jobs."""

import asyncio
import os
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from ureca.captioning.engine import CaptionJob, GeneratedCaption, RegionEngine, load_engine
from ureca.images import Pixels
from ureca.logging import log_to_stderr
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.pipelines.batch.resources import device_of, memory_fraction, on_device
from ureca.pipelines.serve_settings import ReplicaSettings, ServeSettings
from ureca.pipelines.serving.batches import BatchProcesses
from ureca.pipelines.serving.middleware import MAX_ARRIVING_BODIES, RequestTracker, digest_token
from ureca.pipelines.serving.routing import ImageRouter
from ureca.serving.memory import return_freed_memory
from ureca.serving.rule_based import RuleBasedEngine
from ureca.serving.schemas import BatchJob, BatchRequest
from ureca.serving.segmenter import Segmenter, lookalike_ids
from ureca.serving.sharing import SharedCaptions

_NUM_EXTRA_INGRESS_REQUESTS = MAX_ARRIVING_BODIES + 64
"""Requests that an ingress replica accepts beyond its limit: those whose bodies are arriving, health checks, the web
page, and responses with 429."""

_HANG_MARGIN_S = 60.0
_BY_IMAGE = RequestRouterConfig(
    request_router_class=f"{ImageRouter.__module__}.{ImageRouter.__name__}"  # type: ignore[arg-type]
)


def build_application(
    settings: ServeSettings, batch_command: Sequence[str] = (), token_digests: Collection[bytes] | None = None
) -> Application:
    """Build the Serve application.

    Args:
        settings: settings of the service, with absolute paths.
        batch_command: command line of ``ureca caption`` for batch jobs; required if ``batches.folders`` is set.
        token_digests: digests of the valid tokens, see ``digest_token``; None: of those that the settings name.

    Raises:
        SettingsError: tokens are missing or cannot be read.
        ValueError: batch jobs are enabled without a command.
    """
    retry_after_s = settings.limits.retry_after_s

    def deploy(name: str, replica: type, replicas: ReplicaSettings, **options: Any) -> Any:
        return serve.deployment(**{**deployment_options(name, replicas, retry_after_s), **options})(replica)

    handles = [
        deploy("captioner", CaptionerReplica, settings.resources.captioner, request_router_config=_BY_IMAGE).bind(
            settings
        ),
        deploy("segmenter", SegmenterReplica, settings.resources.segmenter, request_router_config=_BY_IMAGE).bind(
            settings
        ),
    ]
    if settings.batches.folders:
        if not batch_command:
            raise ValueError("batches.folders is set, but no command for batch jobs is given")
        # The replica only starts subprocesses and polls them.
        replicas = ReplicaSettings(num_cpus=0.05, target_ongoing_requests=1)
        handles.append(deploy("batches", BatchReplica, replicas).bind(settings, tuple(batch_command)))
    ingress = deploy(
        "ingress",
        IngressReplica,
        settings.resources.ingress,
        max_ongoing_requests=settings.limits.max_in_flight + _NUM_EXTRA_INGRESS_REQUESTS,
    )
    if token_digests is None:
        token_digests = frozenset(map(digest_token, settings.read_tokens()))
    application: Application = ingress.bind(settings, token_digests, *handles)
    return application


def deployment_options(name: str, replicas: ReplicaSettings, retry_after_s: int) -> dict[str, Any]:
    """Return the options of ``ray.serve.deployment``.

    Args:
        name: name of the deployment.
        replicas: resources, queues and autoscaling of its replicas.
        retry_after_s: seconds in the Retry-After header if its queue is full.
    """
    return {
        "name": name,
        # Ray sets OMP_NUM_THREADS to num_cpus, which is the number of the model's threads on a CPU.
        "ray_actor_options": {"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        "max_ongoing_requests": replicas.max_ongoing_requests,
        "max_queued_requests": replicas.max_queued_requests,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=retry_after_s),
        "autoscaling_config": AutoscalingConfig(
            min_replicas=replicas.min_replicas,
            max_replicas=replicas.max_replicas,
            target_ongoing_requests=replicas.target_ongoing_requests,
            upscale_delay_s=replicas.upscale_delay_s,
            downscale_delay_s=replicas.downscale_delay_s,
            look_back_period_s=replicas.look_back_period_s,
        ),
        "health_check_period_s": replicas.health_check_period_s,
        "health_check_timeout_s": replicas.health_check_timeout_s,
        "graceful_shutdown_timeout_s": replicas.graceful_shutdown_timeout_s,
        # Serve's access log has method, path, status and duration, but no bodies and no headers.
        "logging_config": LoggingConfig(enable_access_log=True),
    }


@serve.ingress()
class IngressReplica:
    """A replica of the ingress, which runs the HTTP app.

    Args:
        settings: settings of the service.
        token_digests: digests of the valid tokens; empty: no token is required.
        captioner: handle of the deployment ``CaptionerReplica``.
        segmenter: handle of the deployment ``SegmenterReplica``.
        batches: handle of the deployment ``BatchReplica``; None: batch jobs are disabled.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: ServeSettings,
        token_digests: Collection[bytes],
        captioner: DeploymentHandle[Any],
        segmenter: DeploymentHandle[Any],
        batches: DeploymentHandle[Any] | None = None,
    ) -> None:
        return_freed_memory()
        self._settings = settings
        self._token_digests = token_digests
        self._captioner = captioner
        self._segmenter = segmenter
        self._batches = batches
        self._segmenter_name: str = await segmenter.name.remote()
        self._tracker = RequestTracker()

    async def drain(self) -> None:
        """Accept no further requests, and wait until all accepted ones are finished."""
        await self._tracker.drain()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the app in the replica's process."""
        from ureca.pipelines.serving.app import build_app
        from ureca.pipelines.serving.backend import HandleBackend, HandleBatchRunner

        retry_after_s = self._settings.limits.retry_after_s
        return build_app(
            self._settings,
            HandleBackend(self._captioner, self._segmenter, self._segmenter_name, retry_after_s),
            self._token_digests,
            batches=None if self._batches is None else HandleBatchRunner(self._batches, retry_after_s),
            tracker=self._tracker,
        )


class CaptionerReplica:
    """A replica of the captioner: one copy of the model in an engine, with continuous batching over its requests.

    Without a model, the rule-based captioner.

    Args:
        settings: settings of the service.
    """

    def __init__(self, settings: ServeSettings) -> None:
        # By then every request in the batch has timed out, and should have left it.
        self._max_step_s = settings.limits.timeout_s + _HANG_MARGIN_S
        self._engine: RegionEngine[Any] | RuleBasedEngine = RuleBasedEngine()
        if settings.model is not None:
            resources = settings.resources.captioner
            log_to_stderr()
            self._engine = load_engine(
                settings.model,
                settings.captioner,
                engine=settings.engine,
                vllm=settings.vllm,
                dtype=settings.dtype,
                on_gpu=device_of(resources.num_gpus, "resources.captioner") == "cuda",
                serves_requests=True,
                cache_fraction=settings.limits.prefix_cache_fraction,
                memory_fraction=memory_fraction(resources.num_cpus, resources.num_gpus),
                max_failures=settings.limits.max_failures,
            )
        self._captions = SharedCaptions(self._engine)

    async def caption(self, job: CaptionJob) -> list[GeneratedCaption]:
        """Caption all regions of a job, see ``SharedCaptions.caption``."""
        return await self._captions.caption(job)

    async def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        """Yield each caption of a job, see ``SharedCaptions.stream``."""
        async with aclosing(self._captions.stream(job)) as captions:
            async for caption in captions:
                yield caption

    async def is_ready(self) -> bool:
        """Return True: the model is loaded."""
        return True

    async def check_health(self) -> None:
        """Check that the model makes progress; Serve replaces the replica if this raises or times out.

        Raises:
            RuntimeError: the engine has died, a decoding step takes longer than any request may, or too many regions
                in a row have failed.
        """
        self._engine.check_progress(self._max_step_s)


class SegmenterReplica:
    """A replica of the segmenter.

    Args:
        settings: settings of the service.
    """

    def __init__(self, settings: ServeSettings) -> None:
        return_freed_memory()
        masks = on_device(settings.masks, settings.resources.segmenter.num_gpus, "resources.segmenter")
        self._segmenter = Segmenter.from_settings(masks, settings.limits.max_failures)

    async def name(self) -> str:
        """Return the name of the segmenter."""
        return self._segmenter.name

    async def generate(self, pixels: Pixels) -> list[Mask]:
        """Segment an image, see ``Segmenter.generate``."""
        return await asyncio.to_thread(self._segmenter.generate, pixels)

    async def segment_prompts(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        """Segment box and point prompts, see ``Segmenter.segment_prompts``."""
        return await asyncio.to_thread(self._segmenter.segment_prompts, pixels, prompts)

    async def lookalike_ids(self, pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
        """Find look-alikes, see ``ureca.serving.segmenter.lookalike_ids``."""
        return await asyncio.to_thread(lookalike_ids, pixels, masks)

    async def is_ready(self) -> bool:
        """Return True: the segmenter is loaded."""
        return True

    async def check_health(self) -> None:
        """Check that images can be segmented; Serve replaces the replica if this raises.

        Raises:
            RuntimeError: memory or the device failed for too many images in a row.
        """
        self._segmenter.check_health()


class BatchReplica:
    """The only replica for batch jobs, which run on the cluster of the service.

    Args:
        settings: settings of the service.
        command: command line of ``ureca caption``, without arguments.
    """

    def __init__(self, settings: ServeSettings, command: Sequence[str]) -> None:
        address = ray.get_runtime_context().gcs_address
        self._processes = BatchProcesses(settings, command, {**os.environ, "RAY_ADDRESS": address})

    async def submit(self, request: BatchRequest) -> BatchJob:
        """Start a job, see ``BatchProcesses.submit``."""
        return await self._processes.submit(request)

    async def get(self, id: str) -> BatchJob:
        """Return the status of a job, see ``BatchProcesses.get``."""
        return await self._processes.get(id)

    def __del__(self) -> None:
        """Terminate the running jobs; Serve calls this at shutdown."""
        if hasattr(self, "_processes"):
            self._processes.close()
