"""Each kind of reply of a server, by the command line: rows, exit status, and the words that a user reads."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.drawn import write_corpus
from tests.llm.chat_server import HANG_UP, Received, Said, error, json_body
from tests.llm.stand_in import StandIn, caption_for, choice, stand_in
from tests.pipelines.test_endpoints_in_trouble import Trial
from ureca.data.output import Output

LOCAL = ("--executor", "local")
NUM_REGIONS = 4

WRAPPINGS: dict[str, Callable[[str], object]] = {
    "thinking": lambda it: f'<think>A {{"caption": "thing"}}?</think>\n{it}',
    "thinking without its beginning": lambda it: f"Hm, {{a}}.\n</think>\n\n{it}",
    "raw line break": lambda it: it.replace(" ", "\n", 3),
    "trailing comma": lambda it: it.replace("}", ",}"),
    "key in another case": lambda it: it.replace("caption", "Caption"),
    "code fence": lambda it: f"```json\n{it}\n```",
    "single quotes": lambda it: it.replace('"', "'"),
    "two objects": lambda it: f'{{"caption": "A draft of it."}}\n{it}',
    "JSON string": json.dumps,
    "object": json.loads,
    "list": lambda it: f"[{it}]",
    "special tokens": lambda it: f"<|begin_of_box|>{it}<|end_of_box|>",
    "braces after it": lambda it: f"{it}\nNote: {{x}} is not used.",
    "chunks": lambda it: [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, _piece(it)],
}
"""Contents of the message that hold a JSON object with the caption."""

BODIES: dict[str, Callable[[str], Said]] = {
    "reasoning_content": lambda it: choice(None, reasoning_content=f"Let me see.\n{it}"),
    "tool_calls": lambda it: choice(None, "tool_calls", tool_calls=[{"function": {"name": "f", "arguments": it}}]),
    "byte order mark": lambda it: Said(200, b"\xef\xbb\xbf" + choice(it).body),
    "gzip": lambda it: Said(200, gzip.compress(choice(it).body), {"Content-Encoding": "gzip"}),
    "deflate": lambda it: Said(200, zlib.compress(choice(it).body), {"Content-Encoding": "deflate"}),
    "white space around": lambda it: Said(200, b"\n\n   \n" + choice(it).body + b"\n\0"),
    "negative usage": lambda it: choice(it, usage={"prompt_tokens": -5, "completion_tokens": -1}),
    "fractional usage": lambda it: choice(it, usage={"prompt_tokens": 9.0, "completion_tokens": 9.5}),
    "no usage": lambda it: choice(it, usage=None),
    "stream": lambda it: Said(
        200,
        b"data: %s\n\ndata: [DONE]"
        % json.dumps({"choices": [{"delta": _piece(it), "finish_reason": "stop"}]}).encode(),
    ),
}
"""Responses with the JSON object."""

PASSING: dict[str, tuple[Said, str]] = {
    "conflict": (error(409, "loading"), "server_error"),
    "too early": (Said(425), "server_error"),
    "model is loaded": (error(424, "Model is loading"), "server_error"),
    "rate limit": (error(429, "slow down", Retry_After="0"), "rate_limited"),
    "server error": (error(500, "oops"), "server_error"),
    "web page of a gateway": (Said(502, b"<html><title>502 Bad Gateway</title></html>"), "server_error"),
    "error with status 200": (json_body(200, {"error": {"message": "upstream limit", "code": 429}}), "rate_limited"),
    "hang-up": (HANG_UP, "connection_lost"),
    "body that is cut": (Said(200, choice("x" * 99).body, cut_at=50), "connection_lost"),
    "no choices": (json_body(200, {"choices": []}), "malformed_answer"),
    "no content": (choice(None), "malformed_answer"),
    "no text": (choice(""), "unusable_answer"),
    "filter": (choice("", "content_filter"), "content_filter"),
    "cut off": (choice('{"caption": "A red', "length"), "cut_off"),
    "refusal": (choice("I'm sorry, but I can't help with that."), "refusal"),
    "prose": (choice("Sure! It is a nice thing."), "unusable_answer"),
    "JSON in the caption": (choice('{"caption": "{\\"caption\\": \\"A red car by a tree.\\"}"}'), "unusable_answer"),
    "control characters": (choice('{"caption": "A red \\u0000\\u0007 car by a tree."}'), "unusable_answer"),
}
"""Replies that come twice among good ones, and the kind by which they are counted."""

LASTING: dict[str, tuple[Said, str]] = {
    "flagged": (
        error(400, "this picture was flagged"),
        "http_400: http://127.0.0.1:PORT/reply/v1 rejects the request: HTTP 400: this picture was flagged",
    ),
    "filtered": (
        json_body(400, {"error": {"message": "Triggered our content policy", "code": "content_filter"}}),
        "content_filter: http://127.0.0.1:PORT/reply/v1 rejects the request: HTTP 400: Triggered our content policy",
    ),
    "too long": (
        error(400, "This model's maximum context length is 4096 tokens"),
        "too_long: http://127.0.0.1:PORT/reply/v1 rejects the request: HTTP 400: This model's maximum context "
        "length is 4096 tokens",
    ),
}
"""Refusals of two requests among good replies, and the words of the summary."""

USELESS: dict[str, tuple[Said, str]] = {
    "filter": (
        choice("", "content_filter"),
        "content_filter: 2 answers could not be used; the last one: a filter of the",
    ),
    "thinking up to the limit": (
        choice(None, "length", reasoning_content="Let me look"),
        "cut_off: 2 answers could not be used; the last one: it was cut off before its end: answer more briefly (the "
        "limit of 1024 tokens is the setting annotator.max_new_tokens)",
    ),
    "refusal": (
        choice("I'm sorry, but I can't identify that."),
        "refusal: 2 answers could not be used; the last one: it",
    ),
    "prose": (
        choice("Sure! It is a nice thing."),
        "unusable_answer: 2 answers could not be used; the last one: there is no JSON",
    ),
    "JSON in the caption": (
        choice('{"caption": "{\\"caption\\": \\"A red car by a tree.\\"}"}'),
        "unusable_answer: 2 answers could not be used; the last one: caption: it has a JSON object in it",
    ),
    "control characters": (
        choice('{"caption": "A red \\u0000\\u0007 car by a tree."}'),
        "unusable_answer: 2 answers could not be used; the last one: caption: it has control characters",
    ),
}
"""Replies to all questions but the first, which is the test before the run."""

AT_ONCE: dict[str, tuple[Said, str]] = {
    "key": (
        error(401, "Incorrect API key"),
        "rejects the key (mllm.api_key_variable, mllm.api_key_file, mllm.api_key_header): HTTP 401: Incorrect API key",
    ),
    "credit": (
        error(402, "Insufficient credits."),
        "rejects the account, which has no credit or quota left: HTTP 402: Insufficient credits",
    ),
    "project": (error(403, "No access"), "rejects the key, or its access to mllm.model: HTTP 403: No access"),
    "quota": (
        json_body(429, {"error": {"message": "Too much", "code": "insufficient_quota"}}),
        "no credit or quota left: HTTP 429: Too much",
    ),
    "quota with status 200": (
        json_body(200, {"error": {"message": "Too much", "code": "insufficient_quota"}}),
        "no credit or quota left: HTTP 402: Too much",
    ),
    "parameter": (
        error(400, "Unsupported parameter: 'max_tokens'"),
        "a field of the requests (see mllm.token_parameter, "
        "mllm.send_temperature, mllm.structured_output, mllm.extra_body): HTTP 400: Unsupported parameter",
    ),
    "schema": (error(400, "response_format type json_schema is unavailable now"), "mllm.structured_output"),
    "one image": (
        error(400, "At most 1 image(s) may be provided."),
        "a request with 2 images: HTTP 400: At most 1 image",
    ),
    "model": (error(404, "The model `tiny-vl` does not exist."), "mllm.model or its path: HTTP 404: The model"),
    "redirect": (
        Said(307, b"", {"Location": "https://sso.example.org/"}),
        "HTTP 307: it redirects to https://sso.example.org/; correct mllm.base_urls",
    ),
    "web page": (
        Said(200, b"<!DOCTYPE html><title>Sign in</title>"),
        "a web page (Sign in) instead of a chat completion; check mllm.base_urls",
    ),
}
"""Replies to the test before the run, and the words of the error."""

LATER: dict[str, tuple[Said, str]] = {
    "credit": (
        error(402, "Insufficient credits."),
        "no credit or quota left: HTTP 402: Insufficient credits. Correct that",
    ),
    "refusal": (error(400, "no vision here"), "refused all requests, 8 so far: HTTP 400: no vision here. Correct that"),
    "size": (
        Said(413, b"<html><title>413 Too Large</title>"),
        "refused all requests, 8 so far: HTTP 413: 413 Too Large",
    ),
    "server error": (error(500, "CUDA error"), "no request was answered for"),
    "no choices": (json_body(200, {"choices": []}), "no chat completion: it has no choices. Correct that"),
}
"""Replies to all requests after the test before the run, and the words of the error."""


def _piece(it: str) -> dict[str, str]:
    return {"type": "text", "text": it, "content": it}


class Replies(StandIn):
    """A server that replies by a function.

    Attributes:
        reply: function of the answer's JSON and the number of the request, from 1.
        captions: captions of its answers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reply: Callable[[str, int], Said] = lambda it, number: choice(it)
        self.captions: set[str] = set()

    async def respond(self, received: Received) -> Said:
        if received.path.endswith("/models"):
            return json_body(200, {"data": [{"id": "tiny-vl"}]})
        self.calls["reply"] += 1
        answer = caption_for(received)
        self.captions.add(json.loads(answer)["caption"])
        return self.reply(answer, self.calls["reply"])


@pytest.fixture(scope="module")
def served() -> Iterator[Replies]:
    with stand_in(Replies()) as server:
        yield server


@pytest.fixture
def trial(tmp_path: Path, served: Replies) -> Trial:
    write_corpus(tmp_path / "in", 1)
    served.calls.clear()
    served.captions.clear()
    return Trial(tmp_path / "in", tmp_path / "out", served)


def curate(trial: Trial, served: Replies, reply: Callable[[str, int], Said], *options: str) -> int:
    """Run the command with a reply; returns the exit status."""
    served.reply = reply
    return trial.curate("reply", *LOCAL, *options)


def check_all_captioned(trial: Trial, served: Replies, shown: str) -> None:
    """Check that all regions have a caption that the server wrote, and that the user reads so."""
    assert f"captioned regions  {NUM_REGIONS}, and 0 that failed" in shown
    assert "failures" not in shown
    (row,) = Output(str(trial.output)).rows()
    assert {region["status"] for region in row["regions"]} == {"ok"}
    assert {region["caption"] for region in row["regions"]} <= served.captions


@pytest.mark.parametrize("name", [*WRAPPINGS, *BODIES])
def test_curate_with_replies_of_another_form_captions_all(
    name: str, trial: Trial, served: Replies, capsys: pytest.CaptureFixture[str]
) -> None:
    in_form = BODIES.get(name) or (lambda it: choice(WRAPPINGS[name](it)))
    assert curate(trial, served, lambda it, number: in_form(it)) == 0
    check_all_captioned(trial, served, capsys.readouterr().out)
    totals = trial.totals()
    assert totals["invalid_responses"] == totals["retries"] == {}
    assert totals["num_new_tokens"] >= 0


@pytest.mark.parametrize("name", PASSING)
def test_curate_with_a_reply_that_passes_captions_all_and_counts_it(
    name: str, trial: Trial, served: Replies, capsys: pytest.CaptureFixture[str]
) -> None:
    said, kind = PASSING[name]
    assert (
        curate(
            trial, served, lambda it, number: said if number in {2, 5} else choice(it), "--annotator.max-attempts", "3"
        )
        == 0
    )
    check_all_captioned(trial, served, capsys.readouterr().out)
    totals = trial.totals()
    assert Counter(totals["invalid_responses"]) + Counter(totals["retries"]) == {kind: 2}


@pytest.mark.parametrize("name", LASTING)
def test_curate_with_refused_requests_fails_their_regions_in_the_servers_words(
    name: str, trial: Trial, served: Replies, capsys: pytest.CaptureFixture[str]
) -> None:
    said, words = LASTING[name]
    refused: set[str] = set()

    def refuse_two(it: str, number: int) -> Said:
        if number in {3, 4}:
            refused.add(it)
        return said if it in refused else choice(it)

    assert curate(trial, served, refuse_two) == 1
    shown = capsys.readouterr()
    assert f"captioned regions  {NUM_REGIONS - 2}, and 2 that failed" in shown.out
    port = served.url.rpartition(":")[2]
    assert f"failures           2 x short_caption:{words.replace('PORT', port)}\n" in shown.out
    assert "--retry-errors" in shown.err
    assert curate(trial, served, lambda it, number: choice(it), "--retry-errors") == 0
    check_all_captioned(trial, served, capsys.readouterr().out)


@pytest.mark.parametrize("name", USELESS)
def test_curate_with_replies_that_never_help_tells_the_reason_and_fails(
    name: str, trial: Trial, served: Replies, capsys: pytest.CaptureFixture[str]
) -> None:
    said, words = USELESS[name]
    assert curate(trial, served, lambda it, number: said if number > 1 else choice(it)) == 1
    shown = capsys.readouterr()
    assert f"captioned regions  0, and {NUM_REGIONS} that failed" in shown.out
    assert f"failures           {NUM_REGIONS} x short_caption:{words}" in shown.out
    assert trial.totals()["num_new_tokens"] == 9 * 2 * NUM_REGIONS


@pytest.mark.parametrize("name", AT_ONCE)
def test_curate_with_a_server_that_cannot_work_ends_after_one_request(
    name: str, trial: Trial, served: Replies, capsys: pytest.CaptureFixture[str]
) -> None:
    said, words = AT_ONCE[name]
    assert curate(trial, served, lambda it, number: said) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("ureca:")]
    assert words in line
    assert served.calls["reply"] == 1
    assert not trial.has_results()


@pytest.mark.parametrize("name", LATER)
def test_curate_with_a_server_that_fails_everything_later_spends_no_region(
    name: str, trial: Trial, served: Replies, capsys: pytest.CaptureFixture[str]
) -> None:
    said, words = LATER[name]
    options = ("--mllm.outage-timeout-s", "0.3", "--mllm.max-attempts", "2")
    assert curate(trial, served, lambda it, number: said if number > 1 else choice(it), *options) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("ureca:")]
    assert words in line
    assert line.endswith("run the same command again: it resumes, and no region was lost")
    assert not trial.has_results()
    assert curate(trial, served, lambda it, number: choice(it)) == 0
    check_all_captioned(trial, served, capsys.readouterr().out)
