"""The listener: a test of uniqueness, in which a region must be chosen among its look-alikes by its caption.

A caption is unique if the listener chooses the region that it was written for. The listener cannot know that region
from anything but the caption: neither the order, the numbers nor the colours of the candidates depend on it.
"""

import asyncio
import random
from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from ureca.curation import prompts
from ureca.curation.protocols import Choice
from ureca.hashing import digest
from ureca.llm.protocol import ChatModel
from ureca.llm.structured import InvalidResponseError, ask
from ureca.masks.views import Views
from ureca.registry import register


class ListeningSettings(BaseModel):
    """Captions of a curation that the listener hears, and the number of rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_rounds: int = Field(
        default=2, ge=1, description="times a region's captions are tested; a failed one is rewritten in between"
    )
    include_all: bool = Field(
        default=False, description="also test regions without look-alikes, among their siblings and neighbours"
    )
    max_candidates: int = Field(
        default=9, ge=2, description="regions shown to the listener at a time, including the right one"
    )


class PromptedListenerSettings(BaseModel):
    """Requests of a listener to the chat model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: int = Field(default=256, ge=16, description="maximum tokens of one answer of the listener")
    max_attempts: int = Field(default=3, ge=1, description="attempts per question until the answer is valid")


class NoListenerConfig(BaseModel):
    """No listener: captions are not tested for uniqueness."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["none"] = "none"


class PromptedListenerConfig(ListeningSettings, PromptedListenerSettings):
    """The MLLM of ``mllm`` must choose the region of a caption among its look-alikes."""

    kind: Literal["prompted"] = "prompted"


class _Choice(BaseModel):
    choice: StrictInt | Literal["none", "several"]


@register("listener", "prompted", settings=PromptedListenerConfig)
class PromptedListener:
    """Asks a chat model at temperature 0; a ``Listener``. Requests are independent of each other.

    Args:
        model: chat model that answers.
        settings: limits of the requests.
    """

    def __init__(self, model: ChatModel, settings: PromptedListenerSettings) -> None:
        self.name = f"listener-{prompts.VERSION}:{model.name}"
        self._model = model
        self._settings = settings

    async def choose(self, views: Views, candidates: Collection[int], caption: str) -> Choice:
        """Show the numbered candidates in the crop that contains them all, and ask for the number."""
        ids = shuffled_candidates(candidates, caption)
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


def shuffled_candidates(candidates: Collection[int], caption: str) -> list[int]:
    """Shuffle candidates, in an order that depends on their ids and the caption only."""
    ids = sorted(set(candidates))
    seed = int.from_bytes(digest([f"{ids} {caption}"], num_bytes=8), "big")
    random.Random(seed).shuffle(ids)
    return ids
