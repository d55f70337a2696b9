"""Settings of the service: limits of a request, and access control."""

import ctypes
import math
import os
import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ureca.errors import SettingsError
from ureca.image_limits import ImageLimits
from ureca.image_structure import num_decoding_bytes

_MIN_TOKEN_LENGTH = 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # the characters of a bearer token in RFC 6750


class ServingLimits(BaseModel):
    """Limits of a request. A request beyond them is answered with an error and costs no GPU time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(default=32 * 2**20, ge=1, description="largest request body in bytes")
    max_json_values: int = Field(
        default=300_000,
        ge=1,
        description="maximum number of values (numbers, strings, lists, objects) in the JSON of a request; the cost of "
        "validation grows with it",
    )
    body_timeout_s: float = Field(
        default=30.0, gt=0, description="seconds until the body of a request must have arrived; then status 408"
    )
    max_buffered_bytes: int = Field(
        default=512 * 2**20, ge=1, description="bytes of request bodies that an ingress replica holds at a time"
    )
    image: ImageLimits = ImageLimits(max_bytes=24 * 2**20, max_pixels=40_000_000)
    max_image_memory_bytes: int = Field(
        default=2 * 2**30,
        ge=1,
        description="memory for the images of the requests of an ingress replica together, in bytes; a request waits "
        "until the memory that decoding its image takes at most is free, and gets status 503 if that takes a quarter "
        "of timeout_s",
    )
    max_regions: int = Field(
        default=256, ge=1, le=4096, description="maximum number of regions in a request, given or segmented"
    )
    max_mask_pixels: int = Field(
        default=2**32,
        ge=1,
        description="maximum number of mask pixels in a request: regions x image height x image width",
    )
    max_mask_file_pixels: int = Field(
        default=2**30,
        ge=1,
        description="maximum number of pixels of the different mask_png files of a request together, which are decoded",
    )
    timeout_s: float = Field(default=120.0, gt=0, description="seconds until a request ends with status 504")
    max_in_flight: int = Field(
        default=64, ge=1, description="requests that an ingress replica processes at a time; further ones get 429"
    )
    retry_after_s: int = Field(
        default=2, ge=0, description="seconds in the Retry-After header of responses with status 429 or 503"
    )
    prefix_cache_fraction: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="share of a replica's part of the memory that is free once the model is loaded, on its GPU (by "
        "num_gpus) or on the machine (by num_cpus), that the latest images may take, which need no further pass "
        "through the model; 0 keeps none",
    )
    max_failures: int = Field(
        default=8,
        ge=1,
        description="failures in a row, of regions in a captioner or of the memory for images in a segmenter, before a "
        "replica is replaced; a success resets the count",
    )

    @model_validator(mode="after")
    def _largest_image_fits(self) -> Self:
        needed = num_decoding_bytes(self.image.max_bytes, self.image.max_pixels)
        if needed * 4 / 3 > self.max_image_memory_bytes:
            raise ValueError(
                f"max_image_memory_bytes {self.max_image_memory_bytes} is too little for one image of "
                f"{self.image.max_pixels} pixels: set at least {math.ceil(needed * 4 / 3)}, or a lower image.max_pixels"
            )
        return self


def erase_variable(name: str) -> None:
    """Remove an environment variable, also from the memory that ``/proc/PID/environ`` shows of this process."""
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    value = libc.getenv(name.encode())
    if value:
        ctypes.memset(value, ord("*"), len(os.environb[name.encode()]))
    os.environ.pop(name, None)


def _check_host_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9.-]+", value):
        raise ValueError(f"{value!r} is not a host name: lower case, without scheme, port or path")
    return value


class AccessSettings(BaseModel):
    """Access control: bearer tokens, and the hosts that images may be fetched from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_file: Path | None = Field(default=None, description="file with one bearer token per line")
    tokens_variable: str | None = Field(
        default=None, description="name of an environment variable with comma-separated bearer tokens"
    )
    allowed_hosts: tuple[Annotated[str, AfterValidator(_check_host_name)], ...] = Field(
        default=(), description="host names that image URLs are fetched from; empty: image URLs are rejected"
    )
    host_names: tuple[Annotated[str, AfterValidator(_check_host_name)], ...] = Field(
        default=(),
        description="names by which clients reach the service, such as that of a reverse proxy in front of it; a "
        "request whose Host is another one is rejected, unless it is localhost or a loopback address; empty: a service "
        "on loopback accepts only these, and any other service accepts every name",
    )

    def read_tokens(self) -> frozenset[str]:
        """Read the bearer tokens from the file and the environment variable.

        Returns:
            The tokens; empty if neither source is configured.

        Raises:
            SettingsError: a configured source has no token, or a token is too short or not valid in a header.
        """
        sources: dict[str, list[str]] = {}
        if self.tokens_file is not None:
            try:
                lines = self.tokens_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"access.tokens_file {self.tokens_file} cannot be read: {error}") from error
            sources[f"access.tokens_file {self.tokens_file}"] = lines
        if self.tokens_variable is not None:
            values = os.environ.get(self.tokens_variable, "").split(",")
            sources[f"access.tokens_variable {self.tokens_variable}"] = values
        tokens: set[str] = set()
        for source, lines in sources.items():
            found = {line.strip() for line in lines} - {""}
            if not found:
                raise SettingsError(f"{source} has no token; create one with `openssl rand -hex 24`")
            if any(len(token) < _MIN_TOKEN_LENGTH or not _TOKEN.fullmatch(token) for token in found):
                raise SettingsError(
                    f"{source}: a token has {_MIN_TOKEN_LENGTH} or more letters, digits or ._~+/=-; "
                    "create one with `openssl rand -hex 24`"
                )
            tokens |= found
        return frozenset(tokens)
