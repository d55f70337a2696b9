"""`ureca serve --engine vllm`: captions of transformers over HTTP, and a killed engine; run by ``make long-vllm``."""

import base64
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.vllm.reference import NUM_NEW_TOKENS, draw_inputs
from ureca.masks import rle as rle_codec

pytest.importorskip("vllm", reason="needs the environment of `make long-vllm`")

pytestmark = [pytest.mark.long, pytest.mark.timeout(1700)]

CHECKPOINTS = ["convolutional"]
PORT = 18461
ENGINE = '{"enforce_eager": true, "block_size": 32, "max_num_seqs": 16}'
ENGINE_NAME = "EngineCor"
"""Part of the name of vLLM's process, VLLM::EngineCore, of which the kernel keeps 15 characters."""

LONGEST_WAIT_S = 600.0


@pytest.fixture(scope="module")
def service(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        *(sys.executable, "-m", "ureca.jobs.cli", "serve", "--model", str(checkpoints / "convolutional")),
        *("--engine", "vllm", "--dtype", "float32", "--port", str(PORT), "--limits.timeout-s", "300"),
        *("--captioner.max-new-tokens", str(NUM_NEW_TOKENS), "--vllm.max-model-len", "2048"),
        *("--vllm.engine-options", ENGINE),
    ]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            wait_until_ready(process, log)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path | None = None) -> None:
    deadline = time.monotonic() + LONGEST_WAIT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log and log.read_text()[-4000:]
        try:
            if httpx2.get(f"http://127.0.0.1:{PORT}/readyz", timeout=10, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(log and log.read_text()[-4000:])


def request_of(image: Any, masks: list[Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    regions = [{"rle": {"size": list(mask.shape), "counts": rle_codec.encode(mask)["counts"]}} for mask in masks]
    return {"image": base64.b64encode(buffer.getvalue()).decode(), "regions": regions}


def expected_texts(checkpoint: Path) -> list[list[str]]:
    from ureca.model.processing import UrecaProcessor
    from ureca.model.vllm import register

    register()  # vLLM does so in its own processes
    processor = UrecaProcessor.from_pretrained(checkpoint)
    reference = json.loads((checkpoint / "reference.json").read_text())
    return [
        [processor.decode(tokens, skip_special_tokens=True).strip() for tokens in of_image]
        for of_image in reference["regions"]
    ]


def post(path: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"http://127.0.0.1:{PORT}{path}", json=body, timeout=400, trust_env=False)


def test_service_by_vllm_gives_the_captions_of_transformers(
    service: subprocess.Popen[bytes], checkpoints: Path
) -> None:
    expected = expected_texts(checkpoints / "convolutional")
    for (image, masks), texts in zip(draw_inputs(), expected, strict=True):
        response = post("/v1/captions", request_of(image, masks))
        assert response.status_code == 200, response.text
        captions = sorted(response.json()["captions"], key=lambda caption: caption["region_id"])
        assert [caption["caption"] or "" for caption in captions] == texts


def test_service_by_vllm_streams_and_answers_openai_clients(
    service: subprocess.Popen[bytes], checkpoints: Path
) -> None:
    import openai

    expected = expected_texts(checkpoints / "convolutional")
    image, masks = draw_inputs()[0]
    body = {**request_of(image, masks[:2]), "stream": True, "partial": True}
    with httpx2.stream(
        "POST", f"http://127.0.0.1:{PORT}/v1/captions", json=body, timeout=400, trust_env=False
    ) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert set(expected[0][:2]) <= {json.loads(event).get("caption") for event in events if event.startswith("{")}
    rgba = io.BytesIO()
    Image.fromarray(np.dstack([image, masks[1].astype(np.uint8) * 255]), "RGBA").save(rgba, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(rgba.getvalue()).decode()}"
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", timeout=400)
    completion = client.chat.completions.create(
        model="ureca",
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
    )
    assert completion.choices[0].message.content == expected[0][1]


def test_service_whose_vllm_is_killed_answers_503_and_recovers(
    service: subprocess.Popen[bytes], checkpoints: Path
) -> None:
    children = psutil.Process(service.pid).children(recursive=True)
    engines = [child for child in children if ENGINE_NAME in child.name()]
    assert engines, [child.name() for child in children]
    for engine in engines:
        engine.kill()
    image, masks = draw_inputs()[2]
    body = request_of(image, masks[:2])
    statuses = []
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not statuses or statuses[-1] != 200:
        assert time.monotonic() < deadline
        response = post("/v1/captions", body)
        statuses.append(response.status_code)
        assert response.status_code in {200, 503, 504}, response.text
        time.sleep(1)
    captions = sorted(response.json()["captions"], key=lambda caption: caption["region_id"])
    assert [caption["caption"] for caption in captions] == expected_texts(checkpoints / "convolutional")[2][:2]
    assert 503 in statuses
