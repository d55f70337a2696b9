"""What the service answers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ureca.serving.requests import RunLengths


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class ImageSize(_Part):
    """Of the image, upright, in pixels."""

    height: int
    width: int


class Region(_Part):
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


class Timings(_Part):
    """Seconds. Stages of several requests overlap: they need not add up."""

    decode_s: float = Field(description="reading the image and the masks")
    segment_s: float = Field(description="finding masks; 0 where all were given")
    caption_s: float = Field(description="waiting for the model and captioning; 0 where nothing is captioned")
    total_s: float


class RegionsAnswer(_Part):
    """Regions of an image, in the request's order, or the segmenter's."""

    image: ImageSize
    segmenter: str | None = Field(description="what found masks; null where all were given")
    regions: list[Region]
    timings: Timings


class CaptionsAnswer(_Part):
    """Captions of the regions of an image, in the request's order, or the segmenter's."""

    model: str
    image: ImageSize
    segmenter: str | None = Field(description="what found masks; null where all were given")
    captions: list[Caption]
    timings: Timings


class Model(_Part):
    """A model that can be named in a request, as OpenAI's API lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when the service started, in seconds since 1970")
    owned_by: str = "ureca"


class Models(_Part):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(_Part):
    """Of the service, or of one of its parts."""

    status: Literal["ok", "unavailable"]
    parts: dict[str, Literal["ok", "unavailable"]] = Field(default_factory=dict)


ProblemType = Literal[
    "invalid_request_error", "authentication_error", "not_found_error", "rate_limit_error", "server_error"
]


class Problem(_Part):
    """Why a request was refused or failed."""

    message: str
    type: ProblemType
    code: str = Field(description="what went wrong in a few snake_case letters, for programs")
    param: str | None = Field(default=None, description="the field and item at fault, such as regions[3].polygon")
    retry_after_s: int | None = Field(
        default=None, description="when the same request may succeed, as `Retry-After` says; null: not by waiting"
    )


class ErrorAnswer(_Part):
    """Body of every answer whose status is 400 or more, and data of the event `error` of a stream."""

    error: Problem
