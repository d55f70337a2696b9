"""What the settings of every verb have that turns a corpus into a dataset.

[from] Where a stage runs, apart from what it does.
[from] Settings of ``--plan``."""

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_settings import CliPositionalArg

from ureca.config import MAY_CHANGE, CommandSettings
from ureca.data.manifest import Selection, checked_shard
from ureca.data.reuse import ReusedMasksConfig
from ureca.images import ImageLimits
from ureca.llm.settings import VllmConfig
from ureca.masks.generators.annotations import AnnotationsConfig
from ureca.registry import ComponentConfig


class TaskResources(BaseModel):
    """A stage of stateless tasks, as many at a time as the cluster has room for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_cpus: float = Field(default=0.25, gt=0, description="logical CPUs a task")


class ActorResources(BaseModel):
    """A stage of actors, each of which loads its models once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_actors: int | None = Field(default=None, ge=1, description="None: as many as the cluster has CPUs")
    num_cpus: float = Field(default=0.25, ge=0, description="logical CPUs an actor")
    num_gpus: float = Field(default=0.0, ge=0, description="GPUs an actor")


class MaskResources(ActorResources):
    """The stage that makes or reads masks."""

    images_per_chunk: int | None = Field(
        default=None,
        ge=1,
        description="images of a unit that go on together, as soon as their masks are ready; None: one by one, or one "
        "for each 16 actors, but whole units where masks are only read, or images lie together in a Parquet file",
    )


class AsyncActorResources(ActorResources):
    """A stage of actors that work on many images at a time."""

    partitions_in_flight: int | None = Field(
        default=None, ge=1, description="units an actor works on at a time; None: as many as have images_in_flight"
    )
    images_in_flight: int | None = Field(
        default=None,
        ge=1,
        description="decoded images an actor holds at a time; None: 16, or a few more than its share of the requests "
        "that an engine takes at a time",
    )


class PlanningSettings(BaseModel):
    """What a plan is made from, and what is known of the engine and of the machines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(default=16, ge=1, description="drawn from those that are to be done, and gone through")
    ask_model: bool = Field(
        default=False, description="ask the model itself about these images: tokens and times as they are, at its price"
    )
    seconds_per_answer: float | None = Field(default=None, gt=0, description="of the engine, at its full load")
    new_tokens_per_answer: float | None = Field(default=None, gt=0, description="on average")
    pixels_per_token: float = Field(
        default=784.0, gt=0, description="of images in prompts: 784 (28 x 28) for Qwen-VL and InternVL"
    )
    prompt_token_price: float | None = Field(default=None, ge=0, description="of a million tokens of prompts")
    new_token_price: float | None = Field(default=None, ge=0, description="of a million tokens of answers")
    num_cpus: float | None = Field(default=None, gt=0, description="of the machines; None: this one's")
    num_gpus: float = Field(default=0.0, ge=0, description="of the machines")


class ListingSettings(BaseModel):
    """What belongs to the images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotations: str | None = Field(default=None, description="'beside' the images, or a folder of <image_id>.json")
    image_column: str | None = Field(default=None, description="of Parquet inputs; None: image, bytes, uri or path")
    id_column: str | None = Field(default=None, description="of Parquet inputs; None: image_id where there is one")


class BatchSettings(CommandSettings):
    """Base of the settings of a batch verb: what goes in, what comes out, and when a run has failed."""

    input: Annotated[CliPositionalArg[str], MAY_CHANGE] = Field(
        description="images: a file, folder, glob, list, tar shards or Parquet"
    )
    output: Annotated[CliPositionalArg[str], MAY_CHANGE] = Field(description="folder or URI to write to")

    listing: Annotated[ListingSettings, MAY_CHANGE] = ListingSettings()
    image_limits: ImageLimits = ImageLimits()

    shard: Annotated[Annotated[str, AfterValidator(checked_shard)] | None, MAY_CHANGE] = Field(
        default=None, description="i/n, from 1/n to n/n: one of n parts of INPUT, by the images' ids alone"
    )
    sample: Annotated[int | None, MAY_CHANGE] = Field(
        default=None, ge=1, description="so many images of INPUT (of its shard), drawn by their ids and sample_seed"
    )
    sample_seed: Annotated[int, MAY_CHANGE] = Field(default=0, description="of the sample")
    limit: Annotated[int | None, MAY_CHANGE] = Field(
        default=None, ge=1, description="so many images, the first ones of INPUT (of its sample)"
    )

    images_per_partition: Annotated[int | None, MAY_CHANGE] = Field(
        default=None, ge=1, description="images that are written and resumed together; None: 1 to 64 by their number"
    )
    max_error_fraction: Annotated[float, MAY_CHANGE] = Field(
        default=0.1, ge=0, le=1, description="share of failed rows that fails the job"
    )
    max_worker_crashes: Annotated[int, MAY_CHANGE] = Field(
        default=3, ge=2, description="workers that may die while they work on an image; then it is a failed row"
    )
    retry_errors: Annotated[bool, MAY_CHANGE] = Field(default=False, description="run the rows again that failed, too")
    accept_changes: Annotated[bool, MAY_CHANGE] = Field(
        default=False, description="go on in an OUTPUT that was begun with other settings; rows say by which recipe"
    )
    overwrite: Annotated[bool, MAY_CHANGE] = Field(default=False, description="remove what OUTPUT holds and start anew")

    resources: Annotated[BaseModel, MAY_CHANGE]
    """Of each stage; the verb's own type says which ones it has."""

    @property
    def selection(self) -> Selection:
        """Which images of INPUT are worked on."""
        return Selection(self.shard, self.sample, self.sample_seed, self.limit)


class PlannableSettings(BatchSettings):
    """Base of the settings of a batch verb that can say beforehand what it would take."""

    plan: Annotated[bool, MAY_CHANGE] = Field(
        default=False, description="say what the run would take, and write nothing"
    )
    planning: Annotated[PlanningSettings, MAY_CHANGE] = PlanningSettings()


_GENERATORS_OF_SINGLE_IMAGES = 16


def images_per_chunk(masks: ComponentConfig, resources: MaskResources, num_actors: int) -> int | None:
    """Images of a unit that go on together once they have masks; None: all of them.

    Args:
        proposals: where masks come from.
        resources: of the stage.
        num_actors: of the stage. Hundreds of them have masks of some image ready at any moment: theirs go on in larger
            pieces, as every piece costs the driver some milliseconds.
    """
    if resources.images_per_chunk is not None:
        return resources.images_per_chunk
    if isinstance(masks, AnnotationsConfig | ReusedMasksConfig):
        return None
    return math.ceil(num_actors / _GENERATORS_OF_SINGLE_IMAGES)


def check_actors_can_hold(mllm: ComponentConfig, where: ActorResources, stage: str) -> None:
    """Refuse a model that is loaded once an actor where nobody said how many actors that shall be.

    Raises:
        ValueError: nobody did, or they have fewer GPUs than the model takes.
    """
    if mllm.kind in {"transformers", "vllm"} and where.num_actors is None and not where.num_gpus:
        raise ValueError(
            f"mllm.kind {mllm.kind} loads the model once an actor: say by resources.{stage}.num_gpus or "
            f"resources.{stage}.num_actors how many that shall be"
        )
    if isinstance(mllm, VllmConfig) and where.num_gpus < mllm.tensor_parallel_size > 1:
        raise ValueError(
            f"mllm.tensor_parallel_size {mllm.tensor_parallel_size} needs as many GPUs an actor, and "
            f"resources.{stage}.num_gpus is {where.num_gpus:g}"
        )
