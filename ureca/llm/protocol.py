"""What a request says, as a number.

[from] A chat model that sees images, whatever runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ureca.hashing import digest

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question with its images.

    Attributes:
        system: the constant part, first, so that prefix caches hit; empty: none.
        parts: text and images (uint8 RGB [h, w, 3]) of the user's turn, in order. Engines encode an image only when
            and where they send it.
        answer_schema: JSON schema that the answer must fit; engines that can, constrain decoding by it. Empty: any
            text.
        temperature: 0 is greedy.
        max_new_tokens: bound of the answer.
    """

    system: str
    parts: tuple[str | Pixels, ...]
    answer_schema: dict[str, Any]
    temperature: float
    max_new_tokens: int

    @property
    def text(self) -> str:
        """The text parts, joined by newlines."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> Sequence[Pixels]:
        """The image parts, in order."""
        return [part for part in self.parts if not isinstance(part, str)]


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What the model said, as it said it, and what it cost in tokens."""

    text: str
    num_prompt_tokens: int
    num_new_tokens: int


class ChatModel(Protocol):
    """Answers requests; many at the same time on one event loop."""

    name: str
    """The model, for the provenance of a row."""

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request.

        Raises:
            AnswerError: the engine refuses this request for good; errors that may pass are the engine's to retry.
            SettingsError: the engine would refuse every request: a wrong key, no such model, nobody there.
        """
        ...


def request_digest(request: ChatRequest) -> int:
    """64 bits that equal requests share, wherever and whenever they are made, and that others do not."""
    text = f"{request.temperature} {request.system}\n{request.text}"
    return int.from_bytes(digest([text, *request.images], num_bytes=8), "big")
