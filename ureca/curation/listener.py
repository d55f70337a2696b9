"""The listener: someone else, who sees what looks alike and a caption, and says which of it the caption fits.

A caption is unique where the listener chooses the region that it was written for. The listener is not told which
one that is: neither order nor number nor colour depends on it.
"""

import asyncio
import random
from collections.abc import Collection
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from ureca.curation import prompts
from ureca.curation.protocols import Choice
from ureca.hashing import digest
from ureca.llm.protocol import ChatModel
from ureca.llm.structured import InvalidResponseError, ask
from ureca.masks.views import Views


class ListenerSettings(BaseModel):
    """How the listener is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: int = Field(default=256, ge=16, description="bound of one answer")
    max_attempts: int = Field(default=3, ge=1, description="times a question is asked until its answer is usable")


class ListeningSettings(ListenerSettings):
    """Which captions of a curation are put before the listener, and how often."""

    max_rounds: int = Field(default=2, ge=1, description="times a region is listened to; it is rewritten in between")
    include_all: bool = Field(
        default=False, description="also regions that have no look-alikes, among their siblings and neighbours"
    )
    max_candidates: int = Field(default=9, ge=2, description="regions shown at a time, the target among them")


class Listener(Protocol):
    """Chooses what a caption fits; many at the same time on one event loop."""

    name: str
    """What it is, with its version or model, for the provenance of a row."""

    async def choose(self, views: Views, candidates: Collection[int], caption: str) -> Choice:
        """Choose the region that a caption fits.

        Args:
            views: of the image.
            candidates: ids of the regions that are shown; their order decides nothing.
            caption: of one of them, or of none.

        Returns:
            one of the candidates, ``"none"`` or ``"several"``.

        Raises:
            AnswerError: there is no usable answer.
        """
        ...


class _Choice(BaseModel):
    choice: StrictInt | Literal["none", "several"]


class PromptedListener:
    """Asks a chat model, at temperature 0; a ``Listener``. Nothing is kept from one question to the next."""

    def __init__(self, model: ChatModel, settings: ListenerSettings) -> None:
        self.name = f"listener-{prompts.VERSION}:{model.name}"
        self._model = model
        self._settings = settings

    async def choose(self, views: Views, candidates: Collection[int], caption: str) -> Choice:
        """Show the candidates, numbered, in the crop that holds them all, and ask for the number."""
        ids = numbered(candidates, caption)
        view = await asyncio.to_thread(views.lookalikes, ids[0], ids[1:])

        def read(answer: _Choice) -> Choice:
            if isinstance(answer.choice, str):
                return answer.choice
            if not 0 <= answer.choice < len(ids):
                raise InvalidResponseError("no_such_number", f"there is no number {answer.choice}")
            return ids[answer.choice]

        return await ask(
            self._model,
            system=prompts.LISTENING,
            parts=(view, prompts.listening(caption, len(ids) - 1)),
            expected=_Choice,
            read=read,
            temperature=0.0,
            max_new_tokens=self._settings.max_new_tokens,
            max_attempts=self._settings.max_attempts,
        )


def numbered(candidates: Collection[int], caption: str) -> list[int]:
    """The candidates by their numbers: shuffled, the same each time for the same candidates and caption."""
    ids = sorted(set(candidates))
    seed = int.from_bytes(digest([f"{ids} {caption}"], num_bytes=8), "big")
    random.Random(seed).shuffle(ids)
    return ids
