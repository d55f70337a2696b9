"""Registry of components: mask generators, annotators, listeners, embedders and chat models, by name.

A registered component is named in the settings of a command (``annotator: {kind: mine}``, ``--annotator.kind mine``),
beside the components of this package, which are registered in the same way. Packages make their components known by
an entry point of the group ``ureca.plugins``: the name of a module that registers them when it is imported.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model

from ureca.errors import SettingsError

Kind = Literal["mask_generator", "annotator", "listener", "embedder", "chat_model"]

ENTRY_POINT_GROUP = "ureca.plugins"

Registered = TypeVar("Registered", bound=type)


class ComponentConfig(Protocol):
    """Settings of a registered component: a pydantic model whose field ``kind`` is the name of the component."""

    @property
    def kind(self) -> str:
        """Name under which the component is registered."""
        ...


@dataclass(frozen=True)
class Registration:
    """A component and its settings.

    Attributes:
        config: pydantic model with the field ``kind``, a ``Literal`` of the component's name.
        component: class or other callable that builds the component, or its import string, "module:name", which is
            imported only when the component is built.
        uses_chat_model: the component is given the chat model of the run.
    """

    config: type[BaseModel]
    component: Callable[..., Any] | str
    uses_chat_model: bool


_registrations: dict[tuple[str, str], Registration] = {}


def register(
    kind: Kind,
    name: str,
    *,
    settings: type[BaseModel] | None = None,
    component: str | None = None,
    uses_chat_model: bool = False,
) -> Callable[[Registered], Registered]:
    """Make a component available under a name, in the settings of all commands that have components of its kind.

    Decorate the class of the component and name its settings model. Or, if its module is slow to import, decorate the
    settings model and give the import string of the component, so that ``--help`` does not wait for it.

    The component is built once in each worker process. Its constructor gets, by keyword, those of these arguments that
    it has parameters for: ``settings``, an instance of the settings model, and ``model``, the chat model that ``mllm``
    names (a ``ChatModel``), where annotators and listeners ask one.

    The settings model becomes a section of a command's settings. A model without the field ``kind`` gets it, is frozen,
    and refuses unknown keys. A listener's model that extends ``ureca.curation.settings.ListeningSettings`` also sets
    how often the curation asks the listener.

    Args:
        kind: mask_generator, annotator, listener, embedder or chat_model; the component fulfils the protocol of
            that name (``ureca.MaskGenerator`` and so on).
        name: value of ``kind`` in settings, such as ``--annotator.kind NAME``.
        settings: settings model of the decorated component; None: it has no settings.
        component: import string, "module:class", of the component whose settings model is decorated.
        uses_chat_model: with ``component``: its constructor has the parameter ``model``. Otherwise it is looked up.

    Returns:
        A decorator that returns the class unchanged.

    Raises:
        ValueError: the kind is unknown, the name is taken, or both ``settings`` and ``component`` are given.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"there are no components of the kind {kind!r}; the kinds are {', '.join(get_args(Kind))}")
    if settings is not None and component is not None:
        raise ValueError("give settings when you decorate a component, component when you decorate its settings")

    def decorate(decorated: Registered) -> Registered:
        built: type | str
        if component is None:
            empty = create_model(f"{decorated.__name__}Settings", __doc__=decorated.__doc__)
            model, built = settings or empty, decorated
        else:
            model, built = decorated, component
        config = _with_kind(model, kind, name, decorated.__module__)
        registration = Registration(config, built, uses_chat_model or "model" in _parameters(built))
        known = _registrations.get((kind, name))
        if known is not None and _origin(known) != _origin(registration):
            raise ValueError(f"the {kind.replace('_', ' ')} {name!r} is registered already, by {_origin(known)}")
        _registrations[kind, name] = registration
        return decorated

    return decorate


def build_component(kind: Kind, config: ComponentConfig, model: Any = None) -> Any:
    """Build the component that a section of the settings names.

    Args:
        kind: kind of the component.
        config: its settings, as validated for a command, or an instance of the settings model it was registered with.
        model: chat model for components that use one.

    Raises:
        SettingsError: no component has this name, or it cannot be built, such as for want of a checkpoint or a package.
    """
    component = _registration(kind, config.kind).component
    if isinstance(component, str):
        module, _, attribute = component.partition(":")
        component = getattr(import_module(module), attribute)
    arguments = {"settings": config, "model": model}
    return component(**{name: value for name, value in arguments.items() if name in _parameters(component)})


def settings_model(kind: Kind, name: str) -> type[BaseModel] | None:
    """Return the settings model of a registered component; None if no component has the name."""
    registration = _registrations.get((kind, name))
    return None if registration is None else registration.config


def uses_chat_model(kind: Kind, config: ComponentConfig) -> bool:
    """Tell whether the component that a section of the settings names asks the chat model of the run."""
    registration = _registrations.get((kind, config.kind))
    return registration is not None and registration.uses_chat_model


def config_union(kind: Kind, *others: type[BaseModel], exclude: Collection[str] = ()) -> Any:
    """Make the type of a section of a command's settings that names one component, or something in its place.

    The type has the components that are registered by now, those of installed plugins among them.

    Args:
        kind: kind of the components.
        others: further models with a ``kind``, such as one for "none"; they stand first in ``--help``.
        exclude: names of components that do not fit the command.

    Returns:
        A union of settings models that is discriminated by ``kind``.

    Raises:
        SettingsError: a plugin cannot be imported.
    """
    load_plugins()
    configs = [
        registration.config
        for (of_kind, name), registration in _registrations.items()
        if of_kind == kind and name not in exclude
    ]
    return Annotated[Union[(*others, *configs)], Field(discriminator="kind")]


@cache
def load_plugins() -> None:
    """Import the modules of the entry-point group ``ureca.plugins``, once in a process.

    Raises:
        SettingsError: one cannot be imported.
    """
    for plugin in entry_points(group=ENTRY_POINT_GROUP):
        try:
            plugin.load()
        except Exception as error:
            raise SettingsError(
                f"the plugin {plugin.name!r} ({plugin.value}) cannot be imported: {type(error).__name__}: {error}"
            ) from error


def _with_kind(model: type[BaseModel], kind: Kind, name: str, module: str) -> type[BaseModel]:
    """The settings model, or a strict subclass of it that has the field ``kind``."""
    if "kind" in model.model_fields:
        if get_args(model.model_fields["kind"].annotation) != (name,):
            raise ValueError(f"the field 'kind' of {model.__name__} must have the type Literal[{name!r}]")
        return model

    class Strict(model):  # type: ignore[valid-type, misc]
        model_config = ConfigDict(extra="forbid", frozen=True)

        def __reduce__(self) -> tuple[Any, ...]:
            # The class has no import path: another process finds it by kind and name.
            return _unpickle, (module, kind, name, self.__getstate__())

    # Without a docstring, help would show that of BaseModel.
    doc = model.__doc__ or f"The {kind.replace('_', ' ')} {name!r} of a plugin."
    return create_model(model.__name__, __base__=Strict, __doc__=doc, kind=(Literal[name], name))  # type: ignore[arg-type]


def _unpickle(module: str, kind: Kind, name: str, state: dict[str, Any]) -> BaseModel:
    import_module(module)
    config = _registration(kind, name).config
    instance = config.__new__(config)
    instance.__setstate__(state)
    return instance


def _registration(kind: Kind, name: str) -> Registration:
    if (kind, name) not in _registrations:
        load_plugins()
    if (kind, name) not in _registrations:
        raise SettingsError(
            f"there is no {kind.replace('_', ' ')} {name!r} in this process; register it in a module that all "
            f"processes can import, or by the entry-point group {ENTRY_POINT_GROUP}"
        )
    return _registrations[kind, name]


def _parameters(component: Callable[..., Any] | str) -> Collection[str]:
    return () if isinstance(component, str) else inspect.signature(component).parameters


def _origin(registration: Registration) -> str:
    component = registration.component
    return component if isinstance(component, str) else f"{component.__module__}:{component.__qualname__}"
