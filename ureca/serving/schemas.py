"""How captions are written: the service's settings with what a request asks for.

[from] What a request for captions or for regions holds.
[from] What the service answers.
[from] Why a request ends without what it asked for."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from ureca.errors import DataError, UrecaError
from ureca.masks.annotations import MAX_MASKS
from ureca.masks.prompts import MAX_POINTS
from ureca.model.settings import CaptionSettings

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Side = Annotated[StrictInt, Field(ge=1, lt=2**31)]

SPECIFICATIONS = ("rle", "polygon", "mask_png", "bbox_xywh", "points")
"""The ways to say which region is meant."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Point(_Part):
    """A point in pixels."""

    x: _Number
    y: _Number
    label: Literal[0, 1] = Field(default=1, description="1: inside the region, 0: outside of it")


class RunLengths(_Part):
    """A mask in COCO's run lengths, as answers give it."""

    size: tuple[_Side, _Side] = Field(description="height and width of the image in pixels")
    counts: str | list[StrictInt] = Field(description="compressed runs, or a list of run lengths")


class RegionRequest(_Part):
    """One region: `rle`, `polygon` or `mask_png`, which are masks; or `bbox_xywh`, `points` or both, which the
    segmenter turns into a mask."""

    region_id: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = Field(
        default=None, description="its name in the answer, unique in the request; absent: the first ids that are free"
    )
    rle: RunLengths | None = None
    polygon: list[list[_Number]] | None = Field(
        default=None, description="polygons of the region, each a flat list x0, y0, x1, y1, ... in pixels"
    )
    mask_png: str | None = Field(
        default=None,
        description="an image file in base64, of the image's size; what is neither black nor transparent is inside",
    )
    bbox_xywh: tuple[_Number, _Number, _Number, _Number] | None = Field(
        default=None, description="x, y, width, height in pixels"
    )
    points: Annotated[list[Point], Field(min_length=1, max_length=MAX_POINTS)] | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        given = {name for name in SPECIFICATIONS if getattr(self, name) is not None}
        if len(given) != 1 and given != {"bbox_xywh", "points"}:
            found = ", ".join(sorted(given)) or "none"
            raise ValueError(f"a region has one of {', '.join(SPECIFICATIONS)} (or bbox_xywh with points), not {found}")
        return self

    @property
    def is_prompt(self) -> bool:
        """Whether the segmenter has to find the mask."""
        return self.bbox_xywh is not None or self.points is not None


class RegionsRequest(_Part):
    """Which regions of an image are meant."""

    image: str | None = Field(
        default=None,
        description="an image file in base64, or as a data: URL; or the URL of one, where the service allows its host. "
        "Left out only where the file itself is a part of a multipart request",
    )
    regions: Annotated[list[RegionRequest], Field(min_length=1, max_length=MAX_MASKS)] | None = Field(
        default=None, description="absent: all regions that the segmenter finds"
    )
    lookalikes: StrictBool = Field(
        default=False, description="also say which of the regions could be taken for one another"
    )


class Generation(_Part):
    """How captions are written; what is absent is as the service was started."""

    max_new_tokens: Annotated[StrictInt, Field(ge=1)] | None = Field(
        default=None, description="a caption is cut off after so many tokens; at most the service's limit"
    )
    temperature: Annotated[_Number, Field(ge=0, le=10)] | None = Field(
        default=None, description="0 takes the likeliest token; above, tokens are drawn"
    )
    top_p: Annotated[_Number, Field(gt=0, le=1)] | None = Field(
        default=None, description="draw from the likeliest tokens that together have this probability"
    )
    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = Field(
        default=None, description="region i of the request is drawn with seed + i"
    )
    question: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        default=None, description="what is asked about each region"
    )


class CaptionsRequest(Generation, RegionsRequest):
    """An image and the regions to caption."""

    model: str | None = Field(default=None, description="a name that GET /v1/models lists; absent: the one there is")
    stream: StrictBool = Field(default=False, description="server-sent events, each caption as soon as it is finished")


class _PartAnswers(BaseModel):
    model_config = ConfigDict(frozen=True)


class ImageSize(_PartAnswers):
    """Of the image, upright, in pixels."""

    height: int
    width: int


class Region(_PartAnswers):
    """A region of the image."""

    region_id: int
    rle: RunLengths
    bbox_xywh: tuple[float, float, float, float] = Field(
        description="smallest box in pixels: x, y, width, height; width and height count pixels"
    )
    area_px: int
    parent_id: int = Field(description="the region that this one is part of; -1: none")
    depth: int = Field(description="regions above this one; 0 at the top level")
    predicted_iou: float | None = Field(default=None, description="the segmenter's own estimate of the mask's quality")
    stability_score: float | None = None
    lookalike_ids: list[int] | None = Field(
        default=None, description="regions that look alike, most alike first; null unless `lookalikes` was asked for"
    )


class Caption(Region):
    """A region with its caption."""

    caption: str | None = Field(description="null where the model ended before its first word")
    num_tokens: int
    finish_reason: Literal["stop", "length"]


class Timings(_PartAnswers):
    """Seconds. Stages of several requests overlap: they need not add up."""

    decode_s: float = Field(description="reading the image and the masks")
    segment_s: float = Field(description="finding masks; 0 where all were given")
    caption_s: float = Field(description="waiting for the model and captioning; 0 where nothing is captioned")
    total_s: float


class RegionsAnswer(_PartAnswers):
    """Regions of an image, in the request's order, or the segmenter's."""

    image: ImageSize
    segmenter: str | None = Field(description="what found masks; null where all were given")
    regions: list[Region]
    timings: Timings


class CaptionsAnswer(_PartAnswers):
    """Captions of the regions of an image, in the request's order, or the segmenter's."""

    model: str
    image: ImageSize
    segmenter: str | None = Field(description="what found masks; null where all were given")
    captions: list[Caption]
    timings: Timings


class Model(_PartAnswers):
    """A model that can be named in a request, as OpenAI's API lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when the service started, in seconds since 1970")
    owned_by: str = "ureca"


class Models(_PartAnswers):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(_PartAnswers):
    """Of the service, or of one of its parts."""

    status: Literal["ok", "unavailable"]
    parts: dict[str, Literal["ok", "unavailable"]] = Field(default_factory=dict)


ProblemType = Literal[
    "invalid_request_error", "authentication_error", "not_found_error", "rate_limit_error", "server_error"
]


class Problem(_PartAnswers):
    """Why a request was refused or failed."""

    message: str
    type: ProblemType
    code: str = Field(description="what went wrong in a few snake_case letters, for programs")
    param: str | None = Field(default=None, description="the field and item at fault, such as regions[3].polygon")
    retry_after_s: int | None = Field(
        default=None, description="when the same request may succeed, as `Retry-After` says; null: not by waiting"
    )


class ErrorAnswer(_PartAnswers):
    """Body of every answer whose status is 400 or more, and data of the event `error` of a stream."""

    error: Problem


_TYPES: dict[int, ProblemType] = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(UrecaError):
    """A request is refused, or its work was lost; says so in HTTP's terms.

    Args:
        status: of the answer.
        code: what went wrong in a few snake_case letters.
        message: the particulars, for people; never holds images or tokens.
        param: the field and item at fault.
        retry_after_s: when the same request may succeed.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.problem = Problem(
            message=message, type=problem_type(status), code=code, param=param, retry_after_s=retry_after_s
        )

    def __str__(self) -> str:
        where = f"{self.problem.param}: " if self.problem.param else ""
        return f"{self.status} {self.problem.code}: {where}{self.problem.message}"

    @classmethod
    def of_data(cls, error: DataError, param: str) -> "ApiError":
        """For an image or an annotation that cannot be used: status 422."""
        return cls(422, error.kind, error.message, param=param)


def problem_type(status: int) -> ProblemType:
    """OpenAI's name for the kind of an error."""
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def caption_settings(defaults: CaptionSettings, asked: Generation) -> CaptionSettings:
    """The defaults with what was asked for; their ``max_new_tokens`` is also the limit.

    Raises:
        Refusal: 422 ``too_many_tokens``.
    """
    given = {name: value for name in Generation.model_fields if (value := getattr(asked, name)) is not None}
    if given.get("max_new_tokens", 1) > defaults.max_new_tokens:
        raise ApiError(422, "too_many_tokens", f"the limit is {defaults.max_new_tokens}", param="max_new_tokens")
    return defaults.model_copy(update=given)
