"""Dry runs, against the runs themselves."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.drawn import write_corpus
from tests.llm.chat_server import ChatServer
from tests.llm.test_openai_curation import by_content
from tests.pipelines.test_graph import settings_of
from ureca.curation.stage import CurateStage
from ureca.data.in_flight import ImagesInFlight
from ureca.data.listing import list_images
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import build_mask_trees, generate_masks
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import InputError
from ureca.masks.generators.annotations import AnnotationMaskGenerator
from ureca.pipelines.batch.dry_run import estimate
from ureca.pipelines.curate import CURATE, build_curator, curate_dry_run, plan
from ureca.pipelines.curate_settings import CurateSettings

NUM_IMAGES = 10


def lines_of(settings: CurateSettings) -> dict[str, str]:
    """Return the named rows of the plan, and its last line as ``advice``."""
    rows, _, parts = plan(settings).partition("\n\n")
    advice = parts.splitlines()[-1]
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in rows.splitlines()) | {"advice": advice}


def _seconds(text: str) -> float:
    """Convert a duration as 1h02m, 3m05s or 9s."""
    seconds = {"h": 3600, "m": 60, "s": 1}
    return sum(seconds[letter] * int(number) for number, letter in re.findall(r"(\d+)([hms])", text.partition(",")[0]))


def really(settings: CurateSettings) -> PartitionReport:
    """Curate all images, and return the report."""
    entries = [
        ManifestEntry.from_row(row) for row in list_images(settings.input, **settings.listing.model_dump()).to_pylist()
    ]
    masked = generate_masks(0, entries, AnnotationMaskGenerator(), settings.image_limits)
    partition = build_mask_trees(masked, settings.tree.containment)
    rows, work = asyncio.run(CurateStage(build_curator(settings), ImagesInFlight(4, settings.image_limits))(partition))
    return PartitionReport.of_rows(rows) + work


def test_plan_of_all_images_counts_the_questions_of_the_run(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", NUM_IMAGES)
    (tmp_path / "in" / "img_0003.json").write_text("{")
    settings = settings_of(tmp_path, verification={"kind": "prompted"}, planning={"images": 100})
    planned, report = lines_of(settings), really(settings)
    assert planned["images"].startswith(f"{NUM_IMAGES} to do, estimated from {NUM_IMAGES} of them")
    assert planned["captioned regions"] == f"about {report.num_regions} (3.6 an image)"
    assert planned["failures"] == "about 1 image; in the sample: 1 x masks:malformed"
    calls = dict(re.findall(r"(\w+) (\d+)", planned["model calls"].split(": ")[1]))
    assert sum(map(int, calls.values())) == report.num_calls
    assert (calls["short_caption"], calls["detailed_caption"], calls["verify"]) == ("36", "9", "36")
    assert not (tmp_path / "out").exists()


def test_plan_of_a_sample_is_scaled_to_the_images_to_do(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", NUM_IMAGES)
    settings = settings_of(tmp_path, planning={"images": 3}, limit=9)
    planned = lines_of(settings)
    assert planned["images"].startswith("9 to do, estimated from 3 of them")
    assert planned["captioned regions"] == "about 36 (4.0 an image)"
    # Finished images are not counted, new ones are.
    output = Output(settings.output)
    output.write_run({"command": "curate"})
    output.add_images(list_images(settings.input, annotations="beside"), 2, settings.selection)
    output.write_partition(0, [], PartitionReport())
    assert lines_of(settings)["images"].startswith("7 to do")
    assert lines_of(settings.model_copy(update={"limit": None}))["images"].startswith("8 to do")
    for partition in range(5):
        output.write_partition(partition, [], PartitionReport())
    with pytest.raises(InputError, match="9 images of INPUT, all done"):
        plan(settings)


def test_plan_asks_listeners_about_one_round(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", 4)
    all_of_them: dict[str, Any] = {"kind": "prompted", "include_all": True, "max_rounds": 5}
    planned = lines_of(settings_of(tmp_path, listener=all_of_them))
    assert "listen 48" in planned["model calls"]  # two shuffles, and once without the region


def test_plan_with_known_times_and_prices_predicts_duration_and_price(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", 4)
    mllm = {"kind": "openai", "model": "m", "base_urls": ["http://nobody.invalid/v1"], "max_concurrency": 8}
    known = {"new_tokens_per_answer": 50, "prompt_token_price": 1000.0, "new_token_price": 2000.0}
    settings = settings_of(tmp_path, mllm=mllm, planning=known | {"seconds_per_answer": 100.0})
    planned = lines_of(settings)
    calls = int(re.findall(r"about (\d+)", planned["model calls"])[0])
    tokens_in = int(re.findall(r"about (\d+)", planned["tokens in"])[0])
    assert planned["tokens out"] == f"about {50 * calls}"
    assert planned["price"] == f"{tokens_in / 1000:.2f} (in) + {2 * 50 * calls / 1000:.2f} (out)"
    text = plan(settings)
    assert re.search(r"^engine +8 ", text, re.MULTILINE)
    # The questions of an image wait for each other, so 8 slots are not always busy.
    assert calls * 100 / 8 <= _seconds(planned["duration"]) <= 3 * calls * 100 / 8
    unknown = lines_of(settings_of(tmp_path, mllm=mllm))
    assert "the engine's time, which is not known" in unknown["not counted"]
    assert "not counted" not in planned
    assert unknown["tokens out"].startswith(f"at most {1024 * calls}")
    assert "price" not in unknown


def test_plan_with_ask_model_measures_tokens_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    write_corpus(tmp_path / "in", 2)

    async def asked() -> tuple[str, int]:
        async with ChatServer(by_content) as server:
            mllm = {"kind": "openai", "model": "m", "base_urls": [server.url]}
            settings = settings_of(tmp_path, mllm=mllm, planning={"ask_model": True})
            text = await asyncio.to_thread(lambda: estimate(CURATE, settings, curate_dry_run(settings)))
            return text, len(server.received)

    text, num_calls = asyncio.run(asked())
    assert f"about {num_calls}:" in text
    assert f"about {300 * num_calls} (as the model counts them)" in text
    assert f"about {9 * num_calls}\n" in text
    assert re.search(r"^engine +64 ", text, re.MULTILINE)
    assert "not counted" not in text
    assert not (tmp_path / "out").exists()


def test_plan_of_many_images_names_the_saturated_part(tmp_path: Path) -> None:
    """A listing repeats no image: the sample of a few stands for a run in which the engine's slots are busy."""
    write_corpus(tmp_path / "in", NUM_IMAGES)
    mllm = {"kind": "openai", "model": "m", "base_urls": ["http://nobody.invalid/v1"], "max_concurrency": 1}
    planned = lines_of(settings_of(tmp_path, mllm=mllm, planning={"images": 2, "seconds_per_answer": 100.0}))
    calls = int(re.findall(r"about (\d+)", planned["model calls"])[0])
    assert _seconds(planned["duration"]) == pytest.approx(100 * calls, rel=0.05)
    assert planned["advice"].startswith("saturated: engine")
