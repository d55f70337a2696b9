"""The output of a run as input."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.test_output import manifest
from tests.drawn import HEIGHT, WIDTH, drawn_image
from ureca.data.manifest import ManifestEntry
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.reuse import list_run, reuse_masks
from ureca.errors import InputError


def regions_row(image_id: str, seed: int, statuses: dict[int, str] | None = None, **changes: Any) -> dict[str, Any]:
    """A curated row of the drawn image."""
    _, masks = drawn_image(seed)
    regions = [
        {
            "region_id": mask.id,
            "rle": mask.rle["counts"],
            "bbox_xywh": list(mask.bbox_xywh),
            "area_px": mask.area_px,
            "parent_id": {2: 1, 3: 1}.get(mask.id, -1),
            "depth": int(mask.id in (2, 3)),
            "lookalike_ids": [],
            "verdict": "unchecked",
            "status": (statuses or {}).get(mask.id, "ok"),
        }
        for mask in masks
    ]
    row = {"image_id": image_id, "uri": f"{image_id}.png", "height": HEIGHT, "width": WIDTH, "regions": regions}
    return row | {"error": None} | changes


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """Three partitions of two images, the last of which has no rows yet."""
    output = Output(str(tmp_path / "run"))
    output.add_images(manifest(["a", "b", "c", "d", "e", "f"]), 2)
    error = {"stage": "read", "kind": "truncated", "message": "ends early"}
    output.write_partition(0, [regions_row("a", 0), regions_row("b", 1, regions=[], error=error)], PartitionReport())
    bad = regions_row("d", 3)
    bad["regions"][0]["rle"] = "o" * 50
    output.write_partition(1, [regions_row("c", 2, {4: "skipped:small", 3: "failed:x:y"}), bad], PartitionReport())
    output.write_run({"command": "curate"})
    return output


def entries(output: Output, *, with_regions: bool) -> list[ManifestEntry]:
    return [ManifestEntry.from_row(row) for row in list_run(output, with_regions=with_regions).to_pylist()]


def test_reuse_masks_of_finished_images_keeps_their_masks(output: Output) -> None:
    listed = entries(output, with_regions=True)
    assert [entry.image_id for entry in listed] == ["a", "b", "c", "d"]
    partition = reuse_masks(7, [listed[2], listed[0], listed[3], listed[1]])
    assert partition.number == 7
    assert [image.entry.image_id for image in partition.images] == ["c", "a", "d", "b"]
    c, a, d, b = partition.images
    assert [(mask.id, mask.rle) for mask in a.masks] == [(mask.id, mask.rle) for mask in drawn_image(0)[1]]
    assert a.parents == {1: -1, 2: 1, 3: 1, 4: -1}
    assert [mask.id for mask in c.masks] == [1, 2, 3]  # what was skipped stays out, what failed gets another chance
    assert d.error is not None and (d.error.stage, d.error.kind) == ("masks", "malformed")
    assert b.error is not None and (b.error.stage, b.error.kind) == ("read", "truncated")


def test_reuse_masks_of_a_missing_row_is_an_error_of_the_image(output: Output) -> None:
    listed = entries(output, with_regions=True)
    output.write_partition(0, [regions_row("a", 0)], PartitionReport())
    Path(list(output.part_paths().values())[1]).unlink()
    kinds = [image.error.kind if image.error else None for image in reuse_masks(0, [listed[0], listed[2]]).images]
    assert kinds == [None, "missing_file"]


def test_list_run_without_regions_lists_all_images(output: Output) -> None:
    assert [entry.image_id for entry in entries(output, with_regions=False)] == ["a", "b", "c", "d", "e", "f"]


def test_list_run_without_rows_is_an_error(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "run"))
    output.add_images(manifest(["a"]), None)
    with pytest.raises(InputError, match="no rows yet"):
        list_run(output, with_regions=True)
