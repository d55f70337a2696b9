"""Hook of mkdocs: the pages of the site that are generated from the code; links out of ``docs`` lose their address.

- ``commands.md``: all settings of each command, as ``ureca COMMAND --help-all`` prints them.
- ``reference.md``: the public names of ``import ureca``, whose docstrings mkdocstrings renders.
- ``design.md``: the architecture of CONTRIBUTING.md.
"""

import importlib
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_WITHOUT_SETTINGS = {"bench", "demo", "plan"}
_PUBLIC = re.compile(r"from \.([\w.]+) import (\w+) as \w+")
_OUT_OF_DOCS = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for name, text in (("commands.md", commands()), ("reference.md", reference()), ("design.md", design())):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace links to files outside of ``docs`` by their text and path."""
    return _OUT_OF_DOCS.sub(r"\1 (`\2` in the repository)", markdown)


def commands() -> str:
    """Return the page of all settings."""
    from ureca.config import HelpRequested
    from ureca.jobs.cli import COMMANDS
    from ureca.jobs.help import command_help

    lines = ["# All settings", "", "Each section is the output of `--help-all`."]
    for group in COMMANDS.values():
        for name, purpose in group.items():
            if name in _WITHOUT_SETTINGS:
                continue
            job = importlib.import_module(f"ureca.jobs.{name.replace('-', '_')}")
            try:
                job.main(["--help-all"])
            except HelpRequested as requested:
                text = command_help(requested.settings, show_all=True)
                lines += ["", f"## {name}", "", f"{purpose[0].upper()}{purpose[1:]}.", "", "```text", text, "```"]
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Return the page of the public names."""
    stub = (ROOT / "ureca" / "__init__.pyi").read_text(encoding="utf-8")
    lines = ["# Reference", "", "The public names of `import ureca`; the [guide](api.md) has examples of each.", ""]
    lines += [f"::: ureca.{module}.{name}\n" for module, name in _PUBLIC.findall(stub)]
    lines += ["## Stages for Ray Data", "", "::: ureca.pipelines.curate.add_stages\n"]
    lines += ["::: ureca.pipelines.caption.add_stages\n"]
    return "\n".join(lines)


def design() -> str:
    """Return the page of the architecture."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    architecture = text.partition("\n## Architecture\n")[2]
    return "# Design\n\n" + re.sub(r"\]\(docs/", "](", architecture)
