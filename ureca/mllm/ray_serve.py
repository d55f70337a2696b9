"""Settings of a model behind a Ray Serve application (``ray.serve.llm``), which is asked like any other endpoint."""

from typing import Self

from pydantic import Field, HttpUrl, model_validator

from ureca.mllm.openai.settings import OpenAISettings, RequestSettings


class RayServeSettings(RequestSettings):
    """Which checkpoint is served, by how many replicas, and how patiently it is asked."""

    checkpoint: str = Field(min_length=1, description="hub name, or a path that is the same on all nodes")
    min_replicas: int = Field(default=1, ge=1, description="replicas that are always there")
    max_replicas: int = Field(default=1, ge=1, description="replicas when many requests are in flight")
    requests_per_replica: int = Field(default=32, ge=1, description="in flight, above which replicas are added")
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs of a replica")
    accelerator_type: str | None = Field(default=None, description="as Ray names it (A10G, H100); None: any")
    max_model_len: int | None = Field(
        default=None, ge=64, description="tokens of a prompt and its answer; None: the model's own limit"
    )
    port: int = Field(default=8000, ge=1, le=65535, description="of the application's HTTP proxy")

    @model_validator(mode="after")
    def _replicas_agree(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is greater than max_replicas")
        return self

    def at(self, url: str) -> OpenAISettings:
        """The settings to ask the application by, once it is at an address."""
        patience = {name: getattr(self, name) for name in RequestSettings.model_fields}
        return OpenAISettings(model=self.checkpoint, base_urls=(HttpUrl(url),), **patience)
