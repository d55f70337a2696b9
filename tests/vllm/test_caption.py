"""Captions by vLLM against those by transformers, by command and benchmark; run by ``make long-vllm``."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.vllm.conftest import LIBRARY_PYTHON
from tests.vllm.reference import draw_inputs

pytest.importorskip("vllm", reason="needs the environment of `make long-vllm`")

CHECKPOINTS = ["convolutional"]
ENGINE = '{"enforce_eager": true, "block_size": 32, "max_num_seqs": 16}'
LONGEST_WAIT_S = 600.0
MAX_MASKS = 6
NUM_IMAGES = 12


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(NUM_IMAGES // 4):
        for index, (image, _) in enumerate(draw_inputs(seed)):
            Image.fromarray(image).save(folder / f"{seed}_{index}.png")
    return folder


def command(
    python: str, images: Path, output: Path, checkpoint: Path, *, engine: str, executor: str = "local"
) -> list[str]:
    return [
        *(python, "-m", "ureca.jobs.cli", "caption", str(images), str(output), "--model", str(checkpoint)),
        *("--executor", executor, "--masks.kind", "segments", "--masks.max-masks", str(MAX_MASKS)),
        *("--engine", engine, "--dtype", "float32", "--captioner.max-new-tokens", "16", "--images-per-partition", "4"),
        *("--vllm.max-model-len", "2048", "--vllm.engine-options", ENGINE, "--resources.caption.num-actors", "1"),
    ]


Captions = dict[tuple[str, int], tuple[str, str, int | None]]


def captions(output: Path) -> Captions:
    """Read status, text and length of each region; a region that occurs twice is an error."""
    found = {}
    for path in sorted((output / "captions").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            for region in row["captions"]:
                key = (row["image_id"], region["region_id"])
                assert key not in found
                found[key] = (region["status"], region["caption"], region["num_tokens"])
    return found


@pytest.fixture(scope="module")
def expected(
    images: Path, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], object]:
    output = tmp_path_factory.mktemp("transformers") / "out"
    run = command(LIBRARY_PYTHON, images, output, checkpoints / "convolutional", engine="transformers")
    subprocess.run(run, check=True, timeout=LONGEST_WAIT_S)
    return captions(output)


@pytest.mark.timeout(1700)
@pytest.mark.long
def test_caption_by_vllm_writes_the_rows_of_transformers(
    images: Path, checkpoints: Path, expected: Captions, tmp_path: Path
) -> None:
    run = command(
        sys.executable, images, tmp_path / "out", checkpoints / "convolutional", engine="vllm", executor="ray"
    )
    subprocess.run(run, check=True, timeout=LONGEST_WAIT_S)
    assert captions(tmp_path / "out") == expected
    assert len({text for _, text, _ in captions(tmp_path / "out").values()}) > len(expected) // 2


@pytest.mark.timeout(1700)
@pytest.mark.long
def test_caption_by_vllm_that_is_killed_is_resumed(
    images: Path, checkpoints: Path, expected: Captions, tmp_path: Path
) -> None:
    run = command(sys.executable, images, tmp_path / "out", checkpoints / "convolutional", engine="vllm")
    process = subprocess.Popen(run, start_new_session=True)
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not list((tmp_path / "out" / "captions").glob("part-*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = captions(tmp_path / "out")
    subprocess.run(run, check=True, timeout=LONGEST_WAIT_S)
    assert captions(tmp_path / "out") == expected
    assert before.items() <= captions(tmp_path / "out").items()


GPU_PROOF = """
import json, sys
from benchmarks.gpu_proof import TOY, compare_engines
print(json.dumps(compare_engines(TOY, sys.argv[1])))
"""


@pytest.mark.timeout(1700)
@pytest.mark.long
def test_gpu_proof_at_toy_sizes_counts_the_equal_captions_of_the_engines() -> None:
    run = [LIBRARY_PYTHON, "-c", GPU_PROOF, sys.executable]
    printed = subprocess.run(run, check=True, timeout=LONGEST_WAIT_S, stdout=subprocess.PIPE, text=True).stdout
    figures = json.loads(printed.splitlines()[-1])
    assert figures["regions"] == figures["vllm, equal captions"] == figures["vllm-uncached, equal captions"] == 6
    assert all(figures[f"{engine}, regions/s"] > 0 for engine in ("transformers", "vllm", "vllm-uncached"))
