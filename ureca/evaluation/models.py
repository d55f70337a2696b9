"""The models of an evaluation, as the command line names them: ``[NAME=]PATH[:none|contour|crop]``."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, cast, get_args

from ureca.data.output import Output
from ureca.data.settings import JSONL_SUFFIXES
from ureca.errors import SettingsError
from ureca.hashing import digest
from ureca.io import below, has_suffix
from ureca.model.prompt import RegionPrompt

_NAMED = re.compile(r"(?P<name>[^=/?]+)=(?P<path>.+)", re.DOTALL)
_PROMPTS = "|".join(get_args(RegionPrompt))
_PROMPTED = re.compile(rf"(?P<path>.+):(?P<prompt>{_PROMPTS})", re.DOTALL)
_TRAINED = "model"
"""Folder of the trained checkpoint in the output of ``ureca train``."""


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """One row of a table.

    Attributes:
        name: name of the row.
        kind: "checkpoint", which captions the regions; or existing captions: "output" of ``ureca caption`` or ``ureca
            curate``, or "jsonl".
        path: folder or hub name of the checkpoint, or path of the output or file.
        region_prompt: prompt that shows a checkpoint the region; None: the one it was trained with.
    """

    name: str
    kind: Literal["checkpoint", "output", "jsonl"]
    path: str
    region_prompt: RegionPrompt | None = None

    @property
    def folder(self) -> str:
        """Name of this model's folder: legible, and distinct for distinct names."""
        legible = re.sub(r"[^\w.-]+", "-", self.name, flags=re.ASCII).strip("-.")[:60]
        if legible == self.name:
            return legible
        return f"{legible}-{digest([self.name], num_bytes=4).hex()}"


def parse_models(texts: Sequence[str]) -> list[EvaluatedModel]:
    """Parse the models of a command line; existing captions are recognized by looking at their paths.

    Args:
        texts: ``[NAME=]PATH[:none|contour|crop]`` each.

    Returns:
        The models in their order.

    Raises:
        SettingsError: two models have one name, or existing captions have a region prompt.
    """
    models = [_parse(text) for text in texts]
    if twice := [name for name, count in Counter(model.name for model in models).items() if count > 1]:
        paths = " and ".join(text for text, model in zip(texts, models, strict=True) if model.name == twice[0])
        raise SettingsError(f"models: {paths} are all called {twice[0]!r}; give them names, NAME=PATH, without commas")
    return models


def _parse(text: str) -> EvaluatedModel:
    named = _NAMED.fullmatch(text)
    name, rest = (named["name"].strip(), named["path"]) if named else (None, text)
    prompted = _PROMPTED.fullmatch(rest)
    path, prompt = (prompted["path"], prompted["prompt"]) if prompted else (rest, None)
    kind, path = _kind(path)
    if prompt is not None and kind != "checkpoint":
        raise SettingsError(f"models: {path} holds captions that are there: leave out :{prompt}")
    if not name:
        parts = PurePosixPath(path.partition("?")[0]).parts
        is_run = len(parts) > 1 and parts[-1] == _TRAINED
        default = (parts[-2] if is_run else parts[-1]).removesuffix(".gz").removesuffix(".jsonl") if parts else path
        name = default if prompt is None else f"{default}, {prompt}"
    return EvaluatedModel(name, kind, path, cast("RegionPrompt | None", prompt))


def _kind(path: str) -> tuple[Literal["checkpoint", "output", "jsonl"], str]:
    if has_suffix(path, JSONL_SUFFIXES):
        return "jsonl", path
    if (output := Output(path)).exists():
        if output.run().get("command") == "train":
            return "checkpoint", below(path, _TRAINED)
        return "output", path
    return "checkpoint", path
