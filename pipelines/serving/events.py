"""Streams as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar

from fastapi.responses import StreamingResponse

from ureca.pipelines.serving.middleware import internal_error
from ureca.serving.schemas import ApiError, Caption, ErrorAnswer, Timings
from ureca.serving.service import FoundRegions

T = TypeVar("T")

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def out_of_time(timeout_s: float) -> ApiError:
    """Status 504."""
    return ApiError(504, "timeout", f"the request took longer than {timeout_s:g} seconds")


async def respond(
    stream: AsyncGenerator[T],
    events: Callable[[T], Iterable[str]],
    *,
    on_error: Callable[[ApiError], str],
    end: str = "",
    timeout_s: float,
) -> StreamingResponse:
    """A response of the events of a stream.

    What fails before the first item is an error like any other; what fails later is an event.

    Args:
        stream: is closed in the end, whatever happens.
        events: of each item.
        on_error: the event of an error.
        end: the last event, where all went well.
        timeout_s: for all of it.

    Raises:
        Refusal: the stream's, before its first item.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        async with asyncio.timeout_at(deadline):
            first = await anext(stream)
    except TimeoutError as error:
        await stream.aclose()
        raise out_of_time(timeout_s) from error
    except BaseException:
        await stream.aclose()
        raise

    async def body() -> AsyncIterator[str]:
        async with aclosing(stream):
            try:
                for event in events(first):
                    yield event
                while True:
                    try:
                        async with asyncio.timeout_at(deadline):
                            item = await anext(stream)
                    except StopAsyncIteration:
                        break
                    for event in events(item):
                        yield event
            except TimeoutError:
                yield on_error(out_of_time(timeout_s))
            except ApiError as api_error:
                yield on_error(api_error)
            except Exception as error:
                # The status has been sent with the first event: only another event can say so. It is logged.
                yield on_error(internal_error(error))
            else:
                yield end

    return StreamingResponse(body(), media_type="text/event-stream", headers=_HEADERS)


def event(name: str, data: object) -> str:
    """One event with a name."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def nameless(data: object) -> str:
    """One event as OpenAI's API has them."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def error_data(api_error: ApiError) -> object:
    """What an event of an error holds."""
    return ErrorAnswer(error=api_error.problem).model_dump()


class CaptionEvents:
    """The events of ``POST /v1/captions``.

    Args:
        model: name of the model.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._num_captions = 0

    def __call__(self, item: FoundRegions | Caption | Timings) -> Iterable[str]:
        """Those of one item of ``Service.stream``."""
        if isinstance(item, FoundRegions):
            regions = [region.model_dump() for region in item.regions]
            head = {"model": self._model, "image": item.size.model_dump(), "segmenter": item.segmenter}
            return [event("regions", {**head, "regions": regions})]
        if isinstance(item, Caption):
            self._num_captions += 1
            return [event("caption", item.model_dump())]
        return [event("done", {"timings": item.model_dump(), "num_captions": self._num_captions})]
