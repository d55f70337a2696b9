"""Logging as text and as JSON."""

import io
import json
import logging

import pytest

from ureca.logging import json_logger, log_to_stderr


def test_json_logger_writes_one_ascii_object_per_line() -> None:
    stream = io.StringIO()
    logger = json_logger("test.json", stream)
    logger.warning("image_failed", extra={"fields": {"image_id": "a\nb\u2028c", "path": object}})
    try:
        raise ValueError("a bug")
    except ValueError:
        logger.exception("crashed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert stream.getvalue().isascii()
    assert (first["level"], first["event"], first["image_id"]) == ("WARNING", "image_failed", "a\nb\u2028c")
    assert first["time"].endswith("+00:00")
    assert "ValueError: a bug" in second["traceback"]


def test_json_logger_of_the_same_name_replaces_the_stream() -> None:
    first, second = io.StringIO(), io.StringIO()
    json_logger("test.json", first)
    json_logger("test.json", second).info("event")
    assert not first.getvalue()
    assert len(second.getvalue().splitlines()) == 1


def test_log_to_stderr_shows_messages_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("ureca")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    log_to_stderr()
    log_to_stderr()
    logging.getLogger("ureca.pipelines").info("3 images, 1 done before")
    assert capsys.readouterr().err == "3 images, 1 done before\n"
