"""Settings of the chat models, one per engine."""

import json
from typing import Annotated, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, field_validator, model_validator

from ureca.config import MAY_CHANGE
from ureca.errors import SettingsError
from ureca.llm.fake import FakeSettings
from ureca.registry import register


class RequestSettings(BaseModel):
    """How requests are sent, and how patiently."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    structured_output: bool = Field(
        default=True, description="have answers decoded by their JSON schema; off for servers that cannot"
    )
    jpeg_quality: int = Field(default=90, ge=1, le=100, description="of the images sent")
    max_concurrency: Annotated[int, MAY_CHANGE] = Field(
        default=64, ge=1, description="most requests in flight at an endpoint; fewer when it says it has too many"
    )
    max_attempts: Annotated[int, MAY_CHANGE] = Field(
        default=8, ge=1, description="times a request is sent until it counts as failed"
    )
    connect_timeout_s: Annotated[float, MAY_CHANGE] = Field(default=10.0, gt=0, description="to reach an endpoint")
    request_timeout_s: Annotated[float, MAY_CHANGE] = Field(
        default=300.0, gt=0, description="of one attempt, from connecting to the last byte"
    )
    initial_backoff_s: Annotated[float, MAY_CHANGE] = Field(
        default=0.5, gt=0, description="after a failure, of a request and of an endpoint; doubles with each in a row"
    )
    max_wait_s: Annotated[float, MAY_CHANGE] = Field(
        default=60.0, gt=0, description="longest such wait, also of what Retry-After asks for"
    )
    outage_timeout_s: Annotated[float, MAY_CHANGE] = Field(
        default=300.0, ge=0, description="the job ends when no endpoint could be reached for so long"
    )
    max_answer_bytes: Annotated[int, MAY_CHANGE] = Field(
        default=2**20, ge=1024, description="longer HTTP answers are not read to their end"
    )

    @model_validator(mode="after")
    def _waits_agree(self) -> Self:
        if self.initial_backoff_s > self.max_wait_s:
            raise ValueError("initial_backoff_s is longer than max_wait_s")
        return self


class OpenAISettings(RequestSettings):
    """Which model is asked where, and how patiently.

    The key itself is no setting: settings are stored beside the results. They name where it is read from, on the
    machine that sends the requests.
    """

    model: str = Field(min_length=1, description="name of the model at the endpoints")
    base_urls: Annotated[tuple[HttpUrl, ...], MAY_CHANGE] = Field(
        min_length=1, description="endpoints that serve the model, such as http://localhost:8000/v1"
    )
    api_key_variable: Annotated[str | None, MAY_CHANGE] = Field(
        default=None, description="environment variable with the key; None: no key"
    )
    api_key_file: Annotated[str | None, MAY_CHANGE] = Field(default=None, description="file with the key; None: no key")

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


class TransformersSettings(BaseModel):
    """Which checkpoint answers, and how it is run. Each actor of the stage loads it once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        min_length=1, description="folder or hub name, in transformers' own format"
    )
    device: Annotated[str, MAY_CHANGE] = Field(
        default="auto", description="as torch names it (cpu, cuda:1); auto: all GPUs the actor has"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the weights; auto: the checkpoint's"
    )
    max_batch_size: Annotated[int, MAY_CHANGE] = Field(
        default=16, ge=1, description="requests answered together; halved when memory runs out"
    )
    image_options: dict[str, int | bool] = Field(
        default={}, description="given to the image processor, such as max_patches (InternVL) or max_pixels (Qwen-VL)"
    )


_NOT_OPTIONS = {
    *("model", "tokenizer", "tensor_parallel_size", "distributed_executor_backend", "dtype", "max_model_len"),
    *("gpu_memory_utilization", "limit_mm_per_prompt", "trust_remote_code"),
}


class VllmSettings(BaseModel):
    """Which checkpoint answers, and how vLLM runs it. Each actor of the stage has an engine of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        min_length=1, description="folder or hub name of a model that vLLM knows itself"
    )
    tensor_parallel_size: Annotated[int, MAY_CHANGE] = Field(
        default=1, ge=1, description="GPUs of one machine that hold the model together: those of an actor"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the weights; auto: the checkpoint's"
    )
    max_model_len: int | None = Field(
        default=None, ge=64, description="tokens of a prompt and its answer; None: the model's own limit"
    )
    gpu_memory_utilization: Annotated[float, MAY_CHANGE] = Field(
        default=0.9, gt=0, le=1, description="share of each GPU's memory to use"
    )
    structured_output: bool = Field(default=True, description="have answers decoded by their JSON schema")
    engine_options: dict[str, int | float | bool | str] = Field(
        default={}, description="further fields of vLLM's AsyncEngineArgs, such as enforce_eager or quantization"
    )

    @field_validator("engine_options", mode="before")
    @classmethod
    def _as_on_a_command_line(cls, options: object) -> object:
        """There, true, false and numbers arrive as text."""
        if not isinstance(options, dict):
            return options
        return {name: _scalar(value) if isinstance(value, str) else value for name, value in options.items()}

    @field_validator("engine_options")
    @classmethod
    def _are_no_settings(cls, options: dict[str, int | float | bool | str]) -> dict[str, int | float | bool | str]:
        if taken := sorted(options.keys() & _NOT_OPTIONS):
            raise ValueError(f"{', '.join(taken)}: set by the settings beside it, or not to be set at all")
        return options


def _scalar(text: str) -> object:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


class RayServeSettings(RequestSettings):
    """Which checkpoint is served, by how many replicas, and how patiently it is asked."""

    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        min_length=1, description="hub name, or a path that is the same on all nodes"
    )
    min_replicas: Annotated[int, MAY_CHANGE] = Field(default=1, ge=1, description="replicas that are always there")
    max_replicas: Annotated[int, MAY_CHANGE] = Field(
        default=1, ge=1, description="replicas when many requests are in flight"
    )
    requests_per_replica: Annotated[int, MAY_CHANGE] = Field(
        default=32, ge=1, description="in flight, above which replicas are added"
    )
    tensor_parallel_size: Annotated[int, MAY_CHANGE] = Field(default=1, ge=1, description="GPUs of a replica")
    accelerator_type: Annotated[str | None, MAY_CHANGE] = Field(
        default=None, description="as Ray names it (A10G, H100); None: any"
    )
    max_model_len: int | None = Field(
        default=None, ge=64, description="tokens of a prompt and its answer; None: the model's own limit"
    )
    port: Annotated[int, MAY_CHANGE] = Field(
        default=8000, ge=1, le=65535, description="of the application's HTTP proxy"
    )

    @model_validator(mode="after")
    def _replicas_agree(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is greater than max_replicas")
        return self

    def at(self, url: str) -> OpenAISettings:
        """The settings to ask the application by, once it is at an address."""
        patience = {name: getattr(self, name) for name in RequestSettings.model_fields}
        return OpenAISettings(model=self.checkpoint, base_urls=(HttpUrl(url),), **patience)


@register("chat_model", "standin", component="ureca.llm.fake:FakeChatModel")
class FakeConfig(FakeSettings):
    """No model: answers by content, for tests and dry runs."""

    kind: Literal["standin"] = "standin"


@register("chat_model", "openai", component="ureca.llm.openai:OpenAIChatModel")
class OpenAIConfig(OpenAISettings):
    """A model behind OpenAI-compatible endpoints, such as a vLLM server."""

    kind: Literal["openai"] = "openai"


@register("chat_model", "transformers", component="ureca.llm.transformers:TransformersChatModel")
class TransformersConfig(TransformersSettings):
    """A checkpoint of any family that transformers knows, in each actor of the stage."""

    kind: Literal["transformers"] = "transformers"


@register("chat_model", "vllm", component="ureca.llm.vllm:VllmChatModel")
class VllmConfig(VllmSettings):
    """A checkpoint in vLLM's engine, in each actor of the stage."""

    kind: Literal["vllm"] = "vllm"


@register("chat_model", "ray_serve", component="ureca.llm.settings:application_not_started")
class RayServeConfig(RayServeSettings):
    """A checkpoint behind a Ray Serve application that is started for the run and scales with what is asked."""

    kind: Literal["ray_serve"] = "ray_serve"


def application_not_started(settings: RayServeConfig) -> NoReturn:
    """Raise the error of a Ray Serve application that is asked before a pipeline has started it."""
    raise SettingsError("mllm.kind ray_serve: the application has not been started")


Mllm = Annotated[
    FakeConfig | OpenAIConfig | TransformersConfig | VllmConfig | RayServeConfig, Field(discriminator="kind")
]
