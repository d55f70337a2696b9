"""Fetching: the bytes that were stored, or the reason why there are none."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bad_corpus import write_bad_corpus
from ureca.data.listing import BESIDE, list_images
from ureca.data.manifest import ManifestEntry
from ureca.data.reading import Fetched, fetch
from ureca.errors import DataError
from ureca.image_limits import ImageLimits
from ureca.images import decode_image
from ureca.masks.generators.annotations import AnnotationMaskGenerator

LIMITS = ImageLimits()


def entries_of(manifest: pa.Table) -> list[ManifestEntry]:
    return [ManifestEntry.from_row(row) for row in manifest.to_pylist()]


def fetch_one(path: Path | str, limits: ImageLimits = LIMITS) -> bytes | DataError:
    (fetched,) = fetch([ManifestEntry("a", str(path), str(path))], limits)
    return fetched.image


def kind(value: bytes | DataError | None) -> str:
    assert isinstance(value, DataError)
    return value.kind


def test_fetch_of_files_reads_images_and_annotations(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / "a.json").write_bytes(b"{}")
    (tmp_path / "b.jpg").write_bytes(b"")
    fetched = list(fetch(entries_of(list_images(str(tmp_path), annotations=BESIDE)), LIMITS))
    assert [(one.entry.image_id, one.image, one.annotation) for one in fetched] == [
        ("a", b"image", b"{}"),
        ("b", b"", None),
    ]


def test_fetch_of_unreadable_files_returns_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "large.jpg").write_bytes(b"12345")
    assert kind(fetch_one(tmp_path / "gone.jpg")) == "missing_file"
    assert kind(fetch_one(tmp_path)) == "unreadable_file"
    assert kind(fetch_one(tmp_path / "pipe.jpg")) == "unreadable_file"
    assert kind(fetch_one("ftp://host/a.jpg")) == "unreadable_file"
    assert kind(fetch_one(f"{tmp_path}/nul\0.jpg")) in ("missing_file", "unreadable_file")
    assert kind(fetch_one(tmp_path / "large.jpg", ImageLimits(max_bytes=4))) == "too_many_bytes"
    assert fetch_one(tmp_path / "large.jpg", ImageLimits(max_bytes=5)) == b"12345"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_fetch_without_permission_returns_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch(mode=0)
    assert kind(fetch_one(tmp_path / "a.jpg")) == "unreadable_file"


def test_fetch_with_a_missing_annotation_keeps_the_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    entry = ManifestEntry("a", "a", f"{tmp_path}/a.jpg", annotation_path=f"{tmp_path}/a.json")
    (fetched,) = fetch([entry], LIMITS)
    assert fetched.image == b"image"
    assert kind(fetched.annotation) == "missing_file"


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_rows=st.integers(1, 90), group_size=st.integers(1, 40), is_struct=st.booleans())
def test_fetch_of_parquet_rows_in_any_order_reads_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, num_rows: int, group_size: int, is_struct: bool
) -> None:
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    images = [np.random.default_rng(row).bytes(row * 7) for row in range(num_rows)]
    column = [{"path": f"{row}.jpg", "bytes": image} for row, image in enumerate(images)] if is_struct else images
    pq.write_table(pa.table({"image": column, "label": range(num_rows)}), path, row_group_size=group_size)
    wanted = data.draw(st.lists(st.sampled_from(entries_of(list_images(str(path)))), unique=True))
    fetched = list(fetch(wanted, LIMITS))
    assert {one.entry for one in fetched} == set(wanted)
    assert len(fetched) == len(wanted)
    assert all(one.image == images[one.entry.row or 0] for one in fetched)


def test_fetch_of_parquet_rows_reads_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [b"%d" % row for row in range(100)]}), path, row_group_size=10)
    entries = entries_of(list_images(str(path)))
    read: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def record(self: pq.ParquetFile, *, row_groups: list[int], **options: object) -> object:
        read.extend(row_groups)
        return iter_batches(self, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", record)
    fetched = list(fetch([entries[row] for row in (35, 99, 31, 30, 90)], LIMITS))
    assert [one.image for one in fetched] == [b"30", b"31", b"35", b"90", b"99"]
    assert read == [3, 9]


def test_fetch_of_null_large_or_missing_rows_returns_errors(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [None, b"12345", b"1"]}), path)
    entries = entries_of(list_images(str(path)))
    fetched = list(fetch(entries, ImageLimits(max_bytes=4)))
    assert [kind(one.image) for one in fetched[:2]] == ["no_bytes", "too_many_bytes"]
    assert fetched[2].image == b"1"
    pq.write_table(pa.table({"image": [b"1"]}), path)
    assert [kind(one.image) for one in fetch(entries[1:], LIMITS)] == ["missing_row", "missing_row"]
    path.write_bytes(b"PAR1 no more")
    assert [kind(one.image) for one in fetch(entries, LIMITS)] == ["unreadable_file"] * 3
    path.unlink()
    assert [kind(one.image) for one in fetch(entries, LIMITS)] == ["missing_file"] * 3


def test_fetch_before_the_next_item_reads_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"first")
    (tmp_path / "b.jpg").write_bytes(b"second")
    fetched = fetch(entries_of(list_images(str(tmp_path))), LIMITS)
    assert next(fetched).image == b"first"
    (tmp_path / "b.jpg").unlink()
    assert kind(next(fetched).image) == "missing_file"


def outcome(fetched: Fetched) -> str:
    """The row that a job would write."""
    try:
        if isinstance(fetched.image, DataError):
            raise fetched.image
        pixels = decode_image(fetched.image, LIMITS)
    except DataError as error:
        return f"read:{error.kind}"
    try:
        if isinstance(fetched.annotation, DataError):
            raise fetched.annotation
        AnnotationMaskGenerator().generate(pixels, fetched.annotation)
    except DataError as error:
        return f"masks:{error.kind}"
    return "ok"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fetch_of_the_bad_corpus_accounts_for_every_file(tmp_path: Path) -> None:
    expected = write_bad_corpus(tmp_path)
    manifest = list_images(str(tmp_path), annotations=BESIDE)
    assert {one.entry.image_id: outcome(one) for one in fetch(entries_of(manifest), LIMITS)} == expected
