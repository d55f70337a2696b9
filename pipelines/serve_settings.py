"""Settings of ``ureca serve``."""

import ipaddress
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from ureca.config import CommandSettings
from ureca.errors import SettingsError
from ureca.masks.generators.settings import SamConfig, SegmentsConfig
from ureca.model.settings import CaptionSettings
from ureca.pipelines.caption_settings import CaptionResources
from ureca.pipelines.settings import AsyncActorResources, MaskResources
from ureca.serving.settings import AccessSettings, Replicas, ServingLimits


class BatchesSettings(BaseModel):
    """Batch jobs by HTTP (``POST /v1/batches``); off unless folders are named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folders: tuple[Path, ...] = Field(default=(), description="folders that a job may read; none: no jobs")
    output: Path | None = Field(default=None, description="folder that jobs write to, each into one of its own")
    max_jobs: int = Field(default=1, ge=1, description="jobs that run at a time; further ones are refused")
    resources: CaptionResources = Field(
        # A job that took every CPU would wait for ever for those that the service has.
        default=CaptionResources(
            masks=MaskResources(num_actors=1), caption=AsyncActorResources(num_actors=1, num_cpus=0.5)
        ),
        description="where each stage of a job runs",
    )

    @model_validator(mode="after")
    def _has_both(self) -> Self:
        if bool(self.folders) != (self.output is not None):
            raise ValueError("batches need both folders and output, or none")
        return self


class ServingResources(BaseModel):
    """Where each part of the service runs, and how it scales."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ingress: Replicas = Replicas(target_ongoing_requests=32, num_cpus=0.25, max_queued_requests=256)
    captioner: Replicas = Replicas(target_ongoing_requests=16, max_ongoing_requests=64, num_cpus=0.5)
    segmenter: Replicas = Replicas(target_ongoing_requests=2, max_ongoing_requests=4, num_cpus=0.25)


class ServeSettings(CommandSettings):
    """Caption regions of images over HTTP, with a page at /."""

    model_config = SettingsConfigDict(cli_prog_name="ureca serve")
    command: ClassVar[str] = "serve"

    model: str = Field(description="folder of the checkpoint, which every machine can read")
    name: str = Field(default="ureca", min_length=1, max_length=200, description="what requests call the model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="type of the weights; auto: the checkpoint's"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on; others than loopback need tokens")
    port: int = Field(default=8765, ge=1, le=65535)
    captioner: CaptionSettings = Field(
        default=CaptionSettings(), description="what a request does not say; max_new_tokens is also the most it may ask"
    )
    masks: Annotated[SegmentsConfig | SamConfig, Field(discriminator="kind")] = SegmentsConfig()
    limits: ServingLimits = ServingLimits()
    batches: BatchesSettings = BatchesSettings()
    access: AccessSettings = AccessSettings()
    resources: ServingResources = ServingResources()

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def read_tokens(self) -> frozenset[str]:
        """The tokens, of which a service that others can reach has at least one.

        Raises:
            SettingsError: as ``AccessSettings.read_tokens``, or there is none and the host is not loopback.
        """
        tokens = self.access.read_tokens()
        if not tokens and not self.is_local:
            raise SettingsError(
                f"--host {self.host} can be reached by others: name bearer tokens with --access.tokens-file or "
                "--access.tokens-variable, or listen on 127.0.0.1"
            )
        return tokens
