"""Batch jobs over HTTP: allowed inputs, the limit of running jobs, and their status."""

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
from ureca.pipelines.serving.batches import BatchProcesses
from ureca.serving.schemas import ApiError, BatchRequest

# A stand-in for `ureca caption`: writes its arguments to run.json, waits for the file `go`, and exits with its status.
COMMAND = """
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
    jobs = BatchProcesses(settings, [sys.executable, "-c", COMMAND], os.environ)
    app = build_app(settings, LocalBackend(tiny_captioner()), batches=jobs)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client
    jobs.close()


def wait(client: TestClient, id: str, status: str) -> dict[str, Any]:
    ends = time.monotonic() + 30
    while (batch := client.get(f"/v1/batches/{id}").json())["status"] != status and time.monotonic() < ends:
        time.sleep(0.02)
    return dict(batch)


@pytest.mark.parametrize(("exit_status", "status"), [(0, "completed"), (1, "failed")])
def test_batch_job_runs_the_command_and_reports_its_status(
    client: TestClient, tmp_path: Path, exit_status: int, status: str
) -> None:
    body = {"input": str(tmp_path / "in" / "images"), "max_new_tokens": 100}
    assert client.post("/v1/batches", json={**body, "max_new_tokens": 257}).status_code == 422
    batch = client.post("/v1/batches", json=body).json()
    assert batch["status"] == "in_progress"
    run = Path(batch["output"]) / "run.json"
    while wait(client, batch["id"], "in_progress")["num_rows"] != 3:
        time.sleep(0.02)
    arguments = json.loads(run.read_text())["arguments"]
    assert arguments[2:] == [str(tmp_path / "in" / "images"), batch["output"]]
    # The service's generation settings, as parsed by the command.
    job_settings = CaptioningSettings.load(arguments)
    assert job_settings.model == "tiny" and job_settings.captioner.max_new_tokens == 100
    assert job_settings.listing.only_below == (str(tmp_path / "in"),)
    assert job_settings.resources.masks.num_actors == job_settings.resources.caption.num_actors == 1
    # Renamed into place: the job reads it as soon as it exists.
    (Path(batch["output"]) / "going").write_text(str(exit_status))
    (Path(batch["output"]) / "going").rename(Path(batch["output"]) / "go")
    assert wait(client, batch["id"], status)["status"] == status


@pytest.mark.parametrize("path", ["secret", "in/link", "in/../secret", "out", "in/images/none", "in/\0", "in/*"])
def test_batch_input_outside_the_folders_is_rejected(client: TestClient, tmp_path: Path, path: str) -> None:
    answer = client.post("/v1/batches", json={"input": f"{tmp_path}/{path}"})
    assert answer.status_code == 422 and answer.json()["error"]["param"] == "input"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["loop", "loop/a", "x" * 4000, "/".join("ab" * 500), "~", "\n", "\u202e", "a\u0000b"])
def test_batch_input_that_is_no_path_is_rejected(client: TestClient, tmp_path: Path, name: str) -> None:
    (tmp_path / "in" / "loop").symlink_to("loop")
    for path in (str(tmp_path / "in" / name), name, f"file://{tmp_path}/in/{name}", f"--config={name}"):
        answer = client.post("/v1/batches", json={"input": path[:4096]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input")


def test_batch_beyond_max_jobs_gets_429(client: TestClient, tmp_path: Path) -> None:
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


def test_batch_unknown_or_disabled_gets_404(client: TestClient) -> None:
    assert client.get("/v1/batches/batch-1").json()["error"]["code"] == "unknown_batch"
    app = build_app(ServeSettings(model="tiny"), LocalBackend(tiny_captioner()))
    with TestClient(app, base_url="http://127.0.0.1") as without:
        assert without.post("/v1/batches", json={"input": "/"}).status_code == 404


def test_close_terminates_running_jobs(settings: ServeSettings, tmp_path: Path) -> None:
    jobs = BatchProcesses(settings, [sys.executable, "-c", COMMAND], os.environ)

    async def run() -> str:
        id = (await jobs.submit(BatchRequest(input=str(tmp_path / "in")))).id
        jobs.close()
        while (await jobs.get(id)).status == "in_progress":  # noqa: ASYNC110 - the subprocess exits
            await asyncio.sleep(0.02)
        with pytest.raises(ApiError):
            await jobs.get("other")
        return (await jobs.get(id)).status

    assert asyncio.run(run()) == "failed"
