"""Units whose rows come in pieces, written as soon as all pieces of one are there."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipelines.blocks import read_rows_of_piece
from ureca.dataset import Output, UnitReport

_NUM_WRITERS = 4
_MOST_WAITING = 16

_Pieces = dict[int, tuple[pa.Table, UnitReport]]


def assembled(rows: Iterable[Mapping[str, Any]], output: Output, claim: str | None) -> Iterator[UnitReport]:
    """Put pieces together and write the units that they make, while further ones come.

    Only units that stages are working on are incomplete, so memory does not grow with the corpus.

    Args:
        rows: of the schema ``REPORTED``.
        output: to write to.
        claim: of the session; None: nobody else can want the output.

    Yields:
        the report of each unit that is written, by whomever.

    Raises:
        OutputError: a unit cannot be written.
        RuntimeError: another session has the output now, or pieces are missing at the end.
    """
    incomplete: dict[int, _Pieces] = {}
    writing: deque[Future[UnitReport]] = deque()
    with ThreadPoolExecutor(_NUM_WRITERS, thread_name_prefix="writer") as writers:
        for row in rows:
            report = UnitReport.model_validate_json(row["report"])
            if row["rows"] is None:
                yield report
                continue
            pieces = incomplete.setdefault(row["unit"], {})
            pieces[row["piece"]] = read_rows_of_piece(row["rows"]), report
            if len(pieces) == row["num_pieces"]:
                del incomplete[row["unit"]]
                writing.append(writers.submit(_write, output, claim, row["unit"], pieces))
            while writing and (len(writing) > _MOST_WAITING or writing[0].done()):
                yield writing.popleft().result()
        for written in writing:
            yield written.result()
    if incomplete:
        raise RuntimeError(f"pieces of the units {sorted(incomplete)} are missing")


def _write(output: Output, claim: str | None, unit: int, pieces: _Pieces) -> UnitReport:
    if claim is not None:
        output.check_claim(claim)
    report = sum((report for _, report in pieces.values()), UnitReport())
    output.write_pieces(unit, [pieces[place][0] for place in sorted(pieces)], report)
    return report
