"""Settings of the engine that runs a checkpoint by vLLM."""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_NOT_OPTIONS = {
    *("model", "tokenizer", "tensor_parallel_size", "distributed_executor_backend", "dtype", "max_model_len"),
    *("gpu_memory_utilization", "limit_mm_per_prompt", "trust_remote_code"),
}


class VllmSettings(BaseModel):
    """Which checkpoint answers, and how vLLM runs it. Each actor of the stage has an engine of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str = Field(min_length=1, description="folder or hub name of a model that vLLM knows itself")
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="GPUs of one machine that hold the model together: those of an actor"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the weights; auto: the checkpoint's"
    )
    max_model_len: int | None = Field(
        default=None, ge=64, description="tokens of a prompt and its answer; None: the model's own limit"
    )
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1, description="share of each GPU's memory to use")
    constrain_answers: bool = Field(default=True, description="have answers decoded by their JSON schema")
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
