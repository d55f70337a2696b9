"""``ureca plan`` from an output that a run would have left, and from a sample of images."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.drawn import write_corpus
from ureca.curation.stage import CurateStage
from ureca.data.in_flight import ImagesInFlight
from ureca.data.listing import list_images
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import build_mask_trees, generate_masks
from ureca.data.output import Output
from ureca.jobs.cli import main
from ureca.pipelines.curate import build_curator
from ureca.pipelines.curate_settings import CurateSettings
from ureca.registry import build_component

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the output of six images, each a partition, with answers of 20 ms, in a session of 30 s."""
    folder = tmp_path_factory.mktemp("measured")
    write_corpus(folder / "in", NUM_IMAGES)
    settings = CurateSettings(
        input=str(folder / "in"),
        output=str(folder / "out"),
        listing={"annotations": "beside"},
        masks={"kind": "annotations"},
        annotator={"kind": "prompted"},
        mllm={"kind": "fake", "seconds_per_answer": 0.02},
        resources={"curate": {"num_actors": 1, "images_in_flight": 1, "partitions_in_flight": 1}},
    )
    output = Output(settings.output)
    stage = CurateStage(build_curator(settings), ImagesInFlight(1, settings.image_limits))
    mask_generator = build_component("mask_generator", settings.masks)
    manifest = list_images(settings.input, **settings.listing.model_dump())
    for number, row in enumerate(manifest.to_pylist()):
        partition = generate_masks(number, [ManifestEntry.from_row(row)], mask_generator, settings.image_limits)
        output.write_partition(number, *asyncio.run(stage(build_mask_trees(partition, settings.tree.containment))))
    session = {"started": "2020-01-01T00:00:00+00:00", "ended": "2020-01-01T00:00:30+00:00"}
    record = {"command": "curate", "state": "finished", "settings": settings.model_dump(mode="json")}
    output.write_run({**record, "totals": output.report().model_dump(), "sessions": [session]})
    return folder / "out"


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == 0
    predicted: dict[str, Any] = json.loads(capsys.readouterr().out)
    return predicted


def test_plan_of_the_measured_run_predicts_its_figures(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predicted = planned(capsys, str(measured), "--images", str(NUM_IMAGES), "--measured-cpus", "2", "--cpus", "2")
    assert predicted["duration_s"] == pytest.approx(30, abs=0.5)
    run = Output(str(measured)).run()
    assert predicted["num_calls"] == pytest.approx(run["totals"]["num_calls"], abs=1)
    assert predicted["num_new_tokens"] == pytest.approx(run["totals"]["num_new_tokens"], rel=0.05)
    assert predicted["num_partitions"] == NUM_IMAGES
    files = (measured / "regions").glob("*.parquet")
    assert predicted["stored_bytes"] == pytest.approx(sum(path.stat().st_size for path in files))


def test_plan_with_other_settings_times_and_machines_predicts_their_throughput(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text(
        "{annotator: {kind: prompted}, mllm: {kind: openai, model: m, base_urls: ['http://a/v1'], max_concurrency: 8},"
        " resources: {curate: {num_actors: 4, num_cpus: 1}}}"
    )
    known = ["--cpus", "64", "--answer-s", "1", "--step-s", "0.001", "--generate-s", "0.001", "--startup-s", "60"]
    predicted = planned(capsys, str(measured), "--images", "100000", "--config", str(config), *known)
    calls_per_image = predicted["num_calls"] / 100_000
    assert calls_per_image >= 4
    slots = {part["name"]: part["slots"] for part in predicted["parts"]}
    assert (slots["engine"], slots["curate"], slots["cpus"]) == (8, 4, 64)
    assert predicted["images_per_s"] == pytest.approx(8 / calls_per_image, rel=0.1)
    flags = ("--mllm.max-concurrency", "16", "--engine-slots", "12")
    twice = planned(capsys, str(measured), "--images", "100000", "--config", str(config), *known, *flags)
    assert {part["name"]: part["slots"] for part in twice["parts"]}["engine"] == 12
    assert twice["images_per_s"] == pytest.approx(1.5 * predicted["images_per_s"], rel=0.1)
    pixels = ("--resources.curate.pixels-in-flight", str(5 * 60 * 80 + 9))  # of images of 60 x 80
    held = planned(capsys, str(measured), "--images", "100000", "--config", str(config), *known, *pixels)
    assert {part["name"]: part["slots"] for part in held["parts"]}["images_in_flight"] == 4 * 5
    assert main(["plan", str(measured), "--images", "100000", "--config", str(config), *known]) == 0
    assert "saturated: engine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--images", "5", "--tree.containmant", "1"], "containmant"),
        (["--images", "5", "--cpus", "2", "--resources.masks.num-cpus", "9"], "resources.masks.num_cpus"),
        (["--images", "5", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_plan_that_is_impossible_says_why(
    measured: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(measured), *arguments]) == 2
    assert named in capsys.readouterr().err


def test_plan_from_an_unfinished_run_or_of_several_sessions_is_refused(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(tmp_path), "--images", "5"]) == 2
    run = Output(str(measured)).run()
    output = Output(str(tmp_path / "out"))
    for change in ({"totals": None}, {"command": "caption"}, {"sessions": run["sessions"] * 2}):
        output.write_run({**run, **change})
        assert main(["plan", output.path, "--images", "5"]) == 2
        assert "one session" in capsys.readouterr().err
    assert main(["plan", str(measured), "--images", "0"]) == 2
    assert main(["plan", str(measured)]) == 2
    assert "images is required" in capsys.readouterr().err


def test_plan_curate_estimates_from_a_sample_as_curate_plan_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "in", NUM_IMAGES)
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--planning.images", "2", "--annotator.kind", "prompted"]
    arguments += ["--masks.kind", "annotations", "--listing.annotations", "beside"]
    assert main(["plan", "curate", *arguments]) == 0
    from_plan = capsys.readouterr().out
    assert main(["curate", *arguments, "--plan"]) == 0
    from_curate = capsys.readouterr().out
    counts = [text[: text.index("duration")] for text in (from_plan, from_curate)]
    assert counts[0] == counts[1]
    assert f"{NUM_IMAGES} to do, estimated from 2 of them" in from_plan
    assert not (tmp_path / "out").exists()


def test_plan_caption_without_asking_counts_masks_and_loads_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "in", NUM_IMAGES)
    assert main(["init-tiny", str(tmp_path / "tiny")]) == 0
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(tmp_path / "tiny")]
    assert main(["plan", "caption", *arguments, "--masks.kind", "annotations", "--listing.annotations", "beside"]) == 0
    printed = capsys.readouterr().out
    assert f"masks{14 * ' '}about 24" in printed
    assert "the time of the model, which --planning.ask-model measures" in printed
