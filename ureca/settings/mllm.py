"""Which multimodal model is asked, and what runs it."""

from typing import Annotated, Literal

from pydantic import Field

from ureca.mllm.openai.settings import OpenAISettings
from ureca.mllm.ray_serve import RayServeSettings
from ureca.mllm.standin import StandInSettings
from ureca.mllm.transformers.settings import TransformersSettings
from ureca.mllm.vllm.settings import VllmSettings
from ureca.settings.resources import ActorResources


class StandIn(StandInSettings):
    """No model: answers by content, for tests and dry runs."""

    kind: Literal["standin"] = "standin"


class ByOpenAI(OpenAISettings):
    """A model behind OpenAI-compatible endpoints, such as a vLLM server."""

    kind: Literal["openai"] = "openai"


class ByTransformers(TransformersSettings):
    """A checkpoint of any family that transformers knows, in each actor of the stage."""

    kind: Literal["transformers"] = "transformers"


class ByVllm(VllmSettings):
    """A checkpoint in vLLM's engine, in each actor of the stage."""

    kind: Literal["vllm"] = "vllm"


class ByRayServe(RayServeSettings):
    """A checkpoint behind a Ray Serve application that is started for the run and scales with what is asked."""

    kind: Literal["ray_serve"] = "ray_serve"


Mllm = Annotated[StandIn | ByOpenAI | ByTransformers | ByVllm | ByRayServe, Field(discriminator="kind")]


def check_actors_can_hold(mllm: Mllm, where: ActorResources, stage: str) -> None:
    """Refuse a model that is loaded once an actor where nobody said how many actors that shall be.

    Raises:
        ValueError: nobody did, or they have fewer GPUs than the model takes.
    """
    if mllm.kind in {"transformers", "vllm"} and where.num_actors is None and not where.num_gpus:
        raise ValueError(
            f"mllm.kind {mllm.kind} loads the model once an actor: say by resources.{stage}.num_gpus or "
            f"resources.{stage}.num_actors how many that shall be"
        )
    if mllm.kind == "vllm" and where.num_gpus < mllm.tensor_parallel_size > 1:
        raise ValueError(
            f"mllm.tensor_parallel_size {mllm.tensor_parallel_size} needs as many GPUs an actor, and "
            f"resources.{stage}.num_gpus is {where.num_gpus:g}"
        )
