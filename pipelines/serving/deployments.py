"""The parts of the service as deployments of Ray Serve."""

import asyncio
import os
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from ureca.images import Pixels
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.batches import Batch, BatchJobs, BatchRequest
from ureca.pipelines.serving.middleware import Traffic
from ureca.serving.engine import CaptionEngine, CaptionJob, Written
from ureca.serving.segmenter import Segmenter
from ureca.serving.service import lookalikes
from ureca.serving.settings import Replicas

_ROOM_FOR_API_ERRORS = 64
"""Requests that an ingress replica takes beyond its limit: health checks, the page, and those it answers with 429."""

_GIVING_UP_S = 60.0


class Captioner:
    """A replica of the captioner: one checkpoint, and common batches of whatever requests it has."""

    def __init__(self, settings: ServeSettings) -> None:
        from ureca.model.captioner import RegionCaptioner

        on_gpu = settings.resources.captioner.num_gpus > 0
        captioner = RegionCaptioner.from_pretrained(
            settings.model,
            device="cuda" if on_gpu else "cpu",
            dtype=settings.dtype,
            cached_images=settings.captioner.batch_size,
        )
        self._engine = CaptionEngine(captioner, settings.captioner.batch_size)
        # By then nobody waits for any of its captions, and it should have given them up.
        self._longest_batch_s = settings.limits.timeout_s + _GIVING_UP_S

    async def caption(self, job: CaptionJob) -> list[Written]:
        """See ``CaptionEngine.caption``."""
        return await self._engine.caption(job)

    async def stream(self, job: CaptionJob) -> AsyncGenerator[Written]:
        """See ``CaptionEngine.stream``."""
        async with aclosing(self._engine.stream(job)) as captions:
            async for written in captions:
                yield written

    async def is_ready(self) -> bool:
        """True: the checkpoint is loaded."""
        return True

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises or does not return.

        Raises:
            RuntimeError: the model has been on one batch for longer than any batch takes.
        """
        self._engine.check(self._longest_batch_s)


class SegmenterReplica:
    """A replica of the segmenter."""

    def __init__(self, settings: ServeSettings) -> None:
        self._segmenter = Segmenter.from_settings(settings.masks)

    async def name(self) -> str:
        """See ``Segmenter``."""
        return self._segmenter.name

    async def generate(self, pixels: Pixels) -> list[Mask]:
        """See ``Segmenter.propose``."""
        return await asyncio.to_thread(self._segmenter.generate, pixels)

    async def find(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        """See ``Segmenter.find``."""
        return await asyncio.to_thread(self._segmenter.find, pixels, prompts)

    async def compare(self, pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
        """See ``ureca.serving.service.lookalikes``."""
        return await asyncio.to_thread(lookalikes, pixels, masks)

    async def is_ready(self) -> bool:
        """True: what it needs is loaded."""
        return True


class BatchesReplica:
    """The one replica that runs batch jobs, on the cluster that the service is on."""

    def __init__(self, settings: ServeSettings) -> None:
        address = ray.get_runtime_context().gcs_address
        self._jobs = BatchJobs(settings, {**os.environ, "RAY_ADDRESS": address})

    async def submit(self, request: BatchRequest) -> Batch:
        """See ``BatchJobs.submit``."""
        return await self._jobs.submit(request)

    async def get(self, id: str) -> Batch:
        """See ``BatchJobs.get``."""
        return await self._jobs.get(id)

    def __del__(self) -> None:
        """Serve calls this when the service ends."""
        if hasattr(self, "_jobs"):
            self._jobs.close()


@serve.ingress()
class Ingress:
    """A replica of what talks HTTP."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: ServeSettings,
        token_digests: Collection[bytes],
        captioner: DeploymentHandle[Any],
        segmenter: DeploymentHandle[Any],
        batches: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._settings = settings
        self._batches = batches
        self._token_digests = token_digests
        self._handles = captioner, segmenter
        self._segmenter_name: str = await segmenter.name.remote()
        self._traffic = Traffic()

    async def end(self) -> None:
        """Take no more requests; returns when all that have begun are answered."""
        await self._traffic.end()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, built where it runs."""
        from ureca.pipelines.serving.app import build_app
        from ureca.pipelines.serving.backend import HandleBackend, HandleBatches
        from ureca.serving.service import Service

        retry_after_s = self._settings.limits.retry_after_s
        backend = HandleBackend(*self._handles, self._segmenter_name, retry_after_s)
        batches = None if self._batches is None else HandleBatches(self._batches, retry_after_s)
        service = Service(self._settings, backend)
        return build_app(service, self._token_digests, batches=batches, traffic=self._traffic)


def build_application(settings: ServeSettings, token_digests: Collection[bytes]) -> Application:
    """The application, to be run or written to a Serve config.

    Args:
        settings: of the service.
        token_digests: of the tokens, see ``serving_gate.digest_of``; none: everybody may use it.
    """
    resources, retry_after_s = settings.resources, settings.limits.retry_after_s
    captioner = serve.deployment(**_options("captioner", resources.captioner, retry_after_s))(Captioner)
    segmenter = serve.deployment(**_options("segmenter", resources.segmenter, retry_after_s))(SegmenterReplica)
    options = _options("ingress", resources.ingress, retry_after_s)
    options["max_ongoing_requests"] = settings.limits.max_in_flight + _ROOM_FOR_API_ERRORS
    ingress = serve.deployment(**options)(Ingress)
    parts = [captioner.bind(settings), segmenter.bind(settings)]
    if settings.batches.folders:
        # It only starts processes and looks at them.
        alone = Replicas(num_cpus=0.05, target_ongoing_requests=1)
        parts.append(serve.deployment(**_options("batches", alone, retry_after_s))(BatchesReplica).bind(settings))
    application: Application = ingress.bind(settings, frozenset(token_digests), *parts)
    return application


def _options(name: str, replicas: Replicas, retry_after_s: int) -> dict[str, Any]:
    return {
        "name": name,
        # On a CPU, whole ones are the threads of the model: Ray sees to that.
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
        # Serve's access log has method, path, status and time: no images, no headers.
        "logging_config": LoggingConfig(enable_access_log=True),
    }
