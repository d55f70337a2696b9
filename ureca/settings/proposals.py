"""Where masks come from, as settings."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ureca.proposals.sam import SamSettings
from ureca.proposals.segments import SegmentsSettings


class FromSegments(SegmentsSettings):
    """Masks of several granularities without weights."""

    kind: Literal["segments"] = "segments"


class FromSam(SamSettings):
    """Masks by Segment Anything."""

    kind: Literal["sam"] = "sam"


class FromAnnotations(BaseModel):
    """Masks from annotation files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["annotations"] = "annotations"


class FromRegions(BaseModel):
    """The masks and ids of INPUT, which is the output of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["regions"] = "regions"
