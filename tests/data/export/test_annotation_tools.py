"""Label Studio and FiftyOne: masks and captions as their documented readers find them, and corrections exactly once."""

import base64
import io
import json
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

import ureca
from tests.data.export.conftest import HEIGHT, WIDTH, make_region, make_row
from ureca.data.corrections import CORRECTIONS, Correction, Journal
from ureca.data.label_studio import encode_brush
from ureca.data.manifest import make_manifest
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import InputError
from ureca.jobs.cli import main
from ureca.masks.rle import Rle, decode

Json = dict[str, Any]
Changes = dict[tuple[str, int], Json]
Tool = tuple[str, Callable[[Path, Changes], Path]]

NOW = datetime.now(UTC)


def decode_brush(values: list[int]) -> np.ndarray:
    """Read run lengths as rle-pack documents them: blocks of a run or of single values, after a header."""
    bits = "".join(f"{value:08b}" for value in values)
    place = 0

    def read(num_bits: int) -> int:
        nonlocal place
        place += num_bits
        return int(bits[place - num_bits : place], 2)

    num_values, word_bits = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    found: list[int] = []
    while len(found) < num_values:
        is_run, length = read(1), read(sizes[read(2)]) + 1
        found += [read(word_bits)] * length if is_run else [read(word_bits) for _ in range(length)]
    return np.array(found, np.uint8)


def listed(ids: list[str], paths: list[str]) -> pa.Table:
    return make_manifest(image_id=pa.array(ids), uri=pa.array(paths), path=pa.array(paths))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder with two images of 40 x 60 pixels, one of them in a folder, and a failed one."""
    paths = [tmp_path / "photos" / name for name in ("a b.png", "dog/b.jpg", "broken.png")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), "red").save(path)
    ids = ["a b", "dog/b", "broken"]
    manifest = listed(ids, [str(path) for path in paths])
    output = Output(str(tmp_path / "run"))
    output.add_images(manifest, 3)
    rows = [
        make_row(
            "a b",
            [
                make_region(1, 'the "red" disc', category="disc & co"),
                make_region(2, "the other disc"),
                make_region(3, "untrue", verdict="rejected"),
                make_region(4, None, status="failed:timeout"),
            ],
            uri=str(paths[0]),
        ),
        make_row("dog/b", [make_region(1, "the dog", verdict="accepted")], uri=str(paths[1])),
        make_row("broken", [], error={"stage": "read", "kind": "truncated", "message": "ends early"}),
    ]
    output.write_partition(0, rows, PartitionReport())
    output.write_run({})
    return tmp_path / "run"


def label_studio(run: Path, changes: Changes) -> Path:
    """Export tasks, and write what Label Studio exports after people have worked on them."""
    ureca.export(run, "label-studio", run.parent / "tasks.json", overwrite=True)
    tasks = json.loads((run.parent / "tasks.json").read_text())
    for number, task in enumerate(tasks, start=1):
        result = []
        for each in task.pop("predictions")[0]["result"]:
            change = changes.get((task["data"]["image_id"], int(each["id"].removeprefix("region-"))), {})
            if each["type"] == "textarea" and "caption" in change:
                each["value"] |= {"text": [change["caption"]], "format": "rle", "rle": [0]}
            result.append(each)
            if each["type"] == "brushlabels":
                for name in ("decision", "reason"):
                    if name in change:
                        kind, key = ("choices", "choices") if name == "decision" else ("textarea", "text")
                        result.append({**each, "from_name": name, "type": kind, "value": {key: [change[name]]}})
        at = max((change.get("at", NOW) for change in changes.values()), default=NOW)
        later = {"id": 2, "result": result, "was_cancelled": False, "updated_at": at.isoformat()}
        task |= {"id": number, "annotations": [{"result": [], "updated_at": "2020-01-01T00:00:00Z"}, later]}
    (run.parent / "project.json").write_text(json.dumps(tasks, indent=2))
    return run.parent / "project.json"


def fiftyone(run: Path, changes: Changes) -> Path:
    """Export samples, and write what FiftyOne exports after people have worked on them."""
    ureca.export(run, "fiftyone", run.parent / "samples", overwrite=True)
    samples = json.loads((run.parent / "samples" / "samples.json").read_text())
    for sample in samples["samples"]:
        for detection in sample["regions"]["detections"]:
            change = changes.get((sample["image_id"], detection["region_id"]), {})
            detection["caption"] = change.get("caption", detection["caption"])
            detection["tags"] += [change["decision"]] if "decision" in change else []
        at = max((change.get("at", NOW) for change in changes.values()), default=NOW)
        sample["last_modified_at"] = {"$date": at.isoformat()}
        sample["ground_truth"] = sample.pop("regions")  # fields may be renamed
    folder = run.parent / "back"
    folder.mkdir(exist_ok=True)
    (folder / "samples.json").write_text(json.dumps(samples))
    return folder


TOOLS = pytest.mark.parametrize(
    "tool", [("label-studio", label_studio), ("fiftyone", fiftyone)], ids=lambda tool: tool[0]
)


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)))
@settings(deadline=None)
def test_encode_brush_of_any_mask_is_decoded_to_four_equal_channels(mask: np.ndarray) -> None:
    decoded = decode_brush(encode_brush(mask)).reshape(*mask.shape, 4)
    assert np.array_equal(decoded, np.repeat(mask[..., None], 4, axis=2) * np.uint8(255))


def test_encode_brush_of_runs_longer_than_a_length_splits_them() -> None:
    mask = np.zeros((300, 300), bool)
    mask[50:250] = True  # 240,000 equal values
    assert np.array_equal(decode_brush(encode_brush(mask)).reshape(300, 300, 4)[..., 3], mask * np.uint8(255))


def test_export_label_studio_writes_tasks_with_masks_and_captions(output: Path, tmp_path: Path) -> None:
    report = ureca.export(output, "label-studio", tmp_path / "tasks.json")
    assert (report.num_images, report.num_regions) == (2, 3)
    first, second = json.loads((tmp_path / "tasks.json").read_text())
    assert first["data"]["image"] == f"/data/local-files/?d={str(tmp_path).lstrip('/')}/photos/a%20b.png"
    assert second["data"]["image_id"] == "dog/b"
    result = first["predictions"][0]["result"]
    assert [(each["id"], each["type"], each["from_name"]) for each in result] == [
        (f"region-{id}", kind, name)
        for id in (1, 2)
        for kind, name in (("brushlabels", "mask"), ("textarea", "caption"))
    ]
    assert all((each["original_height"], each["original_width"]) == (HEIGHT, WIDTH) for each in result)
    assert result[1]["value"]["text"] == ['the "red" disc']
    rows = list(Output(str(output)).rows())
    for each, region in zip(result[::2], rows[0]["regions"], strict=False):
        pixels = decode_brush(each["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0
        assert np.array_equal(pixels, decode(Rle(size=[HEIGHT, WIDTH], counts=region["rle"])))
    configuration = ElementTree.parse(tmp_path / "tasks.xml").getroot()  # noqa: S314 - the test's own file
    assert [label.get("value") for label in configuration.iter("Label")] == ["disc & co", "region"]
    controls = {each.get("name"): each.tag for each in configuration if each.get("toName") == "image"}
    assert controls == {"mask": "BrushLabels", "caption": "TextArea", "decision": "Choices", "reason": "TextArea"}


def test_export_label_studio_with_a_prefix_names_images_below_it(output: Path, tmp_path: Path) -> None:
    ureca.export(output, "label-studio", tmp_path / "tasks.json", image_prefix="https://host/x/")
    images = [task["data"]["image"] for task in json.loads((tmp_path / "tasks.json").read_text())]
    assert images == ["https://host/x/a%20b.png", "https://host/x/dog/b.jpg"]


def test_export_label_studio_of_images_in_a_tar_counts_them_without_an_address(output: Path, tmp_path: Path) -> None:
    run = Output(str(tmp_path / "in-tar"))
    run.add_images(make_manifest(image_id="a", uri="s.tar/a.png", path=pa.array(["s.tar"]), offset=512, size=9), 1)
    run.write_partition(0, [make_row("a", [make_region(1, "one")], uri="s.tar/a.png")], PartitionReport())
    run.write_run({})
    report = ureca.export(run.path, "label-studio", tmp_path / "tasks.json")
    assert "its image is inside of another file" in report.summary() and report.num_regions == 0
    assert json.loads((tmp_path / "tasks.json").read_text()) == []
    ureca.export(run.path, "label-studio", tmp_path / "tasks.json", image_prefix="s3://b/", overwrite=True)
    assert json.loads((tmp_path / "tasks.json").read_text())[0]["data"]["image"] == "s3://b/a.png"


def test_export_fiftyone_writes_samples_with_masks_in_their_boxes(output: Path, tmp_path: Path) -> None:
    to = tmp_path / "samples"
    report = ureca.export(output, "fiftyone", to)
    assert (report.num_images, report.num_regions) == (2, 3)
    assert "version" not in json.loads((to / "metadata.json").read_text())  # it would ask for a declared schema
    first, second = json.loads((to / "samples.json").read_text())["samples"]
    assert [first["filepath"], second["filepath"]] == ["data/a b.png", "data/dog/b.jpg"]
    assert (to / first["filepath"]).read_bytes() == (tmp_path / "photos" / "a b.png").read_bytes()
    assert first["regions"]["_cls"] == "Detections"
    detections = first["regions"]["detections"]
    assert [(each["label"], each["region_id"]) for each in detections] == [("disc & co", 1), ("region", 2)]
    assert len({each["_id"]["$oid"] for each in detections} | {first["_id"]["$oid"], second["_id"]["$oid"]}) == 4
    for each, region in zip(detections, next(Output(str(output)).rows())["regions"], strict=False):
        data = zlib.decompress(base64.b64decode(each["mask"]["$binary"]["base64"]))
        mask = np.load(io.BytesIO(data), allow_pickle=False)
        left, top, width, height = np.array(each["bounding_box"]) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
        assert mask.shape == (round(height), round(width))
        whole = np.zeros((HEIGHT, WIDTH), bool)
        whole[round(top) :, round(left) :][: mask.shape[0], : mask.shape[1]] = mask
        assert np.array_equal(whole, decode(Rle(size=[HEIGHT, WIDTH], counts=region["rle"])))


def test_export_fiftyone_of_an_unsafe_image_id_stays_in_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    run = Output(str(tmp_path / "run"))
    run.add_images(listed(["../../a"], [str(path)]), 1)
    run.write_partition(0, [make_row("../../a", [make_region(1, "one")])], PartitionReport())
    run.write_run({})
    ureca.export(run.path, "fiftyone", tmp_path / "samples")
    (sample,) = json.loads((tmp_path / "samples" / "samples.json").read_text())["samples"]
    assert (tmp_path / "samples" / sample["filepath"]).resolve().is_relative_to(tmp_path / "samples" / "data")
    assert sample["image_id"] == "../../a"


@TOOLS
def test_import_corrections_appends_each_decision_exactly_once(output: Path, tool: Tool) -> None:
    name, work = tool
    parts = [path.read_bytes() for path in sorted((output / "regions").iterdir())]
    changes: Changes = {
        ("a b", 1): {"caption": "the left of two discs"},
        ("a b", 2): {"decision": "reject", "reason": "it is blue"},
        ("dog/b", 1): {"decision": "accept"},
    }
    source = work(output, changes)
    report = ureca.import_corrections(output, name, source)
    assert report.written == {"correct": 1, "reject": 1, "accept": 1}
    journal = (output / CORRECTIONS).read_bytes()
    again = ureca.import_corrections(output, name, source)
    assert (again.written, again.num_known) == ({}, 3)
    assert (output / CORRECTIONS).read_bytes() == journal
    assert [path.read_bytes() for path in sorted((output / "regions").iterdir())] == parts
    ureca.export(output, "coco-captions", output.parent / "captions.json")
    captions = [each["caption"] for each in json.loads((output.parent / "captions.json").read_text())["annotations"]]
    assert captions == ["the left of two discs", "the dog"]


@TOOLS
def test_import_corrections_of_untouched_work_writes_nothing(output: Path, tool: Tool) -> None:
    name, work = tool
    report = ureca.import_corrections(output, name, work(output, {}))
    assert (report.written, report.num_unchanged, report.left_out) == ({}, 3, {})
    assert not (output / CORRECTIONS).exists()


@TOOLS
def test_import_corrections_after_a_correction_is_told_from_the_corrected_caption(output: Path, tool: Tool) -> None:
    name, work = tool
    earlier = Correction(
        image_id="a b", region_id=2, action="correct", caption="by hand", original="the other disc", decided_at=NOW
    )
    Journal(output).append(earlier)
    assert not ureca.import_corrections(output, name, work(output, {})).written
    later = datetime.now(UTC)
    source = work(output, {("a b", 2): {"caption": "better", "at": later}})
    assert ureca.import_corrections(output, name, source).written == {"correct": 1}
    row = next(Output(str(output)).rows())
    corrected = json.loads((output / CORRECTIONS).read_text().splitlines()[-1])
    assert (corrected["original"], corrected["caption"]) == (row["regions"][1]["caption"], "better")


@TOOLS
def test_import_corrections_older_than_the_journal_are_left_out(output: Path, tool: Tool) -> None:
    name, work = tool
    source = work(output, {("a b", 2): {"caption": "older", "at": NOW - timedelta(days=1)}})
    newer = Correction(image_id="a b", region_id=2, action="accept", original="the other disc", decided_at=NOW)
    Journal(output).append(newer)
    report = ureca.import_corrections(output, name, source)
    assert (report.written, report.left_out) == ({}, {"the journal has a later decision about the region": 1})


@TOOLS
def test_import_corrections_of_another_dataset_are_left_out_by_reason(output: Path, tool: Tool) -> None:
    name, work = tool
    changes: Changes = {
        ("a b", 1): {"caption": "changed"},
        ("a b", 2): {"caption": "changed"},
        ("dog/b", 1): {"caption": "x" * 10_001},
    }
    source = work(output, changes)
    run = Output(str(output))
    rows = list(run.rows())
    rows[0]["regions"] = [region | {"caption": "of another run"} for region in rows[0]["regions"][:1]]
    next((output / "regions").iterdir()).unlink()
    run.write_partition(0, rows, PartitionReport())
    report = ureca.import_corrections(output, name, source)
    assert not report.written
    assert report.left_out == {
        "the caption that was exported is not the dataset's": 1,
        "a region that the dataset does not have": 1,
        "caption: String should have at most 10000 characters": 1,
    }


@pytest.mark.parametrize(
    "text",
    [
        '[1, null, {"data": 3}, {"data": {"image_id": 5}}, '
        '{"data": {"image_id": "a b"}, "annotations": [1, {"result": 4}]}]',
        '[{"data": {"image_id": "a b", "captions": 3}, "annotations": [{"result": [4, {"id": "region-1", "value": []}, '
        '{"id": "drawn", "value": {}}, {"id": "region-99999999999999999999999", "value": {"choices": ["reject"]}}]}]}]',
        '{"samples": [1, {"image_id": "a b", '
        '"x": {"detections": [3, {"region_id": true}, {"region_id": 1, "tags": 4}]}}]}',
    ],
)
def test_import_corrections_of_malformed_records_writes_nothing(output: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "export.json").write_text(text)
    tool: Any = "label-studio" if text.startswith("[") else "fiftyone"
    report = ureca.import_corrections(output, tool, tmp_path / "export.json")
    assert not report.written and sum(report.left_out.values())
    assert not (output / CORRECTIONS).exists()


@pytest.mark.parametrize(
    ("tool", "text"), [("label-studio", '{"a": 1}'), ("label-studio", "[{"), ("fiftyone", "no"), ("fiftyone", None)]
)
def test_import_corrections_of_another_file_is_an_error_of_one_line(
    output: Path, tmp_path: Path, tool: Any, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "export.json"
    if text is not None:
        source.write_text(text)
    with pytest.raises(InputError, match=f"cannot be read as an export of {tool}"):
        ureca.import_corrections(output, tool, source)
    assert main(["import-corrections", str(output), str(source), "--format", tool]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_import_corrections_command_prints_what_became_of_each_region(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = label_studio(output, {("a b", 1): {"caption": "better"}})
    assert main(["import-corrections", str(output), str(source), "--format", "label-studio"]) == 0
    assert capsys.readouterr().out == "1 caption corrected\nwithout a decision: 2\n"


@pytest.mark.parametrize("kind", ["label-studio", "fiftyone"])
def test_export_command_for_annotation_tools_needs_overwrite(
    output: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(output), "--format", kind, "--to", str(tmp_path / "to.json")]
    assert main(arguments) == 0
    assert ("labelling configuration" in capsys.readouterr().out) == (kind == "label-studio")
    assert main(arguments) == 2
    assert main([*arguments, "--overwrite"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--overwrite", "--image-prefix", "x/"]) == (0 if kind == "label-studio" else 2)
