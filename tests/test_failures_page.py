"""The page on failures: kinds, flags and messages that the code has."""

import re
from pathlib import Path

from pydantic import BaseModel

from tests.cluster.manifests import settings_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for package in ("ureca", "pipelines", "jobs")
    for path in (ROOT / package).rglob("*.py")
)
# Strings that go on in the next line are one.
TEXT = re.sub(r'"\s*\n\s*f?"', "", SOURCES)
PIPELINE_COMMANDS = ("curate", "caption", "evaluate", "serve", "train")


def flags_of(model: type[BaseModel], before: str = "") -> set[str]:
    """Dotted names of a model's settings and of all that it holds, as on a command line."""
    found = set()
    for name, field in model.model_fields.items():
        dotted = f"{before}{name.replace('_', '-')}"
        found.add(dotted)
        for inner in re.findall(r"[\w.]+", str(field.annotation)):
            module, _, cls = inner.rpartition(".")
            if module.startswith("ureca."):
                held = getattr(__import__(module, fromlist=[cls]), cls, None)
                if isinstance(held, type) and issubclass(held, BaseModel):
                    found |= flags_of(held, f"{dotted}.")
    return found


def test_failures_page_names_existing_kinds() -> None:
    kinds = set(re.findall(r"`(?:…|[a-z]+):([a-z_]+)(?:…)?`", PAGE))
    assert len(kinds) >= 25
    assert not [kind for kind in kinds if not re.search(rf'["{{:]{kind}', TEXT)]


def test_failures_page_names_existing_flags() -> None:
    flags = set(re.findall(r"(?<=[` ])--([a-z.*-]+)", PAGE)) - {"requeue", "shm-size", "working-dir"}
    known = set().union(*(flags_of(settings_of(command)) for command in PIPELINE_COMMANDS))
    assert len(flags) >= 10
    unknown = {flag for flag in flags if not any(name == flag or name.startswith(flag.rstrip("*")) for name in known)}
    assert not unknown


def test_failures_page_quotes_existing_messages() -> None:
    table = PAGE.partition("## Messages")[2].partition("\n## ")[0]
    messages = [re.sub(r"`", "", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    assert len(messages) >= 8
    for message in messages:
        for part in re.split(r"\.\.\.|: \.\.\.| X:? ?|No space left", message):
            text = part.strip(" :")
            assert len(text) < 4 or text in TEXT, message
