"""Settings of ``ureca caption``."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from ureca.captioning.settings import CaptioningEndpoints, Engine, VllmCaptioningSettings, check_gpus
from ureca.config import ESSENTIAL, MAY_CHANGE
from ureca.data.settings import ReusedMasksConfig
from ureca.llm.settings import BaseUrls
from ureca.masks.generators.settings import MaskSource
from ureca.model.prompt import RegionPrompt
from ureca.model.settings import CaptionSettings
from ureca.pipelines.settings import AsyncActorResources, MaskResources, PlannableSettings, TaskResources
from ureca.registry import ComponentConfig, config_union


class AutoMasksConfig(BaseModel):
    """The masks of INPUT where it is the output of a run, else ``segments``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask_source: ClassVar[MaskSource] = "images"

    kind: Literal["auto"] = "auto"


if TYPE_CHECKING:
    MaskSettings = ComponentConfig
else:  # Known only at run time
    MaskSettings = config_union("mask_generator", AutoMasksConfig, ReusedMasksConfig)


class CaptionResources(BaseModel):
    """Resources of each operator."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    read: TaskResources = TaskResources()
    masks: MaskResources = MaskResources()
    caption: AsyncActorResources = AsyncActorResources(num_cpus=0.5)


class CaptioningSettings(PlannableSettings):
    """Caption the regions of images with a URECA checkpoint.

    INPUT is an image, a folder, a glob, a list file (.txt), tar shards, Parquet, or the output folder of `ureca
    curate`, `ureca scenes` or `ureca caption`, whose masks and ids are reused; OUTPUT is a folder or URI. Re-running
    resumes: only unfinished work is processed.
    """

    model_config = SettingsConfigDict(cli_prog_name="ureca caption")
    command: ClassVar[str] = "caption"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca caption IMAGES OUTPUT --model CHECKPOINT",
        "ureca caption CURATED OUTPUT --model CHECKPOINT    # reuses the masks of a run",
        "ureca caption IMAGES OUTPUT --model CHECKPOINT --engine openai --base-urls http://a:8000/v1,http://b:8000/v1",
    )

    model: Annotated[str, MAY_CHANGE] = Field(
        description="folder of a URECA checkpoint, which every machine can read; or, as a baseline, any other "
        "vision-language model, as a folder or a name on the hub; with engine openai, its name at the endpoints"
    )
    region_prompt: Annotated[RegionPrompt | None, ESSENTIAL] = Field(
        default=None,
        description="form in which the model is given a region: mask (URECA), or none, contour or crop; None: as the "
        "checkpoint was trained",
    )
    image_options: dict[str, int | bool] = Field(
        default={}, description="options for the image processor of a baseline, such as max_patches"
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], ESSENTIAL] = Field(
        default="auto",
        description="type of the weights; auto: as in the checkpoint, in every engine, and float32 for scenes",
    )
    engine: Engine | Literal["openai"] = Field(
        default="auto",
        description="engine of a URECA checkpoint: transformers; vllm (paged caches and CUDA graphs, for GPUs); auto: "
        "vllm if an actor has a GPU and vLLM is installed; openai: the endpoints of base_urls, such as `vllm serve`",
    )
    base_urls: Annotated[BaseUrls, MAY_CHANGE] = Field(
        default=(),
        description="addresses of OpenAI-compatible endpoints that serve the model, with engine openai, such as "
        "http://localhost:8000/v1",
    )
    endpoints: CaptioningEndpoints = CaptioningEndpoints()
    vllm: VllmCaptioningSettings = VllmCaptioningSettings()
    masks: Annotated[
        MaskSettings,
        Field(description="source of the masks; auto: those of INPUT where it is a run, else segments"),
        ESSENTIAL,
    ] = AutoMasksConfig()
    captioner: CaptionSettings = CaptionSettings()
    resources: Annotated[CaptionResources, MAY_CHANGE] = CaptionResources()

    @model_validator(mode="after")
    def _endpoints_have_addresses(self) -> Self:
        if (self.engine == "openai") != bool(self.base_urls):
            raise ValueError("engine openai and base_urls belong together: set both or none")
        return self

    @model_validator(mode="after")
    def _vllm_has_its_gpus(self) -> Self:
        check_gpus(self.engine, self.vllm, self.resources.caption.num_gpus, "resources.caption.num_gpus")
        return self

    @model_validator(mode="after")
    def _annotations_are_used(self) -> Self:
        if self.listing.annotations is not None and getattr(self.masks, "mask_source", None) in {"images", "run"}:
            raise ValueError("listing.annotations is for masks.kind annotations or prompts; set both or none")
        return self
