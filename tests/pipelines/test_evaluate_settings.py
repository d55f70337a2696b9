"""Settings of ``ureca evaluate``."""

from pathlib import Path

import pytest

from ureca.errors import SettingsError
from ureca.pipelines.evaluate_settings import EvaluateSettings

COMMAND = ["bench", "out", "Ours=runs/a/model", "x/y:none", "x/y:crop"]


def test_load_flags_set_their_settings(tmp_path: Path) -> None:
    settings = EvaluateSettings.load(
        [
            *COMMAND,
            *("--bert-score.model", "roberta-large", "--retrieval.checkpoint", "clip", "--listener.kind", "prompted"),
            *("--mllm.kind", "openai", "--mllm.model", "judge", "--mllm.base-urls", "http://localhost:1/v1"),
            *(
                "--refcoco.split",
                "testA",
                "--regions.references",
                "short",
                "--limit",
                "9",
                "--metrics",
                "BLEU,BERTScore",
            ),
        ]
    )
    assert (settings.input, settings.output, settings.models) == ("bench", "out", COMMAND[2:])
    assert settings.benchmark.refcoco.split == "testA"
    assert settings.benchmark.regions.references == "short"
    assert settings.bert_score is not None and settings.bert_score.model == "roberta-large"
    assert settings.listener.kind == "prompted"
    config = tmp_path / "table.yaml"
    config.write_text("limit: 7\nbaseline:\n  crop: What?\n")
    settings = EvaluateSettings.load([*COMMAND, "--config", str(config)])
    assert (settings.limit, settings.baseline.crop) == (7, "What?")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bench", "out"], "MODELS"),
        ([*COMMAND, "--metrics", "SPICE"], "metrics"),
        ([*COMMAND, "--limit", "0"], "limit"),
        ([*COMMAND, "--mllm.kind", "transformers", "--mllm.checkpoint", "x"], "listener.kind prompted; set both"),
        ([*COMMAND, "--bert-score.model", "a", "--metrics", "BLEU"], "metrics does not name"),
        (
            [*COMMAND, "--listener.kind", "prompted", "--mllm.kind", "transformers", "--mllm.checkpoint", "x"],
            "resources.judge.num_gpus",
        ),
        ([*COMMAND, "--table.size-bounds-fraction", "0.5,0.1"], "bounds"),
    ],
)
def test_load_invalid_setting_names_it(arguments: list[str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        EvaluateSettings.load(arguments)
