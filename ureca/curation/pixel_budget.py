"""A bound on the pixels that are decoded at a time, whatever the size of the images."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

DEFAULT_PIXELS_IN_FLIGHT = 250_000_000
"""About as many as 75 images of SA-1B have. With its views, a pixel takes about 10 bytes."""


class PixelBudget:
    """So many pixels, taken first come, first served; an image that is larger than all of them has them to itself.

    It is used by one event loop.

    Args:
        most: pixels, at least 1.
    """

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def taken(self, num_pixels: int) -> AsyncIterator[None]:
        """Wait for the pixels of an image, and hold them for the block."""
        share = min(num_pixels, self._most)
        async with self._turn:
            while self._free < share:
                self._given_back.clear()
                await self._given_back.wait()
            self._free -= share
        try:
            yield
        finally:
            self._free += share
            self._given_back.set()
