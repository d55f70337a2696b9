"""Prompts: boxes and points that select regions of an image, in a file beside the image."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ureca.errors import AnnotationError
from ureca.masks.annotations import as_utf8
from ureca.masks.frames import Size, turned_box, turned_point
from ureca.masks.mask import MAX_MASKS

MAX_POINTS = 256
"""Largest number of points of a prompt."""

_Number = Annotated[float, Field(allow_inf_nan=False)]


class Prompt(BaseModel):
    """A region given by a box, by points, or by both.

    Attributes:
        id: id of the region, unique in its image; None: the first free ids from 0 are assigned.
        bbox_xywh: box as x, y, width, height in pixels, with positive width and height.
        points_xy: points as x, y in pixels.
        labels: 1 (inside the region) or 0 (outside) for each point; None: all are inside.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    bbox_xywh: tuple[_Number, _Number, _Number, _Number] | None = None
    points_xy: Annotated[tuple[tuple[_Number, _Number], ...], Field(max_length=MAX_POINTS)] = ()
    labels: tuple[Literal[0, 1], ...] | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.bbox_xywh is None and not self.points_xy:
            raise ValueError("a prompt has bbox_xywh, points_xy, or both")
        if self.bbox_xywh is not None and min(self.bbox_xywh[2:]) <= 0:
            raise ValueError("width and height of bbox_xywh are above 0")
        if self.labels is not None and len(self.labels) != len(self.points_xy):
            raise ValueError(f"{len(self.points_xy)} points have {len(self.labels)} labels")
        return self

    def turned(self, upright_size: Size, orientation: int) -> "Prompt":
        """Return the prompt of a stored image in the frame of the upright one, of a size (height, width)."""
        box = self.bbox_xywh
        points = tuple(turned_point(x, y, upright_size, orientation) for x, y in self.points_xy)
        turned = None if box is None else turned_box(box, upright_size, orientation)
        return self.model_copy(update={"bbox_xywh": turned, "points_xy": points})


class _PromptFile(BaseModel):
    prompts: tuple[Prompt, ...]


def parse_prompts(data: bytes) -> list[tuple[int, Prompt]]:
    """Parse the content of ``{"prompts": [...]}``; other keys of the file are ignored.

    Returns:
        Prompts with their ids, in the file's order.

    Raises:
        AnnotationError: ``malformed``, ``no_masks`` (its list is empty), ``too_many_masks`` (over 4096),
            ``duplicate_ids``.
    """
    try:
        prompts = _PromptFile.model_validate_json(as_utf8(data)).prompts
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise AnnotationError("malformed", f"{where}: {first['msg']}") from error
    if not prompts:
        raise AnnotationError("no_masks", "the list of prompts is empty")
    if len(prompts) > MAX_MASKS:
        raise AnnotationError("too_many_masks", f"{len(prompts)} prompts of one image, the limit is {MAX_MASKS}")
    given = [prompt.id for prompt in prompts if prompt.id is not None]
    taken = set(given)
    if len(taken) < len(given):
        raise AnnotationError("duplicate_ids", "prompt ids appear more than once")
    free = (id for id in range(2 * len(prompts)) if id not in taken)
    return [(next(free) if prompt.id is None else prompt.id, prompt) for prompt in prompts]
