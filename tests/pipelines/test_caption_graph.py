"""The operators of captioning, without a cluster."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from tests.bad_corpus import write_bad_corpus
from tests.drawn import write_corpus
from tests.pipelines.test_graph import RecordingDataset, graph_of
from ureca.data.output import Output
from ureca.errors import InputError
from ureca.model.initialization import save_tiny
from ureca.model.region_memory import RegionMemory
from ureca.model.settings import CaptionSettings
from ureca.pipelines.batch.arrow import manifest_items
from ureca.pipelines.batch.resources import Cluster, Work
from ureca.pipelines.caption import CAPTION, list_input, plan, resolve_masks
from ureca.pipelines.caption_settings import CaptioningSettings
from ureca.schema import CAPTIONS_DATASET

HERE = Cluster(num_cpus=2, num_gpus=0, may_grow=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder)
    return folder


def settings_of(tmp_path: Path, checkpoint: Path, **more: Any) -> CaptioningSettings:
    """Settings that caption four tokens a region, of masks from files beside the images."""
    defaults = {
        "input": str(tmp_path / "in"),
        "output": str(tmp_path / "out"),
        "model": str(checkpoint),
        "listing": {"annotations": "beside"},
        "masks": {"kind": "annotations"},
        "captioner": {"max_new_tokens": 4},
    }
    return CaptioningSettings(**defaults | more)


def caption_here(settings: CaptioningSettings) -> Output:
    """Caption in this process; returns the output."""
    settings = resolve_masks(settings)
    output = Output(settings.output, CAPTIONS_DATASET)
    output.add_images(list_input(settings), images_per_partition=8)
    dataset: Any = RecordingDataset()
    graph_of(dataset, settings, Work(9, 18), HERE, CAPTION)
    asyncio.run(dataset.run(pa.Table.from_pylist(manifest_items(output))))
    return output


def test_build_graph_of_caption_gives_operators_their_resources(tmp_path: Path, checkpoint: Path) -> None:
    resources = {
        "masks": {"num_actors": 3, "num_cpus": 2},
        "caption": {"num_actors": 9, "num_cpus": 4, "num_gpus": 1, "partitions_in_flight": 6},
    }
    dataset: Any = RecordingDataset()
    settings = settings_of(tmp_path, checkpoint, resources=resources)
    graph_of(dataset, settings, Work(5, 10), Cluster(64, 8, may_grow=False), CAPTION)
    _, (_, proposing), (_, captioning) = dataset.stages
    assert dataset.rows_per_block == 1
    assert (proposing["num_cpus"], proposing["compute"].max_size) == (2, 3)
    assert (captioning["num_cpus"], captioning["num_gpus"], captioning["compute"].max_size) == (4, 1, 5)
    assert captioning["compute"].max_concurrent_calls_per_actor == 6


def test_caption_of_bad_files_makes_error_rows(tmp_path: Path, checkpoint: Path) -> None:
    expected = write_bad_corpus(tmp_path / "in")
    rows = list(caption_here(settings_of(tmp_path, checkpoint)).rows())
    found = {
        row["image_id"]: "ok" if row["error"] is None else f"{row['error']['stage']}:{row['error']['kind']}"
        for row in rows
    }
    assert found == expected
    assert len(rows) == len(expected)
    statuses = Counter(region["status"] for row in rows for region in row["captions"])
    # Each of five unusable annotations costs its own region alone.
    assert statuses.pop("skipped:malformed") == 5
    assert statuses.keys() == {"ok"}


def test_caption_of_a_run_reuses_masks_and_ids(tmp_path: Path, checkpoint: Path) -> None:
    ids = write_corpus(tmp_path / "in", 3)
    first = caption_here(settings_of(tmp_path, checkpoint))
    first.write_run({"command": "caption", "dataset": "captions"})
    plain: dict[str, Any] = {"listing": {}, "masks": {"kind": "auto"}, "input": first.path}
    again = caption_here(settings_of(tmp_path, checkpoint, output=str(tmp_path / "again"), **plain))
    rows = list(again.rows())
    assert [row["image_id"] for row in rows] == ids
    assert {row["proposer"] for row in rows} == {"regions"}
    assert [row["captions"] for row in rows] == [row["captions"] for row in first.rows()]


def test_plan_asks_the_model_only_if_set(tmp_path: Path, checkpoint: Path) -> None:
    write_corpus(tmp_path / "in", 5)
    (tmp_path / "in" / "img_0003.png").write_bytes(b"")
    said = plan(settings_of(tmp_path, checkpoint, planning={"images": 50}))
    assert "5 to do, estimated from 5 of them" in said
    assert "about 16 (3.2 an image)" in said
    assert "1 x read:empty_file" in said
    assert "caption (" not in said
    asked = plan(settings_of(tmp_path, checkpoint, planning={"images": 50, "ask_model": True}))
    assert "captioned regions" in asked
    assert "saturated: caption (actors that caption)" in asked
    assert not (tmp_path / "out").exists()


def test_plan_tells_how_many_regions_are_captioned_at_once(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "in", 1)
    monkeypatch.setattr("ureca.pipelines.batch.resources.os.cpu_count", lambda: 4)
    monkeypatch.setattr("ureca.pipelines.caption.free_device_bytes", lambda _: 60e6)
    memory = RegionMemory.of_checkpoint(checkpoint, CaptionSettings())
    number = int(60e6 / 8 / 2 / memory.num_bytes)  # half of the eighth that belongs to half a CPU of four
    assert 4 < number < 32
    settings: dict[str, Any] = {"captioner": {}}
    expected = f"{number} in each actor, by the free memory of this machine, about {memory.num_bytes / 1e6:.1f} MB each"
    assert expected in plan(settings_of(tmp_path, checkpoint, **settings))
    settings = {"captioner": {"batch_size": 7}}
    assert "7 in each actor, as set" in plan(settings_of(tmp_path, checkpoint, **settings))


def test_caption_takes_as_many_regions_as_memory_holds_and_logs_it(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_corpus(tmp_path / "in", 2)
    rows = list(caption_here(settings_of(tmp_path, checkpoint)).rows())
    monkeypatch.setattr("ureca.model.captioner.free_device_bytes", lambda _: 0)
    caplog.set_level("INFO", "ureca.captioning.engine")
    again = caption_here(settings_of(tmp_path, checkpoint, output=str(tmp_path / "again"), captioner={}))
    assert "up to 4 regions at once, by free memory" in caplog.text
    assert len(list(again.rows())) == len(rows)


def test_caption_only_below_a_folder_reads_nothing_outside(tmp_path: Path, checkpoint: Path) -> None:
    folder, secret = tmp_path / "in", tmp_path / "secret.png"
    folder.mkdir()
    Image.effect_noise((48, 40), 90).save(secret)
    (folder / "link.png").symlink_to(secret)
    Image.effect_noise((48, 40), 90).save(folder / "ok.png")
    (folder / "l.txt").write_text(f"ok.png\nlink.png\n{secret}\n/etc/passwd\nhttp://127.0.0.1:1/web.jpg\n")
    (folder / "ok.json").write_text("{}")
    listing = {"annotations": "beside", "only_below": [str(folder)]}
    output = caption_here(settings_of(tmp_path, checkpoint, input=str(folder / "l.txt"), listing=listing))
    errors = {row["image_id"]: row["error"]["kind"] for row in output.rows()}
    assert errors.pop("ok") == "malformed"
    assert errors == dict.fromkeys(("link", "secret", "passwd", "web"), "not_allowed")
    output.write_run({"dataset": CAPTIONS_DATASET.name})
    # The output of a run is confined, too: neither run.json nor a partition may be a link that leads out.
    others: dict[str, Any] = {"input": output.path, "output": str(tmp_path / "again"), "masks": {"kind": "segments"}}
    with pytest.raises(InputError, match="outside of the folders"):
        list_input(settings_of(tmp_path, checkpoint, listing={"only_below": [str(folder)]}, **others))
    again = settings_of(tmp_path, checkpoint, listing={"only_below": [output.path]}, **others)
    assert list_input(again).num_rows == 5
    run = Path(output.path) / "run.json"
    secret.write_bytes(run.read_bytes())
    run.unlink()
    run.symlink_to(secret)
    with pytest.raises(InputError, match=r"run\.json: it is outside of the folders"):
        list_input(again)
