"""Settings of the service: tokens, hosts, and invalid values."""

from pathlib import Path

import pytest

from ureca.errors import SettingsError
from ureca.pipelines.serve_settings import ServeSettings


def settings_of(*arguments: str) -> ServeSettings:
    return ServeSettings.load(["--model", "folder", *arguments])


def test_read_tokens_file_and_variable_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokens"
    file.write_text("the-first-token-here\n\n  the-second-token-here\n")
    monkeypatch.setenv("SOME_TOKENS", "a-third-token-here-, a-fourth-token-here")
    both = settings_of("--access.tokens-file", str(file), "--access.tokens-variable", "SOME_TOKENS")
    assert both.read_tokens() == {
        *("the-first-token-here", "the-second-token-here", "a-third-token-here-", "a-fourth-token-here")
    }
    assert "the-first" not in repr(both) and "a-third" not in repr(both)


@pytest.mark.parametrize(
    ("content", "message"), [("", "has no token"), ("short", "16 or more letters"), ("ä" * 20, "16 or more letters")]
)
def test_read_tokens_invalid_file_raises(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        settings_of("--access.tokens-file", str(file)).read_tokens()


def test_read_tokens_missing_source_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_TOKENS", raising=False)
    with pytest.raises(SettingsError, match="SOME_TOKENS has no token"):
        settings_of("--access.tokens-variable", "SOME_TOKENS").read_tokens()
    with pytest.raises(SettingsError, match="cannot be read"):
        settings_of("--access.tokens-file", str(tmp_path / "none")).read_tokens()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_read_tokens_loopback_needs_none(host: str) -> None:
    assert settings_of("--host", host).read_tokens() == frozenset()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])  # noqa: S104
def test_read_tokens_reachable_host_needs_one(host: str) -> None:
    with pytest.raises(SettingsError, match="can be reached by other machines"):
        settings_of("--host", host).read_tokens()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resources.captioner.min-replicas", "3"], "min_replicas 3 is above max_replicas 1"),
        (["--resources.captioner.target-ongoing-requests", "65"], "would never be reached"),
        (
            ["--vllm.tensor-parallel-size", "4", "--resources.captioner.num-gpus", "1"],
            "set resources.captioner.num_gpus to 4, it is 1",
        ),
        (["--batches.folders", "/data"], "both folders and output"),
        (["--access.allowed-hosts", "https://images.example"], "not a host name"),
        (["--limits.timeout-s", "0"], "limits.timeout_s"),
        (["--limits.max-image-memory-bytes", "1000000"], "too little for one image of 40000000 pixels: set at least"),
        (["--limits.image.max-pixels", "400000000"], "or a lower image.max_pixels"),
        (["--access.host-names", "https://captions.example"], "not a host name"),
        (["--port", "70000"], "port"),
        (["--limits.colour", "red"], "there is no setting --limits.colour"),
    ],
)
def test_load_invalid_value_names_the_key(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_of(*arguments)


def test_load_without_a_model_serves_the_rule_based_captioner() -> None:
    assert ServeSettings.load([]).served_name == "rule-based"
    assert settings_of().served_name == "ureca"
    assert settings_of("--name", "mine").served_name == "mine"
    with pytest.raises(SettingsError, match="batches need a model"):
        ServeSettings.load(["--batches.folders", "/data", "--batches.output", "/out"])
