"""Settings of the engines that caption regions."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ureca.config import MAY_CHANGE
from ureca.llm.settings import EngineOptions

Engine = Literal["auto", "transformers", "vllm"]


class VllmEngineSettings(BaseModel):
    """Options of vLLM, with ``engine vllm``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor_parallel_size: Annotated[int, MAY_CHANGE] = Field(
        default=1, ge=1, description="GPUs of an actor, on one machine, among which the model is split"
    )
    max_model_len: int | None = Field(
        default=None, ge=64, description="maximum tokens of a prompt and its caption; None: the model's own limit"
    )
    gpu_memory_utilization: Annotated[float, MAY_CHANGE] = Field(
        default=0.9, gt=0, le=1, description="fraction of each GPU's memory that vLLM uses"
    )
    engine_options: Annotated[EngineOptions, MAY_CHANGE] = Field(
        default={}, description='further fields of vLLM\'s AsyncEngineArgs, as JSON: {"max_num_seqs": 512}'
    )
