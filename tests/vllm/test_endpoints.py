"""A real `vllm serve` of a checkpoint: the official client, and `ureca caption --engine openai`; ``make long-vllm``."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.cluster.manifests import CLUSTER, ROOT
from tests.vllm.clients import Client, check_regions, image_part, png, with_alpha
from tests.vllm.conftest import LIBRARY_PYTHON
from tests.vllm.reference import QUESTION, draw_inputs
from tests.vllm.test_caption import MAX_MASKS, Captions, captions, command, images

pytest.importorskip("vllm", reason="needs the environment of `make long-vllm`")

pytestmark = [pytest.mark.long, pytest.mark.timeout(1700)]

CHECKPOINTS = ["convolutional"]
PORT = 18462
NAME = "ureca-tiny"
LONGEST_WAIT_S = 600.0
__all__ = ["images"]


class Server:
    """`vllm serve` of a checkpoint, which can be killed and started again."""

    port = PORT

    def __init__(self, checkpoint: Path, log: Path) -> None:
        self.checkpoint, self._log = checkpoint, log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def command(self) -> list[str]:
        limits = {"image": 1, "mask": 1, "video": 0}
        return [
            *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(self.checkpoint)),
            *("--served-model-name", NAME, "--port", str(PORT), "--host", "127.0.0.1", "--dtype", "float32"),
            *("--enforce-eager", "--block-size", "32", "--max-num-seqs", "16", "--max-model-len", "2048"),
            *("--limit-mm-per-prompt", json.dumps(limits)),
            *("--media-io-kwargs", json.dumps({"image": {"image_mode": "RGBA"}})),
        ]

    def start(self, **options: int) -> None:
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                self.command(**options), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        deadline = time.monotonic() + LONGEST_WAIT_S
        while time.monotonic() < deadline:
            assert self._process is not None and self._process.poll() is None, self._log.read_text()[-4000:]
            try:
                if httpx2.get(f"http://127.0.0.1:{self.port}/health", timeout=10, trust_env=False).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            time.sleep(0.5)
        raise AssertionError(self._log.read_text()[-4000:])

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(checkpoints / "convolutional", tmp_path_factory.mktemp("server") / "log")
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.fixture
def client(server: Server, checkpoints: Path) -> Client:
    return Client(PORT, NAME, checkpoints / "convolutional")


def test_official_client_asks_about_a_region_by_the_alpha_channel(client: Client, checkpoints: Path) -> None:
    check_regions(client, checkpoints / "convolutional")


IMAGE, (REGION, *_) = draw_inputs()[0]
MARKED = image_part(png(with_alpha(IMAGE, REGION)))
TEXT = {"type": "text", "text": QUESTION}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([MARKED, MARKED, TEXT], r"At most 1 image\(s\) may be provided"),
        (
            [MARKED, {"type": "text", "text": f"<MASK_CONTEXT><MASK_CONTEXT>{QUESTION}"}],
            "the prompt has 2 placeholders of the modality mask, but 1 items were given",
        ),
        (
            [MARKED, {"type": "text", "text": f"<IMG_CONTEXT>{QUESTION}"}],
            "the prompt has 2 placeholders of the modality image, but 1 items were given",
        ),
        ([MARKED, {"type": "mask", "mask": REGION.tolist()}, TEXT], "Unsupported chat content part type: 'mask'"),
        ([image_part(b"<html></html>"), TEXT], "Failed to load image: cannot identify image file"),
        ([image_part(png(IMAGE)[:300]), TEXT], "Failed to load image: image file is truncated"),
    ],
    ids=["two images", "masks without items", "image without item", "mask as a part", "no image file", "cut off"],
)
def test_official_client_with_a_wrong_mask_or_image_gets_400_by_name(
    client: Client, content: list[dict[str, Any]], message: str
) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match=message):
        client.send(content)
    assert client.send([MARKED, TEXT])  # the server goes on


@pytest.fixture(scope="module")
def expected(images: Path, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Captions:
    output = tmp_path_factory.mktemp("transformers") / "out"
    run = command(LIBRARY_PYTHON, images, output, checkpoints / "convolutional", engine="transformers")
    subprocess.run(run, check=True, timeout=LONGEST_WAIT_S)
    return captions(output)


def endpoint_command(images: Path, output: Path) -> list[str]:
    return [
        *(LIBRARY_PYTHON, "-m", "ureca.jobs.cli", "caption", str(images), str(output), "--model", NAME),
        *("--engine", "openai", "--base-urls", f"http://127.0.0.1:{PORT}/v1", "--captioner.max-new-tokens", "16"),
        *("--executor", "local", "--masks.kind", "segments", "--masks.max-masks", str(MAX_MASKS)),
        *("--images-per-partition", "4", "--endpoints.max-concurrency", "8"),
        *("--endpoints.outage-timeout-s", str(LONGEST_WAIT_S)),
    ]


def texts(found: Captions) -> dict[tuple[str, int], tuple[str, str]]:
    """Status and letters of each region: servers decode invalid bytes, which a random model writes, as they like."""
    return {
        key: (status, "".join(letter for letter in text or "" if letter.isascii() and letter.isalnum()))
        for key, (status, text, _) in found.items()
    }


def test_caption_by_endpoint_writes_the_rows_of_transformers(
    server: Server, images: Path, expected: Captions, tmp_path: Path
) -> None:
    subprocess.run(endpoint_command(images, tmp_path / "out"), check=True, timeout=LONGEST_WAIT_S)
    assert texts(captions(tmp_path / "out")) == texts(expected)
    assert len({text for _, text in texts(expected).values()}) > len(expected) // 2


def test_caption_by_endpoint_that_is_killed_mid_run_goes_on_when_it_is_back(
    server: Server, images: Path, expected: Captions, tmp_path: Path
) -> None:
    with subprocess.Popen(endpoint_command(images, tmp_path / "out")) as run:
        deadline = time.monotonic() + LONGEST_WAIT_S
        while not list((tmp_path / "out" / "captions").glob("part-*.parquet")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.kill()
        server.start()
        server.wait()
        assert run.wait(LONGEST_WAIT_S) == 0
    assert texts(captions(tmp_path / "out")) == texts(expected)


def documented_commands() -> list[list[str]]:
    """Return each command `vllm serve` of the pods and of the pages."""
    manifest = yaml.safe_load((CLUSTER / "kuberay/vllm/servers.yaml").read_text(encoding="utf-8"))
    pods = [item["spec"]["template"]["spec"] for item in manifest["items"] if item["kind"] == "StatefulSet"]
    found = [[*container["command"], *container["args"]] for pod in pods for container in pod["containers"]]
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found += [shlex.split(line) for line in re.findall(r"^vllm serve .*$", text, re.MULTILINE)]
    return found


def test_documented_arguments_are_those_of_vllm_serve() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    commands = documented_commands()
    assert len(commands) == 3  # servers.yaml, caption.md, mllm.md
    for words in commands:
        assert words[:2] == ["vllm", "serve"]
        arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(words[2:])
        validate_parsed_serve_args(arguments)
        assert arguments.model_tag == words[2]
        assert arguments.limit_mm_per_prompt["image"] >= 1
        if "mask" in arguments.limit_mm_per_prompt:
            assert arguments.media_io_kwargs == {"image": {"image_mode": "RGBA"}}
            assert arguments.served_model_name == ["ureca"]
    with pytest.raises(SystemExit):
        make_arg_parser(FlexibleArgumentParser()).parse_args([*commands[0][2:], "--media-io-kwarg-s=1"])
