"""The whole curation on a local Ray: sessions, resume, retries, bad input, refusals."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bad_corpus import write_bad_corpus
from tests.drawn import drawn_image, png, sa1b_json, write_corpus, write_shard
from tests.pipelines.test_graph import settings_of
from ureca.data.output import Output
from ureca.errors import InputError, OutputError, SettingsError
from ureca.pipelines.curate import curate
from ureca.pipelines.curate_settings import CurateSettings

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Plans:
    """Remembers what each session planned."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, num_images: int, num_to_do: int) -> None:
        self.seen.append((num_images, num_to_do))


@pytest.fixture
def plans() -> Iterator[Plans]:
    yield Plans()


def files_of(output: Path) -> dict[str, int]:
    """Modification times of the parts, in nanoseconds."""
    return {path.name: path.stat().st_mtime_ns for path in (output / "regions").iterdir()}


def test_curate_run_again_processes_missing_and_failed_images(tmp_path: Path, plans: Plans) -> None:
    ids = write_corpus(tmp_path / "in", 12)
    (tmp_path / "in" / "img_0003.json").write_text("{")
    (tmp_path / "in" / "img_0007.png").write_bytes(b"")
    settings = settings_of(tmp_path, images_per_partition=3, verification={"kind": "prompted"})
    report = curate(settings, plans)
    assert (report.num_images, report.num_failed, report.num_regions) == (12, 2, 40)
    assert report.failures == {"masks:malformed": 1, "read:empty_file": 1}
    # Each region: a short caption, a verification; each large disc: a detailed caption; rewrites of look-alikes.
    assert report.num_calls >= 40 + 40 + 10
    assert set(report.seconds) == {"masks", "tree", "curate"}
    rows = list(Output(settings.output).rows())
    assert [row["image_id"] for row in rows] == ids
    for row in rows:
        captions = [region["caption"] for region in row["regions"]]
        assert len(set(captions)) == len(captions) == (0 if row["error"] else 4)
        assert {region["verdict"] for region in row["regions"]} <= {"accepted"}

    # Nothing is missing: nothing runs.
    before = files_of(tmp_path / "out")
    assert curate(settings, plans) == report
    assert files_of(tmp_path / "out") == before

    # One part was damaged by a power cut and two images are new: only they run.
    (tmp_path / "out" / "regions" / "part-000001.parquet").write_bytes(b"")
    write_corpus(tmp_path / "in", 14)
    (tmp_path / "in" / "img_0003.json").write_text("{")
    (tmp_path / "in" / "img_0007.png").write_bytes(b"")
    report = curate(settings, plans)
    assert (report.num_images, report.num_failed) == (14, 2)
    after = files_of(tmp_path / "out")
    assert {name for name in after if after[name] != before.get(name)} == {
        "part-000001.parquet",
        "part-000004.parquet",
    }

    # The causes are mended: only the failed rows run again.
    pixels, masks = drawn_image(7)
    (tmp_path / "in" / "img_0007.png").write_bytes(png(pixels))
    (tmp_path / "in" / "img_0003.json").write_bytes(sa1b_json(masks))
    report = curate(settings.model_copy(update={"retry_errors": True}), plans)
    assert (report.num_images, report.num_failed, report.num_regions) == (14, 0, 56)
    rows = list(Output(settings.output).rows())
    assert Counter(row["image_id"] for row in rows) == Counter([*ids, "img_0012", "img_0013"])
    assert plans.seen == [(12, 12), (12, 0), (14, 5), (14, 2)]
    run = Output(settings.output).run()
    assert [session["state"] for session in run["sessions"]] == ["finished"] * 4
    assert run["totals"]["num_images"] == 14
    assert run["versions"]["ray"]


def test_curate_of_the_bad_corpus_accounts_for_every_file(tmp_path: Path, plans: Plans) -> None:
    expected = write_bad_corpus(tmp_path / "in")
    assert len(expected) >= 20
    report = curate(settings_of(tmp_path, max_error_fraction=1.0), plans)
    rows = list(Output(str(tmp_path / "out")).rows())
    found = {
        row["image_id"]: "ok" if row["error"] is None else f"{row['error']['stage']}:{row['error']['kind']}"
        for row in rows
    }
    # An image without annotations cannot have regions here; its pixels were read all the same.
    found = {id: "ok" if outcome == "masks:missing_annotation" else outcome for id, outcome in found.items()}
    assert found == expected
    assert len(rows) == len(expected) == report.num_images
    assert report.num_failed == sum(row["error"] is not None for row in rows)


def test_curate_of_a_tar_shard_without_weights_captions_all_regions(tmp_path: Path, plans: Plans) -> None:
    ids = write_shard(tmp_path / "shard.tar", 3)
    settings = CurateSettings(
        input=str(tmp_path / "shard.tar"),
        output=str(tmp_path / "out"),
        listing={"annotations": "beside"},
        masks={"kind": "annotations"},
        verification={"kind": "rule_based"},
    )
    report = curate(settings, plans)
    rows = list(Output(settings.output).rows())
    assert [row["image_id"] for row in rows] == ids
    assert report.num_regions == 12
    assert {region["verdict"] for row in rows for region in row["regions"]} == {"self_checked"}
    assert rows[0]["provenance"]["proposer"] == "annotations"
    assert rows[0]["provenance"]["annotator"].startswith("rule-based")


def test_curate_with_other_settings_names_them(tmp_path: Path, plans: Plans) -> None:
    write_corpus(tmp_path / "in", 1)
    settings = settings_of(tmp_path)
    curate(settings, plans)
    # Where and how patiently a model is asked makes no other captions.
    assert curate(settings_of(tmp_path, mllm={"kind": "fake", "seconds_per_answer": 0.1}), plans).num_images == 1
    changed: dict[str, Any] = {"uniqueness": {"similarity_threshold": 0.5}}
    with pytest.raises(OutputError, match=r"uniqueness\.similarity_threshold: 0\.8 then, 0\.5 now"):
        curate(settings_of(tmp_path, **changed), plans)
    report = curate(settings_of(tmp_path, **changed, overwrite=True), plans)
    assert report.num_images == 1
    assert len(Output(settings.output).run()["sessions"]) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"masks": {"kind": "sam", "checkpoint": "nowhere/sam.pth"}},
        {"embedder": {"kind": "dinov2", "checkpoint": "/nowhere/dinov2"}},
    ],
)
def test_curate_with_a_settings_error_of_a_worker_raises_it(
    tmp_path: Path, plans: Plans, changed: dict[str, Any]
) -> None:
    write_corpus(tmp_path / "in", 1)
    settings = settings_of(tmp_path).model_dump() | changed
    if "masks" in changed:
        settings["listing"] = {}
    with pytest.raises(SettingsError, match="nowhere") as raised:
        curate(CurateSettings(**settings), plans)
    assert "above exception" not in str(raised.value)
    assert Output(settings["output"]).run()["state"] == "stopped"


def test_curate_with_unusable_input_raises_before_start(tmp_path: Path, plans: Plans) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    with pytest.raises(InputError):
        curate(settings_of(tmp_path), plans)
    for name in ("x.png", "a/x.png"):
        (tmp_path / "in" / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"a/x\.png.*x\.png"):
        curate(settings_of(tmp_path), plans)
    assert not (tmp_path / "out").exists()
    assert plans.seen == []
