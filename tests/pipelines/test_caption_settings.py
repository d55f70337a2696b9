"""Settings of ``ureca caption``."""

from typing import Any

import pytest

from ureca.errors import SettingsError
from ureca.pipelines.caption_settings import CaptioningSettings

COMMAND = ["images", "out", "--model", "checkpoint"]


def test_load_flags_set_their_settings() -> None:
    settings = CaptioningSettings.load(
        [
            *COMMAND,
            *("--captioner.max-new-tokens", "9", "--masks.kind", "prompts", "--masks.checkpoint", "sam.pth"),
            *("--listing.annotations", "beside", "--resources.caption.num-gpus", "0.5", "--dtype", "bfloat16"),
        ]
    )
    assert (settings.model, settings.dtype, settings.captioner.max_new_tokens) == ("checkpoint", "bfloat16", 9)
    assert (settings.masks.kind, settings.resources.caption.num_gpus) == ("prompts", 0.5)
    assert CaptioningSettings.load(COMMAND).masks.kind == "auto"
    assert CaptioningSettings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["images", "out"], "model"),
        ([*COMMAND, "--captioner.temperature", "-1"], "temperature must be 0 or more"),
        ([*COMMAND, "--captioner.beams", "2"], "beams"),
        ([*COMMAND, "--dtype", "int8"], "dtype"),
        ([*COMMAND, "--listing.annotations", "beside"], "listing.annotations is for"),
        ([*COMMAND, "--masks.kind", "prompts"], "checkpoint"),
    ],
)
def test_load_invalid_setting_names_it(arguments: list[str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        CaptioningSettings.load(arguments)


def test_captioner_unknown_setting_raises() -> None:
    unknown: dict[str, Any] = {"beams": 2}
    with pytest.raises(ValueError, match="beams"):
        CaptioningSettings(input="a", output="b", model="c", captioner=unknown)
