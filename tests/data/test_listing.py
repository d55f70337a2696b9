"""Listing: every form of input, each image exactly once, and errors that say what to do."""

import base64
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bad_corpus import write_bad_corpus
from ureca.data.listing import BESIDE, Ids, list_images, named_counts
from ureca.data.manifest import MANIFEST, ManifestEntry, left_out_names_of, left_out_of
from ureca.data.paths import image_extensions
from ureca.data.reading import fetch
from ureca.errors import DataError, InputError
from ureca.image_limits import ImageLimits
from ureca.io import below, has_suffix, locate, parent


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")


def ids(manifest: pa.Table) -> list[str]:
    return manifest["image_id"].to_pylist()


def write_tar(path: Path, members: dict[str, bytes], **options: int) -> None:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_list_images_of_a_folder_lists_all_depths_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/c.PNG", "a.webp", "notes.md", "a/deep/er/d.tiff", "e.json", ".hidden.jpg", ".git/f.jpg")
    manifest = list_images(str(tmp_path))
    assert manifest.schema == MANIFEST
    assert ids(manifest) == ["a", "c", "d", "b"]
    assert manifest["path"].to_pylist()[1] == f"{tmp_path}/a/c.PNG"
    assert manifest["uri"] == manifest["path"]
    assert manifest["annotation_path"].null_count == 4


_NAME = st.text(st.characters(codec="utf-8", exclude_characters="/\0."), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(
    stems=st.lists(_NAME, min_size=1, max_size=12, unique=True),
    folders=st.lists(st.lists(_NAME.map(lambda name: f"{name}_"), max_size=3), min_size=1, max_size=4),
    data=st.data(),
)
def test_list_images_of_any_tree_lists_each_image_once(
    tmp_path_factory: pytest.TempPathFactory, stems: list[str], folders: list[list[str]], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("tree")
    expected = {}
    for stem in stems:
        folder = root.joinpath(*data.draw(st.sampled_from(folders)))
        extension = data.draw(st.sampled_from(["jpg", "JPG", "png", "txt", "json"]))
        path = folder / f"{stem}.{extension}"
        touch(folder, path.name)
        if extension.lower() in ("jpg", "png"):
            expected[stem] = str(path)
    if not expected:
        with pytest.raises(InputError, match="no image"):
            list_images(str(root))
        return
    for pattern in (str(root), f"{root}/**", f"{root}/**/*.[jJpP][pPnN][gG]"):
        manifest = list_images(pattern)
        assert dict(zip(ids(manifest), manifest["path"].to_pylist(), strict=True)) == expected
        assert len(manifest) == len(expected)
        assert manifest["path"].to_pylist() == sorted(expected.values(), key=os.fsencode)
        assert manifest == list_images(pattern)


def test_list_images_of_globs_matches_components_and_expands_folders(tmp_path: Path) -> None:
    touch(tmp_path, "p1/a.jpg", "p1/x/b.jpg", "p2/c.jpg", "q/d.jpg", "p1/e.png", "p3/.h/f.jpg")
    assert ids(list_images(f"{tmp_path}/p*/*.jpg")) == ["a", "c"]
    assert ids(list_images(f"{tmp_path}/p?")) == ["a", "e", "b", "c"]
    assert ids(list_images(f"{tmp_path}/**/x/*")) == ["b"]
    assert ids(list_images(f"{tmp_path}/[!p]/*")) == ["d"]
    with pytest.raises(InputError, match="no image"):
        list_images(f"{tmp_path}/*.gif")


def test_list_images_of_a_file_named_like_a_pattern_lists_the_file(tmp_path: Path) -> None:
    touch(tmp_path, "what[1]?.jpg", "what1x.jpg")
    assert ids(list_images(f"{tmp_path}/what[1]?.jpg")) == ["what[1]?"]


def test_list_images_of_relative_paths_lists_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "photos/a.jpg")
    monkeypatch.chdir(tmp_path)
    for input in ("photos", "photos/a.jpg", "photos/*", f"file://{tmp_path}/photos"):
        assert list_images(input)["path"].to_pylist() == [f"{tmp_path}/photos/a.jpg"], input


def test_list_images_with_links_follows_them_without_cycles(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "real/loop").symlink_to(tmp_path / "real")
    (tmp_path / "real/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real/gone.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "real/pipe.jpg")
    assert ids(list_images(str(tmp_path / "real"))) == ["a", "gone", "b"]


def test_list_images_of_a_list_file_reads_paths_and_uris(tmp_path: Path) -> None:
    touch(tmp_path, "lists/here.jpg")
    (tmp_path / "lists/all.txt").write_text(
        f"# photographs\nhere.jpg\n\n../up one.png\r\n{tmp_path}/absolute.jpg\ns3://bucket/key.with.dots.jpg?region=x\n"
    )
    manifest = list_images(str(tmp_path / "lists/all.txt"))
    assert ids(manifest) == ["here", "up one", "absolute", "key.with.dots"]
    assert manifest["path"].to_pylist()[1] == f"{tmp_path}/lists/../up one.png"
    assert manifest["path"].to_pylist()[3] == "s3://bucket/key.with.dots.jpg?region=x"
    assert manifest["uri"].to_pylist()[3] == "s3://bucket/key.with.dots.jpg"


def test_list_images_of_a_folder_with_a_text_file_ignores_it(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("a.jpg\n")
    for input in (str(tmp_path), f"{tmp_path}/*.txt"):
        with pytest.raises(InputError, match="no image"):
            list_images(input)


@pytest.mark.parametrize("content", [b"", b"\n# nothing\n", b"\xff\xfe.jpg\n"])
def test_list_images_of_an_invalid_list_file_raises(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"list\.txt: the list"):
        list_images(str(tmp_path / "list.txt"))


def test_list_images_of_several_inputs_keeps_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "z/a.jpg", "y/b.jpg")
    assert ids(list_images([str(tmp_path / "z"), str(tmp_path / "y/b.jpg")])) == ["a", "b"]


def test_list_images_with_duplicate_ids_names_both_files(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.jpg", "two/b.jpg", "two/a.png", "three/a.webp")
    with pytest.raises(InputError, match=r"one/a\.jpg and .*three/a\.webp.*rename") as error:
        list_images(str(tmp_path))
    assert "two/b.jpg" not in str(error.value)


@pytest.mark.parametrize(
    ("input", "message"),
    [
        ("missing", "no such file or folder"),
        ("missing/*.jpg", "cannot be read"),
        ("empty", "no image among 0 files"),
        ("text", "no image among 1 file"),
        ("text/notes.md", "no image"),
        ("zipped", "Unpack it"),
        ("zipped/a.tar.gz", "Unpack it"),
        ("ftp://host/a.jpg", r"s3://, gs://"),
    ],
)
def test_list_images_without_images_names_the_reason(tmp_path: Path, input: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "text/notes.md", "zipped/a.tar.gz")
    with pytest.raises(InputError, match=message):
        list_images(input if "://" in input else str(tmp_path / input))


def test_list_images_without_inputs_raises() -> None:
    with pytest.raises(InputError, match="name at least one"):
        list_images([])


def test_list_images_with_a_non_utf8_name_raises(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.jpg")).touch()
    with pytest.raises(InputError, match="not UTF-8"):
        list_images(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_list_images_of_a_locked_folder_raises(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(InputError, match="locked"):
            list_images(str(tmp_path))
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_list_images_with_permission_error_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "locked/b.jpg")

    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot be read: .*Permission denied.*Make it readable"):
        list_images(str(tmp_path))


class TestAnnotations:
    def test_annotations_beside_the_image_are_paired(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.jpg", "a.json", "sub/b.png", "sub/b.JSON", "sub/c.png", "c.json", "d.json")
        manifest = list_images(str(tmp_path), annotations=BESIDE)
        assert ids(manifest) == ["a", "b", "c"]
        assert manifest["annotation_path"].to_pylist() == [f"{tmp_path}/a.json", f"{tmp_path}/sub/b.JSON", None]

    def test_annotations_beside_listed_images_are_paired(self, tmp_path: Path) -> None:
        touch(tmp_path, "x/a.jpg", "x/a.json")
        (tmp_path / "list.txt").write_text("x/a.jpg\nx/../x/gone.jpg\nnowhere/b.jpg\n")
        listed = list_images(str(tmp_path / "list.txt"), annotations=BESIDE)
        assert listed["annotation_path"].to_pylist() == [f"{tmp_path}/x/a.json", None, None]
        for input in (f"{tmp_path}/x/a.jpg", f"{tmp_path}/x/*.jpg"):
            assert list_images(input, annotations=BESIDE)["annotation_path"].to_pylist() == [f"{tmp_path}/x/a.json"]

    def test_annotations_in_another_folder_are_paired(self, tmp_path: Path) -> None:
        touch(tmp_path, "images/a.jpg", "images/b.jpg", "masks/deep/b.json", "masks/z.json")
        manifest = list_images(str(tmp_path / "images"), annotations=str(tmp_path / "masks"))
        assert manifest["annotation_path"].to_pylist() == [None, f"{tmp_path}/masks/deep/b.json"]

    def test_annotations_with_duplicate_names_raise(self, tmp_path: Path) -> None:
        touch(tmp_path, "images/a.jpg", "masks/1/a.json", "masks/2/a.json")
        with pytest.raises(InputError, match=r"1/a\.json and .*2/a\.json"):
            list_images(str(tmp_path / "images"), annotations=str(tmp_path / "masks"))

    def test_annotations_without_any_match_raise(self, tmp_path: Path) -> None:
        touch(tmp_path, "images/a.jpg", "masks/b.json")
        with pytest.raises(InputError, match="no annotation was found beside"):
            list_images(str(tmp_path / "images"), annotations=BESIDE)
        with pytest.raises(InputError, match=r"no annotation was found in .*masks"):
            list_images(str(tmp_path / "images"), annotations=str(tmp_path / "masks"))
        with pytest.raises(InputError, match="no such file or folder"):
            list_images(str(tmp_path / "images"), annotations=str(tmp_path / "nowhere"))


class TestTables:
    def test_table_of_bytes_is_listed_by_row(self, tmp_path: Path) -> None:
        for column, name in [("image", "a"), ("bytes", "b")]:
            pq.write_table(pa.table({column: [b"1", b"2"]}), tmp_path / f"{name}.parquet")
        manifest = list_images(str(tmp_path))
        assert ids(manifest) == ["a-0", "a-1", "b-0", "b-1"]
        assert manifest["uri"].to_pylist()[1] == f"{tmp_path}/a.parquet#row=1"
        assert manifest["column"].to_pylist() == ["image", "image", "bytes", "bytes"]
        assert manifest["row"].to_pylist() == [0, 1, 0, 1]

    def test_table_of_structs_names_the_bytes_column(self, tmp_path: Path) -> None:
        rows = [{"bytes": b"1", "path": "x.jpg"}]
        pq.write_table(pa.table({"image": rows, "image_id": [17]}), tmp_path / "t.parquet")
        (row,) = list_images(str(tmp_path / "t.parquet")).to_pylist()
        assert (row["image_id"], row["column"], row["row"]) == ("17", "image.bytes", 0)

    def test_table_of_paths_resolves_them_relative_to_the_table(self, tmp_path: Path) -> None:
        touch(tmp_path, "x.jpg", "x.json")
        pq.write_table(pa.table({"uri": ["x.jpg", "/y.png", "s3://b/z.jpg"]}), tmp_path / "t.parquet")
        manifest = list_images(str(tmp_path / "*.parquet"))
        assert ids(manifest) == ["x", "y", "z"]
        assert manifest["path"].to_pylist() == [f"{tmp_path}/x.jpg", "/y.png", "s3://b/z.jpg"]

    def test_table_with_named_columns_uses_them(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"photo": [b"1"], "key": ["k"], "path": ["p.jpg"]}), tmp_path / "t.parquet")
        (row,) = list_images(str(tmp_path), image_column="photo", id_column="key").to_pylist()
        assert (row["image_id"], row["column"]) == ("k", "photo")

    @pytest.mark.parametrize(
        ("columns", "options", "message"),
        [
            ({"x": [1]}, {}, "no column image or bytes or uri or path; name one of x"),
            ({"image": [1]}, {}, "'image' is int64"),
            ({"image": [b"1"]}, {"image_column": "photo"}, "no column photo"),
            ({"image": [b"1"]}, {"id_column": "key"}, "no column key"),
            ({"image": [b"1", b"2"], "image_id": ["a", None]}, {}, "row 1 has no 'image_id'"),
            ({"path": ["a.jpg", None]}, {}, "row 1 has no 'path'"),
            ({"image": [b"1"], "image_id": [[1]]}, {}, "does not hold text"),
            ({"image": [b"1", b"2"], "image_id": ["a", "a"]}, {}, "row=0 and .*row=1"),
            ({"image": pa.array([], pa.binary())}, {}, "hold no image"),
        ],
    )
    def test_table_without_usable_columns_raises(
        self, tmp_path: Path, columns: dict[str, list[object]], options: dict[str, str], message: str
    ) -> None:
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        with pytest.raises(InputError, match=message):
            list_images(str(tmp_path), **options)

    def test_table_that_cannot_be_read_raises(self, tmp_path: Path) -> None:
        touch(tmp_path, "t.parquet")
        with pytest.raises(InputError, match=r"t\.parquet: the Parquet file cannot be read"):
            list_images(str(tmp_path))


def test_list_images_of_a_mixed_folder_prefers_image_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out/regions.parquet", "b.tar")
    assert ids(list_images(str(tmp_path))) == ["a"]


def test_list_images_of_uris_uses_arrow_file_systems() -> None:
    place = "mock://place-of-this-test"
    filesystem = locate(f"{place}/x").filesystem
    assert filesystem.type_name == "mock"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("in tar.jpg"))
    filesystem.create_dir("photos/sub", recursive=True)
    for name, data in {
        "photos/a b.jpg": b"1",
        "photos/a b.json": b"2",
        "photos/sub/c.png": b"3",
        ".h.jpg": b"4",
    }.items():
        with filesystem.open_output_stream(name) as file:
            file.write(data)
    with filesystem.open_output_stream("shard.tar") as file:
        file.write(content.getvalue())
    manifest = list_images(f"{place}/photos", annotations=BESIDE)
    assert manifest["path"].to_pylist() == [f"{place}/photos/a b.jpg", f"{place}/photos/sub/c.png"]
    assert manifest["annotation_path"].to_pylist() == [f"{place}/photos/a b.json", None]
    assert ids(list_images(f"{place}/photos/*/*.png")) == ["c"]
    assert list_images(f"{place}/shard.tar")["uri"].to_pylist() == [f"{place}/shard.tar/in tar.jpg"]
    assert filesystem.get_file_info("photos").type == pafs.FileType.Directory


def test_locate_of_a_uri_with_options_inherits_and_hides_them() -> None:
    location = locate("s3://bucket/folder/a b#1.jpg?endpoint_override=localhost:9&scheme=http")
    assert location.name == "bucket/folder/a b#1.jpg"
    names = pa.array(["bucket/folder/c.jpg"])
    assert location.paths(names).to_pylist() == ["s3://bucket/folder/c.jpg?endpoint_override=localhost:9&scheme=http"]
    assert location.uris(names).to_pylist() == ["s3://bucket/folder/c.jpg"]


def test_list_images_of_the_bad_corpus_lists_every_file(tmp_path: Path) -> None:
    expected = write_bad_corpus(tmp_path)
    assert len(expected) >= 40
    assert sorted(ids(list_images(str(tmp_path)))) == sorted(expected)


def test_manifest_entry_round_trips_through_its_row(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.json")
    (row,) = list_images(str(tmp_path), annotations=BESIDE).to_pylist()
    assert ManifestEntry.from_row(row | {"more": 1}).to_row() == row
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(
    ("folder", "child", "up"),
    [
        ("a/b", "a/b/c.d", "a"),
        ("/a", "/a/c.d", "/"),
        ("a/", "a/c.d", "a"),
        ("a?b", "a?b/c.d", "."),
        ("s3://x/y?scheme=http", "s3://x/y/c.d?scheme=http", "s3://x?scheme=http"),
    ],
)
def test_below_and_parent_join_and_split_paths(folder: str, child: str, up: str) -> None:
    assert below(folder, "c.d") == child
    assert parent(folder) == up
    assert has_suffix(child, ".d")


class TestIds:
    def test_folders_of_classes_need_ids_by_path_and_the_error_names_them(self, tmp_path: Path) -> None:
        touch(tmp_path, "dog/001.jpg", "cat/001.jpg")
        with pytest.raises(InputError, match=r"--listing\.ids path"):
            list_images(str(tmp_path))
        for input in (str(tmp_path), f"{tmp_path}/*/*.jpg", f"{tmp_path}/**"):
            assert ids(list_images(input, ids="path")) == ["cat/001", "dog/001"]

    def test_shards_with_equal_members_get_ids_with_the_shard(self, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        for name in ("00000", "deep/00001"):
            write_tar(tmp_path / f"{name}.tar", {"dog/1.jpg": b"1", "dog/1.json": b"{}", "cat/1.jpg": b"2"})
        with pytest.raises(InputError, match=r"--listing\.ids path"):
            list_images(str(tmp_path))
        manifest = list_images(str(tmp_path), ids="path", annotations=BESIDE)
        expected = ["00000/dog/1", "00000/cat/1", "deep/00001/dog/1", "deep/00001/cat/1"]
        assert ids(manifest) == expected and manifest["annotation_path"].null_count == 2

    def test_lists_and_tables_take_the_paths_as_written(self, tmp_path: Path) -> None:
        (tmp_path / "all.txt").write_text("dog/1.jpg\n./cat/1.jpg\n/data/1.jpg\n../up/1.jpg\ns3://bucket/k/1.jpg?a=b\n")
        expected = ["dog/1", "cat/1", "data/1", "up/1", "bucket/k/1"]
        assert ids(list_images(str(tmp_path / "all.txt"), ids="path")) == expected
        pq.write_table(pa.table({"path": ["dog/1.jpg", "cat/1.jpg"]}), tmp_path / "t.parquet")
        assert ids(list_images(str(tmp_path / "t.parquet"), ids="path")) == ["dog/1", "cat/1"]

    def test_annotations_in_a_folder_have_the_same_paths(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/dog/1.jpg", "in/cat/1.jpg", "masks/dog/1.json", "masks/cat/1.json")
        manifest = list_images(str(tmp_path / "in"), ids="path", annotations=str(tmp_path / "masks"))
        expected = [f"{tmp_path}/masks/cat/1.json", f"{tmp_path}/masks/dog/1.json"]
        assert manifest["annotation_path"].to_pylist() == expected

    def test_voc_tree_without_its_masks_keeps_stems(self, tmp_path: Path) -> None:
        touch(tmp_path, "JPEGImages/1.jpg", "SegmentationClass/1.png", "SegmentationObject/1.png", "Annotations/1.xml")
        with pytest.raises(InputError, match=r"--listing\.exclude"):
            list_images(str(tmp_path))
        manifest = list_images(str(tmp_path), exclude=["Segmentation*"])
        assert ids(manifest) == ["1"]
        assert left_out_of(manifest) == {"excluded": 2, ".xml": 1}
        assert ids(list_images(str(tmp_path), ids="path", exclude=["Segmentation*"])) == ["JPEGImages/1"]


class TestLeftOut:
    def test_leftovers_of_systems_are_counted(self, tmp_path: Path) -> None:
        touch(tmp_path, "x.jpg", "__MACOSX/x.jpg", "__MACOSX/._x.jpg", "a/@eaDir/x.jpg/y.jpg", "._x.jpg", "a/y.jpg")
        touch(tmp_path, ".DS_Store", "Thumbs.db")
        manifest = list_images(str(tmp_path))
        assert ids(manifest) == ["y", "x"]
        assert left_out_of(manifest) == {"__MACOSX": 2, "@eaDir": 1, "._*": 1, ".db": 1}
        write_tar(tmp_path / "s.tar", {"x.jpg": b"1", "._x.jpg": b"2", "__MACOSX/x.jpg": b"3", "x.txt": b"4"})
        manifest = list_images(str(tmp_path / "s.tar"))
        assert ids(manifest) == ["x"] and left_out_of(manifest) == {"._*": 1, "__MACOSX": 1, ".txt": 1}

    def test_formats_that_cannot_be_read_are_counted_by_extension(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        touch(tmp_path, "a.jpg", "b.HEIC", "c.avif", "d.jxl", "e.jp2", "e3b0c44298")
        monkeypatch.setattr("ureca.data.paths.optional_extensions", lambda: ())
        image_extensions.cache_clear()
        try:
            manifest = list_images(str(tmp_path))
        finally:
            monkeypatch.undo()
            image_extensions.cache_clear()
        assert ids(manifest) == ["a"]
        assert left_out_of(manifest) == {".heic": 1, ".avif": 1, ".jxl": 1, ".jp2": 1, "no extension": 1}
        listed = list_images(str(tmp_path))
        assert len(listed) + sum(left_out_of(listed).values()) == 6

    def test_annotations_are_no_leftovers_where_they_are_used(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.jpg", "a.json", "t.tar")
        assert left_out_of(list_images(str(tmp_path))) == {".json": 1, ".tar": 1}
        assert left_out_of(list_images(str(tmp_path), annotations=BESIDE)) == {".tar": 1}

    def test_folder_without_images_names_what_it_has(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.jxl", "b.jxl", "c")
        with pytest.raises(InputError, match=r"2 \.jxl, 1 no extension"):
            list_images(str(tmp_path))

    @pytest.mark.parametrize(
        ("pattern", "left"),
        [
            ("*_mask.png", ["a", "val/x", "val/deep/y"]),
            ("val", ["a", "b_mask"]),
            ("val/*.png", ["a", "b_mask", "val/deep/y"]),
            ("val/**/*.png", ["a", "b_mask"]),
            ("**/deep", ["a", "b_mask", "val/x"]),
            ("/deep", ["a", "b_mask", "val/x", "val/deep/y"]),
            ("[!ab]*", ["a", "b_mask"]),
            ("a.p?g", ["b_mask", "val/x", "val/deep/y"]),
            ("a.*[+(]", ["a", "b_mask", "val/x", "val/deep/y"]),
        ],
    )
    def test_exclude_matches_components(self, tmp_path: Path, pattern: str, left: list[str]) -> None:
        touch(tmp_path, "a.png", "b_mask.png", "val/x.png", "val/deep/y.png")
        manifest = list_images(str(tmp_path), ids="path", exclude=[pattern])
        assert sorted(ids(manifest)) == sorted(left)
        assert left_out_of(manifest).get("excluded", 0) == 4 - len(left)


def test_list_images_of_a_list_understands_lines_as_people_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "odd/photo [2].jpg", "odd/q?x.jpg", "odd/sp ace.JPG", "odd/a#1.jpg", "odd/b%20c.jpg", "odd/w.jpg")
    touch(tmp_path, "home/x.jpg", "odd/ edge .jpg", "odd/e3b0c44298")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "l.txt").write_text(
        'odd/photo [2].jpg\nodd/q?x.jpg\n  odd/sp ace.JPG  \nodd/a#1.jpg\n"odd/b%20c.jpg"\n~/x.jpg\nodd\\w.jpg\n'
        "'odd/ edge .jpg'\nodd/e3b0c44298\n  # a comment\n"
    )
    manifest = list_images(str(tmp_path / "l.txt"))
    names = ["photo [2]", "q?x", "sp ace", "a#1", "b%20c", "x", "w", " edge ", "e3b0c44298"]
    assert ids(manifest) == names
    assert all(Path(path).is_file() for path in manifest["path"].to_pylist())


@pytest.mark.parametrize("line", ["odd/a#1.jpg 0", "a.jpg,dog", '{"image": "a.jpg"}', "image_path", "a.jpg\tcat"])
def test_list_images_of_a_list_with_a_line_that_is_no_path_names_the_line(tmp_path: Path, line: str) -> None:
    touch(tmp_path, "odd/a#1.jpg")
    (tmp_path / "l2.txt").write_text(f"# labels\n\nodd/a#1.jpg\n{line}\n")
    with pytest.raises(InputError, match=r"l2\.txt, line 4: .* is no path of an image"):
        list_images(str(tmp_path / "l2.txt"))


def test_list_images_names_the_first_images_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", *(f"x/IMG_{k}.JXL" for k in range(5)), "b.dng", "notes.md")
    manifest = list_images(str(tmp_path))
    assert left_out_names_of(manifest) == {".jxl": ["IMG_0.JXL", "IMG_1.JXL", "IMG_2.JXL"], ".dng": ["b.dng"]}
    text = named_counts(left_out_of(manifest), left_out_names_of(manifest))
    assert text == "5 .jxl (IMG_0.JXL, IMG_1.JXL, IMG_2.JXL, ...), 1 .dng (b.dng), 1 .md"


def test_list_images_of_one_image_twice_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "odd/a.jpg")
    (tmp_path / "list.txt").write_text("# comment\nodd/a.jpg\n\n./odd/b.jpg\nodd/a.jpg\n")
    with pytest.raises(InputError, match=r"list\.txt, line 5: 'odd/a\.jpg' is there already, in line 2: leave one out"):
        list_images(str(tmp_path / "list.txt"))
    with pytest.raises(InputError, match=r"odd/a\.jpg is listed twice: leave one out"):
        list_images([str(tmp_path / "odd"), str(tmp_path / "odd/a.jpg")])


def test_list_images_of_a_table_without_such_a_column_names_the_setting(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [b""], "images": [[b""]]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"name one of jpg, images by --listing\.image-column"):
        list_images(str(tmp_path / "t.parquet"))
    with pytest.raises(InputError, match=r"'images' is list.* by --listing\.image-column"):
        list_images(str(tmp_path / "t.parquet"), image_column="images")
    with pytest.raises(InputError, match=r"no column key; name one of jpg, images by --listing\.id-column"):
        list_images(str(tmp_path / "t.parquet"), image_column="jpg", id_column="key")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["list.txt", "list.txt.gz", "plain.txt.gz", "compressed.txt"])
def test_list_images_of_a_list_reads_every_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    touch(tmp_path, "in/a.jpg", "in/größe.jpg")
    content = "in/a.jpg\r\nin\\größe.jpg\r\n".encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name in ("list.txt.gz", "compressed.txt") else content)
    manifest = list_images(str(tmp_path / name))
    assert manifest["path"].to_pylist() == [f"{tmp_path}/in/a.jpg", f"{tmp_path}/in/größe.jpg"]
    assert ids(manifest) == ["a", "größe"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("größe.jpg\n".encode("latin-1"), id="latin-1"),
        pytest.param(gzip.compress(b"a.jpg\n" * 99)[:-12], id="gzip, truncated"),
    ],
)
def test_list_images_of_a_list_that_is_no_text_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"list\.txt: the list (is no text in UTF-8|cannot be read.*ends early)"):
        list_images(str(tmp_path / "list.txt"))


@pytest.mark.parametrize("ids_by", ["stem", "path"])
def test_list_images_of_a_table_with_windows_separators_finds_the_files(tmp_path: Path, ids_by: Ids) -> None:
    touch(tmp_path, "im/deep/a.jpg", "im/b.jpg", "odd\\w.jpg")
    texts = ["im\\deep\\a.jpg", "im/b.jpg", "odd\\w.jpg", "im\\gone.jpg", "s3://bucket/x\\y.jpg"]
    pq.write_table(pa.table({"path": texts}), tmp_path / "t.parquet")
    manifest = list_images(str(tmp_path / "t.parquet"), ids=ids_by)
    below = ["im/deep/a.jpg", "im/b.jpg", "odd\\w.jpg", "im/gone.jpg"]
    assert manifest["path"].to_pylist() == [*(f"{tmp_path}/{name}" for name in below), "s3://bucket/x\\y.jpg"]
    expected = ["a", "b", "odd\\w", "gone", "x\\y"]
    if ids_by == "path":
        expected = ["im/deep/a", "im/b", "odd\\w", "im/gone", "bucket/x\\y"]
    assert ids(manifest) == expected


def test_list_images_of_a_list_understands_escaped_file_uris(tmp_path: Path) -> None:
    touch(tmp_path, "in/a b.jpg", "in/c.jpg")
    (tmp_path / "list.txt").write_text(f"file://{tmp_path}/in/a%20b.jpg\n./in/./c.jpg\ns3://bucket/d%20e.jpg\n")
    manifest = list_images(str(tmp_path / "list.txt"))
    assert manifest["path"].to_pylist() == [f"{tmp_path}/in/a b.jpg", f"{tmp_path}/in/c.jpg", "s3://bucket/d%20e.jpg"]
    assert ids(manifest) == ["a b", "c", "d%20e"]


def test_list_images_of_structs_without_bytes_reads_their_files(tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    (tmp_path / "im/b.jpg").write_bytes(b"of the file")
    images = [
        {"bytes": b"of the table", "path": "im/b.jpg"},
        {"bytes": None, "path": "im\\b.jpg"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": "c.jpg"},
    ]
    pq.write_table(pa.table({"image": images}), tmp_path / "t.parquet", row_group_size=3)
    manifest = list_images(str(tmp_path / "t.parquet"))
    assert ids(manifest) == ["t-0", "t-1", "t-2", "t-3"]
    entries = [ManifestEntry.from_row(row) for row in manifest.to_pylist()]
    read = {one.entry.image_id: one.image for one in fetch(entries, ImageLimits())}
    assert (read["t-0"], read["t-1"], read["t-3"]) == (b"of the table", b"of the file", b"")
    assert isinstance(read["t-2"], DataError) and read["t-2"].kind == "no_bytes"


@pytest.mark.parametrize("type", [pa.binary_view(), pa.large_binary()])
def test_list_images_of_any_type_of_bytes_reads_them(tmp_path: Path, type: pa.DataType) -> None:
    pq.write_table(pa.table({"image": pa.array([b"x", None, b"y"], type)}), tmp_path / "t.parquet")
    entries = [ManifestEntry.from_row(row) for row in list_images(str(tmp_path / "t.parquet")).to_pylist()]
    assert [one.image for one in fetch(entries, ImageLimits())][::2] == [b"x", b"y"]


@pytest.mark.parametrize("type", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_list_images_of_any_type_of_text_reads_it(tmp_path: Path, type: pa.DataType) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    url = "data:image/png;base64," + base64.b64encode(b"b").decode()
    pq.write_table(pa.table({"path": pa.array(["a.jpg", url], pa.string()).cast(type)}), tmp_path / "t.parquet")
    manifest = list_images(str(tmp_path / "t.parquet"))
    assert ids(manifest) == ["a", "t-1"]
    entries = [ManifestEntry.from_row(row) for row in manifest.to_pylist()]
    assert {one.entry.image_id: one.image for one in fetch(entries, ImageLimits())} == {"a": b"a", "t-1": b"b"}


def test_list_images_of_a_glob_below_a_folder_with_brackets_finds_it(tmp_path: Path) -> None:
    touch(tmp_path, "set[1]/x.jpg", "set1/y.jpg", "a/set[1]/z.jpg")
    assert ids(list_images(f"{tmp_path}/set[1]/*.jpg")) == ["x"]
    assert ids(list_images(f"{tmp_path}/set[1]/**")) == ["x"]
    assert ids(list_images(f"{tmp_path}/*/set[1]/*.jpg")) == ["z"]
    assert ids(list_images(f"{tmp_path}/set[1]/*.jpg", ids="path")) == ["x"]
    assert ids(list_images(f"{tmp_path}/set[12]/*.jpg")) == ["y"]


def test_list_images_of_data_urls_lists_and_reads_their_rows(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg")
    url = "data:image/jpeg;base64," + base64.b64encode(b"pixels").decode()
    pq.write_table(pa.table({"image": [url, "b.jpg", "data:image/png,no base64"]}), tmp_path / "t.parquet")
    manifest = list_images(str(tmp_path / "t.parquet"))
    assert ids(manifest) == ["t-0", "b", "t-2"]
    assert manifest["uri"].to_pylist()[0] == f"{tmp_path}/t.parquet#row=0"
    read = {
        f.entry.image_id: f.image
        for f in fetch([ManifestEntry.from_row(row) for row in manifest.to_pylist()], ImageLimits())
    }
    assert (read["t-0"], read["b"]) == (b"pixels", b"content")
    assert isinstance(read["t-2"], DataError) and read["t-2"].kind == "not_base64"


@pytest.fixture
def confined(tmp_path: Path) -> Path:
    """A folder whose content leads to a folder beside it in every way."""
    secret, folder = tmp_path / "secret", tmp_path / "in"
    touch(folder, "ok.jpg", "deep/fine.jpg")
    touch(secret, "secret.jpg", "folder/inner.jpg", "ok.json")
    (secret / "list.txt").write_text("TOP-SECRET-LINE")
    write_tar(secret / "s.tar", {"member.jpg": b"content"})
    pq.write_table(pa.table({"image_id": ["row"], "bytes": [b"content"]}), secret / "s.parquet")
    (folder / "inside.jpg").symlink_to(folder / "deep" / "fine.jpg")
    (folder / "link.jpg").symlink_to(secret / "secret.jpg")
    (folder / "chain.jpg").symlink_to(folder / "link.jpg")
    (folder / "folder").symlink_to(secret / "folder")
    return folder


def read(manifest: pa.Table, folder: Path) -> dict[str, str]:
    """Return the content of each image that is read within a folder, or the kind of its error."""
    entries = [ManifestEntry.from_row(row) for row in manifest.to_pylist()]
    fetched = list(fetch(entries, ImageLimits(), only_below=(str(folder),)))
    assert not any(isinstance(each.annotation, bytes) for each in fetched)
    return {
        each.entry.image_id: each.image.kind if isinstance(each.image, DataError) else each.image.decode()
        for each in fetched
    }


def test_list_images_only_below_a_folder_refuses_links_that_lead_out(confined: Path) -> None:
    manifest = list_images(str(confined), only_below=[str(confined)])
    assert read(manifest, confined) == {
        "ok": "content",
        "fine": "content",
        "inside": "content",
        "link": "not_allowed",
        "chain": "not_allowed",
    }
    assert left_out_of(manifest) == {"no extension": 1}  # the linked folder, which is not entered
    for name in ("link.jpg", "folder", "../secret", "../secret/list.txt", "deep/../../secret", "s3://bucket/a"):
        with pytest.raises(InputError, match="outside of the folders"):
            list_images(name if "://" in name else f"{confined}/{name}", only_below=[str(confined)])


def test_fetch_only_below_a_folder_refuses_a_link_made_after_the_listing(confined: Path) -> None:
    manifest = list_images(str(confined), only_below=[str(confined)])
    (confined / "ok.jpg").unlink()
    (confined / "ok.jpg").symlink_to(confined.parent / "secret" / "secret.jpg")
    assert read(manifest, confined)["ok"] == "not_allowed"


@pytest.mark.parametrize("form", ["list", "table"])
def test_list_images_only_below_a_folder_refuses_lines_and_uris_that_lead_out(confined: Path, form: str) -> None:
    outside = {
        "secret": f"{confined.parent}/secret/secret.jpg",
        "up": "../secret/up.jpg",
        "passwd": "/etc/passwd",
        "environ": "/proc/self/environ",
        "zero": "/dev/zero",
        "missing": "/nowhere/missing",  # refused like a file that exists
        "group": "file:///etc/group.jpg",
        "shadow": "file://%2Fetc/shadow.jpg",
        "bucket": "s3://bucket/bucket.jpg?endpoint_override=http://127.0.0.1:1",
        "web": "http://127.0.0.1:1/web.jpg",
        "link": "link.jpg",
        "inner": "folder/inner.jpg",
    }
    input = confined / ("l.txt" if form == "list" else "t.parquet")
    if form == "list":
        input.write_text("\n".join([*outside.values(), "ok.jpg"]))
    else:
        pq.write_table(pa.table({"uri": [*outside.values(), "ok.jpg"]}), input)
    manifest = list_images(str(input), annotations=None, only_below=[str(confined)])
    assert read(manifest, confined) == {**dict.fromkeys(outside, "not_allowed"), "ok": "content"}


@pytest.mark.parametrize("extension", ["tar", "parquet"])
def test_list_images_only_below_a_folder_leaves_archives_behind_links_out(confined: Path, extension: str) -> None:
    folder = confined / "archives"
    folder.mkdir()
    if extension == "tar":
        write_tar(folder / "a.tar", {"good.jpg": b"content"})
    else:
        pq.write_table(pa.table({"image_id": ["good"], "bytes": [b"content"]}), folder / "a.parquet")
    (folder / f"b.{extension}").symlink_to(confined.parent / "secret" / f"s.{extension}")
    manifest = list_images(str(folder), only_below=[str(confined)])
    assert read(manifest, confined) == {"good": "content"}
    assert left_out_of(manifest) == {"outside of the folders that may be read": 1}


def test_list_images_only_below_a_folder_never_tells_of_a_refused_list(confined: Path) -> None:
    (confined / "l.txt").symlink_to(confined.parent / "secret" / "list.txt")
    with pytest.raises(InputError) as error:
        list_images(f"{confined}/l.txt", only_below=[str(confined)])
    assert "SECRET" not in str(error.value)


def test_annotations_only_below_a_folder_are_not_read_behind_links(confined: Path) -> None:
    (confined / "ok.json").symlink_to(confined.parent / "secret" / "ok.json")
    manifest = list_images(str(confined), annotations=BESIDE, only_below=[str(confined)])
    assert read(manifest, confined)["ok"] == "content"
    with pytest.raises(InputError, match="outside of the folders"):
        list_images(str(confined), annotations=f"{confined}/../secret", only_below=[str(confined)])
