"""The HTTP app, with the backend in the test's process."""

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.pipelines.serving.requests import DISC, IMAGE, SQUARE, disc, events_of, file_of, request, square, with_alpha
from tests.serving.local import LocalBackend, scene, tiny_captioner
from ureca.captioning.engine import CaptionJob, GeneratedCaption
from ureca.masks import rle as rle_codec
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.app import build_app
from ureca.pipelines.serving.batches import BatchProcesses
from ureca.pipelines.serving.middleware import RequestTracker, digest_token
from ureca.serving.schemas import ApiError

SETTINGS: dict[str, Any] = {"model": "tiny", "captioner": {"max_new_tokens": 8}}


def client_of(backend: LocalBackend | None = None, tokens: tuple[str, ...] = (), **changes: Any) -> TestClient:
    app = build_app(
        ServeSettings(**{**SETTINGS, **changes}),
        backend or LocalBackend(tiny_captioner()),
        [digest_token(token) for token in tokens],
    )
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of() as client:
        yield client


def expected(*insides: np.ndarray) -> list[str]:
    return tiny_captioner().caption(scene(), list(insides), max_new_tokens=8)


def test_captions_are_in_the_order_of_the_regions(client: TestClient) -> None:
    answer = client.post("/v1/captions", json=request(SQUARE, DISC, model="ureca")).json()
    assert [item["caption"] for item in answer["captions"]] == expected(square(), disc())
    assert [item["region_id"] for item in answer["captions"]] == [0, 1]
    assert [item["area_px"] for item in answer["captions"]] == [int(square().sum()), int(disc().sum())]
    assert {item["finish_reason"] for item in answer["captions"]} <= {"stop", "length"}
    assert (answer["model"], answer["image"], answer["segmenter"]) == ("ureca", {"height": 60, "width": 90}, None)
    assert answer["timings"]["total_s"] > 0


def test_regions_of_a_response_can_be_sent_back(client: TestClient) -> None:
    found = client.post("/v1/regions", json={"image": IMAGE}).json()
    assert found["segmenter"] == "segments-2" and len(found["regions"]) > 2
    again = [{"rle": region["rle"], "region_id": region["region_id"]} for region in found["regions"]]
    everything = client.post("/v1/captions", json={"image": IMAGE}).json()
    given = client.post("/v1/captions", json={"image": IMAGE, "regions": again}).json()
    names = ("region_id", "rle", "bbox_xywh", "area_px", "parent_id", "depth")
    for region, first, second in zip(found["regions"], everything["captions"], given["captions"], strict=True):
        assert {name: region[name] for name in names} == {name: first[name] for name in names}
        assert {name: region[name] for name in names} == {name: second[name] for name in names}
        assert first["caption"] == second["caption"]


def test_regions_points_and_boxes_are_segmented(client: TestClient) -> None:
    point, box = {"points": [{"x": 20, "y": 20, "label": 1}]}, {"bbox_xywh": [44, 34, 16, 20]}
    answer = client.post("/v1/regions", json=request(point, SQUARE, box)).json()
    assert answer["segmenter"] == "segments-2"
    first, second, third = (
        rle_codec.decode({"size": list(region["rle"]["size"]), "counts": region["rle"]["counts"]})
        for region in answer["regions"]
    )
    assert (first & disc()).sum() > 0.9 * (first | disc()).sum()
    assert (second == square()).all()
    assert (third & square()).sum() > 0.9 * (third | square()).sum()


def test_captions_multipart_body_is_parsed(client: TestClient) -> None:
    files = {"image": ("scene.png", file_of(scene()), "image/png")}
    answer = client.post("/v1/captions", files=files, data={"request": json.dumps({"regions": [DISC]})})
    assert [item["caption"] for item in answer.json()["captions"]] == expected(disc())
    assert len(client.post("/v1/regions", files=files).json()["regions"]) > 2


def test_captions_lookalikes_are_returned(client: TestClient) -> None:
    other = {"polygon": [[66, 34, 82, 34, 82, 54, 66, 54]]}
    answer = client.post("/v1/captions", json=request(SQUARE, DISC, other, lookalikes=True)).json()
    assert [item["lookalike_ids"] for item in answer["captions"]] == [[2], [], [0]]


def test_stream_sends_regions_captions_and_done(client: TestClient) -> None:
    whole = client.post("/v1/captions", json=request(SQUARE, DISC)).json()
    answer = client.post("/v1/captions", json=request(SQUARE, DISC, stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    (first, head), *captions, (last, end) = events_of(answer.text)
    assert (first, last) == ("regions", "done")
    assert [region["region_id"] for region in json.loads(head)["regions"]] == [0, 1]
    assert {name for name, _ in captions} == {"caption"}
    assert sorted((json.loads(data) for _, data in captions), key=lambda item: item["region_id"]) == whole["captions"]
    assert json.loads(end)["num_captions"] == 2


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_chat_returns_a_choice_per_image(client: TestClient) -> None:
    parts = [image_part(with_alpha(scene(), disc())), image_part(with_alpha(scene(seed=1), disc()))]
    parts.append(image_part(with_alpha(scene(), square())))
    body = {"model": "ureca", "messages": [{"role": "user", "content": parts}]}
    answer = client.post("/v1/chat/completions", json=body).json()
    contents = [choice["message"]["content"] for choice in answer["choices"]]
    other = tiny_captioner().caption(scene(seed=1), [disc()], max_new_tokens=8)
    assert contents == [expected(disc())[0], other[0], expected(square())[0]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("captions", {}, 422, "missing_image", "image"),
        ("captions", {"image": "%"}, 422, "not_base64", "image"),
        ("captions", {"image": "QUJD"}, 422, "not_an_image", "image"),
        ("captions", {"image": IMAGE, "regions": []}, 422, "malformed", "regions"),
        ("captions", request({}), 422, "malformed", "regions[0]"),
        ("captions", request(DISC, {**DISC, **SQUARE}), 422, "malformed", "regions[1]"),
        ("captions", request({"rle": {"size": [1, 1], "counts": "1"}}), 422, "size_mismatch", "regions[0].rle"),
        ("captions", request({"points": [{"x": "1", "y": 1}]}), 422, "malformed", "regions[0].points[0].x"),
        ("captions", request(DISC, model="other"), 404, "unknown_model", "model"),
        ("captions", request(DISC, max_new_tokens=9), 422, "too_many_tokens", "max_new_tokens"),
        ("captions", request(DISC, colour="red"), 422, "malformed", "colour"),
        ("captions", {"image": "http://169.254.169.254/latest"}, 422, "host_not_allowed", "image"),
        ("regions", request(DISC, stream=True), 422, "malformed", "stream"),
        ("chat/completions", {"model": "ureca", "messages": []}, 400, "malformed", "messages"),
        (
            "chat/completions",
            {"model": "ureca", "messages": [{"role": "user", "content": "hello"}]},
            400,
            "missing_image",
            "messages[0].content",
        ),
        (
            "chat/completions",
            {
                "model": "ureca",
                "messages": [{"role": "user", "content": [image_part(with_alpha(scene(), disc() & square()))]}],
            },
            400,
            "empty_mask",
            "messages[0].content[0].image_url",
        ),
    ],
)
def test_invalid_request_gets_status_code_and_param(  # noqa: PLR0917
    client: TestClient, path: str, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = client.post(f"/v1/{path}", json=body)
    problem = answer.json()["error"]
    assert (answer.status_code, problem["code"], problem["param"]) == (status, code, param)
    streamed = client.post(f"/v1/{path}", json={**body, "stream": True})
    assert streamed.status_code == status  # an error before the first event has its own status


def test_image_over_the_pixel_limit_gets_422() -> None:
    with client_of(limits={"image": {"max_pixels": 5399}}) as client:
        problem = client.post("/v1/captions", json=request(DISC)).json()["error"]
        assert (problem["code"], problem["param"]) == ("too_many_pixels", "image")
        parts = [image_part(with_alpha(scene()[:30], disc()[:30])), image_part(with_alpha(scene()[30:], disc()[:30]))]
        body = {"model": "ureca", "messages": [{"role": "user", "content": parts * 2}]}
        assert client.post("/v1/chat/completions", json=body).json()["error"]["code"] == "too_many_pixels"


def test_body_over_the_limit_gets_413_with_and_without_content_length() -> None:
    with client_of(limits={"max_body_bytes": 5000}) as client:
        stated = client.post("/v1/captions", content=b"x" * 5001, headers={"content-type": "application/json"})
        assert (stated.status_code, stated.json()["error"]["code"]) == (413, "too_many_bytes")
        chunks = (b"x" * 100 for _ in range(100))
        unstated = client.post("/v1/captions", content=chunks, headers={"content-type": "application/json"})
        assert (unstated.status_code, unstated.json()["error"]["code"]) == (413, "too_many_bytes")


def test_unsupported_method_content_type_or_path_gets_error(client: TestClient) -> None:
    assert client.post("/v1/captions", content=b"a,b", headers={"content-type": "text/csv"}).status_code == 415
    form = client.post("/v1/chat/completions", files={"image": b"x"})
    assert (form.status_code, form.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert client.get("/v1/captions").json()["error"]["code"] == "method_not_allowed"
    assert client.get("/nowhere").json()["error"]["code"] == "not_found"
    broken = client.post("/v1/captions", content=b"--x", headers={"content-type": "multipart/form-data; boundary=x"})
    assert broken.status_code == 422


def test_foreign_host_header_gets_400(client: TestClient) -> None:
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400


TOKEN = "a-token-of-some-length"  # noqa: S105


def test_host_name_of_a_reverse_proxy_is_accepted_if_it_is_configured() -> None:
    settings = ServeSettings.model_validate({**SETTINGS, "access": {"host_names": ["captions.example"]}})
    with TestClient(build_app(settings, LocalBackend(tiny_captioner()))) as client:
        for host, status in (("captions.example", 200), ("captions.example:443", 200), ("evil.example", 400)):
            assert client.get("/v1/models", headers={"Host": host}).status_code == status


def test_request_without_valid_token_gets_401() -> None:
    with client_of(tokens=("another-token-there-is", TOKEN)) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer "}):
            answer = client.post("/v1/captions", json=request(DISC), headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert client.post("/v1/captions", json=request(DISC), headers=right).status_code == 200
        assert client.get("/v1/models", headers=right).json()["data"][0]["id"] == "ureca"
        assert client.get("/v1/models").status_code == 401
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


class BlockedBackend(LocalBackend):
    """A backend whose captions wait until it is released; counts cancelled requests."""

    def __init__(self) -> None:
        super().__init__(tiny_captioner())
        self.num_waiting = 0
        self.num_cancelled = 0
        self.released = threading.Event()

    async def caption(self, job: CaptionJob) -> list[GeneratedCaption]:
        await self._wait()
        return await super().caption(job)

    async def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        yield (await super().caption(job))[0]
        await self._wait()

    async def _wait(self) -> None:
        self.num_waiting += 1
        try:
            while not self.released.is_set():  # noqa: ASYNC110 - a thread sets it
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_waiting -= 1


def test_timeout_frees_the_slot() -> None:
    backend = BlockedBackend()
    with client_of(backend, limits={"timeout_s": 0.5, "max_in_flight": 1}) as client:
        for _ in range(2):  # the second would be rejected if the first kept its slot
            answer = client.post("/v1/captions", json=request(DISC))
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        *_, (name, data) = events_of(client.post("/v1/captions", json=request(DISC, SQUARE, stream=True)).text)
        assert (name, json.loads(data)["error"]["code"]) == ("error", "timeout")
    assert (backend.num_cancelled, backend.num_waiting) == (3, 0)


def test_requests_beyond_max_in_flight_get_429() -> None:
    backend = BlockedBackend()
    answers: list[int] = []
    with client_of(backend, limits={"max_in_flight": 2, "retry_after_s": 7}) as client:

        def send() -> None:
            answers.append(client.post("/v1/captions", json=request(DISC)).status_code)

        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        while backend.num_waiting < 2:
            time.sleep(0.01)
        rejected = client.post("/v1/captions", json=request(DISC))
        assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "7")
        assert rejected.json()["error"]["retry_after_s"] == 7
        assert client.get("/healthz").status_code == 200
        backend.released.set()
        for thread in threads:
            thread.join()
    assert answers == [200, 200]


def test_drain_finishes_requests_in_flight_and_rejects_others() -> None:
    backend, tracker = BlockedBackend(), RequestTracker()
    app = build_app(ServeSettings(**SETTINGS), backend, tracker=tracker)
    with TestClient(app, base_url="http://127.0.0.1") as client, ThreadPoolExecutor(1) as other:
        answer = other.submit(client.post, "/v1/captions", json=request(DISC))
        while not backend.num_waiting:
            time.sleep(0.01)
        assert client.portal is not None
        drained = client.portal.start_task_soon(tracker.drain)
        while not tracker.is_draining:
            time.sleep(0.01)
        rejected = client.post("/v1/captions", json=request(DISC))
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "ending")
        assert client.get("/readyz").status_code == 503
        assert not drained.done()
        backend.released.set()
        assert answer.result().status_code == 200
        drained.result(30)


class BrokenBackend(LocalBackend):
    """A backend with a bug in `caption`, and an API error in the middle of a stream."""

    async def caption(self, job: CaptionJob) -> list[GeneratedCaption]:
        raise RuntimeError("the secret of a bug")

    async def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        yield GeneratedCaption(0, "text", 1, "stop")
        raise ApiError(503, "replica_lost", "it was lost", retry_after_s=7)


def test_internal_error_hides_its_details_and_logs_them(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray, once it runs in this process, stops the propagation of its loggers.
    for name in ("ray", "ray.serve"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    with client_of(BrokenBackend(tiny_captioner()), tokens=(TOKEN,)) as client, caplog.at_level(logging.DEBUG):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = client.post("/v1/captions", json=request(DISC), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in answer.text and "Traceback" not in answer.text
        *_, (name, data) = events_of(
            client.post("/v1/captions", json=request(DISC, SQUARE, stream=True), headers=headers).text
        )
        error = json.loads(data)["error"]
        assert (name, error["code"], error["retry_after_s"]) == ("error", "replica_lost", 7)
    logged = caplog.text
    assert "the secret of a bug" in logged  # the log has the details
    assert TOKEN not in logged and IMAGE[:60] not in logged and DISC["mask_png"][:60] not in logged


def test_readyz_names_the_unavailable_part() -> None:
    class HalfReadyBackend(LocalBackend):
        async def ready(self) -> dict[str, bool]:
            return {"captioner": True, "segmenter": False}

    with client_of(HalfReadyBackend(tiny_captioner())) as client:
        answer = client.get("/readyz")
        assert answer.status_code == 503
        problem = answer.json().pop("error")
        assert (problem["code"], problem["retry_after_s"], answer.headers["retry-after"]) == ("not_ready", 2, "2")
        parts = {"captioner": "ok", "segmenter": "unavailable"}
        assert answer.json() == {"status": "unavailable", "parts": parts, "error": problem}


def test_service_without_model_states_facts_and_answers_no_questions() -> None:
    with client_of(LocalBackend(None), model=None, captioner={}) as client:
        [model] = client.get("/v1/models").json()["data"]
        assert (model["id"], model["answers_questions"], model["question"]) == ("rule-based", False, None)
        answer = client.post("/v1/captions", json=request(DISC, SQUARE)).json()
        first, second = (item["caption"] for item in answer["captions"])
        assert "red" in first and "blue" in second
        asked = client.post("/v1/captions", json=request(DISC, question="What is it?"))
        assert (asked.status_code, asked.json()["error"]["param"]) == (422, "question")
        parts = [image_part(with_alpha(scene(), disc())), {"type": "text", "text": "Describe this region."}]
        body = {"model": "rule-based", "messages": [{"role": "user", "content": parts}], "max_tokens": 500}
        assert client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == first
        events = [name for name, _ in events_of(client.post("/v1/captions", json=request(DISC, stream=True)).text)]
        assert events == ["regions", "caption", "done"]


def test_partial_captions_are_streamed_on_request() -> None:
    with client_of(captioner={"max_new_tokens": 40}) as client:
        events = events_of(client.post("/v1/captions", json=request(DISC, stream=True, partial=True)).text)
    texts = [json.loads(data)["text"] for name, data in events if name == "partial"]
    [whole] = [json.loads(data)["caption"] for name, data in events if name == "caption"]
    assert texts and all(whole.startswith(text) for text in texts)


def test_openapi_examples_are_accepted(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    num_examples = 0
    for path, operations in document["paths"].items():
        if "post" in operations:
            for example in operations["post"]["requestBody"]["content"]["application/json"]["examples"].values():
                body = {**example["value"]} | ({"max_tokens": 8} if "chat" in path else {})
                answer = client.post(path, json=body)
                assert answer.status_code == 200, answer.text
                num_examples += 1
    assert num_examples == 7
    assert client.get("/docs").status_code == 200


def test_page_files_are_served_without_token(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<title>the page</title>")
    app = build_app(ServeSettings(**SETTINGS), LocalBackend(tiny_captioner()), [digest_token(TOKEN)], page=tmp_path)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert "the page" in client.get("/").text
        assert client.get("/../pyproject.toml").status_code == 404
        assert client.get("/healthz").json()["status"] == "ok"


BATCHES = TemporaryDirectory(ignore_cleanup_errors=True)


def complete_app() -> FastAPI:
    """The app with all routes; batch jobs exit at once, and may read any path."""
    batches = {"folders": ["/"], "output": BATCHES.name, "max_jobs": 10_000}
    # The client sends a foreign Host header, which a loopback service rejects.
    settings = ServeSettings(**SETTINGS, host="0.0.0.0", batches=batches)  # noqa: S104
    jobs = BatchProcesses(settings, ["true"], os.environ)
    return build_app(settings, LocalBackend(tiny_captioner()), batches=jobs)


schema = schemathesis.openapi.from_asgi("/openapi.json", complete_app())


@schema.parametrize()
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_requests_of_the_openapi_schema_never_fail(case: schemathesis.Case) -> None:
    # The schema cannot express that a string is an image, or a mask of its size. Data that is invalid as JSON may be
    # valid as a form: an empty list is an absent field.
    # A body above the size limit is refused with 413 before its content is checked.
    response = case.call()
    is_unchecked = case.media_type == "multipart/form-data" or response.status_code == 413
    excluded = [positive_data_acceptance, *([negative_data_rejection] if is_unchecked else [])]
    case.validate_response(response, excluded_checks=excluded)
