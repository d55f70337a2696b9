"""A curation from a bucket into a bucket whose driver is killed: each image exactly once, and no half objects."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.drawn import drawn_image, png, sa1b_json
from tests.pipelines.test_kill import ROOT, wait_for_parts
from tests.s3 import Store, s3_server
from ureca.data.output import Output
from ureca.ops.status import status_of

NUM_IMAGES = 16


def write_corpus(store: Store) -> list[str]:
    """Images and their annotations, as objects."""
    ids = [f"img_{index:04d}" for index in range(NUM_IMAGES)]
    for seed, id in enumerate(ids):
        pixels, masks = drawn_image(seed)
        store.put(f"in/{id}.png", png(pixels))
        store.put(f"in/{id}.json", sa1b_json(masks))
    return ids


@pytest.mark.timeout(400)
def test_curate_in_an_object_store_resumes_after_a_killed_driver(tmp_path: Path) -> None:
    with s3_server() as store:
        ids = write_corpus(store)
        output = Output(store.uri("out"))
        command = [
            *(sys.executable, "-m", "ureca.jobs.curate", store.uri("in"), store.uri("out")),
            *("--listing.annotations", "beside", "--masks.kind", "annotations"),
            *("--annotator.kind", "prompted", "--mllm.seconds-per-answer", "0.05", "--images-per-partition", "1"),
            *("--resources.curate.num-actors", "1", "--resources.masks.num-actors", "1"),
            *("--resources.curate.partitions-in-flight", "1"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
            try:
                wait_for_parts(output, 3, process)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
        killed = status_of(store.uri("out"))
        assert killed.state == "running"  # or so it says: its claim is young
        assert 3 <= killed.num_done < NUM_IMAGES
        assert store.unfinished_uploads() == []
        for path in output.part_files():  # each is whole
            assert pq.read_table(path, filesystem=output.filesystem).num_rows == 1

        finished = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False, timeout=200
        )
        assert finished.returncode == 0, finished.stderr
        assert f"{NUM_IMAGES} images, 0 done before" not in finished.stderr
        rows = list(output.rows())
        assert Counter(row["image_id"] for row in rows) == Counter(ids)
        assert all(row["error"] is None and len(row["regions"]) == 4 for row in rows)
        assert all(row["uri"].startswith("s3://ureca-test/in/img_") for row in rows)
        assert store.unfinished_uploads() == []
        assert status_of(store.uri("out")).state == "finished"
        kinds = {name.split("/")[1] for name in store.names("out/") if not name.endswith("/")}
        assert kinds == {"README.md", "manifest", "regions", "run.json"}
