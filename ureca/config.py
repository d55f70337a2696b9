"""Settings for processes that work in other folders than the command was given in.

[from] Reading a verb's settings from a file, the environment and the command line."""

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, Final, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource
from pydantic_settings import SettingsError as UnreadableSettings

from ureca.errors import SettingsError

_config_file: ContextVar[str | None] = ContextVar("config_file", default=None)


class CommandSettings(BaseSettings):
    """Base of the settings of a verb.

    Sources, each over the one before: the defaults, the YAML file of ``--config``, environment variables
    (``URECA_TREE__CONTAINMENT``), flags (``--tree.containment``).
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="URECA_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
        cli_implicit_flags=True,
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
    )

    command: ClassVar[str]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code, then the environment; ``load`` adds the file and the flags."""
        file = YamlConfigSettingsSource(settings_cls, yaml_file=_config_file.get())
        return init_settings, env_settings, file

    @classmethod
    def load(cls, argv: Sequence[str]) -> Self:
        """Read the settings from the arguments of a command, which may name a YAML file with ``--config``.

        Raises:
            SettingsError: an unknown key, an impossible value (the message names each key), or an unreadable file.
            SystemExit: ``--help`` was asked for and printed.
        """
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--config")
        known, rest = parser.parse_known_args(argv)
        if known.config is not None and not Path(known.config).is_file():
            raise SettingsError(f"--config {known.config}: there is no such file")
        token = _config_file.set(known.config)
        try:
            return cls(_cli_parse_args=rest, _cli_prog_name=f"ureca {cls.command}")
        except ValidationError as error:
            raise SettingsError(_explain(error)) from error
        except yaml.YAMLError as error:
            raise SettingsError(f"--config {known.config} is not YAML: {error}") from error
        except (UnreadableSettings, OSError, ValueError) as error:
            raise SettingsError(str(error).removeprefix("error parsing CLI: ")) from error
        finally:
            _config_file.reset(token)


def _explain(error: ValidationError) -> str:
    lines = [f"  {'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in error.errors()]
    return "these settings cannot be used:\n" + "\n".join(lines)


class _MayChange:
    """Type of the marker ``MAY_CHANGE``."""


MAY_CHANGE: Final = _MayChange()
"""Mark of a settings field that does not decide the results: a run may be resumed with another value of it.

Used as ``Annotated[int, MAY_CHANGE]``. The mark of a field that holds settings covers all of them. A subclass that
declares the field again repeats the mark.
"""


def may_change_keys(settings: BaseModel) -> frozenset[str]:
    """Return the dotted keys of the fields marked ``MAY_CHANGE``, in all settings that could stand in each field."""
    return _marked(type(settings), settings, "")


def _marked(model: type[BaseModel], value: BaseModel | None, prefix: str) -> frozenset[str]:
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        if MAY_CHANGE in field.metadata:
            keys.add(f"{prefix}{name}")
            continue
        held = getattr(value, name, None)
        models = dict.fromkeys(_models_in(field.annotation))
        if isinstance(held, BaseModel):
            models[type(held)] = None  # a field of an abstract type, or a registered component
        for each in models:
            keys |= _marked(each, held if isinstance(held, each) else None, f"{prefix}{name}.")
    return frozenset(keys)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models of a field's annotation, which may be a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], ignore: Collection[str] = (), prefix: str = ""
) -> list[str]:
    """Dotted keys in which two dumps of settings differ, each with both values; ``ignore`` names keys to pass over."""
    lines: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if f"{prefix}{key}" in ignore:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, ignore, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} then, {new!r} now")
    return lines


Model = TypeVar("Model", bound=BaseModel)

_MADE = frozenset({"output", "input", "captions"})
_LOADED = frozenset({"checkpoint", "folder"})


def with_absolute_paths(settings: Model) -> Model:
    """The settings with absolute paths in the place of relative ones: workers of a cluster have other working folders.

    Folders of datasets may be yet to be made. A checkpoint that is no folder here is a name on the hub, and stays;
    so do URIs.
    """
    # `model` is a checkpoint, but where an engine behind HTTP has a name of its own for it.
    loaded = _LOADED if "base_urls" in type(settings).model_fields else _LOADED | {"model"}
    changes: dict[str, object] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            changes[name] = with_absolute_paths(value)
        elif isinstance(value, str) and name in _MADE:
            changes[name] = value if "://" in value else str(Path(value).absolute())
        elif isinstance(value, str) and name in loaded and Path(value).exists():
            changes[name] = str(Path(value).absolute())
        elif isinstance(value, Path):
            changes[name] = value.absolute()
        elif isinstance(value, tuple) and value and isinstance(value[0], Path):
            changes[name] = tuple(path.absolute() for path in value)
    return settings.model_copy(update=changes)
