"""OpenAI's chat completions: a region is an RGBA image whose alpha is its mask."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from ureca.images import Pixels
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.serving.decoding import check_number, mask_of, read_image
from ureca.serving.engine import Written
from ureca.serving.schemas import ApiError, Generation
from ureca.serving.settings import ServingLimits

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Part(BaseModel):
    """What clients of OpenAI's may send beyond this is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ImageUrl(_Part):
    """An image."""

    url: str = Field(description="data:image/png;base64,...; or the URL of an image, where the service allows its host")


class TextPart(_Part):
    """Text of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=20_000)]


class ImagePart(_Part):
    """A region: where the alpha of the image is not 0; without alpha, all of it."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Part):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None


class StreamOptions(_Part):
    """How an answer is streamed."""

    include_usage: StrictBool | None = None


class ChatRequest(_Part):
    """A request for a caption of each image of its last user message."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[_Number, Field(ge=0, le=10)] | None = None
    top_p: Annotated[_Number, Field(gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = None
    n: Literal[1] | None = Field(default=None, description="each image has one answer")
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None


class Usage(BaseModel):
    """Tokens. Those of the prompts are not counted: images have no fixed number."""

    prompt_tokens: int = 0
    completion_tokens: int
    total_tokens: int


class ChatMessage(BaseModel):
    """A caption."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """Of the image with this index."""

    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatAnswer(BaseModel):
    """Captions, one a region, in the order of the images."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


@dataclass(frozen=True, eq=False)
class Picture:
    """Regions of one image, from images of the request that have equal colours.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: whose ids are the places of their images among those of the request.
    """

    pixels: Pixels
    masks: tuple[Mask, ...]


def last_question(request: ChatRequest) -> tuple[list[str], list[str], Generation]:
    """URLs of the images of the last user message, where each is in the request, and how captions are to be written.

    Raises:
        Refusal: 422 ``missing_image`` or ``malformed``.
    """
    place = max((index for index, message in enumerate(request.messages) if message.role == "user"), default=None)
    if place is None:
        raise ApiError(422, "malformed", "there is no message of the user", param="messages")
    content = request.messages[place].content
    parts = content if isinstance(content, list) else []
    images = [(index, part.image_url.url) for index, part in enumerate(parts) if isinstance(part, ImagePart)]
    if not images:
        message = "the last message of the user needs an image_url: an RGBA image whose alpha is the region"
        raise ApiError(422, "missing_image", message, param=f"messages[{place}].content")
    text = "\n".join(part.text for part in parts if isinstance(part, TextPart)).strip()
    if len(text) > 2000:
        raise ApiError(422, "malformed", "a question has at most 2000 letters", param=f"messages[{place}].content")
    generation = Generation(
        max_new_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        question=text or None,
    )
    fields = [f"messages[{place}].content[{index}].image_url" for index, _ in images]
    return [url for _, url in images], fields, generation


def read_pictures(files: Sequence[bytes], fields: Sequence[str], limits: ServingLimits) -> list[Picture]:
    """Decode the images of a request; those of equal colours become one picture with several masks.

    Args:
        files: image files, one a region.
        fields: where each is in the request.
        limits: of images and regions.

    Raises:
        Refusal: 422 ``too_many_regions``, ``too_many_pixels``, ``empty_mask``, or a kind of ``ImageError``.
    """
    check_number(len(files), (1, 1), limits)
    pictures: list[Picture] = []
    room = limits.image.max_pixels
    for index, (data, field) in enumerate(zip(files, fields, strict=True)):
        pixels, alpha = read_image(data, limits.image, field)
        check_number(len(files), _size(pixels), limits)
        inside = np.ones(_size(pixels), np.bool_) if alpha is None else alpha > 0
        if not inside.any():
            raise ApiError(422, "empty_mask", "the alpha of the image is 0 everywhere", param=field)
        mask = mask_of(index, rle_codec.encode(inside))
        same = next((place for place, picture in enumerate(pictures) if _equal(picture.pixels, pixels)), None)
        if same is None:
            room -= inside.size
            if room < 0:
                message = f"the images of a request have at most {limits.image.max_pixels} pixels together"
                raise ApiError(422, "too_many_pixels", message, param=field)
            pictures.append(Picture(pixels, (mask,)))
        else:
            pictures[same] = Picture(pictures[same].pixels, (*pictures[same].masks, mask))
    return pictures


def chat_answer(model: str, written: dict[int, Written]) -> ChatAnswer:
    """The whole answer; ``written`` has the caption of each image by its place."""
    num_tokens = sum(item.num_tokens for item in written.values())
    return ChatAnswer(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        choices=[
            Choice(
                index=index,
                message=ChatMessage(content=item.text),
                finish_reason="stop" if item.finish_reason == "stop" else "length",
            )
            for index, item in sorted(written.items())
        ],
        usage=Usage(completion_tokens=num_tokens, total_tokens=num_tokens),
    )


class Chunks:
    """The pieces of a streamed answer, as JSON objects.

    Args:
        model: name of the model.
    """

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._num_tokens = 0

    def start(self) -> dict[str, object]:
        """The first one, which says that the request is being worked on."""
        return self._chunk(0, {"role": "assistant", "content": ""}, None)

    def of(self, index: int, written: Written) -> Iterator[dict[str, object]]:
        """Those of one caption."""
        self._num_tokens += written.num_tokens
        yield self._chunk(index, {"role": "assistant", "content": written.text}, None)
        yield self._chunk(index, {}, written.finish_reason)

    def usage(self) -> dict[str, object]:
        """The last one, where it was asked for."""
        usage = Usage(completion_tokens=self._num_tokens, total_tokens=self._num_tokens)
        return {**self._head, "choices": [], "usage": usage.model_dump()}

    def _chunk(self, index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, object]:
        return {**self._head, "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def _size(pixels: Pixels) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]


def _equal(first: Pixels, second: Pixels) -> bool:
    return first.shape == second.shape and bool((first == second).all())
