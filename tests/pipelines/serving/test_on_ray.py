"""The service on Ray Serve with a tiny checkpoint: its web page, and its batch jobs."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from selenium import webdriver

from tests.drawn import write_corpus
from tests.pipelines.serving.test_serve import PORT
from tests.serving.page.page import Page
from ureca.data.output import Output
from ureca.model.initialization import save_tiny
from ureca.pipelines.serve import serving
from ureca.pipelines.serve_settings import ServeSettings


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that batch jobs may read."""
    return tmp_path_factory.mktemp("corpora")


@pytest.fixture(scope="module")
def address(ray_cluster: None, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = tmp_path_factory.mktemp("model")
    save_tiny(model)
    settings = ServeSettings.model_validate(
        {
            "model": str(model),
            "port": PORT,  # Serve listens where it was first started on the tests' cluster
            "captioner": {"max_new_tokens": 6},
            "batches": {"folders": [corpora], "output": tmp_path_factory.mktemp("batches")},
        }
    )
    with serving(settings, [sys.executable, "-m", "ureca.jobs.caption"]) as address:
        yield address


def test_page_click_on_example_captions_the_region(desktop: webdriver.Chrome, address: str) -> None:
    page = Page(desktop, address)
    page.one('[data-example="examples/flowers.png"]').click()
    page.wait_for('[role="treeitem"] .badge')
    page.at((150, 20)).click().perform()
    page.wait_for(".this .caption:not(.pending)")
    caption = page.one(".this .caption").text
    selected = page.one('[role="treeitem"][aria-selected="true"] .text')
    assert caption and selected.text == caption
    assert page.all("#alert:not([hidden])") == []


def test_batch_job_captions_a_corpus(address: str, corpora: Path) -> None:
    ids = write_corpus(corpora / "drawn", 3)
    with httpx2.Client(base_url=address, timeout=60, trust_env=False) as client:
        body = {"input": str(corpora / "drawn"), "max_new_tokens": 4}
        started = batch = client.post("/v1/batches", json=body).raise_for_status().json()
        assert client.post("/v1/batches", json=body).json()["error"]["code"] == "too_many_jobs"
        ends = time.monotonic() + 200
        while batch["status"] == "in_progress" and time.monotonic() < ends:
            time.sleep(0.2)
            batch = client.get(f"/v1/batches/{started['id']}").raise_for_status().json()
    log = Path(f"{started['output']}.log").read_text()
    assert batch == {**started, "status": "completed", "num_rows": 3}, log
    rows = list(Output.of_run(batch["output"]).rows())
    assert [row["image_id"] for row in rows] == ids
    for row in rows:
        assert row["captions"] and all(region["num_tokens"] <= 4 for region in row["captions"])
