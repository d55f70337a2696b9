"""Settings that batch commands share: input and output, the resources of each operator, and planning."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_settings import CliPositionalArg

from ureca.config import ESSENTIAL, MAY_CHANGE, CommandSettings
from ureca.data.settings import ImageSelection, validate_shard
from ureca.errors import SettingsError
from ureca.image_limits import ImageLimits
from ureca.llm.settings import VllmConfig
from ureca.registry import ComponentConfig


class TaskResources(BaseModel):
    """Resources of stateless tasks, of which as many run at a time as the cluster has room for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_cpus: float = Field(default=0.25, gt=0, description="logical CPUs of each task")


class ActorResources(BaseModel):
    """Resources of actors, each of which loads its models once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_actors: int | None = Field(
        default=None, ge=1, description="number of actors; None: as many as the cluster has CPUs"
    )
    num_cpus: float = Field(default=0.25, ge=0, description="logical CPUs of each actor")
    num_gpus: float = Field(default=0.0, ge=0, description="GPUs of each actor")


class MaskResources(ActorResources):
    """Resources of the actors that generate or read masks."""

    images_per_chunk: int | None = Field(
        default=None,
        ge=1,
        description="images of a partition that are passed on together, as soon as their masks are ready; None: one, "
        "or one for each 16 actors, but whole partitions where masks are only read or images share a Parquet file",
    )


class AsyncActorResources(ActorResources):
    """Resources of actors that work on many images at a time."""

    partitions_in_flight: int | None = Field(
        default=None, ge=1, description="partitions in flight in each actor; None: enough to hold images_in_flight"
    )
    images_in_flight: int | None = Field(
        default=None,
        ge=1,
        description="decoded images in flight in each actor; None: 16, or a few more than the actor's share of the "
        "engine's concurrent requests",
    )


class PlanningSettings(BaseModel):
    """Sample of images, engine, prices and machines of a dry run (`ureca plan`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(default=16, ge=1, description="number of images to sample from those to be done")
    ask_model: bool = Field(
        default=False,
        description="send the sampled images to the model itself, which measures its tokens and times, at its price",
    )
    seconds_per_answer: float | None = Field(
        default=None, gt=0, description="seconds the engine takes for an answer at full load"
    )
    new_tokens_per_answer: float | None = Field(default=None, gt=0, description="mean number of tokens of an answer")
    pixels_per_token: float = Field(
        default=784.0,
        gt=0,
        description="pixels of an image in a prompt that make one token: 784 (28 x 28) for Qwen-VL and InternVL",
    )
    prompt_token_price: float | None = Field(default=None, ge=0, description="price of a million tokens of prompts")
    new_token_price: float | None = Field(default=None, ge=0, description="price of a million tokens of answers")
    num_cpus: float | None = Field(default=None, gt=0, description="CPUs of the cluster; None: those of this machine")
    num_gpus: float = Field(default=0.0, ge=0, description="GPUs of the cluster")


class ListingSettings(BaseModel):
    """Files and columns that belong to the images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotations: str | None = Field(
        default=None,
        description="annotations: 'beside' the images, a folder of <image_id>.json or index images (.png), or a COCO "
        "file of all images (instances.json, also .gz), whose images are found by file_name",
    )
    image_column: str | None = Field(
        default=None, description="column of Parquet inputs with the images; None: image, bytes, uri or path"
    )
    id_column: str | None = Field(
        default=None, description="column of Parquet inputs with the ids; None: image_id where there is one"
    )
    ids: Literal["stem", "path"] = Field(
        default="stem",
        description="id of an image: its file name without the extension (stem), or its path below INPUT without it "
        "(path), where folders or shards hold equal names",
    )
    only_below: tuple[str, ...] = Field(
        default=(),
        description="local folders that images, lists, tables and annotations are read from; what leads out, by "
        "a link, a line of a list or a URI of a table, is an error row (not_allowed); empty: no restriction",
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="files and folders of INPUT to leave out, as patterns: thumbs, *_mask.png, 'val/**/*.tif'",
    )


class ExecutorSettings(CommandSettings):
    """Base of the settings of commands that run on Ray or, for few images, in one process."""

    executor: Annotated[Literal["auto", "local", "ray"], MAY_CHANGE, ESSENTIAL] = Field(
        default="auto",
        description="place where the work runs: local (this process alone), ray (a Ray cluster, or Ray started on this "
        "machine), or auto: local for at most max_local_images, unless RAY_ADDRESS, a submitted job or resources ask "
        "for Ray",
    )
    max_local_images: Annotated[int, MAY_CHANGE] = Field(
        default=200, ge=0, description="number of images up to which executor auto means local"
    )


class BatchSettings(ExecutorSettings):
    """Base of a batch command's settings: input, output, the images to work on, and failures."""

    input: Annotated[CliPositionalArg[str], MAY_CHANGE] = Field(
        description="images: a file, folder, glob, list file (.txt), tar shards or Parquet"
    )
    output: Annotated[CliPositionalArg[str], MAY_CHANGE] = Field(
        description="folder or URI of the dataset to write; an earlier run in it is resumed"
    )

    listing: Annotated[ListingSettings, MAY_CHANGE] = ListingSettings()
    image_limits: ImageLimits = ImageLimits()

    shard: Annotated[Annotated[str, AfterValidator(validate_shard)] | None, MAY_CHANGE] = Field(
        default=None, description="i/n, from 1/n to n/n: work on one of n parts of INPUT, cut by the images' ids"
    )
    sample: Annotated[int | None, MAY_CHANGE, ESSENTIAL] = Field(
        default=None,
        ge=1,
        description="number of images to draw from INPUT (from its shard), by their ids and sample_seed",
    )
    sample_seed: Annotated[int, MAY_CHANGE] = Field(default=0, description="seed of the sample")
    limit: Annotated[int | None, MAY_CHANGE, ESSENTIAL] = Field(
        default=None, ge=1, description="number of images to take from the beginning of INPUT (of its sample)"
    )

    images_per_partition: Annotated[int | None, MAY_CHANGE] = Field(
        default=None,
        ge=1,
        description="images that are written and resumed together; None: 1 to 64, by the number of images",
    )
    max_error_fraction: Annotated[float, MAY_CHANGE] = Field(
        default=0.1,
        ge=0,
        le=1,
        description="fraction of failed images, or of failed regions, above which the exit status is 1",
    )
    max_worker_crashes: Annotated[int, MAY_CHANGE] = Field(
        default=3, ge=2, description="worker crashes on an image after which it becomes a failed row"
    )
    retry_errors: Annotated[bool, MAY_CHANGE, ESSENTIAL] = Field(
        default=False, description="also process the failed rows of the earlier run again"
    )
    accept_changes: Annotated[bool, MAY_CHANGE] = Field(
        default=False, description="resume an OUTPUT that was begun with other settings; rows keep their config hash"
    )
    overwrite: Annotated[bool, MAY_CHANGE, ESSENTIAL] = Field(
        default=False, description="delete the earlier run in OUTPUT and start again"
    )

    resources: Annotated[BaseModel, MAY_CHANGE]
    """Resources of each operator; the type of the command says which ones it has."""

    @property
    def selection(self) -> ImageSelection:
        """Selection of the images of INPUT to work on."""
        return ImageSelection(self.shard, self.sample, self.sample_seed, self.limit)


class PlannableSettings(BatchSettings):
    """Base of the settings of a batch command that has a dry run."""

    plan: Annotated[bool, MAY_CHANGE] = Field(
        default=False, description="estimate what the run would take, and write nothing: the same as `ureca plan`"
    )
    planning: Annotated[PlanningSettings, MAY_CHANGE] = PlanningSettings()


def check_annotations_have_a_source(settings: BatchSettings) -> None:
    """Check that ``listing.annotations`` says where the files of a mask generator that reads files are.

    Raises:
        SettingsError: it does not, so that every image would fail.
    """
    masks: Any = getattr(settings, "masks", None)
    if getattr(masks, "mask_source", None) == "annotations" and settings.listing.annotations is None:
        raise SettingsError(
            f"masks.kind {masks.kind} reads files: say where by listing.annotations (beside, a folder, or a COCO file)"
        )


def check_actors_can_hold(mllm: ComponentConfig, where: ActorResources, stage: str) -> None:
    """Check that the settings say how many actors load a chat model that runs within actors.

    Args:
        mllm: settings of the chat model.
        where: resources of the actors that ask it.
        stage: name of these resources, for messages.

    Raises:
        ValueError: neither ``num_actors`` nor ``num_gpus`` is set, or an actor has fewer GPUs than the model needs.
    """
    if mllm.kind in {"transformers", "vllm"} and where.num_actors is None and not where.num_gpus:
        raise ValueError(
            f"mllm.kind {mllm.kind} loads the model in each actor: limit the actors by resources.{stage}.num_gpus or "
            f"resources.{stage}.num_actors"
        )
    if isinstance(mllm, VllmConfig) and where.num_gpus < mllm.tensor_parallel_size > 1:
        raise ValueError(
            f"mllm.tensor_parallel_size {mllm.tensor_parallel_size} needs as many GPUs per actor, but "
            f"resources.{stage}.num_gpus is {where.num_gpus:g}"
        )
