"""Where masks come from, as settings."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ureca.masks.generators.sam import SamModelSettings, SamSettings
from ureca.masks.generators.segments import SegmentsSettings
from ureca.registry import register


@register("mask_generator", "segments", component="ureca.masks.generators.segments:SegmentsMaskGenerator")
class SegmentsConfig(SegmentsSettings):
    """Masks of several granularities without weights."""

    kind: Literal["segments"] = "segments"


@register("mask_generator", "sam", component="ureca.masks.generators.sam:SamMaskGenerator")
class SamConfig(SamSettings):
    """Masks by Segment Anything."""

    kind: Literal["sam"] = "sam"


@register("mask_generator", "prompts", component="ureca.masks.generators.prompted_sam:PromptedSam")
class PromptedSamConfig(SamModelSettings):
    """Masks by Segment Anything of the boxes and points in files: <image_id>.json, see listing.annotations."""

    kind: Literal["prompts"] = "prompts"


@register("mask_generator", "annotations", component="ureca.masks.generators.base:AnnotationMaskGenerator")
class AnnotationsConfig(BaseModel):
    """Masks from annotation files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["annotations"] = "annotations"


class ReusedMasksConfig(BaseModel):
    """The masks and ids of INPUT, which is the output of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["regions"] = "regions"
