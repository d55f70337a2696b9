"""Settings of the chat models; importing them loads no engine."""

import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, field_validator, model_validator

from ureca.config import MAY_CHANGE
from ureca.registry import register


@register("chat_model", "fake", component="ureca.llm.fake:FakeChatModel")
class FakeConfig(BaseModel):
    """No model: made-up answers that depend on the request alone, for tests and dry runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["fake"] = "fake"
    seconds_per_answer: Annotated[float, MAY_CHANGE] = Field(
        default=0.0, ge=0, description="seconds that each answer takes"
    )
    malformed_fraction: float = Field(default=0.0, ge=0, le=1, description="fraction of answers that are not JSON")


class RequestSettings(BaseModel):
    """Concurrency, timeouts and retries of the requests to a model server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    structured_output: bool = Field(
        default=True,
        description="have the server decode answers by their JSON schema; turn off for servers without response_format",
    )
    jpeg_quality: int = Field(default=90, ge=1, le=100, description="JPEG quality of the images in requests")
    max_concurrency: Annotated[int, MAY_CHANGE] = Field(
        default=64,
        ge=1,
        description="maximum requests in flight per endpoint; lowered automatically while an endpoint is overloaded",
    )
    max_attempts: Annotated[int, MAY_CHANGE] = Field(
        default=8, ge=1, description="attempts per request before it counts as failed"
    )
    connect_timeout_s: Annotated[float, MAY_CHANGE] = Field(
        default=10.0, gt=0, description="seconds to wait for a connection to an endpoint"
    )
    request_timeout_s: Annotated[float, MAY_CHANGE] = Field(
        default=300.0, gt=0, description="seconds of one attempt, from connecting to the last byte of the response"
    )
    initial_backoff_s: Annotated[float, MAY_CHANGE] = Field(
        default=0.5,
        gt=0,
        description="seconds before a failed request is retried or a failing endpoint is used again; doubles with each "
        "consecutive failure",
    )
    max_wait_s: Annotated[float, MAY_CHANGE] = Field(
        default=60.0, gt=0, description="upper bound of the backoff and of the server's Retry-After, in seconds"
    )
    outage_timeout_s: Annotated[float, MAY_CHANGE] = Field(
        default=300.0, ge=0, description="seconds without any reachable endpoint after which the job ends"
    )
    max_answer_bytes: Annotated[int, MAY_CHANGE] = Field(
        default=2**20, ge=1024, description="maximum size of an HTTP response; a longer one counts as failed"
    )

    @model_validator(mode="after")
    def _waits_agree(self) -> Self:
        if self.initial_backoff_s > self.max_wait_s:
            raise ValueError("initial_backoff_s is longer than max_wait_s")
        return self


@register("chat_model", "openai", component="ureca.llm.openai:OpenAIChatModel")
class OpenAIConfig(RequestSettings):
    """A model behind OpenAI-compatible endpoints, such as a vLLM server.

    The API key is not a setting, because settings are stored beside the results: a variable or a file on the machine
    that sends the requests holds it.
    """

    kind: Literal["openai"] = "openai"
    model: str = Field(min_length=1, description="name of the model at the endpoints")
    base_urls: Annotated[tuple[HttpUrl, ...], MAY_CHANGE] = Field(
        min_length=1, description="endpoints that serve the model, such as http://localhost:8000/v1"
    )
    api_key_variable: Annotated[str | None, MAY_CHANGE] = Field(
        default=None, description="environment variable that holds the API key; None: no key"
    )
    api_key_file: Annotated[str | None, MAY_CHANGE] = Field(
        default=None, description="file that holds the API key; None: no key"
    )

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


@register("chat_model", "ray_serve", component="ureca.llm.ray_serve:application_not_started")
class RayServeConfig(RequestSettings):
    """A checkpoint in a Ray Serve application that is started for the run and scales with the requests in flight."""

    kind: Literal["ray_serve"] = "ray_serve"
    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        min_length=1, description="name on the hub, or a path that exists on all nodes"
    )
    min_replicas: Annotated[int, MAY_CHANGE] = Field(default=1, ge=1, description="minimum number of replicas")
    max_replicas: Annotated[int, MAY_CHANGE] = Field(default=1, ge=1, description="maximum number of replicas")
    requests_per_replica: Annotated[int, MAY_CHANGE] = Field(
        default=32, ge=1, description="requests in flight per replica above which replicas are added"
    )
    tensor_parallel_size: Annotated[int, MAY_CHANGE] = Field(default=1, ge=1, description="GPUs per replica")
    accelerator_type: Annotated[str | None, MAY_CHANGE] = Field(
        default=None, description="accelerator type by Ray's name (A10G, H100); None: any"
    )
    max_model_len: int | None = Field(
        default=None, ge=64, description="maximum tokens of a prompt and its answer; None: the model's own limit"
    )
    port: Annotated[int, MAY_CHANGE] = Field(default=8000, ge=1, le=65535, description="port of Ray Serve's HTTP proxy")

    @model_validator(mode="after")
    def _replicas_agree(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is greater than max_replicas")
        return self

    def openai_config(self, url: str) -> OpenAIConfig:
        """Return the config by which clients call the application, once it listens at ``url``."""
        shared = {name: getattr(self, name) for name in RequestSettings.model_fields}
        return OpenAIConfig(model=self.checkpoint, base_urls=(HttpUrl(url),), **shared)


@register("chat_model", "transformers", component="ureca.llm.transformers:TransformersChatModel")
class TransformersConfig(BaseModel):
    """A checkpoint of any family that transformers supports, loaded in each actor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["transformers"] = "transformers"
    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        min_length=1, description="folder or name on the hub of a checkpoint in transformers' own format"
    )
    device: Annotated[str, MAY_CHANGE] = Field(
        default="auto", description="device by its torch name (cpu, cuda:1); auto: all GPUs of the actor"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="data type of the weights; auto: that of the checkpoint"
    )
    max_batch_size: Annotated[int, MAY_CHANGE] = Field(
        default=16, ge=1, description="maximum requests in a batch; halved when the GPU runs out of memory"
    )
    image_options: dict[str, int | bool] = Field(
        default={}, description="options of the image processor, such as max_patches (InternVL) or max_pixels (Qwen-VL)"
    )


_RESERVED_OPTIONS = {
    *("model", "tokenizer", "tensor_parallel_size", "distributed_executor_backend", "dtype", "max_model_len"),
    *("gpu_memory_utilization", "limit_mm_per_prompt", "trust_remote_code"),
}


@register("chat_model", "vllm", component="ureca.llm.vllm:VllmChatModel")
class VllmConfig(BaseModel):
    """A checkpoint in a vLLM engine, one engine in each actor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vllm"] = "vllm"
    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        min_length=1, description="folder or name on the hub of a model that vLLM supports"
    )
    tensor_parallel_size: Annotated[int, MAY_CHANGE] = Field(
        default=1, ge=1, description="GPUs of an actor, on one machine, among which the model is split"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="data type of the weights; auto: that of the checkpoint"
    )
    max_model_len: int | None = Field(
        default=None, ge=64, description="maximum tokens of a prompt and its answer; None: the model's own limit"
    )
    gpu_memory_utilization: Annotated[float, MAY_CHANGE] = Field(
        default=0.9, gt=0, le=1, description="fraction of each GPU's memory that vLLM uses"
    )
    structured_output: bool = Field(default=True, description="decode answers by their JSON schema")
    engine_options: dict[str, int | float | bool | str] = Field(
        default={}, description="further fields of vLLM's AsyncEngineArgs, such as enforce_eager or quantization"
    )

    @field_validator("engine_options", mode="before")
    @classmethod
    def _parse_command_line_values(cls, options: object) -> object:
        """Parse booleans and numbers, which are text on a command line."""
        if not isinstance(options, dict):
            return options
        return {name: _scalar(value) if isinstance(value, str) else value for name, value in options.items()}

    @field_validator("engine_options")
    @classmethod
    def _are_not_reserved(cls, options: dict[str, int | float | bool | str]) -> dict[str, int | float | bool | str]:
        if reserved := sorted(options.keys() & _RESERVED_OPTIONS):
            raise ValueError(f"{', '.join(reserved)}: set by the settings beside it, or not to be set at all")
        return options


def _scalar(text: str) -> object:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
