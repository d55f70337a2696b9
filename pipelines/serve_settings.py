"""Settings of ``ureca serve``."""

import ipaddress
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from ureca.captioning.settings import Engine, VllmCaptioningSettings, check_gpus
from ureca.config import ESSENTIAL, CommandSettings
from ureca.errors import SettingsError
from ureca.masks.generators.settings import Sam2Config, Sam3Config, SamConfig, SamHqConfig, SegmentsConfig
from ureca.model.settings import CaptionSettings
from ureca.pipelines.caption_settings import CaptionResources
from ureca.pipelines.settings import AsyncActorResources, MaskResources
from ureca.serving.settings import AccessSettings, ServingLimits


class ReplicaSettings(BaseModel):
    """Replicas of a deployment: their resources, queues and autoscaling."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, ge=1, description="minimum number of replicas")
    max_replicas: int = Field(default=1, ge=1, description="maximum number of replicas")
    num_cpus: float = Field(default=0.25, ge=0, description="logical CPUs per replica")
    num_gpus: float = Field(default=0.0, ge=0, description="GPUs per replica")
    target_ongoing_requests: float = Field(
        default=2.0, gt=0, description="average number of requests per replica that autoscaling aims at"
    )
    max_ongoing_requests: int = Field(default=64, ge=1, description="requests that a replica processes at a time")
    max_queued_requests: int = Field(
        default=64, ge=1, description="requests that each caller queues while all replicas are busy; then status 429"
    )
    upscale_delay_s: float = Field(default=10.0, ge=0, description="seconds of high load before a replica is added")
    downscale_delay_s: float = Field(default=300.0, ge=0, description="seconds of low load before a replica is removed")
    look_back_period_s: float = Field(default=30.0, gt=10, description="seconds over which the load is averaged")
    health_check_period_s: float = Field(default=5.0, gt=0, description="seconds between health checks of a replica")
    health_check_timeout_s: float = Field(
        default=30.0, gt=0, description="seconds until a health check fails and the replica is replaced"
    )
    graceful_shutdown_timeout_s: float = Field(
        default=150.0, ge=0, description="seconds that a replica gets to finish its requests before it is stopped"
    )

    @model_validator(mode="after")
    def _can_scale(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError("target_ongoing_requests is above max_ongoing_requests: it would never be reached")
        return self


class ServingResources(BaseModel):
    """Resources and autoscaling of each deployment of the service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ingress: ReplicaSettings = ReplicaSettings(target_ongoing_requests=32, num_cpus=0.25, max_queued_requests=256)
    captioner: ReplicaSettings = ReplicaSettings(target_ongoing_requests=16, max_ongoing_requests=64, num_cpus=0.5)
    segmenter: ReplicaSettings = ReplicaSettings(target_ongoing_requests=2, max_ongoing_requests=4, num_cpus=0.25)


class BatchesSettings(BaseModel):
    """Batch jobs over HTTP (``POST /v1/batches``); disabled unless folders are configured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folders: tuple[Path, ...] = Field(
        default=(), description="folders that batch jobs may read; empty: batch jobs are disabled"
    )
    output: Path | None = Field(default=None, description="folder for the outputs of batch jobs, one subfolder each")
    max_jobs: int = Field(default=1, ge=1, description="batch jobs that run at a time; further ones get status 429")
    resources: CaptionResources = Field(
        # A job that requested every CPU would wait forever for those that the service holds.
        default=CaptionResources(
            masks=MaskResources(num_actors=1), caption=AsyncActorResources(num_actors=1, num_cpus=0.5)
        ),
        description="resources of each operator of a batch job",
    )

    @model_validator(mode="after")
    def _has_both(self) -> Self:
        if bool(self.folders) != (self.output is not None):
            raise ValueError("batches need both folders and output, or none")
        return self


class ServeSettings(CommandSettings):
    """Caption regions of images over HTTP, with a web page at /."""

    model_config = SettingsConfigDict(cli_prog_name="ureca serve")
    command: ClassVar[str] = "serve"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca serve                       # without a model: captions of measured facts",
        "ureca serve --model CHECKPOINT    # http://127.0.0.1:8765, with a page",
        "ureca serve --model CHECKPOINT --host 0.0.0.0 --access.tokens-file tokens.txt",
    )

    model: Annotated[str | None, ESSENTIAL] = Field(
        default=None,
        description="folder of the checkpoint, readable on every node; without one, captions state facts of the pixels "
        "(the rule-based captioner, which needs no weights)",
    )
    name: Annotated[str | None, ESSENTIAL] = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="name of the model in requests; default: ureca, or rule-based without a model",
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], ESSENTIAL] = Field(
        default="auto",
        description="data type of the weights; auto: as in the checkpoint, in every engine, and float32 for scenes",
    )
    host: Annotated[str, ESSENTIAL] = Field(
        default="127.0.0.1", description="address to listen on; any address except loopback requires tokens"
    )
    port: Annotated[int, ESSENTIAL] = Field(default=8765, ge=1, le=65535, description="port to listen on")
    engine: Engine = Field(
        default="auto",
        description="engine of the model: transformers; vllm (paged caches and CUDA graphs, for GPUs); auto: vllm if a "
        "captioner replica has a GPU and vLLM is installed",
    )
    vllm: VllmCaptioningSettings = VllmCaptioningSettings()
    captioner: CaptionSettings = Field(
        default=CaptionSettings(),
        description="generation settings; requests may override all but batch_size, and lower max_new_tokens",
    )
    masks: Annotated[
        SegmentsConfig | SamConfig | Sam2Config | Sam3Config | SamHqConfig,
        Field(discriminator="kind", description="generator of the masks that the page offers and points select"),
        ESSENTIAL,
    ] = SegmentsConfig()
    limits: ServingLimits = ServingLimits()
    batches: BatchesSettings = BatchesSettings()
    access: AccessSettings = AccessSettings()
    resources: ServingResources = ServingResources()

    @model_validator(mode="after")
    def _batches_have_a_model(self) -> Self:
        if self.batches.folders and self.model is None:
            raise ValueError("batches need a model: set --model to the folder of a checkpoint")
        return self

    @model_validator(mode="after")
    def _vllm_has_its_gpus(self) -> Self:
        check_gpus(self.engine, self.vllm, self.resources.captioner.num_gpus, "resources.captioner.num_gpus")
        if self.batches.folders:
            num_gpus = self.batches.resources.caption.num_gpus
            check_gpus(self.engine, self.vllm, num_gpus, "batches.resources.caption.num_gpus")
        if self.engine == "vllm" and self.model is None:
            raise ValueError("engine vllm needs a model: set --model to the folder of a checkpoint")
        return self

    @property
    def served_name(self) -> str:
        """Name of the model in requests."""
        return self.name or ("rule-based" if self.model is None else "ureca")

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def read_tokens(self) -> frozenset[str]:
        """Read the bearer tokens; a service that other machines can reach must have one.

        Raises:
            SettingsError: as in ``AccessSettings.read_tokens``; or there is no token and the host is not loopback.
        """
        tokens = self.access.read_tokens()
        if not tokens and not self.is_local:
            raise SettingsError(
                f"--host {self.host} can be reached by other machines: configure bearer tokens with "
                "--access.tokens-file or --access.tokens-variable, or listen on 127.0.0.1"
            )
        return tokens
