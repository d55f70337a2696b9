"""Checkpoints load completely or not at all, and with their code if this package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.model.inputs import Tiny, box_masks, generate, noise_image, region_inputs
from ureca.errors import CheckpointError
from ureca.model.checkpoints import WeightSharding, load_checkpoint, save_with_code
from ureca.model.initialization import build_tiny, save_tiny
from ureca.model.settings import TinySizes

ON_A_MACHINE_WITHOUT_THIS_PACKAGE = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ureca":
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import numpy as np
from transformers import AutoModelForImageTextToText, AutoProcessor

directory = sys.argv[1]
model, report = AutoModelForImageTextToText.from_pretrained(
    directory, trust_remote_code=True, output_loading_info=True
)
processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
scene = np.load(sys.argv[2])
content = [{"type": "image"}, {"type": "mask"}, {"type": "text", "text": "Describe this region in the image."}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(images=scene["image"], text=prompt, masks=[scene["mask"]], return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
print(json.dumps({
    "tokens": tokens.tolist(),
    "not loaded": sum(len(keys) for keys in report.values()),
    "modules": sorted({type(model).__module__.split(".")[0], type(processor).__module__.split(".")[0]}),
}))
"""


@pytest.mark.parametrize("variant", ["convolutional", "fused"])
def test_save_with_code_loads_without_this_package(variant: str, tmp_path: Path) -> None:
    model, processor = build_tiny(TinySizes(mask_encoder=variant))
    image, masks = noise_image(60, 110), box_masks(60, 110, 1)
    expected = generate(model, region_inputs(processor, [image], masks))[0]
    save_with_code(model, processor, tmp_path / "export")
    np.savez(tmp_path / "scene.npz", image=image, mask=masks[0])

    command = [sys.executable, "-I", "-c", ON_A_MACHINE_WITHOUT_THIS_PACKAGE]
    outcome = subprocess.run(
        [*command, tmp_path / "export", tmp_path / "scene.npz"],
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    result = json.loads(outcome.stdout.splitlines()[-1])
    assert result == {"tokens": expected, "not loaded": 0, "modules": ["transformers_modules"]}


def test_save_with_code_loads_here_and_changes_no_later_save(tiny: Tiny, tmp_path: Path) -> None:
    model, processor = tiny
    save_with_code(model, processor, tmp_path / "export")
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    assert list((tmp_path / "export").glob("*.py"))
    assert not list((tmp_path / "plain").glob("*.py"))
    assert not [path for path in (tmp_path / "plain").glob("*.json") if "auto_map" in path.read_text()]

    loaded, loaded_processor = load_checkpoint(tmp_path / "export")
    inputs = region_inputs(loaded_processor, [noise_image(60, 110)], box_masks(60, 110, 1))
    assert generate(loaded, inputs) == generate(model, inputs)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_tiny(tmp_path)
    return tmp_path


def edit_weights(checkpoint: Path, edit: object) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    edit(tensors)  # type: ignore[operator]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})


def test_load_checkpoint_with_missing_weights_raises_their_names(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors.pop("mask_encoder.projection.weight"))
    with pytest.raises(CheckpointError, match=r"missing: model\.mask_encoder\.projection\.weight$"):
        load_checkpoint(checkpoint)


def test_load_checkpoint_with_unexpected_weights_raises_their_names(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors.update(extra=tensors["mask_encoder.projection.bias"].clone()))
    with pytest.raises(CheckpointError, match=r"unexpected: extra$"):
        load_checkpoint(checkpoint)


def test_load_checkpoint_of_another_model_raises(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "internvl"}))
    with pytest.raises(CheckpointError, match="holds a internvl checkpoint, not a URECA"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("content", [None, "{"])
def test_load_checkpoint_without_readable_config_raises(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: cannot read .*config\.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{"model_type": "ureca", "vision_config": 3}'),
        ("config.json", b'{"model_type": "ureca", "text_config": {"model_type": "no-such-model"}}'),
        ("model.safetensors", b"\xff" * 100),
        ("model.safetensors", b""),
        ("tokenizer.json", b"{"),
    ],
)
def test_load_damaged_checkpoint_raises_a_checkpoint_error(name: str, content: bytes, tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be loaded|do not fit"):
        load_checkpoint(tmp_path)


def test_load_checkpoint_with_sharding_rejects_other_weights_before_ranks_meet(tmp_path: Path) -> None:
    def meet(*_: object) -> NoReturn:
        raise RuntimeError("ranks meet")

    sharding = WeightSharding(construction=meet, gathered=meet)
    save_tiny(tmp_path)
    with pytest.raises(RuntimeError, match="ranks meet"):
        load_checkpoint(tmp_path, sharding=sharding)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    for changed, problem in (
        ({names[0]: tensors[names[0]][..., :-1].contiguous()}, "ignore_mismatched_sizes"),
        ({"another.weight": tensors[names[0]].clone()}, "unexpected: another.weight"),
    ):
        save_file(tensors | changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=problem):
            load_checkpoint(tmp_path, sharding=sharding)
    save_file({name: tensors[name] for name in names[1:]}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing: "):
        load_checkpoint(tmp_path, sharding=sharding)
