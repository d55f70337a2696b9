"""Settings of commands: reading them from a file, the environment and the command line, and comparing them."""

import argparse
import difflib
import logging
import os
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)
from pydantic_settings import SettingsError as UnreadableSettings

from ureca.errors import SettingsError

logger = logging.getLogger(__name__)

# --- Marks of fields, as metadata: `limit: Annotated[int, ESSENTIAL] = 5` ---


class _Essential:
    """Type of the marker ``ESSENTIAL``."""


ESSENTIAL: Final = _Essential()
"""Mark of a setting that most users set: ``--help`` shows it, all others are in ``--help-all``."""


@dataclass(frozen=True)
class Metavar:
    """Mark that names a setting's value in the help: ``Annotated[Path, Metavar("FILE")]``."""

    text: str


class _MayChange:
    """Type of the marker ``MAY_CHANGE``."""


MAY_CHANGE: Final = _MayChange()
"""Mark of a settings field that does not decide the results: a run may be resumed with another value of it.

Used as ``Annotated[int, MAY_CHANGE]``. The mark of a field that holds settings covers all of them. A subclass that
declares the field again repeats the mark.
"""


class HelpRequested(Exception):
    """The arguments ask for help instead of running the command.

    Attributes:
        settings: class of the command's settings.
        show_all: ``--help-all`` was given.
    """

    def __init__(self, settings: "type[CommandSettings]", show_all: bool) -> None:
        super().__init__(settings.command)
        self.settings = settings
        self.show_all = show_all


_MAX_CONFIG_BYTES = 2**20
_MAX_CONFIG_DEPTH = 64
_CUTOFF_OF_VARIABLES = 0.85  # smallest similarity (difflib) of a suggested variable; the common prefix counts, too
_config_file: ContextVar[str | None] = ContextVar("config_file", default=None)


class CommandSettings(BaseSettings):
    """Base of a command's settings.

    Sources, each of which overrides the one before: defaults, the YAML file of ``--config``, environment variables
    (``URECA_TREE__CONTAINMENT``), flags (``--tree.containment``).

    Attributes:
        command: name of the command.
        examples: command lines with a comment each, for the help.
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="URECA_",
        env_prefix_target="all",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
        validate_by_name=True,
        cli_implicit_flags=True,
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
    )

    command: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources below the flags, the strongest first."""
        file = YamlConfigSettingsSource(settings_cls, yaml_file=_config_file.get())
        return init_settings, env_settings, file

    @classmethod
    def load(cls, argv: Sequence[str]) -> Self:
        """Read the settings from the arguments of a command, which may name a YAML file with ``--config``.

        Raises:
            SettingsError: an unknown key, an impossible value (the message names each key), or an unreadable file.
            HelpRequested: ``--help`` or ``--help-all`` was given.
        """
        requested = {"-h", "--help", "--help-all"}.intersection(argv)
        if requested:
            raise HelpRequested(cls, show_all="--help-all" in requested)
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        parser.add_argument("--config")
        try:
            known, rest = parser.parse_known_args(argv)
        except argparse.ArgumentError as error:
            raise SettingsError(f"--config: {error.message}") from error
        if known.config is not None and not Path(known.config).is_file():
            raise SettingsError(f"--config {known.config}: there is no such file")
        if known.config is not None:
            _check_nesting(known.config)
        misspelt = _misspelt_variables(cls)
        token = _config_file.set(known.config)
        try:
            return cls(_cli_parse_args=rest, _cli_prog_name=f"ureca {cls.command}")
        except ValidationError as error:
            told = []
            errors = error.errors()
            for item in errors:
                inner = [each["loc"] for each in errors if each is not item and item["loc"]]
                if any(location[: len(item["loc"])] == item["loc"] for location in inner):
                    continue  # a list of which one item is wrong is too short without it
                name = _name_at(cls, item["loc"])
                # A misspelt variable of a section is a setting that the section lacks.
                told.append(misspelt.pop(_variable(cls, name), "") or _explain(cls, name, item))
            raise SettingsError("; ".join(told)) from error
        except yaml.YAMLError as error:
            raise SettingsError(f"--config {known.config} is not YAML: {' '.join(str(error).split())}") from error
        except (UnreadableSettings, OSError, ValueError) as error:
            message = str(error).removeprefix("error parsing CLI: ")
            raise SettingsError(_with_suggestion(cls, message, rest)) from error
        finally:
            _config_file.reset(token)
            for message in misspelt.values():
                logger.warning(message)


def _check_nesting(file: str) -> None:
    """Check the depth of a YAML file: the time of parsing it grows with the square of its depth.

    Raises:
        SettingsError: it is deeper than any settings, or cannot be read.
    """
    try:
        with Path(file).open("rb") as stream:
            content = stream.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"--config {file} cannot be read: {error}") from error
    if len(content) > _MAX_CONFIG_BYTES:
        raise SettingsError(f"--config {file} has more than {_MAX_CONFIG_BYTES} bytes")
    depth = deepest = 0
    for bracket in re.findall(rb"[\[\]{}]", content):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    indents = {len(indent) for indent in re.findall(rb"(?m)^ *", content)}
    in_line = max(
        (run.count(b"-") + run.count(b"?") for run in re.findall(rb"(?m)^ *((?:[-?] +)+)", content)), default=0
    )
    if max(deepest, len(indents), in_line) > _MAX_CONFIG_DEPTH:
        raise SettingsError(f"--config {file} is nested more than {_MAX_CONFIG_DEPTH} levels deep")


def _name_at(settings: type[CommandSettings], location: Sequence[str | int]) -> str:
    """Return the dotted name of the setting at the location of a validation error."""
    names: list[str] = []
    members: Sequence[type] = (settings,)
    for part in location:
        tagged = [each for each in members if part in kinds_of(each)]
        if tagged:  # pydantic inserts the kind of a union's member into the location
            members = tagged
            continue
        names.append(str(part))
        members = [
            nested for each in members if (field := fields_of(each).get(str(part))) for nested in models_in(field)
        ]
    return ".".join(names)


def _explain(settings: type[CommandSettings], name: str, item: Mapping[str, Any]) -> str:
    """Describe one validation error of a setting."""
    if item["type"] == "extra_forbidden":
        same = (each.condition for each in settings_of(settings) if each.name == name and each.condition)
        if kinds := list(dict.fromkeys(same)):
            choose = "that kind" if len(kinds) == 1 else "one of these kinds"
            return f"{name} is a setting of {' or '.join(kinds)}: choose {choose} as well"
        names = [each.name for each in settings_of(settings)]
        sections = [each.section for each in settings_of(settings) if each.section]
        return f"there is no setting {name}{_did_you_mean(name, [*names, *sections])}"
    if item["type"] == "missing":
        return f"--{name.replace('_', '-')} is required"
    if item["type"] == "union_tag_invalid":
        tag, expected = item["ctx"]["tag"], item["ctx"]["expected_tags"]
        suggestion = _did_you_mean(str(tag), re.findall(r"'([^']*)'", expected))
        return f"{name}.kind: {tag!r} is none of {expected}{suggestion}"
    if item["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        return f"{name}: {item['input']!r} is none of {', '.join(choices)}{_did_you_mean(str(item['input']), choices)}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def _with_suggestion(settings: type[CommandSettings], message: str, arguments: Sequence[str]) -> str:
    """Name the likeliest flags in the place of those that argparse did not recognize.

    Where it misses arguments, it does not say which flags it does not know, though one of them may be the cause.
    """
    if message.startswith("the following arguments are required: "):
        known = [each.flag for each in settings_of(settings)]
        flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        unknown = [flag for flag in flags if flag.replace("--no-", "--", 1) not in known]
        hints = {flag: _did_you_mean(flag, [*known, "--help", "--help-all"]) for flag in unknown}
        return message + "".join(f"; there is no setting {flag}{hint}" for flag, hint in hints.items() if hint)
    if not message.startswith("unrecognized arguments: "):
        return message
    words = message.removeprefix("unrecognized arguments: ").split()
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    if not flags:
        return f"too many arguments: {' '.join(words)} (ureca {settings.command} --help shows which ones it takes)"
    known = [each.flag for each in settings_of(settings) if not each.is_positional]
    return "; ".join(f"there is no setting {flag}{_did_you_mean(flag, known)}" for flag in flags) + (
        f" (ureca {settings.command} --help-all lists them)"
    )


def _misspelt_variables(settings: type[CommandSettings]) -> dict[str, str]:
    """Return a message for each environment variable that is almost a setting, by its name in capitals.

    Others may be settings of other commands.
    """
    prefix = settings.model_config["env_prefix"]
    known = {_variable(settings, each.name) for each in settings_of(settings)}
    sections = {name.rpartition("__")[0] for name in known}
    messages = {}
    for variable in os.environ:
        name = variable.upper()
        if name.startswith(prefix) and name not in known | sections:
            close = difflib.get_close_matches(name, known, n=1, cutoff=_CUTOFF_OF_VARIABLES)
            if close:
                messages[name] = (
                    f"the environment variable {variable} is no setting of ureca {settings.command}; "
                    f"did you mean {close[0]}?"
                )
    return messages


def _variable(settings: type[CommandSettings], name: str) -> str:
    """Return the name of the environment variable of a setting, in capitals."""
    return f"{settings.model_config['env_prefix']}{name.replace('.', '__')}".upper()


def _did_you_mean(name: str, known: Iterator[str] | Sequence[str]) -> str:
    close = list(dict.fromkeys(difflib.get_close_matches(name, list(known), n=2, cutoff=0.7)))
    return f"; did you mean {' or '.join(close)}?" if close else ""


# --- The settings of a command, read off its models ---


@dataclass(frozen=True)
class Setting:
    """One setting of a command.

    Attributes:
        name: dotted name, such as ``tree.containment``.
        field: pydantic's description of it.
        default: value where nothing is set; ``PydanticUndefined`` where it is required.
        section: dotted name of the section that holds it; empty for the command's own.
        model: class of that section.
        condition: flag that selects the kind of section which has this setting, such as ``--masks.kind sam``; None: it
            does not depend on a kind.
        choices: kinds to choose from, where this is a section's ``kind``.
    """

    name: str
    field: FieldInfo
    default: Any
    section: str
    model: type
    condition: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def is_positional(self) -> bool:
        """The setting is an argument without a flag."""
        return _POSITIONAL in self.field.metadata

    @property
    def is_essential(self) -> bool:
        """The setting is shown by ``--help``."""
        return ESSENTIAL in self.field.metadata or (self.field.is_required() and self.condition is None)

    @property
    def is_required(self) -> bool:
        """The setting has no default."""
        return self.default is PydanticUndefined

    @property
    def flag(self) -> str:
        """Name on the command line."""
        return f"--{self.name.replace('_', '-')}"


_POSITIONAL = get_args(CliPositionalArg[int])[1]


def settings_of(
    model: type, default: object = PydanticUndefined, section: str = "", condition: str | None = None
) -> Iterator[Setting]:
    """List all settings of a model and of the models in it, in the order of their definition.

    Args:
        model: class of settings, or of a section of settings.
        default: the section's value where nothing is set, which is None where the section is optional; undefined: each
            field's own default.
        section: dotted name of the section.
        condition: flag that selects this model, where the section has a choice of kinds.
    """
    for name, field in fields_of(model).items():
        own_name = field.validation_alias if isinstance(field.validation_alias, str) else name
        full_name = f"{section}.{own_name}" if section else own_name
        if isinstance(default, model):
            value = getattr(default, name)
        else:
            value = field.get_default(call_default_factory=True)
            value = None if default is None and value is PydanticUndefined else value
        members = models_in(field)
        kinds = [each for member in members for each in kinds_of(member)]
        if not members and not (condition is not None and name == "kind"):
            yield Setting(full_name, field, value, section, model, condition)
        if kinds:
            chosen = getattr(value, "kind", PydanticUndefined)
            yield Setting(f"{full_name}.kind", field, chosen, full_name, model, choices=tuple(kinds))
        for member in members:
            flag = f"--{full_name.replace('_', '-')}.kind {kinds_of(member)[0]}" if kinds else condition
            held = value if value is None or type(value) is member else PydanticUndefined
            yield from settings_of(member, held, full_name, flag)


def fields_of(model: type) -> Mapping[str, FieldInfo]:
    """Return the fields of a pydantic model or dataclass; empty for other types."""
    if issubclass(model, BaseModel):
        return model.model_fields
    return getattr(model, "__pydantic_fields__", {})


def models_in(field: FieldInfo) -> list[type]:
    """Return the models that a field holds one of, in the order of its annotation."""
    pending, models = [field.annotation], []
    while pending:
        annotation = pending.pop(0)
        if get_origin(annotation) in {Union, types.UnionType, Annotated}:
            pending[:0] = get_args(annotation)
        elif isinstance(annotation, type) and get_origin(annotation) is None and fields_of(annotation):
            models.append(annotation)
    return models


def kinds_of(model: type) -> tuple[str, ...]:
    """Return the values of a model's ``kind`` by which it is chosen; empty where it has none."""
    field = fields_of(model).get("kind")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def may_change_keys(settings: BaseModel) -> frozenset[str]:
    """Return the dotted keys of the fields marked ``MAY_CHANGE``, in all settings that could stand in each field."""
    return _marked(type(settings), settings, "")


def _marked(model: type, value: object, prefix: str) -> frozenset[str]:
    keys: set[str] = set()
    for name, field in fields_of(model).items():
        if MAY_CHANGE in field.metadata:
            keys.add(f"{prefix}{name}")
            continue
        held = getattr(value, name, None)
        models = dict.fromkeys(models_in(field))
        if isinstance(held, BaseModel):
            models[type(held)] = None  # a field of an abstract type, or a registered component
        for each in models:
            keys |= _marked(each, held if isinstance(held, each) else None, f"{prefix}{name}.")
    return frozenset(keys)


# --- Comparing settings, and making them independent of the working folder ---


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], ignore: Collection[str] = (), prefix: str = ""
) -> list[str]:
    """List the dotted keys in which two dumps of settings differ, each with both values.

    Of sections of different kinds, only the kinds are listed.

    Args:
        before: earlier dump.
        now: present dump.
        ignore: dotted keys that may differ.
        prefix: beginning of the keys.
    """
    lines: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if f"{prefix}{key}" in ignore:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            kinds = [{"kind": each.get("kind")} for each in (old, new)]
            if kinds[0] != kinds[1]:
                old, new = kinds
            lines += differences(old, new, ignore, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} then, {new!r} now")
    return lines


Model = TypeVar("Model", bound=BaseModel)

_WRITTEN_OR_READ = frozenset({"output", "input", "captions"})
_LOADED_IF_THERE = frozenset({"checkpoint", "folder"})


def with_absolute_paths(settings: Model) -> Model:
    """Replace relative paths by absolute ones: the workers of a cluster have other working folders.

    Inputs and outputs are paths even where nothing exists yet. A checkpoint that is no folder here is taken for a name
    on the hub and stays, as URIs do.
    """
    # `model` is a checkpoint, except where it is the name that endpoints give it.
    loaded = _LOADED_IF_THERE if getattr(settings, "base_urls", ()) else _LOADED_IF_THERE | {"model"}
    changes: dict[str, object] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            changes[name] = with_absolute_paths(value)
        elif isinstance(value, str) and name in _WRITTEN_OR_READ:
            changes[name] = value if "://" in value else str(Path(value).absolute())
        elif isinstance(value, str) and name in loaded and Path(value).exists():
            changes[name] = str(Path(value).absolute())
        elif isinstance(value, Path):
            changes[name] = value.absolute()
        elif isinstance(value, tuple) and value and isinstance(value[0], Path):
            changes[name] = tuple(path.absolute() for path in value)
    return settings.model_copy(update=changes)
