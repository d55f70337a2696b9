"""Weights split between processes, and quantised weights, in the vLLM plugin; run by ``make long-vllm``."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.reference import NUM_NEW_TOKENS, draw_inputs

pytest.importorskip("vllm", reason="needs the environment of `make long-vllm`")

from tests.vllm.test_plugin import Engine, new_tokens

pytestmark = pytest.mark.long

CHECKPOINTS = ["convolutional", "fused"]
GROUP_SIZE = 32
"""Number of 4-bit weights that share a scale."""

NOT_QUANTISED = ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*", "re:.*mask_encoder.*"]


def captions_of(engine: Engine) -> list[list[int]]:
    requests = [engine.request(image, [mask]) for image, masks in draw_inputs() for mask in masks]
    return [new_tokens(engine, output) for output in engine.generate(requests)]


@pytest.mark.parametrize("variant", CHECKPOINTS)
def test_plugin_split_between_two_processes_generates_the_token_ids_of_transformers(
    checkpoints: Path, variant: str
) -> None:
    reference = json.loads((checkpoints / variant / "reference.json").read_text())
    engine = Engine(checkpoints / variant, tensor_parallel_size=2, distributed_executor_backend="mp")
    assert captions_of(engine) == [tokens for of_image in reference["regions"] for tokens in of_image]


def write_quantised(checkpoint: Path, folder: Path, num_bits: int) -> tuple[Path, Path]:
    """Quantise the matrices of the language model, in the formats of llm-compressor.

    4 bits are packed, with a scale for each group of a row; 8 bits have one for each row, and activations are quantised
    as well. Scales are powers of two, so that the values are exact in bfloat16.

    Returns:
        The quantised checkpoint, and one with the values of its weights in floating point.
    """
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from safetensors.torch import load_file, save_file

    quantised: dict[str, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        quantised[name] = values[name] = tensor
        if not (name.startswith("language_model.model.layers.") and tensor.ndim == 2):
            continue
        groups = tensor.unflatten(1, (-1, GROUP_SIZE if num_bits == 4 else tensor.shape[1]))
        largest = 2 ** (num_bits - 1) - 1
        scales = torch.exp2(torch.ceil(torch.log2(groups.abs().amax(dim=2) / largest)))
        integers = (groups / scales[..., None]).round()
        values[name] = (integers * scales[..., None]).flatten(1)
        whole = integers.flatten(1).to(torch.int8)
        quantised[f"{name}_scale"] = scales
        if num_bits == 4:
            del quantised[name]
            quantised[f"{name}_packed"] = pack_to_int32(whole, num_bits)
            quantised[f"{name}_shape"] = torch.tensor(tensor.shape)
        else:
            quantised[name] = whole
    common = {"num_bits": num_bits, "type": "int", "symmetric": True}
    group: dict[str, Any] = {"targets": ["Linear"], "weights": {**common, "strategy": "channel"}}
    if num_bits == 4:
        group["weights"] = {**common, "strategy": "group", "group_size": GROUP_SIZE}
    else:
        group["input_activations"] = {**common, "strategy": "token", "dynamic": True}
    scheme = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if num_bits == 4 else "int-quantized",
        "quantization_status": "compressed",
        "ignore": NOT_QUANTISED,
        "config_groups": {"group_0": group},
    }
    for name, tensors in (("quantised", quantised), ("values", values)):
        shutil.copytree(checkpoint, folder / name)
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    (folder / "quantised/config.json").write_text(json.dumps({**config, "quantization_config": scheme}))
    return folder / "quantised", folder / "values"


def quantised_layers(model: Any) -> list[str]:
    """Return the names of the layers that vLLM computes with quantised weights."""
    return [
        name
        for name, module in model.named_modules()
        if type(getattr(module, "quant_method", None)).__name__ == "CompressedTensorsLinearMethod"
    ]


@pytest.mark.parametrize(("num_bits", "num_tokens"), [(4, NUM_NEW_TOKENS), (8, 2)])
def test_plugin_with_quantised_weights_generates_the_tokens_of_their_values(
    num_bits: int, num_tokens: int, checkpoints: Path, tmp_path: Path
) -> None:
    """With 8 bits activations are quantised, too: most captions part later than at their first tokens."""
    quantised, values = write_quantised(checkpoints / "convolutional", tmp_path, num_bits)
    engine = Engine(quantised, dtype="bfloat16")
    (layers,) = engine.llm.apply_model(quantised_layers)
    assert len(layers) == 8  # of each of two layers: attention's input and output, the MLP's input and output
    assert all(name.startswith("language_model.model.layers.") for name in layers)
    made, expected = captions_of(engine), captions_of(Engine(values, dtype="bfloat16"))
    equal = [ours[:num_tokens] == theirs[:num_tokens] for ours, theirs in zip(made, expected, strict=True)]
    assert sum(equal) >= len(equal) - 4  # sums in another order, rounded to bfloat16
    assert len({tuple(tokens) for tokens in made}) > len(made) // 2
