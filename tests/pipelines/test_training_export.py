"""RUN/model holds a whole export at any time: while one is written, after one has failed, and after a kill."""

import os
import signal
import threading
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_packing import Built
from ureca.errors import OutputError
from ureca.io import clean_replaced_folder, replacing_folder
from ureca.model.checkpoints import load_checkpoint, save_checkpoint
from ureca.model.initialization import build_tiny
from ureca.pipelines.training.export import Exporter
from ureca.training.phases import Tune, prepare

WAIT_S = 60


@pytest.fixture
def built() -> Built:
    return build_tiny()


def tensors_of(built: Built, value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in built[0].state_dict().items()}


def value_in(folder: Path) -> float:
    return load_checkpoint(folder)[0].lm_head.weight[0, 0].item()


def test_exporter_writes_in_the_background_what_it_was_given(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    save = type(built[0]).save_pretrained

    def save_when_allowed(*arguments: Any, **named: Any) -> None:
        assert may_write.wait(WAIT_S)
        save(*arguments, **named)

    monkeypatch.setattr(type(built[0]), "save_pretrained", save_when_allowed)
    exporter = Exporter(tmp_path / "model", *built, base=None)
    exporter.start(tensors_of(built, 1.0), step=5)
    with torch.no_grad():  # the training goes on
        built[0].lm_head.weight.fill_(7.0)
    assert not (tmp_path / "model").exists()
    may_write.set()
    exporter.start(tensors_of(built, 2.0), step=10)  # the one before has ended
    assert value_in(tmp_path / "model") in {1.0, 2.0}
    exporter.wait()
    assert value_in(tmp_path / "model") == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_exporter_that_fails_raises_later_and_keeps_the_former_export(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = Exporter(tmp_path / "model", *built, base=None)
    exporter.start(tensors_of(built, 1.0), step=5)
    exporter.wait()

    def full_disk(_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(built[1], "save_pretrained", full_disk)
        exporter.start(tensors_of(built, 2.0), step=10)
        with pytest.raises(OutputError, match=r"model after step 10 failed: no space left on device.*the same command"):
            exporter.wait()
    assert value_in(tmp_path / "model") == 1.0
    exporter.wait()  # told once
    exporter.start(tensors_of(built, 3.0), step=15)
    exporter.wait()
    assert value_in(tmp_path / "model") == 3.0


def test_exporter_of_adapters_needs_only_their_tensors(built: Built, tmp_path: Path) -> None:
    save_checkpoint(*built, tmp_path / "base")
    prepare(built[0], Tune(rank=4, alpha=8))
    factors = {name: tensor for name, tensor in built[0].state_dict().items() if "lora_" in name}
    exporter = Exporter(tmp_path / "model", *built, base=str(tmp_path / "base"))
    exporter.start(factors, step=5)
    exporter.wait()
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert load_checkpoint(tmp_path / "model")


def write_and_die(folder: Path, num_renames: int | None) -> None:
    """Replace a folder, and be killed after so many renames or, for None, before its last file."""
    rename, left = Path.replace, [num_renames or 0]

    def rename_or_die(path: Path, target: Path) -> Path:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return rename(path, target)

    Path.replace = rename_or_die  # type: ignore[method-assign]
    with replacing_folder(folder, overwrite=True) as temporary:
        (temporary / "weights").write_text("new")
        if num_renames is None:
            os.kill(os.getpid(), signal.SIGKILL)
        (temporary / "more").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchanged", "renamed"])
def test_folder_after_a_kill_is_the_old_or_the_new_one(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr("ureca.io.sys.platform", "another")
    folder = tmp_path / "model"
    outcomes = []
    for num_renames in (0, 1, 2, None):
        with replacing_folder(folder, overwrite=True) as temporary:
            (temporary / "weights").write_text("old")
        process = get_context("fork").Process(target=write_and_die, args=(folder, num_renames))
        process.start()
        process.join(WAIT_S)
        assert process.exitcode == -signal.SIGKILL
        clean_replaced_folder(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        outcomes.append(sorted((path.name, path.read_text()) for path in folder.iterdir()))
    old, new = [("weights", "old")], [("more", "new"), ("weights", "new")]
    assert outcomes == ([new, new, new, old] if exchanges else [old, old, new, old])
