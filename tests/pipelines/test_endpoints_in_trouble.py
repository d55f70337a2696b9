"""Curation by the command line with servers that refuse, fail or wrap their answers: the summary that a user reads."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.drawn import write_corpus
from tests.llm.stand_in import StandIn, stand_in
from ureca.data.output import Output
from ureca.jobs.cli import main

SETTINGS = {
    "masks.kind": "annotations",
    "listing.annotations": "beside",
    "annotator.kind": "prompted",
    "annotator.max-attempts": "2",
    "mllm.kind": "openai",
    "mllm.model": "tiny-vl",
    "mllm.initial-backoff-s": "0.01",
    "mllm.max-wait-s": "0.05",
    "resources.masks.num-actors": "1",
    "resources.curate.num-actors": "1",
}


@dataclass
class Trial:
    """A small corpus, a server in trouble, and an output folder."""

    images: Path
    output: Path
    server: StandIn

    def curate(self, kind: str, *options: str) -> int:
        """Run ``ureca curate`` against a kind of server; returns the exit status."""
        settings = SETTINGS | {"mllm.base-urls": f"{self.server.url}/{kind}/v1"}
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return main(["curate", str(self.images), str(self.output), *arguments, *options])

    def totals(self) -> dict[str, Any]:
        """Totals of run.json."""
        return dict(json.loads((self.output / "run.json").read_text())["totals"])

    def has_results(self) -> bool:
        """True if a partition is written."""
        return bool(Output(str(self.output)).done_partitions())


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with stand_in(StandIn()) as served:
        yield served


@pytest.fixture
def trial(tmp_path: Path, server: StandIn) -> Trial:
    write_corpus(tmp_path / "in", 3)
    return Trial(tmp_path / "in", tmp_path / "out", server)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("credits", (), "the account, which has no credit or quota left: HTTP 402: Insufficient credits. Add more"),
        ("forbidden", (), "HTTP 403: Project has no access to this model"),
        ("quota", (), "HTTP 429: You exceeded your current quota"),
        ("new_parameter", (), "Use 'max_completion_tokens' instead"),
        ("no_schema", (), "mllm.structured_output"),
        ("one_image", (), "a request with 2 images: HTTP 400: At most 1 image(s) may be provided in one prompt"),
        ("model", ("--mllm.model", "tiny-v"), "The model tiny-v does not exist. It serves tiny-vl, other"),
        ("other", ("--annotator.max-new-tokens", "8192"), "lower that"),
    ],
)
def test_curate_with_a_server_that_refuses_ends_before_masks_are_made(
    kind: str, options: tuple[str, ...], words: str, trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trial.server.calls[kind]
    assert trial.curate(kind, *options) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert "Traceback" not in shown
    assert trial.server.calls[kind] - before <= 1
    assert not trial.has_results()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("real_images", "refused all requests, .* HTTP 422: such images are not available in your plan"),
        ("limited", "Upstream provider is rate limited"),
    ],
)
def test_curate_with_a_server_that_refuses_the_images_spends_no_region(
    kind: str, words: str, trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trial.curate(kind, "--mllm.outage-timeout-s", "0.5") == 2
    assert re.search(f"{words}.*no region was lost", capsys.readouterr().err)
    assert not trial.has_results()


def test_curate_with_answers_in_any_wrapping_captions_all_regions(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trial.curate("wrapped") == 0
    assert "captioned regions  12, and 0 that failed" in capsys.readouterr().out


def test_curate_with_request_fields_of_a_reasoning_model_captions_all_regions(trial: Trial) -> None:
    fields = ("--mllm.token-parameter", "max_completion_tokens", "--no-mllm.send-temperature")
    extra = ("--mllm.extra-body", '{"reasoning_effort": "low"}', "--mllm.headers", '{"X-Title": "captions"}')
    assert trial.curate("new_parameter", *fields, *extra) == 0


@pytest.mark.usefixtures("ray_cluster")
def test_curate_with_refused_regions_tells_the_servers_words_and_fails(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trial.curate("picky") == 1
    shown = capsys.readouterr()
    assert "images             3, of which 0 failed" in shown.out
    assert "x short_caption:http_400: http://127.0.0.1" in shown.out
    assert "HTTP 400: this picture was flagged" in shown.out
    assert "of the images or regions failed" in shown.err
    totals = trial.totals()
    assert "this picture was flagged" in totals["messages"]["short_caption:http_400"]
    assert main(["status", str(trial.output)]) == 0
    assert "this picture was flagged" in capsys.readouterr().out


def test_curate_with_answers_that_are_cut_off_counts_their_tokens(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trial.curate("cut") == 1
    assert "12 x short_caption:" in capsys.readouterr().out
    totals = trial.totals()
    assert totals["num_new_tokens"] == 9 * totals["num_calls"] > 0
