"""What a request for captions or for regions holds."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from ureca.regions.annotations import MAX_MASKS
from ureca.regions.prompts import MAX_POINTS

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
