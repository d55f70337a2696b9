"""One service and one file to upload, for all tests of the page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

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
