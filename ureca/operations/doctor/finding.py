"""What a check has found."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Level(StrEnum):
    """Whether it will do: yes; yes, but not for everything; no."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


class Finding(BaseModel):
    """What a check has found.

    Attributes:
        name: of what was looked at.
        level: whether it will do.
        value: what is there.
        remedy: what to do; empty where nothing needs to be done.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    level: Level
    value: str
    remedy: str = ""
