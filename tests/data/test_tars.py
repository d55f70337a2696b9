"""Tar archives: what the standard library lists is what is listed, and damage is a row."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ureca.data.listing import BESIDE, list_images
from ureca.data.manifest import ManifestEntry
from ureca.data.reading import fetch
from ureca.data.tars import TarMember, scan
from ureca.errors import DataError, InputError
from ureca.image_limits import ImageLimits


def make_tar(members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def scan_bytes(content: bytes) -> list[TarMember]:
    return list(scan(pa.BufferReader(content)))


_PART = st.text(st.characters(codec="utf-8", exclude_characters="/\0."), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(
    members=st.dictionaries(
        st.lists(_PART, min_size=1, max_size=5).map("/".join), st.binary(max_size=1500), max_size=8
    ),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    other=st.sampled_from([tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]),
    with_end=st.booleans(),
)
def test_scan_yields_the_members_that_tarfile_lists(
    members: dict[str, bytes], format: int, other: bytes, with_end: bool
) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=format) as tar:
        for index, (name, data) in enumerate(members.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo(f"other {index} " + "x" * 120)
            info.type, info.linkname = other, "target" * 40
            tar.addfile(info)
    archive = content.getvalue() if with_end or not members else content.getvalue()[: tar.offset - 1024]
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        expected = [TarMember(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    found = scan_bytes(archive)
    assert found == expected
    assert {member.name: archive[member.offset :][: member.size] for member in found} == members


def test_scan_of_files_over_eight_gigabytes_reads_their_size() -> None:
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("large.jpg")
        info.size = 9 * 2**30
        archive = info.tobuf(format)
        assert [(member.name, member.size) for member in scan_bytes(archive)] == [("large.jpg", 9 * 2**30)]


@pytest.mark.parametrize(
    "name", ["/etc/a.jpg", "../a.jpg", "x/../../a.jpg", ".hidden.jpg", "._/a.jpg", ".git/a.jpg", "x//a.jpg"]
)
def test_scan_of_unsafe_or_hidden_names_leaves_them_out(name: str) -> None:
    assert [member.name for member in scan_bytes(make_tar({name: b"1", "./ok/./b.jpg": b"2"}))] == ["ok/b.jpg"]


@pytest.mark.parametrize("size", ["-1024", str(2**70), "many"])
def test_scan_of_an_impossible_size_ends_with_damage(size: str) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"size": size}
    assert scan_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)) == [TarMember("", 1024, None)]


def test_scan_of_a_sparse_file_ends_with_damage() -> None:
    info = tarfile.TarInfo("a.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    assert scan_bytes(info.tobuf(tarfile.GNU_FORMAT)) == [TarMember("", 0, None)]


def test_scan_of_a_global_header_ignores_its_name() -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", pax_headers={"comment": "all"}) as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    assert [member.name for member in scan_bytes(content.getvalue())] == ["a.jpg"]


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 4000), value=st.binary(min_size=1, max_size=40), end=st.integers(0, 6000))
def test_scan_of_damaged_archives_ends_with_damage(position: int, value: bytes, end: int) -> None:
    content = make_tar({"a.jpg": b"1" * 700, "b" * 150 + ".jpg": b"2" * 700, "c.json": b"{}"})
    damaged = (content[:position] + value + content[position + len(value) :])[:end]
    members = scan_bytes(damaged)
    assert all(member.size is None or member.size >= 0 for member in members)
    assert all(member.size is not None for member in members[:-1])


def test_list_images_of_tars_pairs_images_with_annotations(tmp_path: Path) -> None:
    (tmp_path / "sa_000001.tar").write_bytes(make_tar({"./sa_2.jpg": b"two", "./sa_2.json": b"{2}", "readme.txt": b""}))
    (tmp_path / "sa_000000.tar").write_bytes(
        make_tar({"sa_1.json": b"{1}", "sa_1.jpg": b"one", "x/sa_3.png": b"three"})
    )
    for input in (str(tmp_path), f"{tmp_path}/*.tar", [f"{tmp_path}/sa_000000.tar", f"{tmp_path}/sa_000001.tar"]):
        manifest = list_images(input, annotations=BESIDE)
        assert manifest["image_id"].to_pylist() == ["sa_1", "sa_3", "sa_2"]
        assert manifest["uri"].to_pylist()[1:] == [
            f"{tmp_path}/sa_000000.tar/x/sa_3.png",
            f"{tmp_path}/sa_000001.tar/sa_2.jpg",
        ]
        fetched = fetch([ManifestEntry.from_row(row) for row in manifest.to_pylist()], ImageLimits())
        assert [(one.image, one.annotation) for one in fetched] == [
            (b"one", b"{1}"),
            (b"three", None),
            (b"two", b"{2}"),
        ]
    assert list_images(str(tmp_path))["annotation_path"].null_count == 3


def test_list_images_of_tars_with_an_annotation_folder_prefers_the_folder(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(make_tar({"a.jpg": b"1", "a.json": b"{}"}))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a.json").write_bytes(b"[]")
    (row,) = list_images(str(tmp_path / "s.tar"), annotations=str(tmp_path / "masks")).to_pylist()
    assert (row["annotation_path"], row["annotation_offset"]) == (f"{tmp_path}/masks/a.json", None)


@pytest.mark.parametrize(
    ("keep", "kinds"), [(512 + 300, ["truncated"]), (1536 + 100, [None, "damaged_archive"]), (0, ["damaged_archive"])]
)
def test_list_images_of_a_truncated_tar_lists_an_error_row(tmp_path: Path, keep: int, kinds: list[str | None]) -> None:
    content = make_tar({"a.jpg": b"1" * 900, "b.jpg": b"2"})
    (tmp_path / "s.tar").write_bytes(content[:keep])
    manifest = list_images(str(tmp_path))
    fetched = fetch([ManifestEntry.from_row(row) for row in manifest.to_pylist()], ImageLimits())
    assert [one.image.kind if isinstance(one.image, DataError) else None for one in fetched] == kinds
    if kinds[-1] == "damaged_archive":
        assert manifest["uri"].to_pylist()[-1] == f"{tmp_path}/s.tar@{1536 if keep else 0}"


def test_list_images_of_a_compressed_tar_is_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(InputError, match=r"s\.tar: the tar is compressed.*Unpack it"):
        list_images(str(tmp_path))
