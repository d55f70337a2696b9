"""Parsing of the models of a command line."""

from pathlib import Path

import pytest

from ureca.data.output import Output
from ureca.errors import SettingsError
from ureca.evaluation.models import EvaluatedModel, parse_models
from ureca.schema import CAPTIONS_DATASET


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("ckpt", EvaluatedModel("ckpt", "checkpoint", "ckpt")),
        ("runs/scenes/model", EvaluatedModel("scenes", "checkpoint", "runs/scenes/model")),
        ("Ours=/a b/model", EvaluatedModel("Ours", "checkpoint", "/a b/model")),
        ("OpenGVLab/X-8B-hf:crop", EvaluatedModel("X-8B-hf, crop", "checkpoint", "OpenGVLab/X-8B-hf", "crop")),
        ("No region=a/b:none", EvaluatedModel("No region", "checkpoint", "a/b", "none")),
        ("a/b:contours", EvaluatedModel("b:contours", "checkpoint", "a/b:contours")),
        ("answers/gpt.jsonl", EvaluatedModel("gpt", "jsonl", "answers/gpt.jsonl")),
        ("A=b=c", EvaluatedModel("A", "checkpoint", "b=c")),
    ],
)
def test_parse_models_reads_name_path_and_prompt(text: str, model: EvaluatedModel) -> None:
    assert parse_models([text]) == [model]


def test_parse_models_distinguishes_outputs_from_checkpoints(tmp_path: Path) -> None:
    captions = Output(str(tmp_path / "captions"), CAPTIONS_DATASET)
    captions.write_run({"command": "caption", "dataset": "captions"})
    Output(str(tmp_path / "run")).write_run({"command": "train"})
    output, trained = parse_models([captions.path, f"{tmp_path}/run:crop"])
    assert (output.kind, output.name) == ("output", "captions")
    assert (trained.kind, trained.name, trained.path) == ("checkpoint", "run, crop", f"{tmp_path}/run/model")
    with pytest.raises(SettingsError, match="leave out :crop"):
        parse_models([f"{captions.path}:crop"])


def test_parse_models_requires_distinct_names_and_gives_distinct_folders() -> None:
    with pytest.raises(SettingsError, match=r"a/m and b/m are all called 'm'; give them names, NAME=PATH"):
        parse_models(["a/m", "b/m", "c"])
    models = parse_models([*("plain-1.0=a", "a b=a", "a/b", "ä=a"), "../x=../../etc", f"{'l' * 300}=a"])
    folders = [model.folder for model in models]
    assert folders[0] == "plain-1.0"
    assert len(set(folders)) == len(folders)
    assert all("/" not in folder and not folder.startswith(".") and len(folder) < 80 for folder in folders)
