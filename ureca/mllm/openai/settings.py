"""Settings of the engine for OpenAI-compatible endpoints."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, field_validator, model_validator


class RequestSettings(BaseModel):
    """How requests are sent, and how patiently."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    constrain_answers: bool = Field(
        default=True, description="have answers decoded by their JSON schema; off for servers that cannot"
    )
    jpeg_quality: int = Field(default=90, ge=1, le=100, description="of the images sent")
    max_concurrency: int = Field(
        default=64, ge=1, description="most requests in flight at an endpoint; fewer when it says it has too many"
    )
    max_attempts: int = Field(default=8, ge=1, description="times a request is sent until it counts as failed")
    connect_timeout_s: float = Field(default=10.0, gt=0, description="to reach an endpoint")
    answer_timeout_s: float = Field(default=300.0, gt=0, description="of one attempt, from connecting to the last byte")
    first_wait_s: float = Field(
        default=0.5, gt=0, description="after a failure, of a request and of an endpoint; doubles with each in a row"
    )
    max_wait_s: float = Field(default=60.0, gt=0, description="longest such wait, also of what Retry-After asks for")
    max_outage_s: float = Field(
        default=300.0, ge=0, description="the job ends when no endpoint could be reached for so long"
    )
    max_answer_bytes: int = Field(default=2**20, ge=1024, description="longer HTTP answers are not read to their end")

    @model_validator(mode="after")
    def _waits_agree(self) -> Self:
        if self.first_wait_s > self.max_wait_s:
            raise ValueError("first_wait_s is longer than max_wait_s")
        return self


class OpenAISettings(RequestSettings):
    """Which model is asked where, and how patiently.

    The key itself is no setting: settings are stored beside the results. They name where it is read from, on the
    machine that sends the requests.
    """

    model: str = Field(min_length=1, description="name of the model at the endpoints")
    base_urls: tuple[HttpUrl, ...] = Field(
        min_length=1, description="endpoints that serve the model, such as http://localhost:8000/v1"
    )
    api_key_variable: str | None = Field(default=None, description="environment variable with the key; None: no key")
    api_key_file: str | None = Field(default=None, description="file with the key; None: no key")

    @field_validator("base_urls")
    @classmethod
    def _are_plain(cls, base_urls: tuple[HttpUrl, ...]) -> tuple[HttpUrl, ...]:
        for number, url in enumerate(base_urls, 1):
            if url.username or url.password or url.query or url.fragment:
                # The message shows no URL: it may have a password in it.
                raise ValueError(f"number {number} has a user, query or fragment; name a key by variable or file")
        if len({str(url).rstrip("/") for url in base_urls}) < len(base_urls):
            raise ValueError("one endpoint is named twice")
        return base_urls

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.api_key_variable is not None and self.api_key_file is not None:
            raise ValueError("api_key_variable and api_key_file both name a key; set one of them")
        return self
