"""Backend and batch runner on Ray Serve: calls to deployments, with Ray's errors converted to API errors."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ureca.captioning.engine import CaptionJob, GeneratedCaption
from ureca.errors import AnswerError, DataError, EngineError
from ureca.images import Pixels
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.memory import OUT_OF_MEMORY
from ureca.pipelines.serving.routing import image_key
from ureca.serving.schemas import ApiError, BatchJob, BatchRequest

_READY_TIMEOUT_S = 5.0


class HandleBackend:
    """A ``Backend`` that calls deployments through their handles.

    Args:
        captioner: handle of the deployment ``CaptionerReplica``.
        segmenter: handle of the deployment ``SegmenterReplica``.
        segmenter_name: name of the segmenter in responses.
        retry_after_s: seconds that a client should wait if a queue is full or a replica was lost.
    """

    def __init__(
        self,
        captioner: DeploymentHandle[Any],
        segmenter: DeploymentHandle[Any],
        segmenter_name: str,
        retry_after_s: int,
    ) -> None:
        self.segmenter_name = segmenter_name
        self._captioner = captioner
        self._segmenter = segmenter
        self._retry_after_s = retry_after_s

    async def generate(self, pixels: Pixels) -> list[Mask]:
        """Segment an image, see ``Segmenter.generate``."""
        masks: list[Mask] = await self._call(self._segmenter.generate, pixels, image=pixels)
        return masks

    async def segment_prompts(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        """Segment box and point prompts, see ``Segmenter.segment_prompts``."""
        masks: list[Mask] = await self._call(self._segmenter.segment_prompts, pixels, prompts, image=pixels)
        return masks

    async def lookalike_ids(self, pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
        """Find look-alikes, see ``ureca.serving.segmenter.lookalike_ids``."""
        ids: dict[int, list[int]] = await self._call(self._segmenter.lookalike_ids, pixels, masks)
        return ids

    async def caption(self, job: CaptionJob) -> list[GeneratedCaption]:
        """Caption all regions of a job, in the order of its masks."""
        captions: list[GeneratedCaption] = await self._call(self._captioner.caption, job, image=job.pixels)
        return captions

    async def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        """Yield each caption of a job as soon as it is finished."""
        with _as_api_errors(self._retry_after_s):
            # A handle with stream=True returns an async generator, which its type annotations omit.
            response: Any = self._captioner.options(stream=True, session_id=image_key(job.pixels)).stream.remote(job)
            try:
                async for caption in response:
                    yield caption
            finally:
                response.cancel()  # frees the slots of a disconnected client; no effect on a finished stream

    async def ready(self) -> dict[str, bool]:
        """Return for each part whether a replica responds."""
        parts = {"captioner": self._captioner, "segmenter": self._segmenter}
        answers = await asyncio.gather(*(self._is_ready(handle) for handle in parts.values()))
        return dict(zip(parts, answers, strict=True))

    async def _is_ready(self, handle: DeploymentHandle[Any]) -> bool:
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await self._call(handle.is_ready)
        except ApiError as error:
            return error.status == 429  # a busy part is ready: it works off its queue
        except TimeoutError:
            return False
        return True

    async def _call(self, method: DeploymentHandle[Any], *arguments: Any, image: Pixels | None = None) -> Any:
        """Call a method of a deployment, of the replica that has the image."""
        if image is not None:
            method = method.options(session_id=image_key(image))
        return await call_deployment(method, *arguments, retry_after_s=self._retry_after_s)


class HandleBatchRunner:
    """A ``BatchRunner`` that calls a deployment through its handle.

    Args:
        handle: handle of the deployment ``BatchReplica``.
        retry_after_s: seconds that a client should wait if the replica was lost.
    """

    def __init__(self, handle: DeploymentHandle[Any], retry_after_s: int) -> None:
        self._handle = handle
        self._retry_after_s = retry_after_s

    async def submit(self, request: BatchRequest) -> BatchJob:
        """Start a job, see ``BatchProcesses.submit``."""
        job: BatchJob = await call_deployment(self._handle.submit, request, retry_after_s=self._retry_after_s)
        return job

    async def get(self, id: str) -> BatchJob:
        """Return the status of a job, see ``BatchProcesses.get``."""
        job: BatchJob = await call_deployment(self._handle.get, id, retry_after_s=self._retry_after_s)
        return job


async def call_deployment(method: DeploymentHandle[Any], *arguments: Any, retry_after_s: int) -> Any:
    """Call a method of a deployment; cancelling the caller cancels the call.

    Raises:
        DataError: raised by the method.
        ApiError: raised by the method; or 429, a queue is full; or 503, the replica was lost or lacks memory.
    """
    with _as_api_errors(retry_after_s):
        response: Any = method.remote(*arguments)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise


@contextmanager
def _as_api_errors(retry_after_s: int) -> Iterator[None]:
    try:
        yield
    except BackPressureError as error:
        message = "all replicas are busy and their queue is full"
        raise ApiError(429, "queue_full", message, retry_after_s=retry_after_s) from error
    except (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError) as error:
        message = "the replica that processed this request was lost; the request can be retried"
        raise ApiError(503, "replica_lost", message, retry_after_s=retry_after_s) from error
    except RayTaskError as error:
        if isinstance(error.cause, DataError) and error.cause.kind == OUT_OF_MEMORY:
            raise ApiError(503, OUT_OF_MEMORY, error.cause.message, retry_after_s=retry_after_s) from None
        if isinstance(error.cause, EngineError):
            message = "the engine that processed this request died; the request can be retried"
            raise ApiError(503, "replica_lost", message, retry_after_s=retry_after_s) from error
        if isinstance(error.cause, AnswerError):
            raise ApiError.from_data_error(error.cause, "regions") from None
        if isinstance(error.cause, DataError | ApiError):
            raise error.cause from None
        raise
