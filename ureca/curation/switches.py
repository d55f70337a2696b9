"""Which stages of the curation take part, so that what each does for the captions can be measured."""

from pydantic import BaseModel, ConfigDict, Field


class StageSettings(BaseModel):
    """Stages that can be left out. Listener and verification have settings of their own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tree_context: bool = Field(default=True, description="short captions are told those of parent and elder siblings")
    bottom_up: bool = Field(default=True, description="detailed captions compose those of the parts; off: short ones")
    refinement: bool = Field(default=True, description="captions of look-alikes are rewritten against each other")
