"""Commands that the pages show."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_OURS = re.compile(r"(?:ureca(?!/)|make|python -m ureca\.jobs\.)(?=\S* )")


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: file name.
        text: as the page has it, on one line, without comment and without the folder of the environment.
        is_whole: False: a span within the text, which may leave out what is not its subject.
    """

    page: str
    text: str
    is_whole: bool


def commands() -> list[Command]:
    """Return the commands of all pages in their order, each once a page."""
    return list(dict.fromkeys(command for page in PAGES for command in commands_of(page)))


def commands_of(page: Path) -> Iterator[Command]:
    """Yield the commands of a page: all lines of its shell blocks, and ours in other blocks and in spans of code."""
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language in {"sh", "bash", ""}:
            for line in _lines(block):
                if line and (language or _OURS.match(line)):
                    yield Command(page.name, line, True)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"(?:^ {4}[^\n]*\n)+", prose, re.MULTILINE):
        yield from (Command(page.name, line, True) for line in _lines(block) if _OURS.match(line))
    for span in re.findall(r"`((?:ureca|make|python -m ureca\.jobs\.)[^`]*)`", prose):
        if _OURS.match(span + " ") and " " in span:
            yield Command(page.name, span, False)


def _lines(block: str) -> Iterator[str]:
    for line in re.sub(r"\\\n", " ", block).splitlines():
        without_comment = re.sub(r"(^|\s)#.*", "", line)
        yield " ".join(without_comment.split()).removeprefix(".venv/bin/")
