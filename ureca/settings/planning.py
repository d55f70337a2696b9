"""Settings of ``--plan``."""

from pydantic import BaseModel, ConfigDict, Field


class PlanningSettings(BaseModel):
    """What a plan is made from, and what is known of the engine and of the machines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(default=16, ge=1, description="drawn from those that are to be done, and gone through")
    ask_model: bool = Field(
        default=False, description="ask the model itself about these images: tokens and times as they are, at its price"
    )
    seconds_per_answer: float | None = Field(default=None, gt=0, description="of the engine, at its full load")
    new_tokens_per_answer: float | None = Field(default=None, gt=0, description="on average")
    pixels_per_token: float = Field(
        default=784.0, gt=0, description="of images in prompts: 784 (28 x 28) for Qwen-VL and InternVL"
    )
    prompt_token_price: float | None = Field(default=None, ge=0, description="of a million tokens of prompts")
    new_token_price: float | None = Field(default=None, ge=0, description="of a million tokens of answers")
    num_cpus: float | None = Field(default=None, gt=0, description="of the machines; None: this one's")
    num_gpus: float = Field(default=0.0, ge=0, description="of the machines")
