"""Chat completions in the form of OpenAI's API: a region is an RGBA image whose alpha channel is the mask."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from ureca.images import Pixels
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.serving.decoding import check_region_count, decode_image, exact_mask
from ureca.serving.engine import GeneratedCaption
from ureca.serving.schemas import ApiError, GenerationOptions, StrictNumber
from ureca.serving.settings import ServingLimits

_MAX_QUESTION_LENGTH = 2000


class _RequestModel(BaseModel):
    """Base of the request schemas; fields of OpenAI's API that the service does not support are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ImageUrl(_RequestModel):
    """An image."""

    url: str = Field(description="data:image/png;base64,..., or the URL of an image on an allowed host")


class TextPart(_RequestModel):
    """Text of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=20_000)]


class ImagePart(_RequestModel):
    """A region: the pixels of the image with non-zero alpha; the whole image if it has no alpha channel."""

    type: Literal["image_url"]
    image_url: ImageUrl


class ConversationMessage(_RequestModel):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None


class StreamOptions(_RequestModel):
    """Options of a streamed response."""

    include_usage: StrictBool | None = None


class ChatCompletionRequest(_RequestModel):
    """A request for one caption per image of the last user message."""

    model: str
    messages: Annotated[list[ConversationMessage], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[StrictNumber, Field(ge=0, le=10)] | None = None
    top_p: Annotated[StrictNumber, Field(gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = None
    n: Literal[1] | None = Field(default=None, description="choices per image; only 1 is supported")
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None


class CompletionUsage(BaseModel):
    """Token counts. Prompt tokens are not counted, because the number of tokens of an image varies."""

    prompt_tokens: int = 0
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    """A caption."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The caption of the image with this index."""

    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(BaseModel):
    """Captions, one per region, in the order of the images."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage

    @classmethod
    def from_captions(cls, model: str, captions: Mapping[int, GeneratedCaption]) -> "ChatCompletion":
        """Build a response.

        Args:
            model: Name of the model.
            captions: Captions by the index of their image in the request.
        """
        num_tokens = sum(caption.num_tokens for caption in captions.values())
        return cls(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model,
            choices=[
                Choice(
                    index=index,
                    message=AssistantMessage(content=caption.text),
                    finish_reason="stop" if caption.finish_reason == "stop" else "length",
                )
                for index, caption in sorted(captions.items())
            ],
            usage=CompletionUsage(completion_tokens=num_tokens, total_tokens=num_tokens),
        )


class ChatCompletionChunks:
    """Chunks of a streamed chat completion, as JSON objects.

    Args:
        model: Name of the model.
    """

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._num_tokens = 0

    def first(self) -> dict[str, object]:
        """Return the first chunk, which is sent before any caption is finished."""
        return self._chunk(0, {"role": "assistant", "content": ""}, None)

    def caption(self, index: int, caption: GeneratedCaption) -> Iterator[dict[str, object]]:
        """Yield the chunks of the caption of one image."""
        self._num_tokens += caption.num_tokens
        yield self._chunk(index, {"role": "assistant", "content": caption.text}, None)
        yield self._chunk(index, {}, caption.finish_reason)

    def usage(self) -> dict[str, object]:
        """Return the last chunk, for requests with ``stream_options.include_usage``."""
        usage = CompletionUsage(completion_tokens=self._num_tokens, total_tokens=self._num_tokens)
        return {**self._head, "choices": [], "usage": usage.model_dump()}

    def _chunk(self, index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, object]:
        return {**self._head, "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


@dataclass(frozen=True)
class ChatQuestion:
    """The last user message of a conversation.

    Attributes:
        image_urls: URLs of its images.
        params: Path of each image in the request, for error messages.
        options: Generation parameters; the text of the message is the question.
    """

    image_urls: tuple[str, ...]
    params: tuple[str, ...]
    options: GenerationOptions

    @classmethod
    def from_request(cls, request: ChatCompletionRequest) -> "ChatQuestion":
        """Extract the last user message.

        Raises:
            ApiError: 422 ``missing_image`` or ``malformed``.
        """
        place = max((index for index, message in enumerate(request.messages) if message.role == "user"), default=None)
        if place is None:
            raise ApiError(422, "malformed", "there is no message of the user", param="messages")
        param = f"messages[{place}].content"
        content = request.messages[place].content
        parts = content if isinstance(content, list) else []
        images = [(index, part.image_url.url) for index, part in enumerate(parts) if isinstance(part, ImagePart)]
        if not images:
            message = "the last message of the user needs an image_url: an RGBA image whose alpha channel is the region"
            raise ApiError(422, "missing_image", message, param=param)
        text = "\n".join(part.text for part in parts if isinstance(part, TextPart)).strip()
        if len(text) > _MAX_QUESTION_LENGTH:
            message = f"a question has at most {_MAX_QUESTION_LENGTH} characters"
            raise ApiError(422, "malformed", message, param=param)
        return cls(
            image_urls=tuple(url for _, url in images),
            params=tuple(f"{param}[{index}].image_url" for index, _ in images),
            options=GenerationOptions(
                max_new_tokens=request.max_completion_tokens or request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                question=text or None,
            ),
        )


@dataclass(frozen=True, eq=False)
class ChatImage:
    """An image and its regions, merged from the images of a request with equal colors.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: Regions; the id of a mask is the index of its image in the request.
    """

    pixels: Pixels
    masks: tuple[Mask, ...]


def decode_chat_images(files: Sequence[bytes], params: Sequence[str], limits: ServingLimits) -> list[ChatImage]:
    """Decode the images of a request, and merge those with equal colors.

    Args:
        files: Image files, one per region.
        params: Path of each image in the request, for error messages.
        limits: Limits of a request.

    Raises:
        ApiError: 422 ``too_many_regions``, ``too_many_pixels``, ``empty_mask``, or the kind of an ``ImageError``.
    """
    check_region_count(len(files), (1, 1), limits)
    images: list[ChatImage] = []
    num_pixels_left = limits.image.max_pixels
    for index, (data, param) in enumerate(zip(files, params, strict=True)):
        pixels, alpha = decode_image(data, limits.image, param)
        size = (pixels.shape[0], pixels.shape[1])
        check_region_count(len(files), size, limits)
        inside = np.ones(size, np.bool_) if alpha is None else alpha > 0
        if not inside.any():
            raise ApiError(422, "empty_mask", "the alpha channel of the image is 0 everywhere", param=param)
        mask = exact_mask(index, rle_codec.encode(inside))
        same = next((place for place, image in enumerate(images) if np.array_equal(image.pixels, pixels)), None)
        if same is None:
            num_pixels_left -= inside.size
            if num_pixels_left < 0:
                message = f"the images of a request have at most {limits.image.max_pixels} pixels in total"
                raise ApiError(422, "too_many_pixels", message, param=param)
            images.append(ChatImage(pixels, (mask,)))
        else:
            images[same] = ChatImage(pixels, (*images[same].masks, mask))
    return images
