"""Evaluation from end to end: one command, what is missing, images that fail, refusals."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.drawn import write_corpus
from tests.evaluation.benchmarks.folders import write_refcoco
from tests.llm.tiny_models import internvl
from tests.pipelines.test_graph import RecordingDataset, graph_of
from tests.s3 import s3_server
from tests.training.datasets import line, write_dataset, write_jsonl
from ureca.data.output import Output
from ureca.errors import CheckpointError, InputError, OutputError, SettingsError
from ureca.evaluation.tables.formats import read_table
from ureca.jobs.cli import main
from ureca.model.initialization import save_tiny
from ureca.pipelines.batch.arrow import manifest_items
from ureca.pipelines.batch.resources import Cluster, Work
from ureca.pipelines.caption import CAPTION, list_input, resolve_masks, usable_checkpoint
from ureca.pipelines.caption_settings import CaptioningSettings
from ureca.pipelines.evaluate import evaluate
from ureca.pipelines.evaluate_settings import EvaluateSettings, ScoringSettings
from ureca.pipelines.judge import JUDGE
from ureca.scenes.files import write_scenes
from ureca.schema import CAPTIONS_DATASET


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_tiny(folder)
    return folder


def tell(text: str) -> None:
    """Takes what is told."""


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_evaluate_writes_the_table_and_resumes(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "out"
    write_scenes(scenes, 3, split="test", seed=0, width_px=112, height_px=112)
    broken = scenes / "images" / "test_0_000001.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:500])
    command = [
        *("evaluate", str(scenes), str(out), f"Crops={checkpoint}:crop", f"People={scenes}/captions.jsonl"),
        *("--captioner.max-new-tokens", "3", "--metrics", "BLEU,ROUGE", "--listener.kind", "prompted"),
        *("--resources.caption.num-actors", "1", "--resources.masks.num-actors", "1"),
        *("--resources.judge.num-actors", "1", "--table.num-resamples", "100"),
    ]
    assert main(command) == 1
    told = capsys.readouterr()
    assert re.search(r"Crops: 1 of 3 images and \d+ regions failed \(.*1 x read:truncated", told.err)
    table = read_table(out / "table.json")
    crops = table.models[0]
    assert [model.model for model in table.models] == ["Crops", "People"]
    (of_crops, of_people) = (model.groups[0] for model in table.models)
    rows = {row["image_id"]: row for row in Output.of_run(str(out / "benchmark")).rows()}
    lost = len(rows["test_0_000001"]["benchmark"])
    assert of_crops.num_regions == of_people.num_regions == sum(len(row["benchmark"]) for row in rows.values())
    assert (of_crops.num_blank, of_people.num_blank) == (lost, 0)
    assert crops.failures == {"read: truncated": lost}
    assert (of_people.figures["Correct"].value, of_people.figures["BLEU@4"].value) == (1, pytest.approx(1))
    assert of_crops.figures["Wrong"].value == 1
    assert of_crops.figures["Listener ceiling"] == of_people.figures["Listener ceiling"]
    assert "METEOR" in crops.missing
    assert {name: group for name, group in table.dimensions.items() if name != "all"}.keys() == {"depth", "size"}
    assert "People" in told.out
    assert "table.html" in told.out

    # What fails the job is mended; all else is there, and stays.
    broken.write_bytes(whole)
    assert main([*command, "--retry-errors"]) == 0
    told = capsys.readouterr()
    assert main(["status", str(out)]) == 0
    status = capsys.readouterr().out
    assert re.search(r"finished\n.* 6 of 6 done.*\nfailed +0 ", status), status
    assert "sessions     2, " in status
    assert "3 images, 2 done before, 1 to do" in told.err
    again = read_table(out / "table.json").models
    assert again[0].groups[0].num_blank == 0
    assert again[1].groups[0].figures["Correct"] == of_people.figures["Correct"]
    assert {row["model"].split()[-1] for row in Output.of_run(f"{out}/models/Crops").rows()} == {"crop"}
    run = json.loads((out / "run.json").read_text())
    assert (run["state"], [model["kind"] for model in run["models"]]) == ("finished", ["checkpoint", "jsonl"])

    # Another model beside, of captions that are there: nothing is captioned.
    fewer = ["--listener.kind", "none", "--metrics", "BLEU"]
    assert main([*command[:4], f"Again={out}/models/Crops", *command[5:], *fewer]) == 0
    assert "3 images, 3 done before, 0 to do" in capsys.readouterr().err
    table = read_table(out / "table.json")
    assert [model.groups[0].figures["BLEU@1"].value for model in table.models] == [
        again[0].groups[0].figures["BLEU@1"].value
    ] * 2


def test_evaluate_beside_another_session_raises(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 1, split="test", seed=0, width_px=112, height_px=112)
    settings = settings_of(tmp_path, tmp_path / "scenes", f"People={tmp_path}/scenes/captions.jsonl", metrics=["BLEU"])
    with Output(settings.output).lease(), pytest.raises(OutputError, match="is being written by"):
        evaluate(settings, tell)


def settings_of(tmp_path: Path, benchmark: Path, *models: str, **more: Any) -> EvaluateSettings:
    return EvaluateSettings(input=str(benchmark), output=str(tmp_path / "out"), models=list(models), **more)


def test_evaluate_with_unusable_inputs_raises_before_captioning(tmp_path: Path, checkpoint: Path) -> None:
    dataset = write_dataset(tmp_path, 2)
    mllm = tmp_path / "mllm"
    internvl(mllm)
    for models, error, message in (
        ([f"{mllm}"], SettingsError, "none, contour or crop"),
        ([f"{mllm}:mask"], SettingsError, "region_prompt"),
        ([str(tmp_path / "missing")], CheckpointError, "there is no such folder"),
        ([str(tmp_path / "images")], CheckpointError, r"config\.json"),
        ([str(checkpoint), str(checkpoint)], SettingsError, "give them names"),
    ):
        with pytest.raises(error, match=message):
            evaluate(settings_of(tmp_path, dataset, str(checkpoint) + ":none", *models), tell)
    with pytest.raises(InputError, match="no benchmark"):
        evaluate(settings_of(tmp_path, tmp_path / "images", str(checkpoint)), tell)
    with pytest.raises(InputError, match="no split 'test'"):
        evaluate(settings_of(tmp_path, write_refcoco(tmp_path), "a.jsonl", refcoco={"split": "test"}), tell)
    other = settings_of(tmp_path, dataset, str(checkpoint), overwrite=True)
    with pytest.raises(OutputError, match="the output of 'curate', not of evaluate"):
        evaluate(other.model_copy(update={"output": str(dataset)}), tell)
    assert not list((tmp_path / "out").rglob("part-*"))


def test_evaluate_of_existing_captions_starts_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path, 2)
    monkeypatch.setattr("ureca.pipelines.batch.session.ray.init", None)
    settings = settings_of(
        tmp_path, dataset, f"Same={dataset}", metrics=("BLEU", "BERTScore"), bert_score={"model": str(tmp_path)}
    )
    evaluation = evaluate(settings, tell)
    (model,) = evaluation.table.models
    assert model.groups[0].figures["BLEU@1"].value == pytest.approx(1)
    assert "cannot be loaded" in model.missing["BERTScore"]
    with pytest.raises(OutputError, match=r"limit: None then, 1 now\nThe folder holds another benchmark"):
        evaluate(settings.model_copy(update={"limit": 1}), tell)
    evaluation = evaluate(settings.model_copy(update={"limit": 1, "overwrite": True}), tell)
    assert evaluation.table.models[0].groups[0].num_images == 1
    assert evaluation.table.remarks == ("A sample of the benchmark: 1 image, by seed 0.",)
    assert len(list((tmp_path / "out" / "models").rglob("part-*"))) == 1


def test_evaluate_in_an_object_store_writes_captions_and_tables(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", 1)
    lines = [line("img_0000", str(mask), f"disc {mask}") for mask in (1, 2)]
    with s3_server() as store:
        for name in ("img_0000.png", "img_0000.json"):
            store.put(f"bench/{name}", (tmp_path / "in" / name).read_bytes())
        store.put("bench/test.jsonl", write_jsonl(tmp_path / "test.jsonl", lines).read_bytes())
        bench, out = store.uri("bench/test.jsonl"), store.uri("evaluated")
        settings = EvaluateSettings(input=bench, output=out, models=[f"Same={bench}"], metrics=("BLEU",))
        evaluation = evaluate(settings, tell)
        assert evaluation.table.title == "bench/test.jsonl"
        assert evaluation.table.models[0].groups[0].figures["BLEU@2"].value == pytest.approx(1)
        tables = [f"evaluated/table.{suffix}" for suffix in ("html", "json", "md")]
        assert store.names("evaluated/table") == tables
        assert [row["captions"][0]["caption"] for row in Output.of_run(store.uri("evaluated/models/Same")).rows()] == [
            "disc 1"
        ]
        evaluate(settings.model_copy(update={"overwrite": True}), tell)
        assert store.names("evaluated/table") == tables


def test_scoring_operator_has_the_resources_of_its_settings(tmp_path: Path) -> None:
    dataset: Any = RecordingDataset()
    resources = {"judge": {"num_actors": 2, "num_gpus": 0.5, "num_cpus": 3, "partitions_in_flight": 5}}
    settings = ScoringSettings(input="benchmark", output=str(tmp_path / "out"), resources=resources)
    graph_of(dataset, settings, Work(9, 18), Cluster(64, 8, may_grow=False), JUDGE)
    _, (_, judging) = dataset.stages
    assert (judging["num_cpus"], judging["num_gpus"], judging["compute"].max_size) == (3, 0.5, 2)
    assert judging["compute"].max_concurrent_calls_per_actor == 5


def test_caption_with_a_chat_checkpoint_captions_a_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "internvl"
    internvl(folder)
    write_corpus(tmp_path / "in", 2)
    settings = CaptioningSettings(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        model=str(folder),
        region_prompt="contour",
        image_options={"max_patches": 1},
        listing={"annotations": "beside"},
        masks={"kind": "annotations"},
        captioner={"max_new_tokens": 4},
    )
    assert usable_checkpoint(settings).kind == "mllm"
    settings = resolve_masks(settings)
    output = Output(settings.output, CAPTIONS_DATASET)
    output.add_images(list_input(settings), images_per_partition=8)
    dataset: Any = RecordingDataset()
    graph_of(dataset, settings, Work(1, 2), Cluster(2, 0, may_grow=False), CAPTION)
    asyncio.run(dataset.run(pa.Table.from_pylist(manifest_items(output))))
    rows = list(output.rows())
    assert [region["status"] for row in rows for region in row["captions"]] == ["ok"] * 8
    assert all(row["model"].startswith("internvl ") and row["model"].endswith(" contour") for row in rows)


def test_usable_checkpoint_with_settings_of_another_kind_raises(tmp_path: Path, checkpoint: Path) -> None:
    internvl(tmp_path / "mllm")
    common = {"input": "a", "output": "b"}
    with pytest.raises(SettingsError, match="image_options are for baselines"):
        usable_checkpoint(CaptioningSettings(**common, model=str(checkpoint), image_options={"max_patches": 1}))
    nucleus: Any = {"model": str(tmp_path / "mllm"), "region_prompt": "crop", "captioner": {"top_p": 0.9}}
    with pytest.raises(SettingsError, match="top_p"):
        usable_checkpoint(CaptioningSettings(**common, **nucleus))
