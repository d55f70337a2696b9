"""The official OpenAI client of a server of a checkpoint."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.vllm.reference import NUM_NEW_TOKENS, QUESTION, draw_inputs


def png(picture: Any) -> bytes:
    """Return the PNG file of an array [H, W] or [H, W, C] of uint8."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def with_alpha(image: Any, mask: Any) -> Any:
    """Return an image whose alpha channel is its mask."""
    return np.dstack([image, mask.astype(np.uint8) * 255])


def image_part(data: bytes) -> dict[str, Any]:
    """Return the part of a message with the bytes of an image file."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


class Client:
    """A client of the server at a port of this machine.

    Args:
        port: port of the server.
        model: name of the served model.
        checkpoint: folder of the served checkpoint.
    """

    def __init__(self, port: int, model: str, checkpoint: Path) -> None:
        import openai
        from transformers import AutoTokenizer

        self._model = model
        self._end = AutoTokenizer.from_pretrained(checkpoint).eos_token_id
        # A request is sent once: these tests ask about its status.
        self._client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=400, max_retries=0)

    def send(self, content: list[dict[str, Any]]) -> list[int]:
        """Send a message, and return the new tokens before the end.

        Raises:
            openai.APIStatusError: the server refuses it.
        """
        completion = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": content}],  # type: ignore[misc,list-item]
            temperature=0,
            max_tokens=NUM_NEW_TOKENS,
            extra_body={"return_token_ids": True},  # texts of invalid bytes, which a random model writes, may differ
        )
        token_ids = list(completion.choices[0].token_ids)  # type: ignore[attr-defined]
        return token_ids[:-1] if token_ids[-1:] == [self._end] else token_ids

    def ask(self, picture: Any) -> list[int]:
        """Ask for the caption of a picture's region."""
        return self.send([image_part(png(picture)), {"type": "text", "text": QUESTION}])


def check_regions(client: Client, checkpoint: Path) -> None:
    """Check that a server generates the tokens of transformers for regions in alpha channels, and whole images."""
    reference = json.loads((checkpoint / "reference.json").read_text())
    for (image, masks), regions, whole in zip(draw_inputs(), reference["regions"], reference["whole"], strict=True):
        for mask, expected in zip(masks, regions, strict=True):
            assert client.ask(with_alpha(image, mask)) == expected
        assert client.ask(image) == whole
