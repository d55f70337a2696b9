"""The segmenter and the captioner as deployments of Ray Serve, asked through their handles."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ureca.errors import DataError
from ureca.images import Pixels
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.pipelines.serving.batches import Batch, BatchRequest
from ureca.serving.engine import CaptionJob, Written
from ureca.serving.schemas import ApiError

T = TypeVar("T")

_READY_TIMEOUT_S = 5.0


class HandleBackend:
    """A ``Backend`` of replicas.

    Args:
        captioner: of the deployment ``Captioner``.
        segmenter: of the deployment ``Segmenter``.
        segmenter_name: see ``Segmenter``.
        retry_after_s: what a client is told to wait when queues are full or a replica was lost.
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
        """See ``Segmenter.propose``."""
        masks: list[Mask] = await self._ask(self._segmenter.generate, pixels)
        return masks

    async def find(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        """See ``Segmenter.find``."""
        masks: list[Mask] = await self._ask(self._segmenter.find, pixels, prompts)
        return masks

    async def compare(self, pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
        """See ``ureca.serving.service.lookalikes``."""
        alike: dict[int, list[int]] = await self._ask(self._segmenter.compare, pixels, masks)
        return alike

    async def caption(self, job: CaptionJob) -> list[Written]:
        """All captions of a job, in the order of its masks."""
        written: list[Written] = await self._ask(self._captioner.caption, job)
        return written

    async def stream(self, job: CaptionJob) -> AsyncGenerator[Written]:
        """Each caption of a job as soon as it is finished."""
        with _refusing(self._retry_after_s):
            # A handle with stream=True gives a generator, which its types do not say.
            response: Any = self._captioner.options(stream=True).stream.remote(job)
            try:
                async for written in response:
                    yield written
            finally:
                response.cancel()  # a reader that has gone frees its place; what is finished stays as it is

    async def ready(self) -> dict[str, bool]:
        """Which parts have a replica that answers."""
        parts = {"captioner": self._captioner, "segmenter": self._segmenter}
        answers = await asyncio.gather(*(self._answers(handle) for handle in parts.values()))
        return dict(zip(parts, answers, strict=True))

    async def _answers(self, handle: DeploymentHandle[Any]) -> bool:
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await self._ask(handle.is_ready)
        except ApiError as api_error:
            return api_error.status == 429  # it is busy, and will be done
        except TimeoutError:
            return False
        return True

    async def _ask(self, method: DeploymentHandle[Any], *arguments: Any) -> Any:
        return await ask(method, *arguments, retry_after_s=self._retry_after_s)


class HandleBatches:
    """``Batches`` of a replica.

    Args:
        handle: of the deployment ``BatchesReplica``.
        retry_after_s: what a client is told to wait when the replica was lost.
    """

    def __init__(self, handle: DeploymentHandle[Any], retry_after_s: int) -> None:
        self._handle = handle
        self._retry_after_s = retry_after_s

    async def submit(self, request: BatchRequest) -> Batch:
        """See ``BatchJobs.submit``."""
        batch: Batch = await ask(self._handle.submit, request, retry_after_s=self._retry_after_s)
        return batch

    async def get(self, id: str) -> Batch:
        """See ``BatchJobs.get``."""
        batch: Batch = await ask(self._handle.get, id, retry_after_s=self._retry_after_s)
        return batch


async def ask(method: DeploymentHandle[Any], *arguments: Any, retry_after_s: int) -> Any:
    """Call a method of a deployment; a caller that is cancelled cancels the call.

    Raises:
        DataError: as the method does.
        Refusal: as the method does; 429, queues are full; 503, the replica was lost.
    """
    with _refusing(retry_after_s):
        response: Any = method.remote(*arguments)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise


@contextmanager
def _refusing(retry_after_s: int) -> Iterator[None]:
    """What Ray says of a call, in the terms of requests."""
    try:
        yield
    except BackPressureError as error:
        message = "all replicas are busy and their queue is full"
        raise ApiError(429, "queue_full", message, retry_after_s=retry_after_s) from error
    except (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError) as error:
        message = "the replica that worked on this request was lost; the same request may be sent again"
        raise ApiError(503, "replica_lost", message, retry_after_s=retry_after_s) from error
    except RayTaskError as error:
        if isinstance(error.cause, DataError | ApiError):
            raise error.cause from None
        raise
