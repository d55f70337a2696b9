"""A request in the form that chat templates take, whatever family of models they belong to."""

import logging
import re
from typing import Any

import numpy as np
from PIL import Image

from ureca.errors import SettingsError
from ureca.llm.protocol import ChatRequest

_log = logging.getLogger(__name__)

_PROBE = ChatRequest("The rules.", (np.zeros((64, 64, 3), np.uint8), "The question."), {}, 0.0, 1)


class ChatTemplate:
    """The chat template of a checkpoint's processor, as transformers loads it.

    Some templates know no system message, and others drop it in silence: there it becomes the beginning of the user's
    turn. Either way it comes first, so that prefix caches serve it. The special tokens of the family are taken out of
    texts: what a model once said must not end a turn, nor stand for an image.

    Args:
        processor: of the checkpoint; the template of its tokenizer serves where it has none.
        checkpoint: its name, for messages.

    Raises:
        SettingsError: there is no template, or it does not take a question with an image.
    """

    def __init__(self, processor: Any, checkpoint: str) -> None:
        self._processor = processor
        tokenizer = getattr(processor, "tokenizer", None)
        self.template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        if self.template is None or tokenizer is None:
            raise SettingsError(f"checkpoint '{checkpoint}' has no chat template, as chat models that see images have")
        special = sorted({token.content for token in tokenizer.added_tokens_decoder.values() if token.special})
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._has_system = True
        if not self._renders(_PROBE):
            self._has_system = False
            if not self._renders(_PROBE):
                raise SettingsError(f"checkpoint '{checkpoint}': its chat template takes no question with an image")

    def conversation(self, request: ChatRequest) -> list[dict[str, Any]]:
        """The messages of a request; its images as PIL images."""
        content = [self._text(part) if isinstance(part, str) else _image(part) for part in request.parts]
        if not request.system:  # some families have a system message of their own, which an empty one would replace
            return [{"role": "user", "content": content}]
        system = self._text(request.system)
        if self._has_system:
            return [{"role": "system", "content": [system]}, {"role": "user", "content": content}]
        return [{"role": "user", "content": [system, *content]}]

    def render(self, request: ChatRequest) -> str:
        """The prompt as text, with the family's own placeholder for each image."""
        conversation = self.conversation(request)
        rendered = self._processor.apply_chat_template(
            conversation, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        return str(rendered)

    def _text(self, text: str) -> dict[str, Any]:
        return {"type": "text", "text": self._special.sub(" ", text)}

    def _renders(self, request: ChatRequest) -> bool:
        from jinja2 import TemplateError

        try:
            rendered = self.render(request)
        except (TemplateError, TypeError) as error:  # some join text to the list of contents
            _log.debug("this chat template does not take %s: %s", request, error)
            return False
        return request.system in rendered and request.text in rendered


def _image(pixels: Any) -> dict[str, Any]:
    return {"type": "image", "image": Image.fromarray(pixels)}
