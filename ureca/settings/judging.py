"""Settings of those who judge captions."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import SettingsConfigDict

from ureca.curation.listener import ListenerSettings
from ureca.evaluation.metrics.bert_score import BertScoreSettings
from ureca.evaluation.uniqueness.encoders import DualEncoderSettings
from ureca.settings.batch import BatchSettings
from ureca.settings.curate import NoListener
from ureca.settings.mllm import Mllm, StandIn
from ureca.settings.resources import AsyncActorResources, TaskResources


class Asking(ListenerSettings):
    """The MLLM of ``mllm`` must choose the region from the caption, among those that could be meant."""

    kind: Literal["prompted"] = "prompted"
    max_distractors: int = Field(default=8, ge=1, description="regions shown beside the right one, at most")


Asked = Annotated[NoListener | Asking, Field(discriminator="kind")]


class JudgeResources(BaseModel):
    """Where captions are judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    read: TaskResources = TaskResources()
    judge: AsyncActorResources = AsyncActorResources(num_cpus=0.5)


class JudgeSettings(BatchSettings):
    """Judge captions of a stored benchmark, which is INPUT; a part of ``ureca evaluate``."""

    model_config = SettingsConfigDict(cli_prog_name="ureca evaluate")
    verb: ClassVar[str] = "judge"

    captions: str | None = Field(default=None, description="output of the captions; None: the references are judged")
    bert_score: BertScoreSettings | None = None
    retrieval: DualEncoderSettings | None = None
    listener: Asked = NoListener()
    mllm: Mllm = StandIn()
    resources: JudgeResources = JudgeResources()
