"""What the settings of every verb have that turns a corpus into a dataset."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_settings import CliPositionalArg

from ureca.corpus.selection import Selection, checked_shard
from ureca.images import ImageLimits
from ureca.settings.loading import VerbSettings
from ureca.settings.planning import PlanningSettings


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

    shard: Annotated[str, AfterValidator(checked_shard)] | None = Field(
        default=None, description="i/n, from 1/n to n/n: one of n parts of INPUT, by the images' ids alone"
    )
    sample: int | None = Field(
        default=None, ge=1, description="so many images of INPUT (of its shard), drawn by their ids and sample_seed"
    )
    sample_seed: int = Field(default=0, description="of the sample")
    limit: int | None = Field(default=None, ge=1, description="so many images, the first ones of INPUT (of its sample)")

    images_per_unit: int | None = Field(
        default=None, ge=1, description="images that are written and resumed together; None: 1 to 64 by their number"
    )
    max_error_fraction: float = Field(default=0.1, ge=0, le=1, description="share of failed rows that fails the job")
    max_worker_deaths: int = Field(
        default=3, ge=2, description="workers that may die while they work on an image; then it is a failed row"
    )
    retry_errors: bool = Field(default=False, description="run the rows again that failed, too")
    accept_changes: bool = Field(
        default=False, description="go on in an OUTPUT that was begun with other settings; rows say by which recipe"
    )
    overwrite: bool = Field(default=False, description="remove what OUTPUT holds and start anew")

    resources: BaseModel
    """Of each stage; the verb's own type says which ones it has."""

    @property
    def selection(self) -> Selection:
        """Which images of INPUT are worked on."""
        return Selection(self.shard, self.sample, self.sample_seed, self.limit)


class PlannableSettings(BatchSettings):
    """Base of the settings of a batch verb that can say beforehand what it would take."""

    plan: bool = Field(default=False, description="say what the run would take, and write nothing")
    planning: PlanningSettings = PlanningSettings()
