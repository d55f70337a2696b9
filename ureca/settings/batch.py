"""What the settings of every verb have that turns a corpus into a dataset."""

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import CliPositionalArg

from ureca.images import ImageLimits
from ureca.settings.loading import VerbSettings


class ListingSettings(BaseModel):
    """What belongs to the images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotations: str | None = Field(default=None, description="'beside' the images, or a folder of <image_id>.json")
    image_column: str | None = Field(default=None, description="of Parquet inputs; None: image, bytes, uri or path")
    id_column: str | None = Field(default=None, description="of Parquet inputs; None: image_id where there is one")


class BatchSettings(VerbSettings):
    """Base of the settings of a batch verb: what goes in, what comes out, and when a run has failed."""

    input: CliPositionalArg[str] = Field(description="images: a file, folder, glob, list, tar shards or Parquet")
    output: CliPositionalArg[str] = Field(description="folder or URI to write to")

    listing: ListingSettings = ListingSettings()
    image_limits: ImageLimits = ImageLimits()

    images_per_unit: int | None = Field(
        default=None, ge=1, description="images that are written and resumed together; None: 1 to 64 by their number"
    )
    max_error_fraction: float = Field(default=0.1, ge=0, le=1, description="share of failed rows that fails the job")
    retry_errors: bool = Field(default=False, description="run the rows again that failed, too")
    overwrite: bool = Field(default=False, description="remove what OUTPUT holds and start anew")
