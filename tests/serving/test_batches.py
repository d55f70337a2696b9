"""Batch jobs by HTTP: what may be read, how many run, and how a job is told of."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.serving.local import LocalBackend, tiny_captioner
from ureca.pipelines.caption_settings import CaptioningSettings
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.app import build_app
from ureca.pipelines.serving.batches import BatchJobs, BatchRequest
from ureca.serving.schemas import ApiError
from ureca.serving.service import Service

# Writes what it was told, waits to be let go, and ends with a status.
VERB = """
import json, pathlib, sys, time
output = pathlib.Path(sys.argv[-1])
output.mkdir()
(output / "run.json").write_text(json.dumps({"totals": {"num_images": 3}, "arguments": sys.argv[1:]}))
while not (output / "go").exists():
    time.sleep(0.01)
sys.exit(int((output / "go").read_text()))
"""


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    (tmp_path / "in" / "images").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    return ServeSettings(model="tiny", batches={"folders": [tmp_path / "in"], "output": tmp_path / "out"})


@pytest.fixture
def client(settings: ServeSettings) -> Any:
    jobs = BatchJobs(settings, os.environ, [sys.executable, "-c", VERB])
    app = build_app(Service(settings, LocalBackend(tiny_captioner())), [], batches=jobs)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client
    jobs.close()


def wait(client: TestClient, id: str, status: str) -> dict[str, Any]:
    ends = time.monotonic() + 30
    while (batch := client.get(f"/v1/batches/{id}").json())["status"] != status and time.monotonic() < ends:
        time.sleep(0.02)
    return dict(batch)


@pytest.mark.parametrize(("status", "told"), [(0, "completed"), (1, "failed")])
def test_a_job_runs_the_batch_verb_and_is_polled(client: TestClient, tmp_path: Path, status: int, told: str) -> None:
    body = {"input": str(tmp_path / "in" / "images"), "max_new_tokens": 100}
    assert client.post("/v1/batches", json={**body, "max_new_tokens": 257}).status_code == 422
    batch = client.post("/v1/batches", json=body).json()
    assert batch["status"] == "in_progress"
    run = Path(batch["output"]) / "run.json"
    while wait(client, batch["id"], "in_progress")["num_rows"] != 3:
        time.sleep(0.02)
    arguments = json.loads(run.read_text())["arguments"]
    assert arguments[2:] == [str(tmp_path / "in" / "images"), batch["output"]]
    # The service's own way of captioning, as the verb understands it.
    told_settings = CaptioningSettings.load(arguments)
    assert told_settings.model == "tiny" and told_settings.captioner.max_new_tokens == 100
    assert told_settings.resources.masks.num_actors == told_settings.resources.caption.num_actors == 1
    (Path(batch["output"]) / "go").write_text(str(status))
    assert wait(client, batch["id"], told)["status"] == told


@pytest.mark.parametrize("path", ["secret", "in/link", "in/../secret", "out", "in/images/none", "in/\0", "in/*"])
def test_only_what_lies_below_the_folders_is_read(client: TestClient, tmp_path: Path, path: str) -> None:
    answer = client.post("/v1/batches", json={"input": f"{tmp_path}/{path}"})
    assert answer.status_code == 422 and answer.json()["error"]["param"] == "input"
    assert not (tmp_path / "out").exists()


def test_no_more_jobs_run_than_may(client: TestClient, tmp_path: Path) -> None:
    body = {"input": str(tmp_path / "in" / "images")}
    first = client.post("/v1/batches", json=body).json()
    second = client.post("/v1/batches", json=body)
    assert (second.status_code, second.json()["error"]["code"]) == (429, "too_many_jobs")
    assert "retry-after" in second.headers
    while not Path(first["output"]).is_dir():
        time.sleep(0.02)
    (Path(first["output"]) / "go").write_text("0")
    wait(client, first["id"], "completed")
    assert client.post("/v1/batches", json=body).status_code == 200


def test_unknown_jobs_and_services_without_any(client: TestClient) -> None:
    assert client.get("/v1/batches/batch-1").json()["error"]["code"] == "unknown_batch"
    app = build_app(Service(ServeSettings(model="tiny"), LocalBackend(tiny_captioner())), [])
    with TestClient(app, base_url="http://127.0.0.1") as without:
        assert without.post("/v1/batches", json={"input": "/"}).status_code == 404


def test_jobs_end_with_the_service(settings: ServeSettings, tmp_path: Path) -> None:
    jobs = BatchJobs(settings, os.environ, [sys.executable, "-c", VERB])

    async def run() -> str:
        id = (await jobs.submit(BatchRequest(input=str(tmp_path / "in")))).id
        jobs.close()
        while (await jobs.get(id)).status == "in_progress":  # noqa: ASYNC110 - a process ends
            await asyncio.sleep(0.02)
        with pytest.raises(ApiError):
            await jobs.get("other")
        return (await jobs.get(id)).status

    assert asyncio.run(run()) == "failed"
