"""Chat models that see images: requests, answers and the protocol that every implementation follows."""

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
        system: the constant part, which comes first so that prefix caches hit; empty: no system message.
        parts: text and images (uint8 RGB [h, w, 3]) of the user's turn, in order. Implementations encode an image only
            when they send it. An image with a fourth channel marks the region in question, for a model that knows it.
        answer_schema: JSON schema of the answer; implementations with structured output decode by it. Empty: free text.
        temperature: sampling temperature; 0 is greedy.
        max_new_tokens: maximum number of tokens of the answer.
        top_p: nucleus sampling: probability mass of the likeliest tokens to draw from.
        affinity: key of what the request shares with others, such as its image. Several servers of one model get the
            requests of a key at the same one as far as it has slots, so that its prefix cache serves them.
    """

    system: str
    parts: tuple[str | Pixels, ...]
    answer_schema: dict[str, Any]
    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    affinity: str | None = None

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
    """The text of an answer, unchanged, and its token counts.

    Attributes:
        text: the text.
        num_prompt_tokens: number of tokens of the prompt, 0 if the engine does not tell.
        num_new_tokens: number of tokens of the answer, including its thinking; 0 if the engine does not tell.
        is_cut_off: True if the answer ended at the limit of tokens, before its end.
        is_filtered: True if a filter of the service ended or withheld it.
    """

    text: str
    num_prompt_tokens: int
    num_new_tokens: int
    is_cut_off: bool = False
    is_filtered: bool = False


class ChatModel(Protocol):
    """A multimodal chat model that answers many requests concurrently on one event loop."""

    name: str
    """Name of the model, for the provenance of a row."""

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request.

        Raises:
            AnswerError: this request cannot be answered, and a retry would not help; transient failures are retried by
                the implementation.
            SettingsError: no request could be answered: a wrong key, an unknown model, no reachable endpoint.
        """
        ...


def request_digest(request: ChatRequest) -> int:
    """Hash the content of a request to 64 bits, equal on every machine and in every process."""
    text = f"{request.temperature} {request.system}\n{request.text}"
    return int.from_bytes(digest([text, *request.images], num_bytes=8), "big")
