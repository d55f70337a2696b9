"""A chat model that transformers runs in this process."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ureca.batching import DynamicBatcher
from ureca.extras import not_installed
from ureca.llm.load import process_load
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.llm.settings import TransformersConfig

if TYPE_CHECKING:
    from ureca.llm.transformers_model import PreparedBatch

_PIXELS_PER_TOKEN = 28 * 28
_CHARACTERS_PER_TOKEN = 4


class TransformersChatModel:
    """Runs a checkpoint with transformers; a ``ChatModel``.

    Waiting requests are answered in batches, each at its own temperature and limit of new tokens. An answer does not
    depend on the rest of its batch (but for the rounding of half-precision numbers): its tokens are sampled with a seed
    from the request's content. Answers are not constrained by their schema.

    Args:
        settings: checkpoint, device and batch size.

    Raises:
        SettingsError: transformers or torch is not installed, or ``LocalModel`` cannot load the checkpoint.
    """

    def __init__(self, settings: TransformersConfig) -> None:
        try:
            from ureca.llm.transformers_model import LocalModel
        except ImportError as error:
            raise not_installed("mllm.kind transformers", error, "model") from error
        self.name = settings.checkpoint
        self._load = process_load()
        self._load.set_slots(self, 1)
        self.local_model = LocalModel(settings)
        self._batcher = DynamicBatcher(
            self._generate,
            max_batch_size=settings.max_batch_size,
            prepare=self.local_model.prepare,
            length=_num_prompt_tokens,
        )

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request.

        Raises:
            AnswerError: ``unusable_request``, ``too_long`` or ``out_of_memory``.
        """
        with self._load.request():
            return await self._batcher.submit(request)

    def close(self) -> None:
        """End the threads; no request may follow."""
        self._batcher.close()

    def _generate(self, batch: "PreparedBatch", deliver: Callable[[int, ChatAnswer], None]) -> None:
        with self._load.busy():
            answers = self.local_model.generate(batch)
        for index, answer in enumerate(answers):
            deliver(index, answer)


def _num_prompt_tokens(request: ChatRequest) -> float:
    """Estimate the tokens of the prompt. Families differ, but not in the order of two prompts by length."""
    pixels = sum(image.size // 3 for image in request.images)
    return pixels / _PIXELS_PER_TOKEN + (len(request.system) + len(request.text)) / _CHARACTERS_PER_TOKEN
