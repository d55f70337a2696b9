"""Settings of ``ureca serve``."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from ureca.errors import SettingsError
from ureca.images import ImageLimits
from ureca.settings.caption import CaptionResources
from ureca.settings.captioner import CaptionSettings
from ureca.settings.loading import VerbSettings
from ureca.settings.proposals import FromSam, FromSegments
from ureca.settings.replicas import Replicas
from ureca.settings.resources import AsyncActorResources, ProposingResources

_LEAST_TOKEN = 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # what RFC 6750 lets a header carry


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServingLimits(_Part):
    """What a request may cost before it is refused."""

    max_body_bytes: int = Field(default=32 * 2**20, ge=1, description="largest body of a request")
    image: ImageLimits = ImageLimits(max_bytes=24 * 2**20, max_pixels=40_000_000)
    max_regions: int = Field(default=256, ge=1, le=4096, description="most regions of a request, given or found")
    max_mask_pixels: int = Field(
        default=2**32, ge=1, description="most pixels of all regions' masks together: regions x height x width"
    )
    timeout_s: float = Field(default=120.0, gt=0, description="a request that takes longer ends with status 504")
    max_in_flight: int = Field(default=64, ge=1, description="requests that an ingress replica works on at a time")
    retry_after_s: int = Field(default=2, ge=0, description="what a refused client is told to wait")


def _host(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9.-]+", value):
        raise ValueError(f"{value!r} is no host name: lower case, without scheme, port or path")
    return value


class AccessSettings(_Part):
    """Who may use the service, and what it may fetch."""

    tokens_file: Path | None = Field(default=None, description="file of bearer tokens, one a line")
    tokens_variable: str | None = Field(default=None, description="environment variable of tokens, commas between")
    allowed_hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        default=(), description="hosts of which image URLs are fetched; none: no URL is"
    )

    def read_tokens(self) -> frozenset[str]:
        """The tokens; none where neither a file nor a variable is named.

        Raises:
            SettingsError: a source that is named has no token, or a token is short or cannot stand in a header.
        """
        tokens: set[str] = set()
        if self.tokens_file is not None:
            try:
                lines = self.tokens_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"access.tokens_file {self.tokens_file} cannot be read: {error}") from error
            tokens |= _checked(lines, f"access.tokens_file {self.tokens_file}")
        if self.tokens_variable is not None:
            values = os.environ.get(self.tokens_variable, "").split(",")
            tokens |= _checked(values, f"access.tokens_variable {self.tokens_variable}")
        return frozenset(tokens)


def _checked(values: list[str], source: str) -> set[str]:
    tokens = {value.strip() for value in values} - {""}
    if not tokens:
        raise SettingsError(f"{source} holds no token")
    if any(len(token) < _LEAST_TOKEN or not _TOKEN.fullmatch(token) for token in tokens):
        raise SettingsError(
            f"{source}: a token has {_LEAST_TOKEN} or more letters, digits or ._~+/=-; `openssl rand -hex 24` makes one"
        )
    return tokens


class BatchesSettings(_Part):
    """Batch jobs by HTTP (``POST /v1/batches``); off unless folders are named."""

    folders: tuple[Path, ...] = Field(default=(), description="folders that a job may read; none: no jobs")
    output: Path | None = Field(default=None, description="folder that jobs write to, each into one of its own")
    max_jobs: int = Field(default=1, ge=1, description="jobs that run at a time; further ones are refused")
    resources: CaptionResources = Field(
        # A job that took every CPU would wait for ever for those that the service has.
        default=CaptionResources(
            propose=ProposingResources(num_actors=1), caption=AsyncActorResources(num_actors=1, num_cpus=0.5)
        ),
        description="where each stage of a job runs",
    )

    @model_validator(mode="after")
    def _has_both(self) -> Self:
        if bool(self.folders) != (self.output is not None):
            raise ValueError("batches need both folders and output, or none")
        return self


class ServingResources(_Part):
    """Where each part of the service runs, and how it scales."""

    ingress: Replicas = Replicas(target_ongoing_requests=32, num_cpus=0.25, max_queued_requests=256)
    captioner: Replicas = Replicas(target_ongoing_requests=16, max_ongoing_requests=64, num_cpus=0.5)
    segmenter: Replicas = Replicas(target_ongoing_requests=2, max_ongoing_requests=4, num_cpus=0.25)


class ServeSettings(VerbSettings):
    """Caption regions of images over HTTP, with a page at /."""

    model_config = SettingsConfigDict(cli_prog_name="ureca serve")
    verb: ClassVar[str] = "serve"

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
    proposals: Annotated[FromSegments | FromSam, Field(discriminator="kind")] = FromSegments()
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
