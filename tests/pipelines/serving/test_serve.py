"""The service on Ray Serve: responses, backpressure, disconnected clients, and a killed replica."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import httpx2
import openai
import psutil
import pytest
import torch
from ray import serve
from ray.exceptions import ActorDiedError

from tests.masks.generators.test_sam import build_tiny_sam
from tests.pipelines.serving.replicas import CAPTIONER, processes
from tests.pipelines.serving.requests import DISC, IMAGE, SQUARE, disc, events_of, request, square, with_alpha
from tests.pipelines.serving.tiny_sam import TinySamReplica, save_tiny_sam
from tests.serving.local import scene
from ureca.errors import CheckpointError, ClusterError, SettingsError
from ureca.masks import rle as rle_codec
from ureca.masks.generators.prompted_sam import PromptedSam
from ureca.masks.generators.sam import SamNetwork
from ureca.masks.prompts import Prompt
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_tiny
from ureca.pipelines import serve as serve_pipeline
from ureca.pipelines.batch.resources import Cluster
from ureca.pipelines.serve import APPLICATION, serving
from ureca.pipelines.serve_settings import ReplicaSettings, ServeSettings, ServingResources
from ureca.pipelines.serving import deployments as serving_deployments
from ureca.serving.settings import AccessSettings

PORT = 18437
TOKEN = "a-token-of-some-length"  # noqa: S105
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
SLOTS, QUEUE = 4, 8  # of a captioner's replica, and of the callers of both

SHORT = request(DISC, max_new_tokens=8)
LONG = request(DISC, max_new_tokens=100_000)


@cache
def endless_captioner() -> RegionCaptioner:
    """A captioner that never generates the end token."""
    model, processor = build_tiny()
    with torch.no_grad():
        model.lm_head.weight[processor.tokenizer.eos_token_id] = 0
    return RegionCaptioner(model, processor)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    endless_captioner().model.save_pretrained(folder)
    endless_captioner().processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address(ray_cluster: None, model: Path) -> Iterator[str]:
    captioners = ReplicaSettings(
        min_replicas=2,
        max_replicas=2,
        target_ongoing_requests=2,
        max_ongoing_requests=SLOTS,
        max_queued_requests=QUEUE,
        health_check_period_s=1,
        graceful_shutdown_timeout_s=1,
    )
    tokens = model / "tokens.txt"
    tokens.write_text(f"another-token-that-is-right\n{TOKEN}\n")
    settings = ServeSettings(
        model=str(model),
        port=PORT,
        captioner={"max_new_tokens": 100_000, "batch_size": 8},
        masks=save_tiny_sam(model / "sam.pth"),
        access=AccessSettings(tokens_file=tokens),
        resources=ServingResources(captioner=captioners),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving_deployments, "SegmenterReplica", TinySamReplica)
        with serving(settings) as address:
            yield address
    assert APPLICATION not in serve.status().applications


@pytest.fixture
def client(address: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=address, headers=HEADERS, timeout=60, trust_env=False) as client:
        yield client


def expected(number: int) -> list[str]:
    return endless_captioner().caption(scene(), [disc(), square()][:number], max_new_tokens=8)


def test_service_captions_regions(client: httpx2.Client) -> None:
    answer = client.post("/v1/captions", json=request(DISC, SQUARE, max_new_tokens=8)).json()
    assert [item["caption"] for item in answer["captions"]] == expected(2)
    everything = client.post("/v1/captions", json={"image": IMAGE, "max_new_tokens": 2, "lookalikes": True}).json()
    assert everything["segmenter"] == "sam vit_b sam.pth" and len(everything["captions"]) > 2
    parts = {"captioner": "ok", "segmenter": "ok"}
    assert client.get("/readyz").json() == {"status": "ok", "parts": parts, "error": None}
    problem = client.post("/v1/regions", json=request({"bbox_xywh": [900, 0, 1, 1]})).json()["error"]
    assert (problem["code"], problem["param"]) == ("outside", "regions[0].bbox_xywh")
    assert client.get("/v1/models", headers={"Authorization": "Bearer no"}).status_code == 401
    # Batch jobs need folders in the settings.
    assert client.post("/v1/batches", json={"input": "/"}).status_code == 404


def test_service_with_sam_segments_boxes_and_points(client: httpx2.Client) -> None:
    box = {"bbox_xywh": [44, 34, 16, 20]}
    points = {"points": [{"x": 20, "y": 20, "label": 1}, {"x": 70, "y": 40, "label": 0}]}
    answer = client.post("/v1/captions", json=request(box, DISC, points, max_new_tokens=8)).json()
    assert answer["segmenter"] == "sam vit_b sam.pth"
    prompts = [
        (0, Prompt(bbox_xywh=(44, 34, 16, 20))),
        (2, Prompt(points_xy=((20, 20), (70, 40)), labels=(1, 0))),
    ]
    of_box, of_points = PromptedSam.from_network(SamNetwork(build_tiny_sam())).masks(scene(), prompts)
    masks = [of_box.decode(), disc(), of_points.decode()]
    assert [rle_codec.decode(item["rle"]).tolist() for item in answer["captions"]] == [mask.tolist() for mask in masks]
    captions = endless_captioner().caption(scene(), masks, max_new_tokens=8)
    assert [item["caption"] for item in answer["captions"]] == captions


def test_stream_sends_regions_before_captions_are_finished(client: httpx2.Client) -> None:
    body = request(DISC, SQUARE, max_new_tokens=8, stream=True)
    names = [name for name, _ in events_of(client.post("/v1/captions", json=body).text)]
    assert names == ["regions", "caption", "caption", "done"]
    with client.stream("POST", "/v1/captions", json={**LONG, "stream": True}) as answer:
        assert next(answer.iter_lines()) == "event: regions"  # its caption takes a minute


def test_openai_client_gets_captions(address: str) -> None:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["ureca"]
        parts = [{"type": "image_url", "image_url": {"url": with_alpha(scene(), mask)}} for mask in (disc(), square())]
        messages = [{"role": "user", "content": parts}]
        answer = client.chat.completions.create(model="ureca", messages=messages, max_tokens=8)  # type: ignore[arg-type]
        assert [choice.message.content for choice in answer.choices] == expected(2)
        assert answer.usage is not None and answer.usage.completion_tokens > 0
        texts, ends, usage = ["", ""], [None, None], None
        for chunk in client.chat.completions.create(  # type: ignore[call-overload]
            model="ureca", messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
        ):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                ends[choice.index] = choice.finish_reason
            usage = chunk.usage
        assert texts == expected(2) and set(ends) <= {"stop", "length"}
        assert usage is not None and usage.completion_tokens == answer.usage.completion_tokens
        with pytest.raises(openai.NotFoundError, match="the model of this service is 'ureca'"):
            client.chat.completions.create(model="gpt", messages=messages)  # type: ignore[arg-type]
        with pytest.raises(openai.BadRequestError, match="image_url"):
            client.chat.completions.create(model="ureca", messages=[{"role": "user", "content": "hello"}])
    stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_full_queues_respond_429_and_disconnected_clients_free_their_slots(client: httpx2.Client) -> None:
    def ask() -> int:
        try:
            answer = client.post("/v1/captions", json=LONG, timeout=httpx2.Timeout(60, read=12))
        except httpx2.ReadTimeout:
            return 0
        if answer.status_code == 429:
            assert answer.headers["retry-after"] == "2"
            assert answer.json()["error"]["code"] == "queue_full"
        return answer.status_code

    with ThreadPoolExecutor(24) as clients:
        statuses = Counter(clients.map(lambda _: ask(), range(24)))
    assert set(statuses) == {0, 429}
    assert statuses[0] >= 2 * SLOTS
    # All other clients have disconnected. If they kept their slots, this request would be rejected.
    ends = time.monotonic() + 30
    while (answer := client.post("/v1/captions", json=SHORT)).status_code == 429 and time.monotonic() < ends:
        time.sleep(0.1)
    assert [item["caption"] for item in answer.json()["captions"]] == expected(1)


def test_killed_replica_fails_only_its_own_requests(client: httpx2.Client) -> None:
    body = request(DISC, max_new_tokens=300)
    answers: list[tuple[int, str | None]] = []
    ended = threading.Event()

    def ask_on() -> None:
        while not ended.is_set():
            answer = client.post("/v1/captions", json=body)
            code = answer.json()["error"]["code"] if answer.status_code != 200 else None
            assert answer.status_code == 200 or answer.headers["retry-after"] == "2"
            answers.append((answer.status_code, code))

    with ThreadPoolExecutor(6) as clients:
        asking = [clients.submit(ask_on) for _ in range(6)]
        try:
            while len(answers) < 6:
                time.sleep(0.05)
            victim, *_ = processes(psutil.Process(), CAPTIONER)
            victim.kill()
            before = len(answers)
            # The other replica continues, and a new one replaces the victim.
            while len(processes(psutil.Process(), CAPTIONER)) < 2 or victim.is_running() or len(answers) < before + 12:
                time.sleep(0.1)
        finally:
            ended.set()
        for task in asking:
            task.result()
    statuses = Counter(answers)
    assert set(statuses) <= {(200, None), (503, "replica_lost")}
    assert statuses[503, "replica_lost"] <= SLOTS
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("error", "says"), [(ActorDiedError(), "The actor died"), (TimeoutError(), r"TimeoutError\. The machine")]
)
def test_serving_where_serve_does_not_start_raises_cluster_error(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(**_: object) -> None:
        raise error

    monkeypatch.setattr(serve, "start", start)
    monkeypatch.setattr(serve_pipeline, "ray_session", lambda _: nullcontext(Cluster(2, 0, may_grow=True)))
    with (
        pytest.raises(ClusterError, match=rf"Ray Serve did not start: {says}.*; try again"),
        serving(ServeSettings()),
    ):
        pass


def test_serving_invalid_settings_raises_before_start(tmp_path: Path, model: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"), serving(ServeSettings(model=str(tmp_path))):
        pass
    open_to_all = ServeSettings(model=str(model), host="0.0.0.0")  # noqa: S104
    with pytest.raises(SettingsError, match="can be reached by other machines"), serving(open_to_all):
        pass
