"""The listener: a test of uniqueness, in which a region must be chosen among its look-alikes by its caption.

A caption is unique if the listener chooses the region that it was written for. The listener cannot know that region
from anything but the caption: neither the order, the numbers nor the colours of the candidates depend on it.
"""

import asyncio
import random
import re
from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, StrictInt, field_validator, model_validator

from ureca.curation import prompts
from ureca.curation.protocols import Choice
from ureca.curation.settings import PromptedListenerSettings
from ureca.hashing import digest
from ureca.llm.protocol import ChatModel
from ureca.llm.structured import InvalidResponseError, ask
from ureca.masks.views import Views

_NONE = frozenset({"none", "none of them", "none of these", "none of the above", "neither", "no one", "null"})
_SEVERAL = frozenset({"several", "several of them", "multiple", "more than one", "both", "two or more"})
_LEAD = re.compile(
    r"^(?:the )?(?:(?:final |correct |best )?(?:answer|choice)|caption)(?: (?:is|fits|matches|describes))?\b[ :*_`]*"
)


class _Choice(BaseModel):
    choice: StrictInt | Literal["none", "several"]

    @model_validator(mode="before")
    @classmethod
    def _read_bare_choice(cls, content: object) -> object:
        return {"choice": content} if isinstance(content, str) else content

    @field_validator("choice", mode="before")
    @classmethod
    def _read(cls, choice: object) -> object:
        """Read numbers and words as models write them: ``"2"``, ``2.0``, ``"Number 2."``, ``"None"``, null."""
        if choice is None:
            return "none"
        if isinstance(choice, float) and choice.is_integer():
            return int(choice)
        if not isinstance(choice, str):
            return choice
        word = " ".join(choice.casefold().split()).strip(" .!*_`'\"")
        word = _LEAD.sub("", word).strip(" .!*_`'\"")
        if number := re.fullmatch(r"(?:(?:number|no\.?|nr\.?|candidate|region|object) ?)?#?(\d{1,6})(?:\.0+)?", word):
            return int(number[1])
        return "none" if word in _NONE else "several" if word in _SEVERAL else choice


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

    async def choose(self, views: Views, candidates: Collection[int], caption: str, *, shuffle: int = 0) -> Choice:
        """Show the image, and the numbered candidates in the crop that contains them all, and ask for the number."""
        ids = shuffled_candidates(candidates, caption, shuffle)
        # The whole photograph, too: a caption may say where in it the region is.
        whole, view = await asyncio.to_thread(lambda: (views.whole(), views.lookalikes(ids[0], ids[1:])))

        def read(answer: _Choice) -> Choice:
            if isinstance(answer.choice, str):
                return answer.choice
            if not 0 <= answer.choice < len(ids):
                raise InvalidResponseError("no_such_number", f"there is no number {answer.choice}")
            return ids[answer.choice]

        return await ask(
            self._model,
            system=prompts.LISTENING,
            parts=(prompts.WHOLE, whole, prompts.NUMBERED, view, prompts.listening(caption, len(ids) - 1)),
            expected=_Choice,
            read=read,
            temperature=0.0,
            max_new_tokens=self._settings.max_new_tokens,
            max_attempts=self._settings.max_attempts,
            limit_name="listener.max_new_tokens",
        )


def shuffled_candidates(candidates: Collection[int], caption: str, shuffle: int = 0) -> list[int]:
    """Shuffle candidates, in an order that depends on their ids, the caption and the number of the shuffle only.

    A candidate has another place in each shuffle, as long as there are as many places as shuffles.
    """
    ids = sorted(set(candidates))
    seed = int.from_bytes(digest([f"{ids} {caption}"], num_bytes=8), "big")
    generator = random.Random(seed)
    generator.shuffle(ids)
    steps = list(range(1, len(ids)))
    generator.shuffle(steps)
    step = [0, *steps][shuffle % len(ids)]
    return ids[step:] + ids[:step]
