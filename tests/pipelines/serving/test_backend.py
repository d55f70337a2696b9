"""Conversion of Ray's errors to API errors, with fake handles."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from ureca.captioning.engine import CaptionJob
from ureca.errors import AnswerError, DataError, EngineError, ImageError
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.model.settings import CaptionSettings
from ureca.pipelines.serve_settings import BatchesSettings, ServeSettings
from ureca.pipelines.serving.backend import HandleBackend, HandleBatchRunner
from ureca.pipelines.serving.deployments import SegmenterReplica, build_application
from ureca.pipelines.serving.routing import image_key
from ureca.serving.schemas import ApiError

PIXELS = np.zeros((2, 2, 3), np.uint8)


class Response:
    """A fake response of a handle."""

    def __init__(self, answering: Callable[[], Awaitable[Any]]) -> None:
        self._answering = answering
        self.is_cancelled = False

    def __await__(self) -> Any:
        return self._answering().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """A fake handle whose methods all respond in the same way."""

    def __init__(self, answering: Callable[[], Awaitable[Any]]) -> None:
        self._answering = answering
        self.responses: list[Response] = []
        self.session_ids: list[str] = []

    def options(self, *, session_id: str) -> "Handle":
        self.session_ids.append(session_id)
        return self

    def __getattr__(self, method: str) -> "Handle":
        return self

    def remote(self, *arguments: Any) -> Response:
        self.responses.append(Response(self._answering))
        return self.responses[-1]


def raising(error: BaseException) -> Handle:
    async def answering() -> None:
        raise error

    return Handle(answering)


def of_task(cause: Exception) -> RayTaskError:
    return RayTaskError("masks", "a long traceback", cause)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BackPressureError(5, 4), 429, "queue_full"),
        (ActorDiedError(), 503, "replica_lost"),
        (of_task(EngineError("vLLM's engine died")), 503, "replica_lost"),
        (of_task(AnswerError("unusable_request", "the prompt is too long")), 422, "unusable_request"),
        (of_task(ApiError(404, "unknown_batch", "there is no such job")), 404, "unknown_batch"),
    ],
)
def test_call_deployment_ray_error_becomes_api_error(error: Exception, status: int, code: str) -> None:
    backend = HandleBackend(raising(error), raising(error), "segments-1", 7)  # type: ignore[arg-type]
    for asking in (backend.generate(PIXELS), HandleBatchRunner(raising(error), 7).get("batch-1")):  # type: ignore[arg-type]
        with pytest.raises(ApiError) as raised:
            asyncio.run(asking)
        assert (raised.value.status, raised.value.problem.code) == (status, code)
        assert raised.value.problem.retry_after_s == (7 if status in {429, 503} else None)


def test_call_deployment_data_error_and_bug_are_raised_unchanged() -> None:
    elongated = raising(of_task(ImageError("too_elongated", "too elongated")))
    with pytest.raises(ImageError, match="too_elongated"):
        asyncio.run(HandleBackend(elongated, elongated, "sam", 7).generate(PIXELS))  # type: ignore[arg-type]
    bug = raising(of_task(ZeroDivisionError()))
    with pytest.raises(RayTaskError):
        asyncio.run(HandleBackend(bug, bug, "sam", 7).generate(PIXELS))  # type: ignore[arg-type]


def test_call_deployment_cancelled_caller_cancels_the_call() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    handle = Handle(never)

    async def run() -> None:
        asking = asyncio.create_task(HandleBackend(handle, handle, "sam", 7).generate(PIXELS))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(run())
    assert [response.is_cancelled for response in handle.responses] == [True]


def test_calls_for_one_image_have_its_session_id() -> None:
    async def answering() -> list[Any]:
        return []

    captioner, segmenter = Handle(answering), Handle(answering)
    backend = HandleBackend(captioner, segmenter, "sam", 7)  # type: ignore[arg-type]

    async def run() -> None:
        for pixels in (PIXELS, PIXELS + 1):
            await backend.generate(pixels)
            await backend.segment_prompts(pixels, {})
            await backend.caption(CaptionJob(pixels, (), CaptionSettings()))

    asyncio.run(run())
    keys = [image_key(PIXELS), image_key(PIXELS + 1)]
    assert captioner.session_ids == keys
    assert segmenter.session_ids == [keys[0], keys[0], keys[1], keys[1]]


def test_ready_part_that_responds_or_is_busy_is_ready() -> None:
    async def answering() -> bool:
        return True

    def ready(captioner: Handle) -> bool:
        backend = HandleBackend(captioner, Handle(answering), "sam", 7)  # type: ignore[arg-type]
        return asyncio.run(backend.ready())["captioner"]

    assert ready(Handle(answering)) and ready(raising(BackPressureError(5, 4)))
    assert not ready(raising(ActorDiedError()))


def test_build_application_batches_without_command_raises() -> None:
    batches = BatchesSettings(folders=("/data",), output="/out")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no command"):
        build_application(ServeSettings(model="tiny", batches=batches))


def test_segmenter_replica_whose_memory_fails_again_and_again_fails_its_health(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(self: Any, image: Any, annotation: Any = None) -> Any:
        raise MemoryError("28.6 GiB")

    monkeypatch.setattr(SegmentsMaskGenerator, "generate", generate)

    async def run() -> None:
        replica = SegmenterReplica(ServeSettings.model_validate({"model": "m", "limits": {"max_failures": 2}}))
        for value in range(2):
            await replica.check_health()
            with pytest.raises(DataError, match="out_of_memory"):
                await replica.generate(np.full((4, 4, 3), value, np.uint8))
        with pytest.raises(RuntimeError, match="2 images in a row could not be segmented"):
            await replica.check_health()

    asyncio.run(run())
