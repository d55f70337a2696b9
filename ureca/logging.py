"""Logging of the library: plain text for people, or one JSON object per line for programs that collect logs.

Modules log to ``logging.getLogger(__name__)``. A library configures no handlers: commands call ``log_to_stderr``, and
workers write events by ``json_logger``.
"""

import datetime
import json
import logging
import sys
from typing import Any, TextIO


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: ``time``, ``level``, ``event`` and the record's ``fields``.

    ``logger.info("partition_written", extra={"fields": {"partition": 3}})`` adds a field. The line is ASCII, so that
    no character of a file name splits it. An exception's traceback is the field ``traceback``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line break."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname, "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def json_logger(name: str, stream: TextIO | None = None) -> logging.Logger:
    """Return a logger that writes lines of JSON, and passes nothing on to other handlers.

    Args:
        name: name of the logger; a second call with the same name replaces the stream.
        stream: stream to write to; None means standard error.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger(name)
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return logger


class _StderrHandler(logging.Handler):
    """Writes messages to the standard error of the moment, which may be replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


def log_to_stderr(level: int = logging.INFO) -> None:
    """Write the messages of this library to standard error, as a command does; repeated calls add no handler."""
    logger = logging.getLogger("ureca")
    if not logger.handlers:
        logger.addHandler(_StderrHandler())
    logger.setLevel(level)
