"""Registration of components and the settings types that name them."""

import uuid
from typing import ClassVar, Literal

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from ureca.errors import SettingsError
from ureca.registry import build_component, config_union, register, settings_model, uses_chat_model


class Settings(BaseModel):
    """Settings of a test."""

    number: int = 1


@pytest.fixture
def name() -> str:
    """A name that no component has."""
    return f"test-{uuid.uuid4().hex}"


def test_component_gets_its_settings_and_the_chat_model(name: str) -> None:
    @register("annotator", name, settings=Settings)
    class Component:
        def __init__(self, model: str, settings: Settings) -> None:
            self.given = model, settings.number

    config = TypeAdapter(config_union("annotator")).validate_python({"kind": name, "number": 3})
    assert build_component("annotator", config, model="a model").given == ("a model", 3)
    assert uses_chat_model("annotator", config)


def test_component_without_settings_is_built_without_arguments(name: str) -> None:
    @register("embedder", name)
    class Component:
        """An embedder."""

    config = TypeAdapter(config_union("embedder")).validate_python({"kind": name})
    assert isinstance(build_component("embedder", config), Component)
    assert not uses_chat_model("embedder", config)
    assert type(config).__doc__ == "An embedder."


def test_component_of_an_import_string_is_imported_when_it_is_built(name: str) -> None:
    register("listener", name, component="no_such_module:Listener", uses_chat_model=True)(Settings)
    config = TypeAdapter(config_union("listener")).validate_python({"kind": name})
    assert uses_chat_model("listener", config)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        build_component("listener", config)


def test_component_that_is_not_registered_is_a_settings_error(name: str) -> None:
    class Config(BaseModel):
        kind: str = name

    with pytest.raises(SettingsError, match=f"no embedder '{name}'"):
        build_component("embedder", Config())


def test_settings_refuse_unknown_keys_and_changes(name: str) -> None:
    register("chat_model", name, component="module:Model")(Settings)
    adapter = TypeAdapter(config_union("chat_model"))
    with pytest.raises(ValidationError, match="Extra inputs"):
        adapter.validate_python({"kind": name, "other": 1})
    with pytest.raises(ValidationError, match="frozen"):
        adapter.validate_python({"kind": name}).number = 2
    assert "kind" not in Settings.model_fields


def test_settings_that_have_their_kind_are_used_unchanged(name: str) -> None:
    class WithKind(BaseModel):
        kind: Literal["other"] = "other"

    with pytest.raises(ValueError, match=rf"Literal\['{name}'\]"):
        register("embedder", name, component="module:Embedder")(WithKind)


def test_union_excludes_names_and_takes_further_models(name: str) -> None:
    class Nothing(BaseModel):
        kind: Literal["none"] = "none"

    register("mask_generator", name, component="module:Generator")(Settings)
    adapter = TypeAdapter(config_union("mask_generator", Nothing, exclude={name}))
    assert adapter.validate_python({"kind": "none"}) == Nothing()
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        adapter.validate_python({"kind": name})


def test_taken_names_and_unknown_kinds_are_refused(name: str) -> None:
    register("embedder", name, component="module:First")(Settings)
    register("embedder", name, component="module:First")(Settings)  # the same again, as when a module is reloaded
    with pytest.raises(ValueError, match="registered already, by module:First"):
        register("embedder", name, component="module:Second")(Settings)
    with pytest.raises(ValueError, match="kinds are mask_generator"):
        register("annotators", name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give settings when"):
        register("embedder", name, settings=Settings, component="module:First")


def test_settings_model_of_a_registered_name_keeps_its_class_attributes(name: str) -> None:
    class OwnSettings(BaseModel):
        mask_source: ClassVar[str] = "annotations"

    @register("mask_generator", name, settings=OwnSettings)
    class Own:
        pass

    found = settings_model("mask_generator", name)
    assert found is not None and getattr(found, "mask_source", None) == "annotations"
    assert settings_model("mask_generator", f"{name}-that-is-not") is None
