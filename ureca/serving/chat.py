"""Chat completions in the form of OpenAI's API.

A region is an RGBA image whose alpha channel is the mask, or an image with a black and white mask image of its size.
"""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from ureca.captioning.engine import GeneratedCaption
from ureca.images import Pixels
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.serving.decoding import check_region_count, decode_image, exact_mask
from ureca.serving.schemas import ApiError, GenerationOptions, StrictNumber, check_served_question
from ureca.serving.settings import ServingLimits

_MAX_TEXT_LENGTH = 1_000_000
_MAX_CHOICES = 128
_SEEDS_PER_CHOICE = 2**20
"""Distance of the seeds of an image's choices: more than the number of its regions."""

_IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""Parameters of OpenAI's API that do not change the meaning of a response here."""

_NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (-1, 0),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
    "web_search_options": (),
}
"""Parameters of OpenAI's API, and of servers like vLLM, that the service does not support, with the values that change
nothing."""

_MAX_LABEL_COLORS = 32
_MAX_SAMPLED_PIXELS = 100_000


class _RequestModel(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ImageUrl(_RequestModel):
    """An image."""

    url: str = Field(description="data:image/png;base64,..., or the URL of an image on an allowed host")


class TextPart(_RequestModel):
    """Text of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=_MAX_TEXT_LENGTH)]


class ImagePart(_RequestModel):
    """A region (pixels of at least half the largest alpha), a whole image, or a black and white mask for one."""

    type: Literal["image_url"]
    image_url: ImageUrl | str = Field(description="the image, or its URL alone")

    @property
    def url(self) -> str:
        """URL of the image."""
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


class IgnoredPart(_RequestModel):
    """A part of an earlier answer that is no text; the model sees no answers."""

    type: Literal["refusal"]


class ConversationMessage(_RequestModel):
    """A message of the conversation; those of tools and of the assistant are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Annotated[str, Field(max_length=_MAX_TEXT_LENGTH)]
        | Annotated[
            list[Annotated[TextPart | ImagePart | IgnoredPart, Field(discriminator="type")]],
            Field(fail_fast=True, max_length=1000),
        ]
        | None
    ) = None


class StreamOptions(_RequestModel):
    """Options of a streamed response."""

    include_usage: StrictBool | None = None


_StopString = Annotated[str, Field(min_length=1, max_length=200)]


class ChatCompletionRequest(_RequestModel):
    """A request for captions of the regions in the latest user message with images.

    The text of the last user message is the question. Parameters of OpenAI's API that are not listed here are rejected
    by name, unless they have the value that changes nothing.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str
    messages: Annotated[list[ConversationMessage], Field(fail_fast=True, min_length=1, max_length=1000)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = Field(
        default=None,
        description="maximum number of tokens of a caption; values above the service's limit mean the limit",
    )
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = Field(
        default=None, description="the newer name of max_tokens, which it overrides"
    )
    temperature: Annotated[StrictNumber, Field(ge=0, le=10)] | None = None
    top_p: Annotated[StrictNumber, Field(ge=0, le=1)] | None = Field(
        default=None, description="nucleus sampling; 0: greedy decoding"
    )
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: _StopString | Annotated[list[_StopString], Field(max_length=4)] | None = Field(
        default=None, description="up to 4 strings before which a caption ends"
    )
    n: Annotated[StrictInt, Field(ge=1, le=_MAX_CHOICES)] | None = Field(
        default=None, description="choices per region, each sampled with its own seed"
    )
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None

    def check_supported(self) -> None:
        """Check the parameters without a field.

        Raises:
            ApiError: 400 ``unsupported_parameter``, for one that would change the response, or that is unknown.
        """
        for name, value in (self.model_extra or {}).items():
            if value is None or name in _IGNORED:
                continue
            neutral = _NEUTRAL_VALUES.get(name)
            # 0 == False, but neither is a substitute for the other.
            if neutral is not None and any(value == other and _is_bool(value) == _is_bool(other) for other in neutral):
                continue
            problem = "is not supported by this service" if neutral is not None else "is unknown"
            message = f"the parameter {name[:100]} {problem}; leave it out"
            raise ApiError(400, "unsupported_parameter", message, param=name[:100])


class CompletionUsage(BaseModel):
    """Token counts.

    The prompt tokens are those of each region's prompt, its image included, and count once for all choices of a region.
    Completion tokens include those after a stop string.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def from_captions(cls, captions: Mapping[int, GeneratedCaption], num_choices: int) -> "CompletionUsage":
        """Count the tokens of finished captions by choice; each region has ``num_choices`` adjacent choices."""
        prompt_tokens = sum(
            caption.num_prompt_tokens for index, caption in captions.items() if index % num_choices == 0
        )
        completion_tokens = sum(caption.num_tokens for caption in captions.values())
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class AssistantMessage(BaseModel):
    """A caption."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """A caption: region i of the message has the choices from i x n on."""

    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(BaseModel):
    """Captions of the regions, in the order of their images."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage

    @classmethod
    def from_captions(
        cls, model: str, captions: Mapping[int, GeneratedCaption], num_choices: int = 1
    ) -> "ChatCompletion":
        """Build a response.

        Args:
            model: name of the model.
            captions: captions by the index of their choice.
            num_choices: number of choices per region.
        """
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
            usage=CompletionUsage.from_captions(captions, num_choices),
        )


class ChatCompletionChunks:
    """Chunks of a streamed chat completion, as JSON objects.

    Args:
        model: name of the model.
        num_choices: number of choices per region.
    """

    def __init__(self, model: str, num_choices: int = 1) -> None:
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._num_choices = num_choices
        self._num_sent: dict[int, int] = {}  # characters by choice
        self._finished: dict[int, GeneratedCaption] = {}

    def first(self, indices: Sequence[int]) -> Iterator[dict[str, object]]:
        """Yield the first chunk of each choice, which is sent before any caption has begun."""
        for index in indices:
            yield self._chunk(index, {"role": "assistant", "content": ""}, None)

    def caption(self, index: int, caption: GeneratedCaption) -> Iterator[dict[str, object]]:
        """Yield the chunks of a choice whose caption has become longer, or is finished."""
        text = caption.text[self._num_sent.get(index, 0) :]
        self._num_sent[index] = len(caption.text)
        if text:
            yield self._chunk(index, {"content": text}, None)
        if caption.finish_reason is not None:
            self._finished[index] = caption
            yield self._chunk(index, {}, caption.finish_reason)

    def usage(self) -> dict[str, object]:
        """Return the last chunk, for requests with ``stream_options.include_usage``."""
        usage = CompletionUsage.from_captions(self._finished, self._num_choices)
        return {**self._head, "choices": [], "usage": usage.model_dump()}

    def _chunk(self, index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, object]:
        return {**self._head, "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


@dataclass(frozen=True)
class ChatQuestion:
    """The images and the question of a conversation.

    Attributes:
        image_urls: URLs of the images of the latest user message that has any.
        params: path of each image in the request, for error messages.
        options: generation parameters; the text of the last user message is the question.
        stop: strings before which a caption ends.
        num_choices: number of choices per region.
    """

    image_urls: tuple[str, ...]
    params: tuple[str, ...]
    options: GenerationOptions
    stop: tuple[str, ...]
    num_choices: int

    @classmethod
    def from_request(cls, request: ChatCompletionRequest) -> "ChatQuestion":
        """Extract images and question.

        Raises:
            ApiError: 400 ``unsupported_parameter``, ``missing_image`` or ``malformed``.
        """
        request.check_supported()
        places = [index for index, message in enumerate(request.messages) if message.role == "user"]
        if not places:
            raise ApiError(400, "malformed", "there is no message of the user", param="messages")
        last = f"messages[{places[-1]}].content"
        images: list[tuple[str, str]] = []
        for place in reversed(places):
            images = [
                (f"messages[{place}].content[{index}].image_url", part.url)
                for index, part in enumerate(_parts(request.messages[place]))
                if isinstance(part, ImagePart)
            ]
            if images:
                break
        else:
            message = "a message of the user needs an image_url: an RGBA image whose alpha channel is the region"
            raise ApiError(400, "missing_image", message, param=last)
        text = "\n".join(part.text for part in _parts(request.messages[places[-1]]) if isinstance(part, TextPart))
        text = text.strip()
        try:
            check_served_question(text)
        except ValueError as error:
            raise ApiError(400, "malformed", str(error), param=last) from error
        stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
        return cls(
            image_urls=tuple(url for _, url in images),
            params=tuple(param for param, _ in images),
            options=GenerationOptions(
                max_new_tokens=request.max_completion_tokens or request.max_tokens,
                temperature=0 if request.top_p == 0 else request.temperature,
                top_p=request.top_p or None,
                seed=None if request.seed is None else request.seed % 2**31,
                question=text or None,
            ),
            stop=stop,
            num_choices=request.n or 1,
        )


def choice_seed(seed: int, choice: int) -> int:
    """Return the seed of a choice of all regions: those of different choices and regions differ."""
    return seed + choice * _SEEDS_PER_CHOICE


def _parts(message: ConversationMessage) -> Sequence[TextPart | ImagePart | IgnoredPart]:
    if isinstance(message.content, str):
        return [TextPart.model_construct(type="text", text=message.content)]
    return message.content or []


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


@dataclass(frozen=True, eq=False)
class ChatImage:
    """An image and its regions, merged from the images of a request with equal colours.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: regions; the id of a mask is the index of the region in the request.
    """

    pixels: Pixels
    masks: tuple[Mask, ...]


def decode_chat_images(files: Sequence[bytes], params: Sequence[str], limits: ServingLimits) -> list[ChatImage]:
    """Decode the images of a request to regions, and merge those with equal colours.

    An image whose alpha differs is a region: its pixels of at least half the largest alpha. Another is a region as a
    whole, unless the request also has black and white images: each of them is the mask of the previous (else the next)
    image of its size, which then is no region itself.

    Args:
        files: image files.
        params: path of each image in the request, for error messages.
        limits: limits of a request.

    Raises:
        ApiError: 422 ``too_many_regions``, ``too_many_pixels``, ``empty_mask``, ``size_mismatch`` or ``ambiguous_mask``
            (of a mask image), or the kind of an ``ImageError``.
    """
    check_region_count(len(files), (1, 1), limits)
    images: list[Pixels] = []
    insides: list[rle_codec.Rle | None] = []  # by file: None for an image without transparent pixels
    places: list[int] = []  # by file: index of its colours in ``images``
    num_pixels_left = limits.image.max_pixels
    for data, param in zip(files, params, strict=True):
        pixels, alpha = decode_image(data, limits.image, param)
        size = (pixels.shape[0], pixels.shape[1])
        check_region_count(len(files), size, limits)
        has_region = alpha is not None and bool((alpha != alpha[0, 0]).any())
        insides.append(rle_codec.encode(alpha >= alpha.max() / 2) if alpha is not None and has_region else None)
        if alpha is not None and not alpha.any():
            raise ApiError(422, "empty_mask", "the alpha channel of the image is 0 everywhere", param=param)
        same = next((place for place, image in enumerate(images) if np.array_equal(image, pixels)), None)
        places.append(len(images) if same is None else same)
        if same is None:
            num_pixels_left -= size[0] * size[1]
            if num_pixels_left < 0:
                message = f"the images of a request have at most {limits.image.max_pixels} pixels in total"
                raise ApiError(422, "too_many_pixels", message, param=param)
            images.append(pixels)
    opaque = [file for file, inside in enumerate(insides) if inside is None]
    mask_of = _assign_mask_images({file: images[places[file]] for file in opaque}, params) if len(opaque) > 1 else {}
    masks: dict[int, list[Mask]] = {}
    regions = [file for file in range(len(files)) if file not in mask_of.values()]
    for id, file in enumerate(regions):
        inside, image = insides[file], places[file]
        if file in mask_of:
            inside, image = _encode_mask_image(images[places[file]], params[file]), places[mask_of[file]]
        if inside is None:
            inside = rle_codec.encode(np.ones(images[image].shape[:2], np.bool_))
        masks.setdefault(image, []).append(exact_mask(id, inside))
    return [ChatImage(images[place], tuple(of_image)) for place, of_image in masks.items()]


def _assign_mask_images(images: Mapping[int, Pixels], params: Sequence[str]) -> dict[int, int]:
    """Return the file of the image by the file of its mask image, among the images without transparent pixels.

    Without another image, black and white images are images.
    """
    mask_files = [file for file, pixels in images.items() if _is_black_and_white(pixels)]
    photographs = [file for file in images if file not in mask_files]
    if not photographs:
        return {}
    assigned: dict[int, int] = {}
    for file in mask_files:
        fitting = [other for other in photographs if images[other].shape == images[file].shape]
        if not fitting:
            height, width = images[file].shape[:2]
            message = f"a black and white image of {width} x {height} pixels is a mask, but no image has its size"
            raise ApiError(422, "size_mismatch", message, param=params[file])
        assigned[file] = max((other for other in fitting if other < file), default=min(fitting))
    for file in photographs:
        alike = [other for other in photographs if other != file and images[other].shape == images[file].shape]
        if _may_be_labels(images[file]) and not all(_may_be_labels(images[other]) for other in alike):
            message = (
                "this may be a mask, but is not black and white: send one black and white image per region, or put the "
                "mask into the alpha channel of the image"
            )
            raise ApiError(422, "ambiguous_mask", message, param=params[file])
    return assigned


def _is_black_and_white(pixels: Pixels) -> bool:
    """Return True for black and one other colour, or for grey levels near black and white, as JPEG makes them."""
    colored = pixels.any(axis=2)
    if not colored.all() and (not colored.any() or bool((pixels[colored] == pixels[colored][0]).all())):
        return True
    brightest, darkest = pixels.max(axis=2), pixels.min(axis=2)
    is_grey = int((brightest - darkest).max()) <= 24
    return is_grey and float(((brightest <= 48) | (darkest >= 207)).mean()) >= 0.98


def _may_be_labels(pixels: Pixels) -> bool:
    """Return True for grey levels, and for few colours with black: a soft mask, or a map of labels."""
    step = max(1, round((pixels.shape[0] * pixels.shape[1] / _MAX_SAMPLED_PIXELS) ** 0.5))
    sample: Any = pixels[::step, ::step].reshape(-1, 3).astype(np.int32)
    if not (sample - sample[:, :1]).any():
        return True
    colors = np.unique(sample @ np.array([1 << 16, 1 << 8, 1]))
    return len(colors) <= _MAX_LABEL_COLORS and colors[0] == 0


def _encode_mask_image(pixels: Pixels, param: str) -> rle_codec.Rle:
    brightest = pixels.max(axis=2)
    inside = brightest > (127 if int(brightest.max()) > 127 else 0)
    if not inside.any():
        raise ApiError(422, "empty_mask", "the mask image is black everywhere", param=param)
    return rle_codec.encode(inside)
