"""Exported checkpoints and adapters caption like the model in training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.test_packing import Built, make_examples
from tests.training.test_phases import randomise_adapters
from ureca.errors import CheckpointError, OutputError
from ureca.model.captioner import RegionCaptioner
from ureca.model.checkpoint_files import fingerprint
from ureca.model.checkpoints import load_checkpoint, load_with_adapter, save_adapter, save_checkpoint
from ureca.model.initialization import build_tiny
from ureca.model.lora import merge_adapter_in_place
from ureca.model.settings import TinySizes
from ureca.training.loss import PackedLoss
from ureca.training.packing import PackedBatch, Packer
from ureca.training.phases import Align, Full, Tune, prepare

Logits = torch.Tensor


@pytest.fixture
def tuned() -> Built:
    model, processor = build_tiny()
    prepare(model, Tune(rank=4, alpha=8))
    randomise_adapters(model)
    return model.eval(), processor


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model, processor = build_tiny()
    save_checkpoint(model, processor, tmp_path / "base")
    return tmp_path / "base"


def batch_of(built: Built) -> PackedBatch:
    return Packer(built[1]).pack(make_examples())


def captions(built: Built) -> list[str]:
    captioner = RegionCaptioner(*built)
    return [
        caption
        for example in make_examples()
        for caption in captioner.caption(example.pixels, [region.mask for region in example.regions], max_new_tokens=12)
    ]


@torch.no_grad()
def logits(built: Built) -> Logits:
    return PackedLoss(built[0]).logits(batch_of(built))[0]


def test_exports_merged_and_adapter_equal_the_trained_model(tuned: Built, base: Path, tmp_path: Path) -> None:
    expected, expected_captions = logits(tuned), captions(tuned)
    assert expected_captions != captions(load_checkpoint(base))
    save_checkpoint(*tuned, tmp_path / "merged")
    save_adapter(tuned[0], tmp_path / "adapter", base=str(base))
    by_peft = load_checkpoint(base)
    PeftModel.from_pretrained(by_peft[0], tmp_path / "adapter").merge_and_unload()
    for exported in (load_checkpoint(tmp_path / "merged"), load_with_adapter(base, tmp_path / "adapter"), by_peft):
        assert torch.allclose(logits(exported), expected, atol=1e-4)
        assert captions(exported) == expected_captions
    assert torch.equal(logits(tuned), expected), "the model in training stays as it was"
    assert RegionCaptioner.from_pretrained(tmp_path / "merged", device="cpu")


def test_save_adapter_writes_the_format_of_peft(tuned: Built, base: Path, tmp_path: Path) -> None:
    save_adapter(tuned[0], tmp_path / "adapter", base=str(base))
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    assert config["base_model_name_or_path"] == str(base)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert len(names) == 2 * 2 * 7
    assert "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight" in names


@pytest.mark.parametrize("phase", [Align(), Full()], ids=lambda phase: phase.kind)
def test_save_checkpoint_after_other_phases_writes_a_plain_checkpoint(phase: Align | Full, tmp_path: Path) -> None:
    model, processor = build_tiny()
    prepare(model, phase)
    with torch.no_grad():
        for parameter in model.model.mask_encoder.parameters():
            parameter.add_(0.1)
    save_checkpoint(model, processor, tmp_path / "checkpoint")
    exported = load_checkpoint(tmp_path / "checkpoint")
    assert torch.equal(logits(exported), logits((model.eval(), processor)))
    with pytest.raises(ValueError, match="no adapters"):
        save_adapter(model, tmp_path / "adapter")


def test_save_checkpoint_that_fails_leaves_no_checkpoint(
    tuned: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(*tuned, tmp_path / "checkpoint")
    with pytest.raises(OutputError, match="exists"):
        save_checkpoint(*tuned, tmp_path / "checkpoint")
    before = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())

    def full_disk(_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(tuned[1], "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(*tuned, tmp_path / "checkpoint", overwrite=True)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(*tuned, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == before
    monkeypatch.undo()
    save_checkpoint(*tuned, tmp_path / "checkpoint", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == before


def test_load_checkpoint_with_adapters_of_another_model_raises(tuned: Built, base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load_with_adapter(base, base)
    save_adapter(tuned[0], tmp_path / "adapter")
    for name, sizes in (("wide", TinySizes(width=128)), ("deep", TinySizes(layers=3))):
        save_checkpoint(*build_tiny(sizes), tmp_path / name)
        with pytest.raises(CheckpointError, match="does not fit"):
            load_with_adapter(tmp_path / name, tmp_path / "adapter")


def test_save_checkpoint_with_state_dict_writes_it(tuned: Built, base: Path, tmp_path: Path) -> None:
    gathered = {name: tensor * 1 for name, tensor in tuned[0].state_dict().items()}
    expected = captions(tuned)
    model = prepare(build_tiny()[0], Tune(rank=4, alpha=8))
    save_checkpoint(model, tuned[1], tmp_path / "merged", state_dict=gathered)
    save_adapter(model, tmp_path / "adapter", state_dict=gathered)
    assert captions(load_checkpoint(tmp_path / "merged")) == expected
    assert captions(load_with_adapter(base, tmp_path / "adapter")) == expected


def test_load_checkpoint_with_adapters_merges_them(tuned: Built, base: Path, tmp_path: Path) -> None:
    expected = captions(tuned)
    save_adapter(tuned[0], tmp_path / "adapter", base=str(base))
    loaded = RegionCaptioner.from_pretrained(tmp_path / "adapter", device="cpu")
    assert captions((loaded.model, loaded.processor)) == expected
    before = fingerprint(tmp_path / "adapter")
    assert before != fingerprint(base)
    (base / "generation_config.json").write_text('{"eos_token_id": 1}')
    assert fingerprint(tmp_path / "adapter") != before
    base.rename(tmp_path / "moved")
    for look in (fingerprint, load_checkpoint):
        with pytest.raises(CheckpointError, match=r"base, which is not there\. Name it"):
            look(tmp_path / "adapter")


def test_load_with_adapter_merges_in_place_layer_by_layer(
    tuned: Built, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(tuned[0], tmp_path / "adapter", base=str(base))
    largest = max(parameter.numel() for parameter in tuned[0].parameters())
    made: list[int] = []

    class Sizes(TorchDispatchMode):  # type: ignore[misc]
        """Notes the elements of every tensor that is made."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            is_new = isinstance(result, torch.Tensor) and all(result is not each for each in args)
            if is_new and not function.is_view:
                made.append(result.numel())
            return result

    def merge(model: Any, factors: Any, gathered: Any) -> None:
        layers = [module.base_layer for module in model.modules() if hasattr(module, "base_layer")]
        held = [layer.weight.data_ptr() for layer in layers]
        with Sizes():
            merge_adapter_in_place(model, factors, gathered)
        assert [layer.weight.data_ptr() for layer in layers] == held
        # The update and its scaled copy; and the factors in float32.
        assert len(made) <= 6 * len(layers)

    monkeypatch.setattr("ureca.model.checkpoints.merge_adapter_in_place", merge)
    loaded, _ = load_with_adapter(base, tmp_path / "adapter")
    assert made
    assert max(made) <= largest
    assert not any("lora" in name for name, _ in loaded.named_parameters())
