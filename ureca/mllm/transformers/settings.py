"""Settings of the engine that runs a checkpoint by transformers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TransformersSettings(BaseModel):
    """Which checkpoint answers, and how it is run. Each actor of the stage loads it once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str = Field(min_length=1, description="folder or hub name, in transformers' own format")
    device: str = Field(default="auto", description="as torch names it (cpu, cuda:1); auto: all GPUs the actor has")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the weights; auto: the checkpoint's"
    )
    max_batch_size: int = Field(default=16, ge=1, description="requests answered together; halved when memory runs out")
    image_options: dict[str, int | bool] = Field(
        default={}, description="given to the image processor, such as max_patches (InternVL) or max_pixels (Qwen-VL)"
    )
