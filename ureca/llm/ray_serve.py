"""Config of a chat model that is served by Ray Serve for the time of a run; ``ureca.pipelines`` deploys it."""

from typing import Annotated, Literal, NoReturn, Self

from pydantic import Field, HttpUrl, model_validator

from ureca.config import MAY_CHANGE
from ureca.errors import SettingsError
from ureca.llm.openai import OpenAIConfig, RequestSettings
from ureca.registry import register


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


def application_not_started(settings: RayServeConfig) -> NoReturn:
    """Raise the error of a Ray Serve application that is used before a pipeline has started it."""
    raise SettingsError("mllm.kind ray_serve: the application has not been started")
