"""``ureca scenes``: files that the rest of the project reads, the same bytes every time."""

import errno
import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.scenes.worlds import rendering
from ureca.data.listing import list_images
from ureca.data.output import Output
from ureca.errors import AnnotationError
from ureca.jobs import export, report
from ureca.jobs.cli import main
from ureca.masks.annotations import Annotations, read_annotations, write_annotations
from ureca.masks.mask import Mask
from ureca.scenes.scene import read_scene, resolve
from ureca.schema import REGIONS

ARGUMENTS = ["--images", "3", "--seed", "4", "--split", "validation", "--size", "160x128"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "set"
    assert main(["scenes", str(folder), *ARGUMENTS]) == 0
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_scenes_command_writes_each_image_with_its_scene(folder: Path) -> None:
    ids = [f"validation_4_00000{number}" for number in range(3)]
    names = sorted(path.name for path in (folder / "images").iterdir())
    assert names == sorted(f"{id}{suffix}" for id in ids for suffix in (".png", ".json"))
    for number, id in enumerate(ids):
        made = rendering("validation", 4, number, 160, 128)
        with Image.open(folder / "images" / f"{id}.png") as image:
            assert np.array_equal(np.asarray(image), made.pixels)
        path = folder / "images" / f"{id}.json"
        assert read_scene(path) == made.scene
        assert read_annotations(path) == made.annotations


def test_scenes_command_after_a_full_disk_begins_the_same_set_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "set" / "images" / "a.png"))
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", Mock(side_effect=full))
        assert main(["scenes", str(tmp_path / "set"), *ARGUMENTS]) == 2
    assert "give the same command again" in capsys.readouterr().err
    assert main(["scenes", str(tmp_path / "set"), *ARGUMENTS[:-2]]) == 2  # of another size
    assert "not empty" in capsys.readouterr().err
    assert main(["scenes", str(tmp_path / "set"), *ARGUMENTS]) == 0
    names = sorted(path.name for path in folder.rglob("*.png"))
    assert sorted(path.name for path in (tmp_path / "set").rglob("*.png")) == names


def test_scenes_command_rows_fit_schema_and_resolve(folder: Path) -> None:
    rows = list(Output(str(folder)).rows())
    assert [row["image_id"] for row in rows] == [f"validation_4_00000{number}" for number in range(3)]
    part = next((folder / "regions").iterdir())
    assert pq.read_schema(part).remove_metadata().equals(REGIONS)
    for row in rows:
        scene = read_scene(Path(row["uri"]).with_suffix(".json"))
        for region in row["regions"]:
            assert resolve(region["caption"], scene) == [region["region_id"]]
            alike = sorted([region["region_id"], *region["lookalike_ids"]])
            assert resolve(region["short_caption"], scene) == alike
            assert region["depth"] == len(list(scene.ancestors(scene[region["region_id"]])))
            assert (region["status"], region["verdict"]) == ("ok", "accepted")


def test_scenes_command_jsonl_has_one_line_per_region(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    rows = [(row["image_id"], region) for row in Output(str(folder)).rows() for region in row["regions"]]
    assert [line["id"] for line in lines] == list(range(len(rows)))
    for line, (image_id, region) in zip(lines, rows, strict=True):
        assert (line["image"], line["mask_id"]) == (image_id, str(region["region_id"]))
        assert line["conversations"][1]["value"] == region["caption"]


def test_scenes_output_is_read_by_other_commands(folder: Path, tmp_path: Path) -> None:
    assert report.main([str(folder), "--to", str(tmp_path / "report.html")]) == 0
    assert export.main([str(folder), "--format", "coco", "--to", str(tmp_path / "captions.json")]) == 0
    assert list_images(str(folder / "images"), annotations="beside")["annotation_path"].null_count == 0


def test_scenes_command_repeated_writes_same_bytes(folder: Path, tmp_path: Path) -> None:
    before = bytes_of(folder)
    assert main(["scenes", str(folder), *ARGUMENTS, "--overwrite", "--processes", "2"]) == 0
    assert bytes_of(folder) == before
    assert main(["scenes", str(tmp_path / "elsewhere"), *ARGUMENTS]) == 0
    placeless = {name: data for name, data in before.items() if name.startswith(("images", "captions", "run"))}
    assert len(placeless) == 8
    assert placeless.items() <= bytes_of(tmp_path / "elsewhere").items()


def test_scenes_command_with_overwrite_replaces_whole_set(tmp_path: Path) -> None:
    assert main(["scenes", str(tmp_path), "--images", "2", "--size", "112"]) == 0
    assert main(["scenes", str(tmp_path), "--images", "1", "--size", "112", "--seed", "1", "--overwrite"]) == 0
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        "train_1_000000.json",
        "train_1_000000.png",
    ]
    assert [row["image_id"] for row in Output(str(tmp_path)).rows()] == ["train_1_000000"]


def test_scenes_command_on_other_folder_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["scenes", str(tmp_path), *ARGUMENTS]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["scenes", str(tmp_path), *ARGUMENTS, "--overwrite"]) == 2
    assert "not the output of a run" in capsys.readouterr().err
    (tmp_path / "run.json").write_text('{"command": "curate"}')
    assert main(["scenes", str(tmp_path), *ARGUMENTS, "--overwrite"]) == 2
    assert "output of 'curate'" in capsys.readouterr().err
    assert main(["scenes", str(tmp_path / "mine.txt"), *ARGUMENTS]) == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments", [["--images", "0"], ["--images", "1", "--size", "100"], ["--images", "1", "--seed", "-1"], []]
)
def test_scenes_command_with_impossible_arguments_fails(arguments: list[str], tmp_path: Path) -> None:
    assert main(["scenes", str(tmp_path), *arguments]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "parent_id: Field required"),
        ({"kind": "zebra"}, "kind 'zebra'"),
        ({"colour": "mauve"}, "colour 'mauve'"),
        ({"size": "huge"}, "size 'huge'"),
        ({"parent_id": 7}, "its parent 7"),
    ],
)
def test_read_scene_of_other_annotations_raises_annotation_error(
    extra: dict[str, object], message: str, tmp_path: Path
) -> None:
    whole = {"parent_id": -1, "kind": "car", "colour": "red", "pattern": "plain", "size": None, "hides": []}
    mask = Mask.from_array(3, np.ones((4, 5), bool))
    given = Mask(3, mask.rle, mask.bbox_xywh, mask.area_px, extra=whole | extra if extra else {})
    write_annotations(tmp_path / "a.json", Annotations((given,), 4, 5))
    with pytest.raises(AnnotationError, match=f"no_scene: mask 3.*{message}"):
        read_scene(tmp_path / "a.json")


def test_scenes_command_with_shortest_captions_writes_unique_ones_of_fewer_words(folder: Path, tmp_path: Path) -> None:
    assert main(["scenes", str(tmp_path / "set"), *ARGUMENTS, "--captions", "shortest"]) == 0
    num_words = []
    for one in (folder, tmp_path / "set"):
        captions = [
            (region["caption"], region["region_id"], read_scene(Path(row["uri"]).with_suffix(".json")))
            for row in Output(str(one)).rows()
            for region in row["regions"]
        ]
        assert all(resolve(caption, scene) == [id] for caption, id, scene in captions)
        num_words.append(sum(len(caption.split()) for caption, _, _ in captions))
    assert num_words[1] < 0.9 * num_words[0]
