"""What workers log: JSON, a line an event, with the ids of run, unit and image, for whatever collects logs."""

import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from ureca.dataset import UnitReport
from ureca.schema import Dataset

_FAILED = "failed:"


class EventLog:
    """Writes events to the worker's standard error, which Ray keeps in ``logs/worker-*.err`` of its session.

    Args:
        verb: that the worker works for.
        output: of the run.
        session: id of the session of the run.
        recipe: that decides what its rows say.
        stream: None: standard error.
    """

    def __init__(
        self, verb: str, output: str, session: str | None, recipe: str | None, stream: TextIO | None = None
    ) -> None:
        self._run = {"verb": verb, "output": output.partition("?")[0], "session": session, "recipe": recipe}
        self._stream = stream

    def made(
        self,
        unit: int,
        rows: Sequence[Mapping[str, Any]],
        dataset: Dataset,
        report: UnitReport,
        piece: int | None = None,
    ) -> None:
        """A unit is written, or a piece made: a line about it, and one about each image and region that failed."""
        counts = report.model_dump(include={"num_images", "num_failed", "num_regions", "num_failed_regions", "seconds"})
        if piece is None:
            self._write("INFO", "unit_written", unit=unit, **counts)
        else:
            self._write("INFO", "piece_made", unit=unit, piece=piece, **counts)
        for row in rows:
            image = {"unit": unit, "image_id": row["image_id"], "uri": row.get("uri")}
            if row["error"] is not None:
                self._write("WARNING", "image_failed", **image, **row["error"])
            for region in row[dataset.name]:
                if region["status"].startswith(_FAILED):
                    stage, _, kind = region["status"].removeprefix(_FAILED).partition(":")
                    failed = {"region_id": region["region_id"], "stage": stage, "kind": kind}
                    self._write("WARNING", "region_failed", **image, **failed)

    def _write(self, level: str, event: str, **fields: Any) -> None:
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "level": level, "event": event, **self._run, **fields})  # ASCII: one line
        print(line, file=self._stream or sys.stderr, flush=True)
