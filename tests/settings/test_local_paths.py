"""Relative paths become absolute for workers; names and URIs stay."""

from pathlib import Path

import pytest

from ureca.config import with_absolute_paths
from ureca.pipelines.curate_settings import CurateSettings
from ureca.pipelines.serve_settings import ServeSettings


def test_paths_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    settings = CurateSettings(
        input="images",
        output="s3://bucket/out",
        masks={"kind": "sam", "checkpoint": "sam.pth"},
        annotator={"kind": "prompted"},
        embedder={"kind": "dinov2", "checkpoint": "tiny"},
        mllm={"kind": "transformers", "checkpoint": "of/the-hub"},
        resources={"curate": {"num_actors": 1}},
    )
    absolute = with_absolute_paths(settings)
    assert (absolute.input, absolute.output) == (str(tmp_path / "images"), "s3://bucket/out")
    assert absolute.masks.checkpoint == tmp_path / "sam.pth"
    assert absolute.embedder.checkpoint == str(tmp_path / "tiny")
    assert absolute.mllm == settings.mllm
    assert absolute.resources == settings.resources
    assert with_absolute_paths(absolute) == absolute


def test_the_name_of_a_model_behind_http_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    mllm = {"kind": "openai", "model": "tiny", "base_urls": ["http://a/v1"]}
    settings = CurateSettings(input="images", output="out", annotator={"kind": "prompted"}, mllm=mllm)
    absolute = with_absolute_paths(settings)
    assert absolute.output == str(tmp_path / "out")
    assert absolute.mllm == settings.mllm
    serving = with_absolute_paths(ServeSettings(model="tiny", batches={"folders": ["a", "/b"], "output": "c"}))
    assert serving.model == str(tmp_path / "tiny")
    assert serving.batches.folders == (tmp_path / "a", Path("/b"))
    assert serving.batches.output == tmp_path / "c"
