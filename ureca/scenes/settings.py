"""Settings of the components that know the ground truth of synthetic scenes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ureca.curation.settings import ListeningSettings
from ureca.registry import register


class OracleSettings(BaseModel):
    """The known scenes, and the rates of errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str = Field(description="folder with the annotation files of scenes, as `ureca scenes` writes them")
    error_rate: float = Field(default=0.1, ge=0, le=1, description="share of the oracle's answers that are wrong")
    vagueness: float = Field(
        default=0.3, ge=0, le=1, description="share of the oracle's refined captions that are not unique"
    )
    seed: int = Field(default=0, ge=0, description="seed of the oracle's errors")


@register("annotator", "oracle", component="ureca.scenes.oracle:Oracle")
class OracleConfig(OracleSettings):
    """Captions of synthetic scenes from their ground truth, with errors at known rates."""

    kind: Literal["oracle"] = "oracle"


@register("listener", "oracle", component="ureca.scenes.oracle:Oracle")
class OracleListenerConfig(ListeningSettings, OracleSettings):
    """Choices from the ground truth of synthetic scenes, with errors at a known rate."""

    kind: Literal["oracle"] = "oracle"
