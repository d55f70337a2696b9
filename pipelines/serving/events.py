"""Responses as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar

from fastapi.responses import StreamingResponse

from ureca.pipelines.serving.middleware import internal_error
from ureca.serving.schemas import ApiError, CaptionOutput, ErrorResponse, PartialCaption, Timings
from ureca.serving.service import ImageRegions

T = TypeVar("T")

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def stream_response(
    stream: AsyncGenerator[T],
    to_events: Callable[[T], Iterable[str]],
    *,
    on_error: Callable[[ApiError], str],
    end: str = "",
    timeout_s: float,
) -> StreamingResponse:
    """Create a response with the events of a stream.

    An error before the first item is raised, so that the response has its status; a later error becomes an event.

    Args:
        stream: the stream; closed at the end in every case.
        to_events: conversion of an item to events.
        on_error: conversion of an error to an event.
        end: the last event of a stream without errors.
        timeout_s: seconds until the whole stream times out.

    Raises:
        ApiError: the stream failed or timed out before its first item.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        async with asyncio.timeout_at(deadline):
            first = await anext(stream)
    except TimeoutError as error:
        await stream.aclose()
        raise timeout_error(timeout_s) from error
    except BaseException:
        await stream.aclose()
        raise

    async def body() -> AsyncIterator[str]:
        async with aclosing(stream):
            try:
                for event in to_events(first):
                    yield event
                while True:
                    try:
                        async with asyncio.timeout_at(deadline):
                            item = await anext(stream)
                    except StopAsyncIteration:
                        break
                    for event in to_events(item):
                        yield event
            except TimeoutError:
                yield on_error(timeout_error(timeout_s))
            except ApiError as error:
                yield on_error(error)
            except Exception as error:
                # The status was sent with the first event, so only another event can report the (logged) error.
                yield on_error(internal_error(error))
            else:
                yield end

    return StreamingResponse(body(), media_type="text/event-stream", headers=_HEADERS)


def timeout_error(timeout_s: float) -> ApiError:
    """Return the error of a request that timed out, status 504."""
    return ApiError(504, "timeout", f"the request took longer than {timeout_s:g} seconds")


def named_event(name: str, data: object) -> str:
    """Format an event with a name."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def unnamed_event(data: object) -> str:
    """Format an event without a name, as OpenAI's API sends them."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def error_data(error: ApiError) -> object:
    """Return the data of an error event."""
    return ErrorResponse(error=error.problem).model_dump()


class CaptionEvents:
    """Converts the items of ``CaptionService.stream`` to the events of ``POST /v1/captions``.

    Args:
        model: name of the model.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._num_captions = 0

    def __call__(self, item: ImageRegions | PartialCaption | CaptionOutput | Timings) -> Iterable[str]:
        """Return the events of an item."""
        if isinstance(item, ImageRegions):
            regions = [region.model_dump() for region in item.regions]
            head = {"model": self._model, "image": item.size.model_dump(), "segmenter": item.segmenter}
            return [named_event("regions", {**head, "regions": regions})]
        if isinstance(item, PartialCaption):
            return [named_event("partial", item.model_dump())]
        if isinstance(item, CaptionOutput):
            self._num_captions += 1
            return [named_event("caption", item.model_dump())]
        return [named_event("done", {"timings": item.model_dump(), "num_captions": self._num_captions})]
