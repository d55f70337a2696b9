"""The record of an output folder, and the settings that a resumed run may change."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from ureca.config import MAY_CHANGE, may_change_keys
from ureca.data.output import Output
from ureca.data.run_record import RunRecord, config_hash_of, config_of
from ureca.errors import OutputError


class Endpoint(BaseModel):
    kind: Literal["endpoint"] = "endpoint"
    model: str = "a"
    url: Annotated[str, MAY_CHANGE] = "http://one"


class Local(BaseModel):
    kind: Literal["local"] = "local"
    device: Annotated[str | None, MAY_CHANGE] = None


class Resources(BaseModel):
    num_actors: int = 1


class Settings(BaseModel):
    output: Annotated[str, MAY_CHANGE] = "out"
    threshold: float = 0.5
    engine: Annotated[Endpoint | Local, Field(discriminator="kind")] = Endpoint()
    resources: Annotated[Resources, MAY_CHANGE] = Resources()
    component: BaseModel = Resources()


def record_of(path: Path, settings: BaseModel | dict[str, Any], **options: Any) -> RunRecord:
    return RunRecord(Output(str(path)), "curate", settings, **options)


def test_may_change_keys_of_nested_settings_are_dotted() -> None:
    assert may_change_keys(Settings()) == {"output", "engine.url", "engine.device", "resources"}
    assert may_change_keys(Settings(component=Endpoint())) >= {"component.url"}


def test_config_hash_of_marked_fields_stays_the_same() -> None:
    settings = Settings()
    same = Settings(output="elsewhere", engine=Endpoint(url="http://two"), resources=Resources(num_actors=8))
    assert config_of(same) == config_of(settings)
    assert "output" not in config_of(settings)
    assert config_hash_of(same, {}) == config_hash_of(settings, {})
    assert config_hash_of(Settings(threshold=0.6), {}) != config_hash_of(settings, {})
    assert config_hash_of(settings, {"prompts": "2"}) != config_hash_of(settings, {})


def test_check_unchanged_with_other_settings_or_identity_lists_them(tmp_path: Path) -> None:
    record_of(tmp_path, Settings(), identity={"prompts": "1"}).write("stopped")
    record_of(tmp_path, Settings(output="elsewhere"), identity={"prompts": "1"}).check_unchanged("Stop.")
    changed = record_of(tmp_path, Settings(threshold=0.6), identity={"prompts": "2"})
    message = r"other settings:\n  threshold: 0\.5 then, 0\.6 now\n  prompts: '1' then, '2' now\nStop\.$"
    with pytest.raises(OutputError, match=message):
        changed.check_unchanged("Stop.")


def test_check_unchanged_without_a_record_passes(tmp_path: Path) -> None:
    record_of(tmp_path, Settings()).check_unchanged("Stop.")


def test_run_record_of_another_command_is_refused(tmp_path: Path) -> None:
    Output(str(tmp_path)).write_run({"command": "train"})
    with pytest.raises(OutputError, match="is the output of 'train', not of curate; name another folder"):
        record_of(tmp_path, Settings())


def test_write_appends_sessions_and_keeps_configs(tmp_path: Path) -> None:
    first = record_of(tmp_path, Settings())
    first.write("running")
    first.write("stopped", session={"images_per_s": 2.0})
    second = record_of(tmp_path, Settings(threshold=0.6), packages=("numpy",))
    assert not second.is_finished
    second.write("finished", totals={"num_images": 3}, models=["a"])
    run = json.loads((tmp_path / "run.json").read_text())
    assert [(each["state"], each["config_hash"]) for each in run["sessions"]] == [
        ("stopped", first.config_hash),
        ("finished", second.config_hash),
    ]
    assert run["sessions"][0]["images_per_s"] == 2.0
    assert {*run["configs"]} == {first.config_hash, second.config_hash}
    assert (run["totals"], run["models"]) == ({"num_images": 3}, ["a"])
    assert {"ureca", "python", "numpy"} == run["versions"].keys()
    assert record_of(tmp_path, Settings()).is_finished


def test_write_without_sessions_is_deterministic(tmp_path: Path) -> None:
    contents = []
    for name in "ab":
        record_of(tmp_path / name, {"seed": 1}, has_sessions=False).write("finished")
        contents.append((tmp_path / name / "run.json").read_text())
    assert contents[0] == contents[1]
    assert "sessions" not in json.loads(contents[0])
