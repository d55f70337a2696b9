"""Settings of the service: limits, access, and the scaling of its parts."""

import os
import re
from pathlib import Path
from typing import Annotated, Protocol, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ureca.errors import SettingsError
from ureca.images import ImageLimits
from ureca.model.settings import CaptionSettings

_LEAST_TOKEN = 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # what RFC 6750 lets a header carry


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServingLimits(_Frozen):
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


class AccessSettings(_Frozen):
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


class Replicas(BaseModel):
    """Copies of a part of the service, and when there are more or fewer of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, ge=1, description="copies at rest")
    max_replicas: int = Field(default=1, ge=1, description="copies under load")
    num_cpus: float = Field(default=0.25, ge=0, description="logical CPUs a copy")
    num_gpus: float = Field(default=0.0, ge=0, description="GPUs a copy")
    target_ongoing_requests: float = Field(default=2.0, gt=0, description="requests a copy before there are more")
    max_ongoing_requests: int = Field(default=64, ge=1, description="requests that a copy works on at a time")
    max_queued_requests: int = Field(
        default=64, ge=1, description="requests that wait at each sender while all copies are full; then status 429"
    )
    upscale_delay_s: float = Field(default=10.0, ge=0, description="how long the load lasts before a copy is added")
    downscale_delay_s: float = Field(default=300.0, ge=0, description="and its absence before one is removed")
    look_back_period_s: float = Field(default=30.0, gt=10, description="over how long the load is averaged")
    health_check_period_s: float = Field(default=5.0, gt=0)
    health_check_timeout_s: float = Field(default=30.0, gt=0, description="an answer that takes longer: replaced")
    graceful_shutdown_timeout_s: float = Field(
        default=150.0, ge=0, description="how long a copy may finish what it has begun"
    )

    @model_validator(mode="after")
    def _can_scale(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError("target_ongoing_requests is above max_ongoing_requests: it would never be reached")
        return self


class ServiceSettings(Protocol):
    """Settings that the service reads, whichever server hosts it."""

    @property
    def name(self) -> str:
        """Name of the model in requests and answers."""

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach the service."""

    @property
    def captioner(self) -> CaptionSettings:
        """Generation settings of requests that do not give their own."""

    @property
    def limits(self) -> ServingLimits:
        """Limits of a request."""

    @property
    def access(self) -> AccessSettings:
        """Tokens, and the hosts that images are fetched from."""
