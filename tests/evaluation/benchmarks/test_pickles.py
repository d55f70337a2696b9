"""Pickles from outside: plain data is read, anything else is rejected before any of it runs."""

import os
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ureca.errors import InputError
from ureca.evaluation.benchmarks.refcoco import read_plain_pickle

REFS = [{"ref_id": 1, "ann_id": 7, "split": "val", "sentences": [{"sent": "the red one", "tokens": ["the", "red"]}]}]


class Runs:
    """A malicious object: unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_read_plain_pickle_reads_plain_data_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    value = {"refs": REFS, "more": [None, True, -(2**70), 1.5, "é", ("a", 2), REFS[0]]}
    if protocol >= 3:  # before, bytes are a call
        value["bytes"] = [b"\xff"]
    (tmp_path / "refs.p").write_bytes(pickle.dumps(value, protocol))
    assert read_plain_pickle(tmp_path / "refs.p") == value


def test_read_plain_pickle_reads_text_of_python_2(tmp_path: Path) -> None:
    old = b"(lp0\n(dp1\nS'split'\np2\nS'val'\np3\nsS'caf\\xc3\\xa9'\nS'\\xe9'\ns" + b"a."
    (tmp_path / "refs.p").write_bytes(old.replace(b"S'\\xe9'", b"I3"))
    assert read_plain_pickle(tmp_path / "refs.p") == [{"split": "val", "café": 3}]
    (tmp_path / "refs.p").write_bytes(old)  # is not UTF-8: Latin-1
    assert read_plain_pickle(tmp_path / "refs.p")[0]["split"] == "val"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_read_plain_pickle_of_malicious_file_runs_nothing(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([*REFS, Runs(trace)], protocol))
    with pytest.raises(InputError, match=r"refs\(unc\)\.p is no pickle of plain data, and was not opened: .*at byte"):
        read_plain_pickle(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # noqa: S301 - the file was dangerous
    assert trace.exists()


@pytest.mark.parametrize(
    "value",
    [np.float64(1.0), np.zeros(2), OrderedDict(a=1), Path("a"), bytearray(b"a"), range(3), complex(1, 2), print],
)
def test_read_plain_pickle_of_other_objects_raises_input_error(tmp_path: Path, value: Any) -> None:
    (tmp_path / "a.p").write_bytes(pickle.dumps([value], 5))
    with pytest.raises(InputError, match="makes more than plain data"):
        read_plain_pickle(tmp_path / "a.p")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps(REFS)[:-10],
        b"]r\xff\xff\xff\x7f.",  # asks for room for 2^31 objects
        b"]p99999999\n.",
        b"X\xff\xff\xff\x7fabc.",
        b"Qa.",
        b"\x82\x01.",
        b"K\x01K\x02}b.",
        b"h\x05.",
        b"(" * 100_000 + b".",
    ],
)
def test_read_plain_pickle_of_damaged_file_raises_input_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.p").write_bytes(data)
    with pytest.raises(InputError, match="was not opened"):
        read_plain_pickle(tmp_path / "a.p")


@given(st.binary(max_size=60))
def test_read_plain_pickle_of_random_bytes_gives_plain_data_or_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.p"
    path.write_bytes(b"\x80\x02" + data + b".")
    try:
        value = read_plain_pickle(path)
    except InputError:
        return
    assert all(operation.name not in {"GLOBAL", "REDUCE"} for operation, _, _ in pickletools.genops(path.read_bytes()))
    assert isinstance(value, list | dict | tuple | set | frozenset | str | bytes | int | float | None)


def test_read_plain_pickle_of_too_large_file_raises_input_error(tmp_path: Path) -> None:
    (tmp_path / "a.p").write_bytes(pickle.dumps(REFS))
    with pytest.raises(InputError, match="larger than 20 bytes"):
        read_plain_pickle(tmp_path / "a.p", max_bytes=20)
    with pytest.raises(InputError, match="cannot be read"):
        read_plain_pickle(tmp_path / "missing.p")
