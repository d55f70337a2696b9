"""The page before the service as it runs: Ray Serve, the segmenter, and a tiny checkpoint."""

from collections.abc import Iterator

import pytest
from selenium import webdriver

from pipelines.serve import serving
from tests.browser import start
from tests.pipelines.test_serve import PORT
from ureca.model.tiny import save_tiny
from ureca.settings.serve import ServeSettings

from .test_page import Page


@pytest.fixture(scope="module")
def address(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = tmp_path_factory.mktemp("model")
    save_tiny(model)
    # Serve listens where it was first started on the tests' cluster.
    settings = ServeSettings.model_validate({"model": str(model), "port": PORT, "captioner": {"max_new_tokens": 6}})
    with serving(settings) as address:
        yield address


@pytest.fixture
def browser(chromium: tuple[str, str]) -> Iterator[webdriver.Chrome]:
    browser = start(chromium, phone=False)
    yield browser
    browser.quit()


def test_a_region_of_an_example_is_captioned(browser: webdriver.Chrome, address: str) -> None:
    page = Page(browser, address)
    page.one('[data-example="examples/flowers.png"]').click()
    page.wait_for('[role="treeitem"] .badge')
    page.at((150, 20)).click().perform()
    page.wait_for(".this .caption:not(.pending)")
    caption = page.one(".this .caption").text
    selected = page.one('[role="treeitem"][aria-selected="true"] .text')
    assert caption and selected.text == caption
    assert page.all("#alert:not([hidden])") == []
