"""Settings of the chat models; importing them loads no engine."""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    field_validator,
    model_validator,
)

from ureca.config import MAY_CHANGE
from ureca.extras import Requirement
from ureca.registry import register


def _parse_command_line_values(options: object) -> object:
    """Parse booleans, numbers, lists and objects, which are text on a command line."""
    if not isinstance(options, dict):
        return options
    return {name: _parse_value(value) if isinstance(value, str) else value for name, value in options.items()}


def _parse_value(text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if value is None or isinstance(value, str) else value


Options = Annotated[dict[str, Any], BeforeValidator(_parse_command_line_values)]
"""Options for a server or an engine, which may be nested: JSON, or NAME=VALUE on a command line."""


@register("chat_model", "fake", component="ureca.llm.fake:FakeChatModel")
class FakeConfig(BaseModel):
    """No model: made-up answers that depend on the request alone, for tests and dry runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["fake"] = "fake"
    seconds_per_answer: Annotated[float, MAY_CHANGE] = Field(
        default=0.0, ge=0, description="seconds that each answer takes"
    )
    malformed_fraction: float = Field(default=0.0, ge=0, le=1, description="fraction of answers that are not JSON")


_RESERVED_FIELDS = frozenset({"model", "messages", "stream", "n"})
_OWN_HEADERS = frozenset({"host", "content-type", "content-length", "content-encoding", "accept-encoding"})


class TransportSettings(BaseModel):
    """Concurrency, timeouts and retries of the requests to a model server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token_parameter: Annotated[Literal["max_tokens", "max_completion_tokens", "none"], MAY_CHANGE] = Field(
        default="max_tokens",
        description="field of a request that limits the tokens of the answer; OpenAI's reasoning models accept "
        "max_completion_tokens only; none sends no limit",
    )
    send_temperature: bool = Field(
        default=True, description="send a temperature; turn off for reasoning models, which refuse any but their own"
    )
    chat_template_kwargs: Options = Field(
        default={}, description='arguments of the server\'s chat template, as JSON: {"enable_thinking": false}'
    )
    extra_body: Options = Field(
        default={},
        description='further fields of each request, as JSON, such as {"reasoning_effort": "low"}; they replace '
        "fields of the same name",
    )
    headers: Annotated[dict[str, str], MAY_CHANGE] = Field(
        default={}, description="further HTTP headers of each request, as JSON; not for secrets, which are not stored"
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
        default=300.0,
        ge=0,
        description="seconds without any reachable endpoint, or without any answer from one, after which the job ends",
    )
    max_answer_bytes: Annotated[int, MAY_CHANGE] = Field(
        default=2**20, ge=1024, description="maximum size of an HTTP response; a longer one counts as failed"
    )

    @field_validator("extra_body")
    @classmethod
    def _leave_the_question(cls, extra_body: dict[str, Any]) -> dict[str, Any]:
        if reserved := sorted(extra_body.keys() & _RESERVED_FIELDS):
            raise ValueError(f"{', '.join(reserved)}: not to be replaced; answers would not be understood")
        return extra_body

    @field_validator("headers")
    @classmethod
    def _are_headers_without_secrets(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or not value.isprintable() or not value.isascii():
                raise ValueError(f"{name!r} is no HTTP header with a printable ASCII value")
            if re.search(r"authorization|api-?key|token|secret|cookie", name, re.IGNORECASE):
                # The message does not show the value.
                raise ValueError(f"{name} may hold a secret, and settings are stored; see api_key_header")
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"{name} is set by the client")
        return headers

    @model_validator(mode="after")
    def _waits_agree(self) -> Self:
        if self.initial_backoff_s > self.max_wait_s:
            raise ValueError("initial_backoff_s is longer than max_wait_s")
        return self


class RequestSettings(TransportSettings):
    """Requests for structured answers to a model server."""

    structured_output: bool = Field(
        default=True,
        description="have the server decode answers by their JSON schema; turn off for servers without response_format",
    )


class KeySettings(BaseModel):
    """The API key of a model server.

    The key is not a setting, because settings are stored beside the results: a variable or a file on the machine that
    sends the requests holds it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key_variable: Annotated[str | None, MAY_CHANGE] = Field(
        default=None, description="environment variable that holds the API key; None: no key"
    )
    api_key_file: Annotated[str | None, MAY_CHANGE] = Field(
        default=None, description="file that holds the API key; None: no key"
    )
    api_key_header: Annotated[str, MAY_CHANGE] = Field(
        default="Authorization",
        pattern=r"^[A-Za-z0-9-]+$",
        description="HTTP header that holds the API key (api-key at Azure); in Authorization it is a bearer token",
    )

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.api_key_variable is not None and self.api_key_file is not None:
            raise ValueError("api_key_variable and api_key_file both name a key; set one of them")
        return self


def _check_base_urls(base_urls: tuple[HttpUrl, ...]) -> tuple[HttpUrl, ...]:
    for number, url in enumerate(base_urls, 1):
        if url.username or url.password or url.query or url.fragment:
            # The message shows no URL: it may have a password in it.
            raise ValueError(f"number {number} has a user, query or fragment; name a key by variable or file")
    if len({str(url).rstrip("/") for url in base_urls}) < len(base_urls):
        raise ValueError("one endpoint is named twice")
    return base_urls


BaseUrls = Annotated[tuple[HttpUrl, ...], AfterValidator(_check_base_urls)]
"""Addresses of OpenAI-compatible endpoints, without secrets."""


@register("chat_model", "openai", component="ureca.llm.openai:OpenAIChatModel")
class OpenAIConfig(KeySettings, RequestSettings):
    """A model behind OpenAI-compatible endpoints, such as a vLLM server."""

    kind: Literal["openai"] = "openai"
    model: str = Field(min_length=1, description="name of the model at the endpoints")
    base_urls: Annotated[BaseUrls, MAY_CHANGE] = Field(
        min_length=1, description="endpoints that serve the model, such as http://localhost:8000/v1"
    )

    @classmethod
    def of_requests(
        cls, requests: TransportSettings, model: str, base_urls: Sequence[HttpUrl], **changes: object
    ) -> Self:
        """Make the config of a model at endpoints from the settings of requests that another model has.

        Args:
            requests: settings of the requests, of which the fields that this config has, too, are taken.
            model: name of the model at the endpoints.
            base_urls: addresses of the endpoints.
            **changes: other values of fields.
        """
        names = cls.model_fields.keys() & type(requests).model_fields.keys() - {"kind"}
        shared = {name: getattr(requests, name) for name in names}
        return cls.model_validate({**shared, "model": model, "base_urls": tuple(base_urls), **changes})


_RESERVED_OPTIONS = {
    *("model", "tokenizer", "tensor_parallel_size", "distributed_executor_backend", "dtype", "max_model_len"),
    *("gpu_memory_utilization", "limit_mm_per_prompt", "trust_remote_code"),
}


def _check_not_reserved(options: dict[str, Any]) -> dict[str, Any]:
    if reserved := sorted(options.keys() & _RESERVED_OPTIONS):
        raise ValueError(f"{', '.join(reserved)}: set by the settings beside it, or not to be set at all")
    return options


EngineOptions = Annotated[Options, AfterValidator(_check_not_reserved)]
"""Options of vLLM's engine. Those that other settings determine are refused."""


@register("chat_model", "ray_serve", component="ureca.llm.ray_serve:application_not_started")
class RayServeConfig(RequestSettings):
    """A checkpoint in a Ray Serve application that is started for the run and scales with the requests in flight."""

    requires: ClassVar[Requirement] = Requirement("ray-serve", ("vllm",))

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
    engine_options: EngineOptions = Field(
        default={},
        description="further fields of vLLM's AsyncEngineArgs, as JSON: "
        '{"mm_processor_kwargs": {"max_pixels": 602112}, "max_num_seqs": 64}',
    )
    port: Annotated[int, MAY_CHANGE] = Field(default=8000, ge=1, le=65535, description="port of Ray Serve's HTTP proxy")

    @model_validator(mode="after")
    def _replicas_agree(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is greater than max_replicas")
        return self

    def openai_config(self, url: str) -> OpenAIConfig:
        """Return the config by which clients call the application, once it listens at ``url``."""
        return OpenAIConfig.of_requests(self, self.checkpoint, [HttpUrl(url)])


@register("chat_model", "transformers", component="ureca.llm.transformers:TransformersChatModel")
class TransformersConfig(BaseModel):
    """A checkpoint of any family that transformers supports, loaded in each actor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requires: ClassVar[Requirement] = Requirement("model", ("torch", "transformers"))

    kind: Literal["transformers"] = "transformers"
    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        min_length=1, description="folder or name on the hub of a checkpoint in transformers' own format"
    )
    device: Annotated[str, MAY_CHANGE] = Field(
        default="auto",
        description="device by its torch name (cpu, cuda:1); "
        "auto: all GPUs of the actor (num_gpus), without one the CPU",
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


class VllmEngineSettings(BaseModel):
    """Options of a vLLM engine in an actor or a replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor_parallel_size: Annotated[int, MAY_CHANGE] = Field(
        default=1, ge=1, description="GPUs of an engine, on one machine, among which the model is split"
    )
    max_model_len: int | None = Field(
        default=None, ge=64, description="maximum tokens of a prompt and its answer; None: the model's own limit"
    )
    gpu_memory_utilization: Annotated[float, MAY_CHANGE] = Field(
        default=0.9, gt=0, le=1, description="fraction of each GPU's memory that vLLM uses"
    )
    engine_options: EngineOptions = Field(
        default={},
        description="further fields of vLLM's AsyncEngineArgs, as JSON: "
        '{"enforce_eager": true, "mm_processor_kwargs": {"max_pixels": 602112}}',
    )


@register("chat_model", "vllm", component="ureca.llm.vllm:VllmChatModel")
class VllmConfig(VllmEngineSettings):
    """A checkpoint in a vLLM engine, one engine in each actor."""

    requires: ClassVar[Requirement] = Requirement("vllm", ("vllm",))

    kind: Literal["vllm"] = "vllm"
    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        min_length=1, description="folder or name on the hub of a model that vLLM supports"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="data type of the weights; auto: that of the checkpoint"
    )
    structured_output: bool = Field(default=True, description="decode answers by their JSON schema")
    chat_template_kwargs: Options = Field(
        default={}, description='arguments of the chat template, as JSON: {"enable_thinking": false}'
    )
