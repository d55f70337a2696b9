"""Which multimodal model is asked, and what runs it."""

from typing import Annotated, Literal

from pydantic import Field

from ureca.mllm.openai.settings import OpenAISettings
from ureca.mllm.ray_serve import RayServeSettings
from ureca.mllm.standin import StandInSettings
from ureca.mllm.transformers.settings import TransformersSettings
from ureca.mllm.vllm.settings import VllmSettings


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
