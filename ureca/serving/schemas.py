"""Schemas of the HTTP API: requests, responses and errors.

The chat completions of OpenAI's API have their own schemas in ``ureca.serving.chat``.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from ureca.errors import DataError, UrecaError
from ureca.masks.mask import MAX_MASKS
from ureca.masks.prompts import MAX_POINTS
from ureca.model.settings import MAX_TEMPERATURE, CaptionSettings, check_question

StrictNumber = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite JSON number; strings are not converted."""

REGION_FORMS = ("rle", "polygon", "mask_png", "bbox_xywh", "points")
"""Fields of ``RegionInput`` that specify a region."""

MAX_NAME_LENGTH = 200
"""Maximum length of the name of a model."""

MAX_COUNTS_LENGTH = 2**23
"""Maximum number of characters of all compressed run lengths of a request together."""

MAX_QUESTION_BYTES = 2000
"""Maximum length of a question in UTF-8; a tokenizer of bytes makes as many tokens of it."""

_MAX_RUNS = 300_000
_MAX_COORDINATES = 200_000
_MAX_POLYGONS = 10_000

_Side = Annotated[StrictInt, Field(ge=1, lt=2**31)]


# Requests


class _RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown_field(cls, values: Any) -> Any:
        """Drop all unknown fields but the first: each costs an error, and one is enough to reject the request."""
        if not isinstance(values, dict) or len(values) <= len(cls.model_fields):
            return values
        known = {name: value for name, value in values.items() if name in cls.model_fields}
        unknown = next(name for name in values if name not in cls.model_fields)
        return {**known, unknown: values[unknown]}


class PromptPoint(_RequestModel):
    """A point prompt in pixels."""

    x: StrictNumber
    y: StrictNumber
    label: Literal[0, 1] = Field(default=1, description="1: the point is inside the region, 0: outside")


class RunLengths(_RequestModel):
    """A mask in COCO run-length encoding, in requests and responses."""

    size: tuple[_Side, _Side] = Field(description="height and width of the image in pixels")
    counts: (
        Annotated[str, Field(max_length=MAX_COUNTS_LENGTH)]
        | Annotated[list[StrictInt], Field(fail_fast=True, max_length=_MAX_RUNS)]
    ) = Field(description="compressed run lengths, or a list of run lengths")


class RegionInput(_RequestModel):
    """A region of the request: a mask (`rle`, `polygon` or `mask_png`), or a prompt for the segmenter (`bbox_xywh`,
    `points` or both)."""

    region_id: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = Field(
        default=None, description="identifier in the response, unique in the request; default: the lowest free ids"
    )
    rle: RunLengths | None = None
    polygon: (
        Annotated[
            list[Annotated[list[StrictNumber], Field(fail_fast=True, max_length=_MAX_COORDINATES)]],
            Field(fail_fast=True, max_length=_MAX_POLYGONS),
        ]
        | None
    ) = Field(default=None, description="polygons of the region, each a flat list x0, y0, x1, y1, ... in pixels")
    mask_png: str | None = Field(
        default=None,
        description="base64-encoded image file of the image's size that holds one mask: values, not colours, decide; "
        "0 and transparent are outside; soft and lossy edges are cut at half the maximum",
    )
    mask_value: Annotated[StrictInt, Field(ge=0, lt=2**32)] | None = Field(
        default=None,
        description="value of the pixels inside, for a `mask_png` with several: index of a palette, grey, or "
        "red + 256 * green + 65536 * blue",
    )
    bbox_xywh: tuple[StrictNumber, StrictNumber, StrictNumber, StrictNumber] | None = Field(
        default=None, description="x, y, width, height in pixels"
    )
    points: Annotated[list[PromptPoint], Field(fail_fast=True, min_length=1, max_length=MAX_POINTS)] | None = None

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        given = {name for name in REGION_FORMS if getattr(self, name) is not None}
        if len(given) != 1 and given != {"bbox_xywh", "points"}:
            found = ", ".join(sorted(given)) or "none"
            raise ValueError(f"a region has one of {', '.join(REGION_FORMS)} (or bbox_xywh with points), not {found}")
        if self.mask_value is not None and self.mask_png is None:
            raise ValueError("mask_value goes with mask_png")
        return self

    @property
    def is_prompt(self) -> bool:
        """True if the segmenter has to compute the mask."""
        return self.bbox_xywh is not None or self.points is not None


class RegionsRequest(_RequestModel):
    """An image and its regions."""

    image: str | None = Field(
        default=None,
        description="base64-encoded image file, `data:` URL, or the URL of an image on an allowed host; required "
        "unless the file is part of a multipart request",
    )
    regions: Annotated[list[RegionInput], Field(fail_fast=True, min_length=1, max_length=MAX_MASKS)] | None = Field(
        default=None, description="regions of the image; default: all regions that the segmenter finds"
    )
    frame: Literal["upright", "stored"] = Field(
        default="upright",
        description="frame of the regions in an image with an EXIF orientation: as it is shown (upright), or as its "
        "pixels lie in the file (stored); the regions of the response are upright",
    )
    lookalikes: StrictBool = Field(default=False, description="return `lookalike_ids` for each region")


def check_served_question(question: str) -> str:
    """Return a question of a request.

    Raises:
        ValueError: it is too long, or has a special token of the model.
    """
    if len(question.encode("utf-8", "surrogatepass")) > MAX_QUESTION_BYTES:
        raise ValueError(f"a question has at most {MAX_QUESTION_BYTES} bytes in UTF-8")
    return check_question(question)


class GenerationOptions(_RequestModel):
    """Generation parameters; the service's settings apply to the absent ones."""

    max_new_tokens: Annotated[StrictInt, Field(ge=1)] | None = Field(
        default=None, description="maximum number of tokens of a caption; at most the service's limit"
    )
    temperature: Annotated[StrictNumber, Field(ge=0, le=MAX_TEMPERATURE)] | None = Field(
        default=None, description="sampling temperature; 0: greedy decoding"
    )
    top_p: Annotated[StrictNumber, Field(gt=0, le=1)] | None = Field(
        default=None, description="nucleus sampling: sample from the likeliest tokens with this total probability"
    )
    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = Field(
        default=None, description="random seed; region i of the request is sampled with seed + i"
    )
    question: (
        Annotated[str, Field(min_length=1, max_length=MAX_QUESTION_BYTES), AfterValidator(check_served_question)] | None
    ) = Field(
        default=None,
        description=f"question to the model about each region, without its special tokens; at most "
        f"{MAX_QUESTION_BYTES} bytes in UTF-8",
    )

    def apply_to(self, defaults: CaptionSettings, *, clamp: bool = False) -> CaptionSettings:
        """Return the settings with these parameters.

        Args:
            defaults: settings for absent parameters; ``max_new_tokens`` is also the upper limit.
            clamp: True to reduce a higher number of tokens to the limit, as clients of OpenAI's API expect.

        Raises:
            ApiError: 422 ``too_many_tokens``, unless clamped.
        """
        given = {name: value for name in GenerationOptions.model_fields if (value := getattr(self, name)) is not None}
        if clamp and "max_new_tokens" in given:
            given["max_new_tokens"] = min(given["max_new_tokens"], defaults.max_new_tokens)
        if given.get("max_new_tokens", 1) > defaults.max_new_tokens:
            raise ApiError(422, "too_many_tokens", f"the limit is {defaults.max_new_tokens}", param="max_new_tokens")
        return defaults.model_copy(update=given)


class CaptionsRequest(GenerationOptions, RegionsRequest):
    """An image and the regions to caption."""

    model: Annotated[str, Field(max_length=MAX_NAME_LENGTH)] | None = Field(
        default=None, description="a model name from GET /v1/models; default: the only model"
    )
    stream: StrictBool = Field(default=False, description="stream each caption as a server-sent event when it is ready")
    partial: StrictBool = Field(
        default=False, description="with `stream`: also send the text of unfinished captions, word by word"
    )


class BatchRequest(GenerationOptions):
    """Input and generation parameters of a batch job."""

    input: str = Field(
        min_length=1,
        max_length=4096,
        description="path of an image folder, list, Parquet file or run output inside one of the allowed folders",
    )


# Responses


class _ResponseModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class ImageSize(_ResponseModel):
    """Size of the image in pixels, after the EXIF orientation is applied."""

    height: int
    width: int


class RegionOutput(_ResponseModel):
    """A region of the image."""

    region_id: int
    rle: RunLengths
    bbox_xywh: tuple[float, float, float, float] = Field(
        description="tight bounding box in pixels: x, y, width, height; width and height count pixels"
    )
    area_px: int
    parent_id: int = Field(description="id of the smallest region that contains this one; -1: none")
    depth: int = Field(description="number of regions that contain this one; 0 at the top level")
    predicted_iou: float | None = Field(default=None, description="mask quality as estimated by the segmenter")
    stability_score: float | None = None
    lookalike_ids: list[int] | None = Field(
        default=None, description="ids of similar regions, most similar first; null unless `lookalikes` is true"
    )


class CaptionOutput(RegionOutput):
    """A region with its caption."""

    caption: str | None = Field(description="null if the model generated no text")
    num_tokens: int
    finish_reason: Literal["stop", "length"]


class PartialCaption(_ResponseModel):
    """The first words of an unfinished caption."""

    region_id: int
    text: str


class Timings(_ResponseModel):
    """Durations in seconds. Stages of concurrent requests overlap, and need not add up to the total."""

    decode_s: float = Field(description="decoding the image and the masks")
    segment_s: float = Field(description="segmentation; 0 if all regions were given as masks")
    caption_s: float = Field(description="queueing for the model and captioning; 0 if nothing is captioned")
    total_s: float


class RegionsResponse(_ResponseModel):
    """Regions of an image, in the order of the request or of the segmenter."""

    image: ImageSize
    segmenter: str | None = Field(description="name of the segmenter; null if all regions were given as masks")
    regions: list[RegionOutput]
    timings: Timings


class CaptionsResponse(_ResponseModel):
    """Captions of the regions of an image, in the order of the request or of the segmenter."""

    model: str
    image: ImageSize
    segmenter: str | None = Field(description="name of the segmenter; null if all regions were given as masks")
    captions: list[CaptionOutput]
    timings: Timings


class BatchJob(_ResponseModel):
    """A batch job."""

    id: str
    object: Literal["batch"] = "batch"
    status: Literal["in_progress", "completed", "failed"]
    created_at: int = Field(description="start time as a Unix timestamp in seconds")
    input: str
    output: str = Field(description="folder with the dataset and run.json")
    num_rows: int | None = Field(default=None, description="number of rows written, as of run.json; null: none yet")


class ModelInfo(_ResponseModel):
    """A model as listed by OpenAI's API."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="start time of the service as a Unix timestamp in seconds")
    owned_by: str = "ureca"
    answers_questions: bool = Field(default=True, description="false: the captioner has no model and ignores questions")
    max_new_tokens: int = Field(description="limit of a caption in tokens")
    question: str | None = Field(default=None, description="default question; null without a model")
    segmenter: str = Field(description="name of the segmenter")
    max_regions: int = Field(description="maximum number of regions of a request")


class ModelList(_ResponseModel):
    """All models of the service."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class HealthResponse(_ResponseModel):
    """Health of the service and of its parts."""

    status: Literal["ok", "unavailable"]
    parts: dict[str, Literal["ok", "unavailable"]] = Field(default_factory=dict)
    error: "ApiProblem | None" = Field(default=None, description="null if the status is ok")


# Errors

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
]
"""Error types of OpenAI's API."""

_ERROR_TYPES: dict[int, ErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiProblem(_ResponseModel):
    """Description of an error."""

    message: str
    type: ErrorType
    code: str = Field(description="machine-readable error code in snake_case")
    param: str | None = Field(default=None, description="path of the invalid field, such as regions[3].polygon")
    retry_after_s: int | None = Field(
        default=None, description="seconds to wait before a retry, as in `Retry-After`; null: a retry does not help"
    )


class ErrorResponse(_ResponseModel):
    """Body of every response with status 400 or above, and data of a stream's `error` event."""

    error: ApiProblem


class ApiError(UrecaError):
    """A request that is rejected or failed, with its HTTP status.

    Args:
        status: HTTP status of the response.
        code: Machine-readable error code in snake_case.
        message: description for people; contains neither images nor tokens.
        param: path of the invalid field in the request.
        retry_after_s: seconds to wait before a retry; None if a retry does not help.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.problem = ApiProblem(
            message=message, type=error_type(status), code=code, param=param, retry_after_s=retry_after_s
        )

    def __str__(self) -> str:
        where = f"{self.problem.param}: " if self.problem.param else ""
        return f"{self.status} {self.problem.code}: {where}{self.problem.message}"

    def with_status(self, status: int) -> "ApiError":
        """Return the error with another status."""
        problem = self.problem
        return ApiError(status, problem.code, problem.message, param=problem.param, retry_after_s=problem.retry_after_s)

    @classmethod
    def from_data_error(cls, error: DataError, param: str) -> "ApiError":
        """Convert the error of an invalid image or annotation to status 422."""
        return cls(422, error.kind, error.message, param=param)


def error_type(status: int) -> ErrorType:
    """Return the error type of OpenAI's API for an HTTP status."""
    return _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
