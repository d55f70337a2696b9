"""The page of one service in two browsers, for all tests of the page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver

from tests.browser import start
from tests.serving.page_service import PageBackend, picture, serving


@pytest.fixture(scope="package")
def backend() -> PageBackend:
    return PageBackend()


@pytest.fixture(scope="package")
def address(backend: PageBackend) -> Iterator[str]:
    with serving(backend) as address:
        yield address


@pytest.fixture(scope="package")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / 'the "picture"; it\'s.png'
    Image.fromarray(picture()[0]).save(path)
    return path


@pytest.fixture(scope="package")
def desktop(chromium: tuple[str, str]) -> Iterator[webdriver.Chrome]:
    browser = start(chromium, phone=False)
    permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    browser.execute_cdp_cmd("Browser.grantPermissions", permissions)
    yield browser
    browser.quit()


@pytest.fixture(scope="package")
def phone(chromium: tuple[str, str]) -> Iterator[webdriver.Chrome]:
    browser = start(chromium, phone=True)
    yield browser
    browser.quit()
