"""Several streams as one."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merged(streams: Sequence[AsyncIterator[T]]) -> AsyncGenerator[T]:
    """What the streams yield, as it comes; when one fails, or this one is closed, all of them end.

    Raises:
        Exception: what a stream raised.
    """
    items: asyncio.Queue[T | BaseException | None] = asyncio.Queue()

    async def read(stream: AsyncIterator[T]) -> None:
        try:
            async for item in stream:
                items.put_nowait(item)
            items.put_nowait(None)
        except BaseException as error:
            items.put_nowait(error)  # it is raised below, where somebody reads it
            if isinstance(error, asyncio.CancelledError):
                raise

    readers = [asyncio.create_task(read(stream)) for stream in streams]
    try:
        num_open = len(streams)
        while num_open:
            item = await items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
