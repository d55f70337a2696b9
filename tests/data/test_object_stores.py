"""Outputs in object stores: objects that are whole or absent, whatever happens to who writes them."""

import json
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from tests.data.test_lease import ELSEWHERE, held_by_another
from tests.data.test_output import manifest, row
from tests.drawn import write_corpus
from tests.pipelines.test_graph import settings_of
from tests.s3 import BUCKET, CREDENTIALS, Store, s3_server
from ureca import io, parquet
from ureca.data.crash_log import CrashLog
from ureca.data.lease import LeaseTiming
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import OutputError
from ureca.io import locate
from ureca.ops.doctor import Level, check_places
from ureca.ops.status import status_of
from ureca.pipelines.curate import curate


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with s3_server() as store:
        yield store


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return server


def test_output_in_an_object_store_works_as_on_a_disk(store: Store) -> None:
    output = Output(store.uri("same"))
    assert not output.exists()
    assert output.add_images(manifest(["a", "b", "c"]), 2) == 3
    output.write_run({"command": "curate", "dataset": "regions", "state": "stopped", "sessions": []})
    output.write_partition(1, [row("c", error="truncated")], PartitionReport(num_calls=1))
    output.write_partition(0, [row("a"), row("b")], PartitionReport())
    output.write_partition(1, [row("c")], PartitionReport(num_calls=2))
    assert [found["image_id"] for found in output.rows()] == ["a", "b", "c"]
    assert (output.report().num_failed, output.report().num_calls) == (0, 3)
    assert output.partition_sizes() == {0: 2, 1: 1}
    parts = {"same/regions/part-000000.parquet", "same/regions/part-000001.parquet"}
    assert {name for name in store.names("same/") if not name.endswith("/")} == {
        "same/manifest/000000.parquet",
        "same/run.json",
        *parts,
    }
    output.remove()
    assert [name for name in store.names("same/") if not name.endswith("/")] == []


def test_write_bytes_of_a_small_object_is_one_request(store: Store) -> None:
    """A writer that is killed can then leave no upload that was begun and not ended."""
    place = locate(store.uri("small"))
    stream = place.filesystem.open_output_stream(f"{place.name}/killed")
    stream.write(b"half")
    assert store.unfinished_uploads() == []
    assert store.names("small/killed") == []
    stream.close()
    io.write_bytes(place.filesystem, f"{place.name}/whole", b"all")
    assert store.names("small/whole") == ["small/whole"]


class ChangingFilesystem:
    """A file system on which something happens to an object each time that one is opened."""

    def __init__(self, filesystem: pafs.FileSystem, changes: list[Callable[[], Any]]) -> None:
        self._filesystem = filesystem
        self._changes = changes

    def open_input_stream(self, path: str) -> Any:
        return self._changed(self._filesystem.open_input_stream(path))

    def open_input_file(self, path: str) -> Any:
        return self._changed(self._filesystem.open_input_file(path))

    def _changed(self, file: Any) -> Any:
        if self._changes:
            self._changes.pop(0)()
        return file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._filesystem, name)


@pytest.mark.parametrize("content", [b"short", b"more than it was"])
def test_read_parsed_of_an_object_that_is_replaced_meanwhile_is_the_new_one(store: Store, content: bytes) -> None:
    place = locate(store.uri("replaced"))
    store.put("replaced", b"as it was")
    filesystem: Any = ChangingFilesystem(place.filesystem, [lambda: store.put("replaced", content)])
    assert io.read_parsed(filesystem, place.name, bytes) == content


def test_read_parsed_of_an_object_that_is_replaced_at_each_attempt_is_an_error(store: Store) -> None:
    place = locate(store.uri("unsteady"))
    store.put("unsteady", b"")
    filesystem: Any = ChangingFilesystem(
        place.filesystem, [lambda length=length: store.put("unsteady", b"x" * length) for length in (1, 2)]
    )
    with pytest.raises(OSError, match="unsteady was replaced at each attempt"):
        io.read_parsed(filesystem, place.name, bytes, num_attempts=2)


def parquet_bytes(*values: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"value": values}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("new", [("z",), tuple("later rows")])
def test_read_table_of_an_object_that_is_replaced_meanwhile_is_the_new_one(store: Store, new: tuple[str, ...]) -> None:
    place = locate(store.uri("replaced.parquet"))
    store.put("replaced.parquet", parquet_bytes("a", "b", "c"))
    filesystem: Any = ChangingFilesystem(place.filesystem, [lambda: store.put("replaced.parquet", parquet_bytes(*new))])
    assert parquet.read_table(filesystem, place.name)["value"].to_pylist() == list(new)


def test_read_table_of_an_object_that_is_removed_meanwhile_says_so(store: Store) -> None:
    place = locate(store.uri("removed.parquet"))
    store.put("removed.parquet", parquet_bytes("a"))
    filesystem: Any = ChangingFilesystem(place.filesystem, [lambda: place.filesystem.delete_file(place.name)])
    with pytest.raises(OutputError, match=r"removed.parquet is not there any more"):
        parquet.read_table(filesystem, place.name)


@pytest.mark.parametrize("before", [parquet_bytes("a", "b", "c"), b""])
@pytest.mark.parametrize("after", [parquet_bytes("a"), parquet_bytes(*map(str, range(999))), None])
def test_damaged_parts_are_none_where_parts_are_replaced_or_removed_meanwhile(
    store: Store, before: bytes, after: bytes | None
) -> None:
    """Damaged parts are removed at the start of a run; those of a session that ends late are good."""
    output = Output(store.uri("parts"))
    name = "parts/regions/part-000000.parquet"
    store.put(name, before)
    path = f"{BUCKET}/{name}"
    store_filesystem = output.filesystem
    change = (lambda: store_filesystem.delete_file(path)) if after is None else (lambda: store.put(name, after))
    output.filesystem = cast("Any", ChangingFilesystem(store_filesystem, [change]))
    assert output.damaged_parts() == {}


def test_read_parsed_of_a_half_written_file_is_the_whole_one_unless_it_is_on_a_local_disk(
    store: Store, tmp_path: Path
) -> None:
    place = locate(store.uri("half"))
    store.put("half", b"[1, 2")

    def parse(data: bytes) -> Any:
        store.put("half", b"[1, 2]")
        return json.loads(data)

    assert io.read_parsed(place.filesystem, place.name, parse) == [1, 2]
    (tmp_path / "half").write_bytes(b"[1, 2")
    with pytest.raises(ValueError, match="Expecting"):
        io.read_parsed(pafs.LocalFileSystem(), str(tmp_path / "half"), json.loads)


def test_crash_log_of_a_marker_that_is_deleted_meanwhile_leaves_it_out(store: Store) -> None:
    """Processes of a stage begin, and read the markers of others, while these end their work."""
    output = Output(store.uri("crashes"))
    other = output.crash_log("curate", 3)
    other.begin("image")
    assert output.crash_log("curate", 3).num_crashes("image") == 1
    filesystem: Any = ChangingFilesystem(output.filesystem, [lambda: other.end("image", completed=True)])
    assert CrashLog(filesystem, f"{BUCKET}/crashes/crash_log", "curate", 3).num_crashes("image") == 0


def test_write_table_after_an_error_leaves_no_object(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing Arrow's stream completes an object, also when an error has closed it."""
    place = locate(store.uri("broken"))
    table = pa.table({"a": list(range(1000))})
    real = pq.ParquetWriter.write_table

    def die_half_way(self: pq.ParquetWriter, table: pa.Table, *arguments: Any, **options: Any) -> None:
        real(self, table.slice(0, 500), *arguments, **options)
        raise RuntimeError("out of memory")

    io.write_table(place.filesystem, f"{place.name}/whole.parquet", table, 64)
    with pytest.raises(RuntimeError), monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", die_half_way)
        io.write_table(place.filesystem, f"{place.name}/half.parquet", table, 64)
    assert [name for name in store.names("broken/") if not name.endswith("/")] == ["broken/whole.parquet"]
    assert parquet.read_table(place.filesystem, f"{place.name}/whole.parquet") == table
    assert store.unfinished_uploads() == []


def test_open_output_stream_of_a_large_object_shows_it_when_complete(store: Store) -> None:
    place = locate(store.uri("large"))
    stream = place.filesystem.open_output_stream(f"{place.name}/object")
    stream.write(b"x" * (12 * 2**20))
    assert store.names("large/object") == []
    stream.close()
    assert store.names("large/object") == ["large/object"]
    assert store.unfinished_uploads() == []


def test_status_and_doctor_of_an_object_store_work(store: Store) -> None:
    output = Output(store.uri("status"))
    output.add_images(manifest(["a", "b", "c"]), 1)
    session = {"started": "2026-01-01T00:00:00+00:00", "ended": None, "state": "stopped"}
    output.write_run({"command": "curate", "dataset": "regions", "state": "stopped", "sessions": [session]})
    output.write_partition(0, [row("a", error="truncated")], PartitionReport())
    status = status_of(store.uri("status"))
    assert (status.output, status.num_done, status.num_total) == ("s3://ureca-test/status", 1, 3)
    assert status.failures == {"read:truncated": 1}
    (finding,) = check_places([store.uri("doctor")])
    assert finding.level == Level.OK, finding.value
    assert store.names("doctor") == []
    (finding,) = check_places([store.uri("doctor").replace("ureca-test", "another-bucket")])
    assert finding.level == Level.PROBLEM
    assert "AWS_ACCESS_KEY_ID" in finding.remedy


def test_lease_when_held_is_an_error_until_the_holder_is_killed(store: Store, tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", 2)
    output = Output(store.uri("claimed"))
    first = held_by_another(output.path, heartbeat_s=0.3)
    try:
        told = (
            rf"claimed.* is being written by another run \(process {first.pid} on .*, since .*end it, or name another"
        )
        for overwrite in (False, True):
            settings = settings_of(tmp_path, overwrite=overwrite).model_copy(update={"output": output.path})
            with pytest.raises(OutputError, match=told):
                curate(settings, lambda num_images, num_to_do: None)
        with pytest.raises(OutputError, match=told), output.lease_file(**ELSEWHERE).hold():
            pytest.fail("both sessions held the lease")
        assert [name for name in store.names("claimed/") if not name.endswith("/")] == ["claimed/lease.json"]
        first.send_signal(signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    left = store.client.get_object(Bucket=BUCKET, Key="claimed/lease.json")["Body"].read()
    here = output.lease_file(timing=LeaseTiming(settling_s=0.1))
    with here.hold() as session:  # on this machine it is seen at once that its process is gone
        output.check_lease(session)
    store.put("claimed/lease.json", left)
    waiting: list[str] = []
    with output.lease_file(**ELSEWHERE).hold(waiting.append) as session:  # from another machine, after the timeout
        output.check_lease(session)
    assert f"is leased by process {first.pid} on" in waiting[0]
    assert "waiting up to 1 s for a heartbeat" in waiting[0]
    assert [name for name in store.names("claimed/") if not name.endswith("/")] == []


def test_lease_of_two_sessions_at_once_is_held_by_one(store: Store) -> None:
    begin = threading.Barrier(2)
    holding = threading.Event()

    def hold(_: int) -> str:
        lease = Output(store.uri("together")).lease_file(
            timing=LeaseTiming(settling_s=1.0),
            start_time=lambda process: uuid.uuid4().hex,  # neither sees that the other one runs
        )
        begin.wait()
        try:
            with lease.hold():
                assert not holding.is_set()
                holding.set()
                time.sleep(1.5)
                return "held"
        except OutputError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = sorted(pool.map(hold, range(2)))
    assert outcomes[0] == "held"
    assert "is being written by another run" in outcomes[1]


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("gs://anonymous@bucket/folder", "GcsFileSystem"),
        ("abfs://container@account.dfs.core.windows.net/folder", "AzureFileSystem"),
    ],
)
def test_locate_of_other_stores_finds_their_file_system(uri: str, kind: str) -> None:
    """Without a server: what their URIs mean, not that they answer."""
    place = locate(uri)
    assert isinstance(place.filesystem, getattr(pafs, kind))
    assert place.name.endswith("folder")
    assert not place.is_local
