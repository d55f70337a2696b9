"""``--help`` and ``--help-all`` of commands."""

import re
import subprocess
import sys
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg

from ureca.config import ESSENTIAL, CommandSettings, settings_of
from ureca.jobs.cli import COMMANDS, main
from ureca.jobs.help import command_help

NAMES = [name for commands in COMMANDS.values() for name in commands if name != "bench"]


class Circle(BaseModel):
    """A circle around the origin."""

    kind: Literal["circle"] = "circle"
    radius_px: float = Field(default=2.0, description="its radius")


class Square(BaseModel):
    """A square."""

    kind: Literal["square"] = "square"
    side_px: int = Field(description="its side")


class Pen(BaseModel):
    """The pen to draw with."""

    width_px: int = Field(default=1, description="width of the line")
    colour: Annotated[str, ESSENTIAL] = Field(default="black", description="colour of the line")


class DrawingSettings(CommandSettings):
    """Draw a shape.

    Details come after the summary.
    """

    command = "draw"
    examples = ("ureca draw out.png",)

    output: CliPositionalArg[str] = Field(description="file to write")
    shape: Annotated[Circle | Square, Field(discriminator="kind", description="shape to draw"), ESSENTIAL] = Circle()
    pen: Pen = Pen(width_px=3)
    stamp: Square | None = Field(default=None, description="square to stamp on it")
    antialias: bool = Field(default=True, description="smooth the edges")
    layers: tuple[int, ...] = Field(default=(1, 2), description="layers to draw on")
    more: dict[str, int] = Field(default={}, description="further options")
    _unused: int = 0
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    e: int = 0


def test_settings_of_lists_every_kind_with_its_own_settings() -> None:
    listed = {each.name: each for each in settings_of(DrawingSettings)}
    assert listed["shape.kind"].choices == ("circle", "square")
    assert listed["shape.kind"].default == "circle"
    assert listed["shape.radius_px"].condition == "--shape.kind circle"
    assert listed["shape.side_px"].is_required
    assert not listed["shape.side_px"].is_essential  # it is required with another kind than the default only
    assert listed["pen.width_px"].default == 3  # of the section as the command has it, not of its class
    assert listed["stamp.side_px"].default is None  # the section is optional
    assert listed["output"].is_positional


def test_command_help_shows_essential_settings_and_examples() -> None:
    text = command_help(DrawingSettings, show_all=False)
    assert text.splitlines()[0] == "usage: ureca draw OUTPUT [SETTINGS]"
    assert "  ureca draw out.png" in text
    assert "--shape.kind {circle,square}" in text
    assert "[black]" in text
    assert "--pen.width-px" not in text
    assert "Details" not in text


def test_command_help_all_groups_settings_by_section_and_kind() -> None:
    text = command_help(DrawingSettings, show_all=True)
    assert "Details come after the summary." in text
    circle = text.index("shape, with --shape.kind circle: A circle around the origin.")
    square = text.index("shape, with --shape.kind square: A square.")
    assert circle < text.index("--shape.radius-px X") < square < text.index("--shape.side-px N")
    assert re.search(r"--pen.width-px N +width of the line \[3\]", text)
    assert re.search(r"--\[no-\]antialias +smooth the edges \[on\]", text)
    assert re.search(r"--layers N,\.\.\. +layers to draw on \[1,2\]", text)


@pytest.mark.parametrize("command", NAMES)
def test_help_of_every_command_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 110
    assert lines[0].startswith(f"usage: ureca {command}")
    assert "examples:" in lines


@pytest.mark.parametrize("command", NAMES)
def test_help_all_of_every_command_describes_every_setting(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help-all"]) == 0
    text = capsys.readouterr().out
    assert not re.search(r"PydanticUndefined|<class|\bobject at\b", text)
    assert max(map(len, text.splitlines())) <= 110


def test_help_all_of_curate_has_true_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", "--help-all"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"--masks\.kind \{segments,[^}]*sam[^}]*\}[^[]*\[segments\]", text)
    sam = text[text.index("masks, with --masks.kind sam") :]
    assert "--masks.points-per-side" in sam[: sam.index("\n\n")]
    assert "--masks.max-masks" not in sam[: sam.index("\n\n")]
    assert re.search(r"--resources\.tree\.num-cpus X[^[]*\[0\.5\]", text)  # the command's, not TaskResources' 0.25


def test_help_of_the_program_starts_at_once() -> None:
    """It loads neither pydantic nor anything else of weight."""
    code = (
        "import sys; from ureca.jobs.cli import main; main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('pydantic', 'yaml', 'numpy', 'pyarrow', 'asyncio')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
