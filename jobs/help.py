"""Help texts of the command line, rendered from the settings' models."""

import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ureca.config import CommandSettings, Metavar, Setting, settings_of

_WIDTH = 100
_LONGEST_NAME = 34
_FEW = 12
"""A command with so few settings shows all of them."""
_CONFIG = ("--config FILE", "YAML file with settings; flags and environment variables override it")


def command_help(settings: type[CommandSettings], *, show_all: bool) -> str:
    """Render the help of a command.

    Args:
        settings: class of the command's settings.
        show_all: list every setting by section, instead of those that most users set.
    """
    every = list(settings_of(settings))
    positional = [each for each in every if each.is_positional]
    flags = [each for each in every if not each.is_positional]
    summary, _, details = inspect.cleandoc(settings.__doc__ or "").replace("``", "`").partition("\n\n")
    required = [f"{each.flag} {_metavar(each)}" for each in flags if each.is_required and not each.section]
    words = [*map(_positional_name, positional), *required, "[SETTINGS]" if flags else ""]
    lines = [f"usage: ureca {settings.command} {' '.join(filter(None, words))}", "", *_wrapped(summary)]
    if show_all and details:
        lines += ["", *_wrapped(details)]
    if settings.examples:
        lines += ["", "examples:", *textwrap.indent("\n".join(settings.examples), "  ").splitlines()]
    if positional:
        lines += ["", "arguments:", *_rows((_positional_name(each), _description(each)) for each in positional)]
    if show_all:
        lines += _sections(flags)
        lines += ["", *_wrapped("Every setting is also an environment variable (--tree.containment is URECA_TREE__"
                                "CONTAINMENT) and a key of the YAML file of --config.")]  # fmt: skip
    else:
        shown = flags if len(flags) <= _FEW else [each for each in flags if each.is_essential]
        shown.sort(key=lambda each: not each.is_required)
        rest = len({each.flag for each in flags} - {each.flag for each in shown})
        help_all = [("--help-all", f"{rest} more settings, by section")] if rest else []
        lines += ["", "settings:", *_rows([*map(_row, shown), _CONFIG, *help_all])]
    return "\n".join(lines)


def _sections(flags: Sequence[Setting]) -> Iterator[str]:
    """Lines of all settings: the command's own, then each section, whose kinds follow one another."""
    groups: dict[tuple[str, str | None], list[Setting]] = {("", None): []}
    for each in flags:
        groups.setdefault((each.section, each.condition), []).append(each)
    for (section, condition), settings in groups.items():
        yield ""
        if not section:
            yield "settings:"
            yield from _rows([*map(_row, settings), _CONFIG])
            continue
        is_choice = bool(settings[0].choices)
        title = section if condition is None else f"{section}, with {condition}"
        about = settings[0].field.description if is_choice else inspect.getdoc(settings[0].model)
        summary = " ".join((about or "").replace("``", "`").partition("\n\n")[0].split())
        yield from textwrap.wrap(f"{title}: {summary}" if summary else f"{title}:", _WIDTH)
        yield from _rows(map(_row, settings))


def _row(setting: Setting) -> tuple[str, str]:
    name = f"{setting.flag} {_metavar(setting)}"
    if setting.field.annotation is bool:
        name = setting.flag.replace("--", "--[no-]", 1) if setting.default is True else setting.flag
    return name, _description(setting)


def _rows(rows: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> Iterator[str]:
    """Two columns, of which the second one is wrapped."""
    listed = list(rows)
    width = max((len(name) for name, _ in listed if len(name) <= _LONGEST_NAME), default=0)
    for name, text in listed:
        lines = textwrap.wrap(text, _WIDTH - width - 4, break_on_hyphens=False) or [""]
        if len(name) > width:
            yield f"  {name}"
        else:
            yield f"  {name:<{width}}  {lines.pop(0)}".rstrip()
        yield from (f"  {'':<{width}}  {line}" for line in lines)


def _description(setting: Setting) -> str:
    """The setting's description, with its default in brackets."""
    text = " ".join((setting.field.description or "").replace("``", "`").split())
    if setting.is_positional:
        return text
    if setting.choices and not text:
        text = f"which of {setting.section} to use"
    return f"{text} [{'required' if setting.is_required else _value(setting.default)}]".strip()


def _value(value: Any) -> str:
    match value:
        case bool():
            text = "on" if value else "off"
        case float():
            text = f"{value:g}" if abs(value) < 1e6 else str(value)
        case tuple() | list() | frozenset():
            text = ",".join(map(_value, value)) or "none"
        case Mapping():
            text = ",".join(f"{key}={_value(each)}" for key, each in value.items()) or "none"
        case _:
            text = str(value) or "''"
    return text


def _positional_name(setting: Setting) -> str:
    marks = [mark.text for mark in setting.field.metadata if isinstance(mark, Metavar)]
    if marks:
        return marks[0]
    name = setting.name.upper()
    return f"{name}..." if get_origin(setting.field.annotation) in {list, tuple} else name


def _metavar(setting: Setting) -> str:
    """Return the placeholder of a flag's value in help: the choices in braces, else the name of its type."""
    if setting.choices:
        default_first = sorted(setting.choices, key=lambda kind: kind != setting.default)
        return f"{{{','.join(default_first)}}}"
    for mark in setting.field.metadata:
        if isinstance(mark, Metavar):
            return mark.text
    return _type_name(setting.field.annotation)


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    match origin:
        case None:
            name = {bool: "{true,false}", int: "N", float: "X", Path: "PATH"}.get(annotation, "TEXT")
        case _ if origin is Literal:
            name = f"{{{','.join(map(str, arguments))}}}"
        case _ if origin in {Union, types.UnionType}:
            name = "|".join(dict.fromkeys(_type_name(each) for each in arguments if each is not type(None)))
        case _ if origin in {list, tuple, frozenset}:
            name = f"{_type_name(arguments[0])},..."
        case _ if origin is Annotated:
            name = _type_name(arguments[0])
        case _:
            name = "NAME=VALUE"
    return name


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _WIDTH, break_on_hyphens=False)
