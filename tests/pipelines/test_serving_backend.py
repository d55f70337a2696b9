"""What Ray says of a call, in the terms of requests; against stand-ins for handles."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from ureca.errors import ImageError
from ureca.pipelines.serve_settings import BatchesSettings, ServeSettings
from ureca.pipelines.serving.backend import HandleBackend, HandleBatches
from ureca.pipelines.serving.deployments import build_application
from ureca.serving.schemas import ApiError

PIXELS = np.zeros((2, 2, 3), np.uint8)


class Response:
    """An answer that is awaited, and can be cancelled."""

    def __init__(self, answering: Callable[[], Awaitable[Any]]) -> None:
        self._answering = answering
        self.is_cancelled = False

    def __await__(self) -> Any:
        return self._answering().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """Answers every method in one way."""

    def __init__(self, answering: Callable[[], Awaitable[Any]]) -> None:
        self._answering = answering
        self.responses: list[Response] = []

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
        (of_task(ApiError(404, "unknown_batch", "there is no such job")), 404, "unknown_batch"),
    ],
)
def test_errors_become_refusals(error: Exception, status: int, code: str) -> None:
    backend = HandleBackend(raising(error), raising(error), "segments-1", 7)  # type: ignore[arg-type]
    for asking in (backend.generate(PIXELS), HandleBatches(raising(error), 7).get("batch-1")):  # type: ignore[arg-type]
        with pytest.raises(ApiError) as api_error:
            asyncio.run(asking)
        assert (api_error.value.status, api_error.value.problem.code) == (status, code)
        assert api_error.value.problem.retry_after_s == (7 if status in {429, 503} else None)


def test_what_is_wrong_with_an_image_stays_that_and_bugs_stay_bugs() -> None:
    elongated = raising(of_task(ImageError("too_elongated", "nothing is left of it")))
    with pytest.raises(ImageError, match="too_elongated"):
        asyncio.run(HandleBackend(elongated, elongated, "sam", 7).generate(PIXELS))  # type: ignore[arg-type]
    bug = raising(of_task(ZeroDivisionError()))
    with pytest.raises(RayTaskError):
        asyncio.run(HandleBackend(bug, bug, "sam", 7).generate(PIXELS))  # type: ignore[arg-type]


def test_who_is_cancelled_cancels_the_call() -> None:
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


def test_a_part_is_ready_when_it_answers_or_is_busy() -> None:
    async def answering() -> bool:
        return True

    def ready(captioner: Handle) -> bool:
        backend = HandleBackend(captioner, Handle(answering), "sam", 7)  # type: ignore[arg-type]
        return asyncio.run(backend.ready())["captioner"]

    assert ready(Handle(answering)) and ready(raising(BackPressureError(5, 4)))
    assert not ready(raising(ActorDiedError()))


def test_the_application_has_batches_only_where_folders_are_named() -> None:
    def parts(**settings: Any) -> int:
        return len(build_application(ServeSettings(model="tiny", **settings), [])._bound_deployment.init_args) - 2

    assert parts() == 2
    assert parts(batches=BatchesSettings(folders=("/data",), output="/out")) == 3  # type: ignore[arg-type]
