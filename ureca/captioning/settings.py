"""Settings of the engines that caption regions."""

from typing import Annotated, Literal

from pydantic import Field

from ureca.config import MAY_CHANGE
from ureca.llm.settings import EngineOptions, KeySettings, TransportSettings, VllmEngineSettings

Engine = Literal["auto", "transformers", "vllm"]


class CaptioningEndpoints(KeySettings, TransportSettings):
    """Requests to the endpoints of ``base_urls``, with ``engine openai``."""


class VllmCaptioningSettings(VllmEngineSettings):
    """Options of vLLM, with ``engine vllm``."""

    engine_options: Annotated[EngineOptions, MAY_CHANGE] = Field(
        default={}, description='further fields of vLLM\'s AsyncEngineArgs, as JSON: {"max_num_seqs": 512}'
    )


def check_gpus(engine: str, vllm: VllmEngineSettings, num_gpus: float, setting: str) -> None:
    """Check that an actor or a replica has the GPUs among which vLLM splits the model.

    Args:
        engine: engine that captions.
        vllm: options of vLLM.
        num_gpus: GPUs of an actor or a replica.
        setting: name of the setting with that number.

    Raises:
        ValueError: it has more, or fewer.
    """
    if engine in {"auto", "vllm"} and vllm.tensor_parallel_size > 1 and num_gpus != vllm.tensor_parallel_size:
        raise ValueError(
            f"vllm.tensor_parallel_size {vllm.tensor_parallel_size} needs as many GPUs in each engine's process: set "
            f"{setting} to {vllm.tensor_parallel_size}, it is {num_gpus:g}"
        )
