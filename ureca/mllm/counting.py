"""A chat model that counts what it is asked."""

from collections.abc import Mapping
from dataclasses import dataclass

from ureca.mllm.protocol import ChatAnswer, ChatModel, ChatRequest


@dataclass(slots=True)
class Questions:
    """Of one kind.

    Attributes:
        num_questions: that were answered.
        num_characters: of their texts.
        num_pixels: of their images.
        max_new_tokens: that their answers may have, added up.
    """

    num_questions: int = 0
    num_characters: int = 0
    num_pixels: int = 0
    max_new_tokens: int = 0


class CountingChatModel:
    """Passes questions on and counts them by kind; a ``ChatModel``.

    Args:
        model: that answers.
        kinds: name of each kind of question, by the constant part that it begins with.
    """

    def __init__(self, model: ChatModel, kinds: Mapping[str, str]) -> None:
        self.name = model.name
        self._model = model
        self._kinds = kinds
        self.questions: dict[str, Questions] = {}

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request."""
        answer = await self._model.answer(request)
        questions = self.questions.setdefault(self._kinds.get(request.system, "other"), Questions())
        questions.num_questions += 1
        questions.num_characters += len(request.system) + len(request.text)
        questions.num_pixels += sum(image.shape[0] * image.shape[1] for image in request.images)
        questions.max_new_tokens += request.max_new_tokens
        return answer
