"""The chat model in this process."""

from ureca.errors import SettingsError
from ureca.llm.load import process_load
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.llm.settings import TransformersSettings
from ureca.llm.transformers_model import Batches

_PIXELS_A_TOKEN = 28 * 28
_CHARACTERS_A_TOKEN = 4


class TransformersChatModel:
    """Runs a checkpoint by transformers; a ``ChatModel``.

    Requests that wait are answered in batches, each at its own temperature and bound. What a request is answered
    depends on nothing else in its batch (but for the rounding of half-precision numbers): its tokens are drawn with a
    seed from its content. Answers are not constrained by their schema.

    Raises:
        SettingsError: transformers or torch is not installed, or see ``LocalModel``.
    """

    def __init__(self, settings: TransformersSettings) -> None:
        try:
            from ureca.llm.transformers_model import LocalModel
        except ImportError as error:
            raise SettingsError(
                f"mllm.kind transformers needs the package '{error.name}', which is not installed: "
                "pip install 'ureca-ray[model]'"
            ) from error
        self.name = settings.checkpoint
        model = LocalModel(settings)
        self._load = process_load()
        self._load.set_slots(self, 1)
        self._batches = Batches(model.prepare, self._load.busy()(model.generate), _length, settings.max_batch_size)

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request.

        Raises:
            AnswerError: ``unusable_request``, ``too_long`` or ``out_of_memory``.
        """
        with self._load.asked():
            return await self._batches.submit(request)

    def close(self) -> None:
        """End the threads; nothing may be asked from then on."""
        self._batches.close()


def _length(request: ChatRequest) -> float:
    """About as many tokens as the prompt has; families differ, but not in which of two prompts is the longer."""
    pixels = sum(image.size // 3 for image in request.images)
    return pixels / _PIXELS_A_TOKEN + (len(request.system) + len(request.text)) / _CHARACTERS_A_TOKEN
