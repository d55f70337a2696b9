"""Training of the experiment's models."""

from itertools import chain

import pytest
import torch

from experiments.science.settings import TABLES, VARIANTS, ScienceSettings, ScienceTraining, Variant
from experiments.science.training import build_optimizers, choose_precision, with_mask_encoder
from ureca.model.checkpoints import load_checkpoint
from ureca.model.initialization import build_scratch
from ureca.model.mask_encoder import MaskEncoder
from ureca.model.settings import ScratchSizes
from ureca.training.phases import Full, prepare

SMALL = ScratchSizes(image_size=56, vision_width=32, width=32, mlp_width=64, num_mask_tokens=2)


def test_build_optimizers_assigns_each_weight_to_one_optimizer() -> None:
    model, _ = build_scratch(["The red door."], SMALL)
    optimizers = build_optimizers(prepare(model, Full()), ScienceTraining())
    groups = chain.from_iterable(part.param_groups for part in optimizers.parts)
    moved = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(moved) == sorted(id(weight) for weight in model.parameters())


def test_build_optimizers_gives_muon_hidden_matrices_only() -> None:
    model, _ = build_scratch(["The red door."], SMALL)
    muon, adam = build_optimizers(prepare(model, Full()), ScienceTraining()).parts
    names = {id(weight): name for name, weight in model.named_parameters()}
    by_muon, by_adam = (
        {names[id(weight)] for group in part.param_groups for weight in group["params"]} for part in (muon, adam)
    )
    assert all("weight" in name for name in by_muon)
    assert not any("embed" in name or "norm" in name or "lm_head" in name for name in by_muon)
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= by_adam


def test_optimizers_step_follows_schedule_of_budget() -> None:
    model, _ = build_scratch(["The red door."], SMALL)
    optimizers = build_optimizers(prepare(model, Full()), ScienceTraining(warmup_fraction=0.1, learning_rate=1.0))
    rates = []
    for share in (0.0, 0.05, 0.1, 0.55, 0.999):
        optimizers.step(share)
        rates.append(optimizers.parts[1].param_groups[0]["lr"])
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-3)


def test_choose_precision_auto_follows_cpu_instructions() -> None:
    assert choose_precision("fp32") == "fp32"
    assert choose_precision("bf16") == "bf16"
    told = getattr(torch.cpu, "get_capabilities", dict)()
    has_instructions = any(told.get(name) for name in ("avx512_bf16", "amx_bf16"))
    assert choose_precision("auto") == ("bf16" if has_instructions else "fp32")


def test_tables_name_all_variants() -> None:
    assert {*chain.from_iterable(TABLES.values())} == {*VARIANTS}


def test_variants_of_prompts_table_have_equal_sizes() -> None:
    sizes = ScienceSettings.load(["out"]).sizes
    assert VARIANTS["tokens-1"].sizes(sizes).num_mask_tokens == 1
    assert all(VARIANTS[name].sizes(sizes) == sizes for name in TABLES["prompts"])


def test_with_mask_encoder_keeps_tokens_of_the_base_and_all_other_weights() -> None:
    base, _ = load_checkpoint("scenes", dtype=torch.float32)
    more = with_mask_encoder(base, Variant("", num_mask_tokens=4), seed=0)
    width = base.config.text_config.hidden_size
    assert more.model.mask_encoder.num_tokens == more.config.num_mask_tokens == 4
    for name, weight in base.state_dict().items():
        if not name.startswith("model.mask_encoder."):
            assert torch.equal(weight, more.state_dict()[name]), name
    kept = more.model.mask_encoder.tokens.weight[:width]
    assert torch.equal(kept, base.model.mask_encoder.tokens.weight)


def test_with_mask_encoder_of_another_kind_keeps_all_other_weights() -> None:
    base, _ = load_checkpoint("scenes", dtype=torch.float32)
    other = with_mask_encoder(base, Variant("", mask_encoder="convolutional"), seed=0)
    assert type(other.model.mask_encoder) is MaskEncoder
    known = base.state_dict()
    others = {name: weight for name, weight in other.state_dict().items() if "mask_encoder" not in name}
    assert len(others) > 50 and all(torch.equal(weight, known[name]) for name, weight in others.items())
