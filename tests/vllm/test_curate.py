"""``ureca curate`` with a real vLLM and a tiny InternVL: ``vllm serve``, and vLLM in the actor; ``make long-vllm``.

The model writes a few words at random; the JSON schema of an answer makes a caption of them.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.vllm.conftest import LIBRARY_PYTHON
from tests.vllm.reference import draw_inputs
from tests.vllm.test_endpoints import LONGEST_WAIT_S, NAME, Server
from tests.vllm.test_serve import ENGINE_NAME

pytest.importorskip("vllm", reason="needs the environment of `make long-vllm`")

pytestmark = [pytest.mark.long, pytest.mark.timeout(1700)]

NUM_IMAGES = 8
NUM_MANY_IMAGES = 60
PORT = 18472
URL = f"http://127.0.0.1:{PORT}/v1"
NUM_CONTEXT_TOKENS = 8192
OVERRIDES = {"text_config": {"max_position_embeddings": NUM_CONTEXT_TOKENS}}


class ChatServer(Server):
    """`vllm serve` of a chat model."""

    port = PORT

    def command(self, *, max_images: int = 4, max_model_len: int = NUM_CONTEXT_TOKENS) -> list[str]:
        return [
            *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(self.checkpoint)),
            *("--served-model-name", NAME, "--port", str(PORT), "--host", "127.0.0.1", "--dtype", "float32"),
            *("--enforce-eager", "--max-num-seqs", "16", "--max-model-len", str(max_model_len)),
            *("--hf-overrides", json.dumps(OVERRIDES)),
            *("--limit-mm-per-prompt", json.dumps({"image": max_images, "video": 0})),
        ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("internvl")
    make = "import sys, pathlib; from tests.llm.tiny_models import speaking_internvl as m; m(pathlib.Path(sys.argv[1]))"
    subprocess.run([LIBRARY_PYTHON, "-c", make, str(folder)], check=True, timeout=LONGEST_WAIT_S)
    return folder


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    """A server that is not started."""
    server = ChatServer(checkpoint, tmp_path_factory.mktemp("server") / "log")
    try:
        yield server
    finally:
        server.kill()


def draw_images(folder: Path, num_images: int) -> Path:
    for number in range(num_images):
        Image.fromarray(draw_inputs(number // 4)[number % 4][0]).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"), NUM_IMAGES)


@pytest.fixture(scope="module")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that keep a tiny model busy for seconds."""
    return draw_images(tmp_path_factory.mktemp("many_images"), NUM_MANY_IMAGES)


def curate(images: Path, output: Path, *options: str, python: str = LIBRARY_PYTHON) -> list[str]:
    return [
        *(python, "-m", "ureca.jobs.cli", "curate", str(images), str(output), "--executor", "local"),
        *("--masks.kind", "segments", "--masks.max-masks", "4", "--images-per-partition", "2"),
        *("--tree.main-object-min-levels", "1", "--annotator.kind", "prompted", "--annotator.temperature", "1"),
        *("--annotator.max-attempts", "8", *options),  # the model ends some captions before their first word
    ]


def at_endpoint(model: str = NAME) -> list[str]:
    return [
        *("--mllm.kind", "openai", "--mllm.model", model, "--mllm.base-urls", URL),
        *("--mllm.outage-timeout-s", str(LONGEST_WAIT_S)),
    ]


def statuses(output: Path) -> dict[str, list[str]]:
    """Statuses of the regions that are not skipped, by image; an image that occurs twice is an error."""
    found: dict[str, list[str]] = {}
    for path in sorted((output / "regions").glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            assert row["image_id"] not in found
            of_image = [region["status"] for region in row["regions"]]
            found[row["image_id"]] = [status for status in of_image if not status.startswith("skipped")]
    return found


def wait_for_rows(run: "subprocess.Popen[bytes]", output: Path, log: Path) -> None:
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not list(output.glob("regions/part-*.parquet")):
        assert run.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.05)


def test_curate_waits_for_the_server_and_goes_on_when_it_is_killed_and_back(
    server: ChatServer, images: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(curate(images, output, *at_endpoint()), stdout=out, stderr=subprocess.STDOUT) as run,
    ):
        try:
            server.start()  # after the command: it waits
            server.wait()
            wait_for_rows(run, output, log)
            server.kill()
            server.start()
            server.wait()
            assert run.wait(LONGEST_WAIT_S) == 0, log.read_text()[-4000:]
        finally:
            run.kill()
    assert "Traceback" not in log.read_text()
    found = statuses(output)
    assert len(found) == NUM_IMAGES
    captioned = [status for of_image in found.values() for status in of_image]
    assert len(captioned) >= NUM_IMAGES
    assert set(captioned) == {"ok"}


def refused(images: Path, output: Path, *options: str) -> str:
    """Run a command that must stop, and return what it says."""
    command = curate(images, output, *options)
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LONGEST_WAIT_S)
    assert run.returncode != 0
    assert "Traceback" not in run.stderr
    assert not list(output.glob("regions/part-*.parquet"))
    return " ".join((run.stdout + run.stderr).split())


def test_curate_with_a_wrong_model_names_the_served_one(server: ChatServer, images: Path, tmp_path: Path) -> None:
    if not server.is_running:
        server.start()
        server.wait()
    assert f"It serves {NAME}" in refused(images, tmp_path / "out", *at_endpoint("another"))


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"max_images": 1}, "At most 1 image"), ({"max_model_len": 320}, "320")],
)
def test_curate_beyond_a_limit_of_the_server_stops_with_its_words(
    server: ChatServer, images: Path, tmp_path: Path, limits: dict[str, int], message: str
) -> None:
    server.kill()
    server.start(**limits)
    server.wait()
    assert message in refused(images, tmp_path / "out", *at_endpoint())


def in_the_actor(checkpoint: Path) -> list[str]:
    """Options for vLLM in the actor, and one image after another: there is work left when the engine dies."""
    engine = {"enforce_eager": True, "max_num_seqs": 16, "hf_overrides": OVERRIDES}
    return [
        *("--mllm.kind", "vllm", "--mllm.checkpoint", str(checkpoint), "--mllm.dtype", "float32"),
        *("--mllm.max-model-len", str(NUM_CONTEXT_TOKENS), "--mllm.engine-options", json.dumps(engine)),
        *(
            "--annotator.temperature",
            "1",
            "--annotator.max-attempts",
            "8",
        ),  # it ends some captions before the first word
    ]


def kill_engines(run: "subprocess.Popen[bytes]") -> int:
    engines = [child for child in psutil.Process(run.pid).children(recursive=True) if ENGINE_NAME in child.name()]
    for engine in engines:
        engine.kill()
    return len(engines)


def test_curate_by_vllm_in_the_actor_starts_a_killed_engine_again(
    checkpoint: Path, many_images: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    command = curate(many_images, output, *in_the_actor(checkpoint), python=sys.executable)
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as run:
        try:
            wait_for_rows(run, output, log)
            before = statuses(output)
            assert kill_engines(run)
            assert run.wait(LONGEST_WAIT_S) == 0, log.read_text()[-4000:]
        finally:
            run.kill()
    said = log.read_text()
    assert said.count("It is started again (1 of 3)") == 1
    assert said.count("Traceback") <= 1  # vLLM's own log of the engine's death
    found = statuses(output)
    assert len(before) < len(found) == NUM_MANY_IMAGES  # it was killed while there was work left
    captioned = [status for of_image in found.values() for status in of_image]
    assert len(captioned) >= NUM_MANY_IMAGES
    assert set(captioned) == {"ok"}


def test_curate_by_vllm_in_the_actor_whose_engine_cannot_live_is_a_failed_run(
    checkpoint: Path, many_images: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    command = curate(many_images, output, *in_the_actor(checkpoint), python=sys.executable)
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as run:
        try:
            wait_for_rows(run, output, log)
            deadline = time.monotonic() + LONGEST_WAIT_S
            while run.poll() is None:
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                kill_engines(run)  # each one as soon as it is there
                time.sleep(0.1)
        finally:
            run.kill()
    said = log.read_text()
    assert run.returncode == 2
    (error,) = [line for line in said.splitlines() if line.startswith("ureca: ")]
    assert f"vLLM's engine of mllm.checkpoint '{checkpoint}' died" in error
    assert "It died 4 times in a row" in error or "It could not be started again" in error
    assert said.count("Traceback") <= 1  # vLLM's own log of the engine's death
    assert len(statuses(output)) < NUM_MANY_IMAGES
