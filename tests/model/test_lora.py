"""LoRA on the language model through peft, with the mask encoder trained beside it."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

from tests.model.inputs import Tiny, box_masks, generate, noise_image, region_inputs

ALL_LINEAR_LAYERS_OF_THE_LLM = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


@pytest.fixture
def trained(tiny: Tiny) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    model, processor = tiny
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=ALL_LINEAR_LAYERS_OF_THE_LLM, modules_to_save=["mask_encoder"]
    )
    adapted = get_peft_model(model, config)
    inputs = region_inputs(processor, [noise_image(60, 110)], box_masks(60, 110, 1))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    adapted.train()
    for _ in range(3):
        adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval(), inputs


def test_peft_with_mask_encoder_trains_only_both(trained: tuple[PeftModel, object]) -> None:
    names = [name for name, parameter in trained[0].named_parameters() if parameter.requires_grad]
    assert all("language_model" in name or "mask_encoder.modules_to_save" in name for name in names)
    assert len([name for name in names if "lora_A" in name]) == 2 * 7


def test_peft_adapters_load_onto_the_base_and_merge(
    tiny: Tiny, trained: tuple[PeftModel, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    adapted, inputs = trained
    expected = generate_adapted(adapted, inputs)
    adapted.save_pretrained(tmp_path / "adapter")
    from ureca.model.initialization import build_tiny

    base = build_tiny()[0]
    assert generate(base, inputs) != expected
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert generate_adapted(loaded, inputs) == expected
    merged = loaded.merge_and_unload()
    assert generate(merged, inputs) == expected
    merged.save_pretrained(tmp_path / "merged")
    reloaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values()), report
    assert generate(reloaded, inputs) == expected


def generate_adapted(adapted: PeftModel, inputs: dict[str, torch.Tensor]) -> list[list[int]]:
    tokens = adapted.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    end = {adapted.generation_config.eos_token_id, adapted.generation_config.pad_token_id}
    return [[token for token in row if token not in end] for row in tokens.tolist()]
