"""Where masks come from, as settings."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ureca.proposals.sam import SamModelSettings, SamSettings
from ureca.proposals.segments import SegmentsSettings
from ureca.settings.resources import ProposingResources


class FromSegments(SegmentsSettings):
    """Masks of several granularities without weights."""

    kind: Literal["segments"] = "segments"


class FromSam(SamSettings):
    """Masks by Segment Anything."""

    kind: Literal["sam"] = "sam"


class FromPrompts(SamModelSettings):
    """Masks by Segment Anything of the boxes and points in files: <image_id>.json, see listing.annotations."""

    kind: Literal["prompts"] = "prompts"


class FromAnnotations(BaseModel):
    """Masks from annotation files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["annotations"] = "annotations"


class FromRegions(BaseModel):
    """The masks and ids of INPUT, which is the output of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["regions"] = "regions"


_PROPOSERS_OF_SINGLE_IMAGES = 16


def images_per_piece(proposals: BaseModel, resources: ProposingResources, num_actors: int) -> int | None:
    """Images of a unit that go on together once they have masks; None: all of them.

    Args:
        proposals: where masks come from.
        resources: of the stage.
        num_actors: of the stage. Hundreds of them have masks of some image ready at any moment: theirs go on in larger
            pieces, as every piece costs the driver some milliseconds.
    """
    if resources.images_per_piece is not None:
        return resources.images_per_piece
    if isinstance(proposals, FromAnnotations | FromRegions):
        return None
    return math.ceil(num_actors / _PROPOSERS_OF_SINGLE_IMAGES)
