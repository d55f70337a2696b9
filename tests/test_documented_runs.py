"""Every whole command of README and docs is run, as it stands, on small things; or a table says why it cannot be."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.documents.chapters import CANNOT_RUN, CHAPTERS, LONG_CHAPTERS
from tests.documents.inputs import servers
from tests.documents.pages import commands
from tests.documents.running import Chapter, run


@pytest.fixture(scope="module")
def addresses(ray_cluster: None) -> Iterator[Mapping[str, str]]:
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    with servers() as addresses:
        yield addresses
    del os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]


_LONG = (pytest.mark.long, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    "chapter",
    [
        *(pytest.param(chapter, id=chapter.name) for chapter in CHAPTERS),
        *(pytest.param(chapter, id=chapter.name, marks=_LONG) for chapter in LONG_CHAPTERS),
    ],
)
def test_documented_commands_run_as_the_page_says(
    chapter: Chapter,
    addresses: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run(chapter, addresses, capfd)


def test_documented_commands_are_run_or_have_a_reason() -> None:
    on_pages = {command.text for command in commands() if command.is_whole}
    in_chapters = {text for chapter in (*CHAPTERS, *LONG_CHAPTERS) for text in chapter.commands()}
    assert not on_pages - in_chapters - CANNOT_RUN.keys(), "in neither table of tests/documents/chapters.py"
    assert not (in_chapters | CANNOT_RUN.keys()) - on_pages, "on no page any more"
    assert not in_chapters & CANNOT_RUN.keys()
    assert all(reason for reason in CANNOT_RUN.values())
