"""`examples/ray_serve_llm.py`: ``ray.serve.llm`` with a checkpoint, against transformers; run by ``make long-vllm``."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.clients import Client, check_regions, image_part, png
from tests.vllm.reference import QUESTION, draw_inputs

pytest.importorskip("vllm", reason="needs the environment of `make long-vllm`")

pytestmark = [pytest.mark.long, pytest.mark.timeout(1700)]

CHECKPOINTS = ["convolutional"]
EXAMPLE = Path(__file__).parents[2] / "examples/ray_serve_llm.py"
PORT = 18463
ENGINE = {"dtype": "float32", "block_size": 32, "max_num_seqs": 16, "max_model_len": 2048}


@pytest.fixture(scope="module")
def client(checkpoints: Path) -> Iterator[Client]:
    import ray
    from ray import serve

    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    checkpoint = checkpoints / "convolutional"
    serve.run(runpy.run_path(str(EXAMPLE))["build"](str(checkpoint), **ENGINE), name="ureca")
    yield Client(PORT, "ureca", checkpoint)
    serve.shutdown()
    ray.shutdown()


def test_ray_serve_llm_generates_the_token_ids_of_transformers(client: Client, checkpoints: Path) -> None:
    check_regions(client, checkpoints / "convolutional")


def test_ray_serve_llm_refuses_wrong_requests_by_name(client: Client) -> None:
    import openai

    image, _ = draw_inputs()[0]
    text = {"type": "text", "text": QUESTION}
    with pytest.raises(openai.BadRequestError, match=r"At most 1 image\(s\) may be provided"):
        client.send([image_part(png(image)), image_part(png(image)), text])
    with pytest.raises(openai.BadRequestError, match="Failed to load image: cannot identify image file"):
        client.send([image_part(b"<html></html>"), text])
    assert client.ask(image)
