"""A service whose device runs out of memory: it goes on, drops what it keeps, and replaces replicas that only fail."""

import time
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
import torch
from ray import serve

from tests.pipelines.serving.replicas import CAPTIONER, SEGMENTER, processes
from tests.pipelines.serving.requests import DISC, base64_of
from tests.pipelines.serving.test_serve import PORT
from tests.serving.local import scene
from ureca.images import Pixels
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.mask import Mask
from ureca.model.initialization import save_tiny
from ureca.model.prompt_encoder import EncodedImage, PromptEncoder
from ureca.pipelines.serve import APPLICATION, serving
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving import deployments as serving_deployments
from ureca.pipelines.serving.deployments import CaptionerReplica, SegmenterReplica

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

LACK = "CUDA out of memory. Tried to allocate 28.61 GiB"
MAX_FAILURES = 3
ROOM = 2  # encoded images beside which a captioner's device has no memory for another one
WHITE = np.full((60, 90, 3), 255, np.uint8)


def is_white(pixels: Any) -> bool:
    """Tells the image, or its tiles, for which there never is enough memory."""
    return bool((pixels == 255).all())


class CrampedCaptionerReplica(CaptionerReplica):
    """A captioner on a small device."""

    def __init__(self, settings: ServeSettings) -> None:
        encode_image = PromptEncoder.encode_image

        def encode_some(encoder: PromptEncoder, tiles: Any, prompt: Any = None, key: Any = None) -> EncodedImage:
            self._encoder = encoder
            if is_white(tiles) or (encoder.num_cached >= ROOM and key not in encoder._cached):
                raise torch.OutOfMemoryError(LACK)
            return encode_image(encoder, tiles, prompt, key)

        PromptEncoder.encode_image = encode_some  # type: ignore[method-assign]
        super().__init__(settings)

    async def num_cached(self) -> int:
        """Return the number of images whose prefixes are kept."""
        return self._encoder.num_cached


class CrampedSegmenterReplica(SegmenterReplica):
    """A segmenter on a small device."""

    def __init__(self, settings: ServeSettings) -> None:
        generate = SegmentsMaskGenerator.generate

        def generate_some(generator: Any, image: Pixels, *arguments: Any, **options: Any) -> list[Mask]:
            if is_white(image):
                raise torch.OutOfMemoryError(LACK)
            return generate(generator, image, *arguments, **options)

        SegmentsMaskGenerator.generate = generate_some  # type: ignore[method-assign]
        super().__init__(settings)


@pytest.fixture(scope="module")
def client(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    model = tmp_path_factory.mktemp("model")
    save_tiny(model)
    quick = {"health_check_period_s": 0.5, "graceful_shutdown_timeout_s": 1}
    settings = ServeSettings.model_validate(
        {
            "model": str(model),
            "port": PORT,
            "captioner": {"max_new_tokens": 4},
            "limits": {"max_failures": MAX_FAILURES},
            "resources": {"captioner": quick, "segmenter": quick},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving_deployments, "CaptionerReplica", CrampedCaptionerReplica)
        patch.setattr(serving_deployments, "SegmenterReplica", CrampedSegmenterReplica)
        with serving(settings) as address, httpx2.Client(base_url=address, timeout=60, trust_env=False) as client:
            yield client


def captions(client: httpx2.Client, pixels: Pixels) -> list[str]:
    body = {"image": base64_of(pixels), "regions": [DISC]}
    answer = client.post("/v1/captions", json=body).raise_for_status().json()
    return [item["caption"] for item in answer["captions"]]


def num_cached() -> int:
    return int(serve.get_deployment_handle("captioner", APPLICATION).num_cached.remote().result(timeout_s=60))


def assert_out_of_memory(answer: httpx2.Response) -> None:
    problem = answer.json()["error"]
    assert (answer.status_code, problem["code"]) == (503, "out_of_memory"), problem
    assert "28.61 GiB" in problem["message"]
    assert int(answer.headers["Retry-After"]) > 0


def wait_for_another(role: str, first: psutil.Process, answers: Any) -> None:
    """Wait until a replica is replaced and its successor answers."""
    ends = time.monotonic() + 240
    while True:
        assert time.monotonic() < ends, f"{role} was not replaced"
        time.sleep(0.2)
        others = [process for process in processes(psutil.Process(), role) if process.pid != first.pid]
        if others and not first.is_running() and answers():
            return


def test_captioner_out_of_memory_drops_prefixes_and_is_replaced_after_failures_in_a_row(client: httpx2.Client) -> None:
    expected = [captions(client, scene(seed=seed)) for seed in (0, 1)]
    assert num_cached() == ROOM
    # No memory beside the kept prefixes: they are dropped, and the request is answered.
    expected.append(captions(client, scene(seed=2)))
    assert num_cached() == 1

    white = {"image": base64_of(WHITE), "regions": [DISC]}
    for _ in range(MAX_FAILURES - 1):
        assert_out_of_memory(client.post("/v1/captions", json=white))
    assert num_cached() == 0
    assert captions(client, scene(seed=0)) == expected[0]  # ends the failures in a row

    (failing,) = processes(psutil.Process(), CAPTIONER)
    for _ in range(MAX_FAILURES):
        assert_out_of_memory(client.post("/v1/captions", json=white))
    ready = lambda: client.get("/readyz").json()["parts"]["captioner"] == "ok"  # noqa: E731
    wait_for_another(CAPTIONER, failing, ready)
    assert [captions(client, scene(seed=seed)) for seed in range(3)] == expected


def test_segmenter_out_of_memory_is_replaced_after_failures_in_a_row(client: httpx2.Client) -> None:
    white = {"image": base64_of(WHITE)}
    good = {"image": base64_of(scene())}
    expected = client.post("/v1/regions", json=good).raise_for_status().json()["regions"]
    for _ in range(MAX_FAILURES - 1):
        assert_out_of_memory(client.post("/v1/regions", json=white))
    # Another image than the one whose masks are kept.
    client.post("/v1/regions", json={"image": base64_of(scene(seed=3))}).raise_for_status()

    (failing,) = processes(psutil.Process(), SEGMENTER)
    for _ in range(MAX_FAILURES):
        assert_out_of_memory(client.post("/v1/regions", json=white))
    ready = lambda: client.get("/readyz").json()["parts"]["segmenter"] == "ok"  # noqa: E731
    wait_for_another(SEGMENTER, failing, ready)
    assert client.post("/v1/regions", json=good).raise_for_status().json()["regions"] == expected
