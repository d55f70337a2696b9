"""Curation and captioning as stages of a user's own Ray Dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image
from ray.data import Dataset

from tests.drawn import drawn_image, png, write_corpus
from ureca.errors import SettingsError
from ureca.model.initialization import save_tiny
from ureca.pipelines import caption, curate
from ureca.schema import CAPTIONS, REGIONS, conform

NUM_IMAGES = 3
ONE_ACTOR: dict[str, Any] = {"num_actors": 1, "num_cpus": 0.5}
NO_CPUS: dict[str, Any] = {"num_actors": 1, "num_cpus": 0}  # Ray keeps actors of a failed dataset until it is collected
CURATE: dict[str, Any] = {
    "masks": {"kind": "segments"},
    "resources": {"masks": ONE_ACTOR, "curate": ONE_ACTOR},
}


def dataset_of(kind: str, folder: Path) -> Dataset:
    """Make a dataset of drawn images and a broken one, in a column of one kind."""
    drawn = [drawn_image(number)[0] for number in range(NUM_IMAGES)]
    labels = [f"label {number}" for number in range(NUM_IMAGES + 1)]
    if kind == "bytes":
        images: list[Any] = [*map(png, drawn), b"no image"]
    elif kind == "path":
        folder.mkdir()
        for number, pixels in enumerate(drawn):
            Image.fromarray(pixels).save(folder / f"{number}.png")
        images = [str(folder / f"{number}.png") for number in range(NUM_IMAGES + 1)]
    else:
        items = [{"image": pixels, "label": label} for pixels, label in zip(drawn, labels, strict=False)]
        grey = np.zeros((4, 4, 1), np.uint8)
        return ray.data.from_items([*items, {"image": grey, "label": labels[-1]}], override_num_blocks=2)
    return ray.data.from_items(
        [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)], override_num_blocks=2
    )


def number_rows(batch: pa.Table) -> pa.Table:
    """Stand-in of a user's operator before the stages."""
    numbers = [int(label.split()[-1]) for label in batch["label"].to_pylist()]
    return batch.append_column("number", pa.array(numbers, pa.int64()))


def count_regions(batch: pa.Table) -> pa.Table:
    """Stand-in of a user's operator after the stages."""
    counts = [len(regions) for regions in batch["regions"].to_pylist()]
    return batch.drop_columns(["image"]).append_column("num_regions", pa.array(counts, pa.int64()))


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("kind", ["bytes", "path", "array"])
def test_add_stages_of_curate_between_other_operators_keeps_their_columns(kind: str, tmp_path: Path) -> None:
    ds = dataset_of(kind, tmp_path / "in").map_batches(number_rows, batch_format="pyarrow")
    captioned = curate.add_stages(ds, CURATE).map_batches(count_regions, batch_format="pyarrow")
    rows = sorted(captioned.take_all(), key=lambda row: row["number"])
    assert [row["label"] for row in rows] == [f"label {number}" for number in range(NUM_IMAGES + 1)]
    *good, bad = rows
    for row in good:
        assert row["error"] is None
        assert row["num_regions"] == len(row["regions"]) > 0
        captions = [region["caption"] for region in row["regions"] if region["status"] == "ok"]
        assert captions
        assert all(captions)
        assert not any(region["status"].startswith("failed:") for region in row["regions"])
        assert (row["height"], row["width"]) == drawn_image(0)[0].shape[:2]
    expected = {"bytes": "not_an_image", "path": "missing_file", "array": "not_an_image"}
    assert (bad["error"]["stage"], bad["error"]["kind"], bad["num_regions"]) == ("read", expected[kind], 0)
    assert len({row["image_id"] for row in rows}) == NUM_IMAGES + 1
    if kind == "path":
        assert [row["uri"] for row in rows] == [row["image_id"] for row in rows]
    conform([{name: row[name] for name in REGIONS.names} for row in rows], REGIONS)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_add_stages_of_caption_takes_ids_of_the_users_column(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    pixels = drawn_image(0)[0]
    ds = ray.data.from_items([{"photo": png(pixels), "key": "k1", "uri": "s3://bucket/k1.png"}])
    settings = {
        "model": str(tmp_path / "tiny"),
        "listing": {"image_column": "photo", "id_column": "key"},
        "captioner": {"max_new_tokens": 3},
        "resources": {"masks": ONE_ACTOR, "caption": ONE_ACTOR},
    }
    (row,) = caption.add_stages(ds, settings).take_all()
    assert (row["image_id"], row["key"], row["uri"], row["error"]) == ("k1", "k1", "s3://bucket/k1.png", None)
    assert {*CAPTIONS.names} < {*row}
    assert len(row["captions"]) > 0


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_add_stages_with_a_column_named_as_a_result_raises(tmp_path: Path) -> None:
    ds = ray.data.from_items([{"image": png(drawn_image(0)[0]), "height": 3}])
    with pytest.raises(Exception, match="the dataset has a column 'height', which is the name of a result"):
        curate.add_stages(ds, {"resources": {"masks": NO_CPUS, "curate": NO_CPUS}}).take_all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masks": {"kind": "annotations"}}, "masks.kind annotations reads files"),
        (
            {
                "annotator": {"kind": "prompted"},
                "mllm": {"kind": "ray_serve", "checkpoint": "m"},
            },
            "mllm.kind ray_serve: start the application yourself",
        ),
    ],
)
def test_add_stages_with_settings_that_need_a_command_raises(settings: dict[str, Any], message: str) -> None:
    ds: Any = None
    with pytest.raises(SettingsError, match=message):
        curate.add_stages(ds, settings)


def test_dataset_images_without_an_image_column_names_the_setting(tmp_path: Path) -> None:
    from ureca.pipelines.batch.stages import DatasetImages

    write_corpus(tmp_path / "in", 1)
    batch = pa.table({"photo": [str(tmp_path / "in" / "img_0000.png")]})
    with pytest.raises(SettingsError, match=r"listing\.image_column: the dataset has no column image or bytes"):
        DatasetImages(None, None).add(batch)
    assert DatasetImages("photo", None).add(batch)[0].path.endswith("img_0000.png")
