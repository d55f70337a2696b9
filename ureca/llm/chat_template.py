"""Chat templates of checkpoints: from a request to messages and to a prompt, for any family of models."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ureca.errors import SettingsError
from ureca.llm.protocol import ChatRequest

_log = logging.getLogger(__name__)

_PROBE = ChatRequest("The rules.", (np.zeros((64, 64, 3), np.uint8), "The question."), {}, 0.0, 1)


class ChatTemplate:
    """The chat template of a checkpoint's processor, as transformers loads it.

    If the template has no system message, or silently drops it, the system text is put at the beginning of the user's
    turn: either way it comes first, so that prefix caches hit. Special tokens of the family are removed from texts:
    the text of an earlier answer must not end a turn or insert an image.

    Args:
        processor: processor of the checkpoint; its tokenizer's template is used if it has none itself.
        checkpoint: name of the checkpoint, for error messages.
        arguments: further variables of the template, such as ``enable_thinking``; None: none.

    Raises:
        SettingsError: there is no template, or it does not support a question with an image.
    """

    def __init__(self, processor: Any, checkpoint: str, arguments: Mapping[str, Any] | None = None) -> None:
        self._processor = processor
        self._arguments = dict(arguments or {})
        tokenizer = getattr(processor, "tokenizer", None)
        self.template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        if self.template is None or tokenizer is None:
            raise SettingsError(
                f"checkpoint '{checkpoint}' has no chat template: it is not a chat model that takes images"
            )
        special = sorted({token.content for token in tokenizer.added_tokens_decoder.values() if token.special})
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._has_system = True
        if not self._renders(_PROBE):
            self._has_system = False
            if not self._renders(_PROBE):
                raise SettingsError(f"checkpoint '{checkpoint}': its chat template does not support images")

    def conversation(self, request: ChatRequest) -> list[dict[str, Any]]:
        """Return the messages of a request, with PIL images."""
        content = [
            self._text(part) if isinstance(part, str) else {"type": "image", "image": Image.fromarray(part)}
            for part in request.parts
        ]
        if not request.system:  # an empty one would replace the family's default system message
            return [{"role": "user", "content": content}]
        system = self._text(request.system)
        if self._has_system:
            return [{"role": "system", "content": [system]}, {"role": "user", "content": content}]
        return [{"role": "user", "content": [system, *content]}]

    def render(self, request: ChatRequest) -> str:
        """Return the prompt as text, with the family's placeholder for each image."""
        conversation = self.conversation(request)
        rendered = self._processor.apply_chat_template(
            conversation,
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=True,
            **self._arguments,
        )
        return str(rendered)

    def _text(self, text: str) -> dict[str, Any]:
        return {"type": "text", "text": self._special.sub(" ", text)}

    def _renders(self, request: ChatRequest) -> bool:
        from jinja2 import TemplateError

        try:
            rendered = self.render(request)
        except (TemplateError, TypeError) as error:  # some templates concatenate text and the list of contents
            _log.debug("the chat template does not support %s: %s", request, error)
            return False
        return request.system in rendered and request.text in rendered
