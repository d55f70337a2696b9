"""Settings of each kind of source."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class RegionsSource(BaseModel):
    """A regions dataset, as ``ureca curate`` and ``ureca scenes`` write it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["regions"] = "regions"
    path: str = Field(description="output folder, a path or URI")
    caption: Literal["unique", "short", "detailed"] = Field(default="unique", description="which caption is learned")
    include_rejected: bool = Field(default=False, description="also captions that verification rejected")


class JsonlOptions(BaseModel):
    """How files whose names end in .jsonl are read: URECA's, with the SA-1B images and JSON files that they name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: str | None = Field(
        default=None, description="folder, glob, list, tar shards or Parquet with the images, named by stem"
    )
    annotations: str = Field(default="beside", description="'beside' the images, or a folder of <image_id>.json")
    mask_ids: Literal["id", "position"] = Field(
        default="id", description="what mask_id names: an annotation's id, or its place in the file, from 0"
    )


class JsonlSource(JsonlOptions):
    """URECA's JSONL, with the SA-1B images and JSON files that it names."""

    kind: Literal["jsonl"] = "jsonl"
    path: str = Field(description="the JSONL file, a path or URI")
    images: str = Field(description="folder, glob, list, tar shards or Parquet with the images, named by stem")


SourceSettings = Annotated[RegionsSource | JsonlSource, Field(discriminator="kind")]
"""One source; a run may mix several."""
