"""What the curation finds out about a region, and what becomes of an answer that there is not."""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ureca.curation.annotator import Choice, Verdict
from ureca.errors import AnswerError

Answer = TypeVar("Answer")


@dataclass(slots=True)
class RegionCaptions:
    """What the stages found out about one region; a caption is None where its stage failed or was not reached."""

    short_caption: str | None = None
    detailed_caption: str | None = None
    caption: str | None = None
    lookalike_ids: list[int] = field(default_factory=list)
    listener_choice: Choice | None = None
    """What the listener took ``caption`` for; None: it was not asked, or had no usable answer."""
    listener_rounds: int = 0
    """Times the region's captions were put before the listener."""
    verdict: Verdict | None = None
    failure: str | None = None
    """``<stage>:<kind>`` of the first answer that was unusable."""

    async def answered(self, stage: str, answer: Awaitable[Answer]) -> Answer | None:
        """Wait for an answer; None, and the region has failed, where there is no usable one."""
        try:
            return await answer
        except AnswerError as error:
            self.failure = self.failure or f"{stage}:{error.kind}"
            return None


def captions_now(regions: Mapping[int, RegionCaptions]) -> dict[int, str]:
    """The captions of the regions that have one, by id."""
    return {id: region.caption for id, region in regions.items() if region.caption is not None}


async def at_once(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all of them side by side; the first error ends all."""
    async with asyncio.TaskGroup() as group:
        for coroutine in coroutines:
            group.create_task(coroutine)
