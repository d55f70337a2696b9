"""Units whose rows come in pieces."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_output import row
from ureca.data.output import Output
from ureca.data.partitions import UnitReport
from ureca.errors import OutputError
from ureca.pipelines.batch.actors import assembled
from ureca.pipelines.batch.arrow import reported_table
from ureca.schema import REGIONS, conform


def piece(unit: int, place: int, num_pieces: int, *ids: str, error: str | None = None) -> Mapping[str, Any]:
    """What a stage reports of a piece."""
    rows = [row(id, error=error) for id in ids]
    report = UnitReport.of_rows(rows) + UnitReport(num_calls=10 * unit + place)
    table = reported_table(unit, report, piece=place, num_pieces=num_pieces, rows=conform(rows, REGIONS))
    reported: Mapping[str, Any] = table.to_pylist()[0]
    return reported


def test_a_unit_is_written_when_its_last_piece_comes(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    done: list[list[int]] = []

    def pieces() -> Any:
        for each in (
            piece(1, 1, 2, "f"),
            piece(0, 2, 3, "c", "d"),
            piece(0, 0, 3, "a"),
            reported_table(2, UnitReport(num_images=7)).to_pylist()[0],  # a whole unit, which its stage has written
            piece(1, 0, 2, "e"),
            piece(0, 1, 3, "b", error="truncated"),
        ):
            done.append(output.done_units())
            yield each

    with output.claim() as claim:
        reports = list(assembled(pieces(), output, claim))
    assert [row["image_id"] for row in output.rows()] == ["a", "b", "c", "d", "e", "f"]
    assert sorted((report.num_images, report.num_calls) for report in reports) == [(2, 21), (4, 3), (7, 0)]
    assert all(0 not in units for units in done)
    total = output.report()
    assert (total.num_images, total.num_failed, total.failures, total.num_calls) == (6, 1, {"read:truncated": 1}, 24)


def test_images_that_are_run_again_take_their_place(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    output.write_unit(0, [row("a"), row("b", error="truncated"), row("c", error="truncated")], UnitReport(num_calls=1))
    list(assembled([piece(0, 1, 2, "c"), piece(0, 0, 2, "b")], output, None))
    assert [(each["image_id"], each["error"]) for each in output.rows()] == [("a", None), ("b", None), ("c", None)]
    report = output.report()
    assert (report.num_images, report.num_failed, report.num_calls) == (3, 0, 2)


def test_what_is_incomplete_at_the_end_is_an_error(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    with pytest.raises(RuntimeError, match=r"pieces of the units \[3, 5\] are missing"):
        list(assembled([piece(3, 0, 2, "a"), piece(5, 1, 2, "b")], output, None))
    assert output.done_units() == []


def test_whoever_has_lost_the_output_writes_nothing(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    with output.claim() as claim:
        pass
    with pytest.raises(RuntimeError, match="another session has taken over"):
        list(assembled([piece(0, 0, 1, "a")], output, claim))
    assert output.done_units() == []


def test_a_unit_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "regions").write_bytes(b"")
    with pytest.raises(OutputError, match=r"part-000000\.parquet cannot be written"):
        list(assembled([piece(0, 0, 1, "a")], Output(str(tmp_path)), None))
