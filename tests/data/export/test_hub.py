"""The Hugging Face export: what ``datasets`` loads equals the run, and the card has its figures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.data.export.conftest import HEIGHT, WIDTH, make_region, make_row
from ureca.data import hub_export
from ureca.data.listing import list_images
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import OutputError, SettingsError
from ureca.jobs.cli import main
from ureca.masks.rle import Rle, decode
from ureca.schema import REGIONS, conform

datasets = pytest.importorskip("datasets", reason="the extra dev has datasets, which loads the folder")


@pytest.fixture
def run(tmp_path: Path, rows: list[dict[str, Any]]) -> Output:
    """Write a run of six images: upright, turned, TIFF, one that failed, one gone, and one that has another size."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(folder / "sub/b.png", exif=exif)
    Image.fromarray(pixels).save(folder / "c.tif")
    for name in ("broken", "gone"):
        (folder / f"{name}.jpg").write_bytes(b"no image")
    Image.fromarray(pixels[:20]).save(folder / "other.png")
    ids = ["a", "broken", "c", "gone", "other", "sub/b"]
    made = [rows[0], rows[2]]
    made += [make_row(id, [make_region(7, f"caption of {id}")], uri=f"{folder}/{id}.png") for id in ids[2:]]
    output = Output(str(tmp_path / "run"))
    output.add_images(list_images(str(folder), ids="path"), 3)
    made = conform(made, REGIONS).to_pylist()
    for partition in (0, 1):
        output.write_partition(partition, made[3 * partition : 3 * partition + 3], PartitionReport())
    output.write_run({"command": "curate"})
    (folder / "gone.jpg").unlink()
    return output


def test_export_hf_loads_with_images_masks_and_captions(
    run: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "dataset"
    assert main(["export", run.path, "--format", "hf", "--to", str(to)]) == 0
    printed = capsys.readouterr().out
    assert "4 regions of 3 images written" in printed
    for reason in ("missing_file", "size_mismatch"):
        assert f"1 image left out: export: {reason}" in printed
    loaded = datasets.load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["image_id"] == ["a", "c", "sub/b"]
    rows = {row["image_id"]: row for row in run.rows()}
    for row in loaded:
        assert row["image"].size == (row["width"], row["height"]) == (WIDTH, HEIGHT)
        for region in row["regions"]:
            expected = next(r for r in rows[row["image_id"]]["regions"] if r["region_id"] == region["region_id"])
            assert region["caption"] == expected["caption"]
            mask = decode(Rle(size=[HEIGHT, WIDTH], counts=expected["rle"]))
            assert (np.asarray(region["mask"]) == mask).all() and region["area_px"] == mask.sum()
            assert region["bbox_xywh"] == [3, 5, 1 + region["region_id"], 10]
    # A JPEG keeps its bytes; other pixels are the upright ones, without loss.
    stored = pq.read_table(to / "data/train-00000.parquet")["image"].to_pylist()
    assert stored[0]["bytes"] == (tmp_path / "in/a.jpg").read_bytes()
    first = np.asarray(Image.open(tmp_path / "in/c.tif"))
    assert all((np.asarray(Image.open(io.BytesIO(file["bytes"]))) == first).all() for file in stored[1:2])


def test_export_hf_has_a_sample_with_contours(run: Output, tmp_path: Path) -> None:
    assert main(["export", run.path, "--format", "hf", "--to", str(tmp_path / "dataset")]) == 0
    cache = str(tmp_path / "cache")
    sample = datasets.load_dataset(str(tmp_path / "dataset"), "sample", split="train", cache_dir=cache)
    assert sample["caption"][0] == "one of a kind" and len(sample) == 4
    assert sample[0]["image"].size == (WIDTH, HEIGHT)


def test_export_hf_card_has_the_figures_and_leaves_licences(run: Output, tmp_path: Path) -> None:
    assert main(["export", run.path, "--format", "hf", "--to", str(tmp_path / "dataset")]) == 0
    card = (tmp_path / "dataset/README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert "license" not in head and head["size_categories"] == ["n<1K"]
    assert "| captioned regions | 4 |" in card and "someone 1" in card
    assert "- 1 region left out: rejected" in card and "To be filled in by the publisher" in card


def test_export_hf_to_a_folder_needs_overwrite_and_captions(
    run: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", run.path, "--format", "hf", "--to", str(tmp_path / "dataset")]
    assert main(arguments) == 0 and main(arguments) == 2 and main([*arguments, "--overwrite"]) == 0
    for path in (tmp_path / "in").rglob("*.*"):
        path.unlink()
    assert main([*arguments, "--overwrite"]) == 2
    assert "no caption to export" in capsys.readouterr().err
    assert (tmp_path / "dataset/README.md").exists()


def test_export_push_needs_a_token_and_the_format(
    run: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(hub_export.TOKEN_VARIABLE, raising=False)
    with pytest.raises(SettingsError, match="HF_TOKEN"):
        hub_export.push(tmp_path, "me/regions")
    assert main(["export", run.path, "--format", "coco", "--to", str(tmp_path / "x"), "--push", "me/x"]) == 2
    assert "--push is for --format hf" in capsys.readouterr().err


def test_push_creates_a_private_repository_and_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def __init__(self, token: str) -> None:
            calls.append(("token", {"token": token}))

        def create_repo(self, repository: str, **options: Any) -> str:
            if repository == "no/access":
                raise OSError("403 Forbidden")
            calls.append((repository, options))
            return "https://hub/me/regions"

        def upload_folder(self, **options: Any) -> None:
            calls.append(("upload", options))

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setenv(hub_export.TOKEN_VARIABLE, "secret")
    assert hub_export.push(tmp_path, "me/regions") == "https://hub/me/regions"
    assert calls[0] == ("token", {"token": "secret"})
    assert calls[1] == ("me/regions", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert calls[2][1]["folder_path"] == str(tmp_path) and calls[2][1]["repo_type"] == "dataset"
    with pytest.raises(OutputError, match="403"):
        hub_export.push(tmp_path, "no/access")
