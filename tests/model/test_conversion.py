"""Conversion of released checkpoints: equal logits, and an error for every tensor that does not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model import released
from ureca.errors import CheckpointError
from ureca.model.conversion import from_released, unpack_wqkv

GOLDEN = Path(__file__).parents[3] / "shared" / "data" / "golden" / "released_qwen2"
RANK = 4


def save_released(directory: Path, tensors: released.Tensors, config: dict[str, object]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


def prompt() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two tiles of an image and of a mask, and text."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.cat(
        [
            torch.randint(0, 90, (5,), generator=generator),
            torch.full((8,), released.IMAGE_ID),
            torch.tensor([7]),
            torch.full((6,), released.MASK_ID),
            torch.randint(0, 90, (9,), generator=generator),
        ]
    )
    pixels = torch.randn(2, 3, 56, 56, generator=generator)
    return ids, pixels, (torch.rand(2, 1, 56, 56, generator=generator) < 0.5).float()


def converted_logits(directory: Path) -> torch.Tensor:
    ids, pixels, masks = prompt()
    model = from_released(directory, released.IMAGE_ID, released.MASK_ID)
    with torch.no_grad():
        return model(input_ids=ids[None], pixel_values=pixels, mask_values=masks).logits[0]


@pytest.mark.parametrize("language_model", ["qwen2", "internlm2"])
def test_from_released_gives_the_logits_of_the_released_model(language_model: str, tmp_path: Path) -> None:
    config = released.config_of(language_model)
    tensors = released.random_tensors(config)
    expected = released.logits_of(tensors, config, *prompt())
    assert expected.std() > 0.3
    assert torch.allclose(converted_logits(save_released(tmp_path, tensors, config)), expected, atol=1e-4)


def test_from_released_with_large_vision_encoder_gives_its_logits(tmp_path: Path) -> None:
    config = released.config_of("qwen2")
    config["vision_config"] |= {"qk_normalization": True, "qkv_bias": False, "norm_type": "rms_norm"}
    tensors = released.random_tensors(config)
    for name in [name for name in tensors if name.endswith(("qkv.bias", "norm1.bias", "norm2.bias"))]:
        del tensors[name]
    for layer in range(2):
        for norm in ("q_norm", "k_norm"):
            tensors[f"vision_model.encoder.layers.{layer}.attn.{norm}.weight"] = torch.randn(32)
    model = from_released(save_released(tmp_path, tensors, config), released.IMAGE_ID, released.MASK_ID)
    attention = model.model.vision_tower.encoder.layer[1].attention
    assert torch.equal(attention.q_norm.weight, tensors["vision_model.encoder.layers.1.attn.q_norm.weight"])
    assert torch.equal(attention.k_proj.weight, tensors["vision_model.encoder.layers.1.attn.qkv.weight"][32:64])


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden checkpoint of ../shared is not on this machine")
def test_from_released_reproduces_the_authors_outputs() -> None:
    model = from_released(GOLDEN, image_token_id=290, mask_token_id=291)
    io = load_file(GOLDEN / "io.safetensors")
    with torch.no_grad():
        outputs = model(**{name: io[name] for name in ("input_ids", "pixel_values", "mask_values", "labels")})
        masks = model.model.get_mask_features(io["mask_values"])
    assert torch.allclose(outputs.logits, io["logits"], atol=1e-4)
    assert torch.allclose(outputs.loss, io["loss"][0], atol=1e-4)
    assert torch.allclose(outputs.image_outputs.pooler_output, io["image_features"], atol=1e-4)
    assert torch.allclose(masks, io["mask_features"], atol=1e-4)


def test_unpack_wqkv_splits_by_group() -> None:
    head, width = 2, 3
    rows = [f"{kind}{group}{index}" for group in (0, 1) for kind, index in (("q", 0), ("q", 1), ("k", 0), ("v", 0))]
    packed = torch.arange(len(rows) * head * width, dtype=torch.float32).view(-1, width)
    block = {row: packed[index * head : (index + 1) * head] for index, row in enumerate(rows)}
    queries, keys, values = unpack_wqkv(packed, num_groups=2, queries_per_group=2)
    assert torch.equal(queries, torch.cat([block["q00"], block["q01"], block["q10"], block["q11"]]))
    assert torch.equal(keys, torch.cat([block["k00"], block["k10"]]))
    assert torch.equal(values, torch.cat([block["v00"], block["v10"]]))
    bias = unpack_wqkv(packed[:, 0], num_groups=2, queries_per_group=2)
    assert torch.equal(torch.cat(bias), torch.cat([queries, keys, values])[:, 0])


def wrap_with_lora(tensors: released.Tensors, module: str, adapted: tuple[str, ...]) -> tuple[released.Tensors, ...]:
    """The same tensors as peft saves them inside a model, and merged by hand."""
    generator = torch.Generator().manual_seed(2)
    wrapped, merged = {}, {}
    for name, tensor in tensors.items():
        inner = name.replace(f"{module}.", f"{module}.base_model.model.", 1) if name.startswith(module) else name
        if not (name.startswith(module) and name.endswith(tuple(f"{layer}.weight" for layer in adapted))):
            is_bias = name.startswith(module) and name.endswith(tuple(f"{layer}.bias" for layer in adapted))
            wrapped[inner.replace(".bias", ".base_layer.bias") if is_bias else inner] = tensor
            merged[name] = tensor
            continue
        stem = inner.removesuffix(".weight")
        down = torch.randn(RANK, tensor.shape[1], generator=generator) * 0.2
        up = torch.randn(tensor.shape[0], RANK, generator=generator) * 0.2
        wrapped[f"{stem}.base_layer.weight"] = tensor
        wrapped[f"{stem}.lora_A.default.weight"] = down
        wrapped[f"{stem}.lora_B.default.weight"] = up
        merged[name] = tensor + 2 * up @ down
    return wrapped, merged


LORA = {
    "qwen2": ("language_model", ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    "internlm2": ("language_model", ("wqkv", "wo", "w1", "w2", "w3")),
    "vision": ("vision_model", ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
}


@pytest.mark.parametrize("adapted", LORA)
@pytest.mark.parametrize("configured", [True, False])
def test_from_released_with_lora_merges_it(adapted: str, configured: bool, tmp_path: Path) -> None:
    module, layers = LORA[adapted]
    config = released.config_of("internlm2" if adapted == "internlm2" else "qwen2")
    if configured:
        config |= {"use_llm_lora": RANK, "use_backbone_lora": RANK}
    wrapped, merged = wrap_with_lora(released.random_tensors(config), module, layers)
    assert len([name for name in wrapped if "lora_A" in name]) == 2 * len(layers)
    expected = released.logits_of(merged, config, *prompt())
    plain = released.logits_of(released.random_tensors(config), config, *prompt())
    assert not torch.allclose(expected, plain, atol=0.1)
    assert torch.allclose(converted_logits(save_released(tmp_path, wrapped, config)), expected, atol=1e-4)


def test_merge_lora_with_another_rank_raises(tmp_path: Path) -> None:
    config = released.config_of("qwen2", use_llm_lora=RANK + 1)
    wrapped, _ = wrap_with_lora(released.random_tensors(config), *LORA["qwen2"])
    with pytest.raises(CheckpointError, match=r"_proj\.weight has rank 4, config\.json says 5"):
        converted_logits(save_released(tmp_path, wrapped, config))


def test_merge_lora_with_half_an_adapter_raises(tmp_path: Path) -> None:
    config = released.config_of("qwen2")
    wrapped, _ = wrap_with_lora(released.random_tensors(config), *LORA["qwen2"])
    del wrapped["language_model.base_model.model.model.layers.1.mlp.up_proj.lora_B.default.weight"]
    with pytest.raises(CheckpointError, match=r"adapter of .*layers\.1\.mlp\.up_proj\.weight is not complete"):
        converted_logits(save_released(tmp_path, wrapped, config))


def shard(directory: Path, extension: str) -> None:
    """Replace the weights by two shards and an index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    stem = "model" if extension == "safetensors" else "pytorch_model"
    weight_map = {}
    for index, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        file = f"{stem}-0000{index + 1}-of-00002.{extension}"
        part = {name: tensors[name] for name in names}
        if extension == "bin":
            torch.save(part, directory / file)
        else:
            save_file(part, directory / file)
        weight_map |= dict.fromkeys(names, file)
    (directory / f"{stem}.{extension}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def pickle_weights(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "store",
    [lambda directory: shard(directory, "safetensors"), lambda directory: shard(directory, "bin"), pickle_weights],
    ids=["safetensors shards", "bin shards", "one bin"],
)
def test_read_tensors_reads_every_storage_format(store: Callable[[Path], None], tmp_path: Path) -> None:
    config = released.config_of("internlm2")
    save_released(tmp_path, released.random_tensors(config), config)
    expected = converted_logits(tmp_path)
    store(tmp_path)
    assert torch.equal(converted_logits(tmp_path), expected)


def test_read_tensors_with_missing_shard_raises_its_name(tmp_path: Path) -> None:
    config = released.config_of("qwen2")
    save_released(tmp_path, released.random_tensors(config), config)
    shard(tmp_path, "safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00002\.safetensors, which does not exist"):
        converted_logits(tmp_path)


def test_read_tensors_with_tensor_missing_in_shard_raises_its_name(tmp_path: Path) -> None:
    config = released.config_of("qwen2")
    save_released(tmp_path, released.random_tensors(config), config)
    shard(tmp_path, "safetensors")
    first = tmp_path / "model-00001-of-00002.safetensors"
    tensors = load_file(first)
    lost = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, first)
    with pytest.raises(CheckpointError, match=f"disagree on: {lost}$"):
        converted_logits(tmp_path)


def test_from_released_with_bfloat16_weights_keeps_the_type(tmp_path: Path) -> None:
    config = released.config_of("qwen2")
    tensors = {name: tensor.bfloat16() for name, tensor in released.random_tensors(config).items()}
    model = from_released(save_released(tmp_path, tensors, config), released.IMAGE_ID, released.MASK_ID)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_from_released_with_tied_embeddings_needs_no_head(tmp_path: Path) -> None:
    config = released.config_of("qwen2")
    config["llm_config"]["tie_word_embeddings"] = True
    tensors = released.random_tensors(config)
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"]
    expected = released.logits_of(tensors, config, *prompt())
    del tensors["language_model.lm_head.weight"]
    assert torch.allclose(converted_logits(save_released(tmp_path, tensors, config)), expected, atol=1e-4)


@pytest.mark.parametrize("equal", [True, False])
def test_from_released_with_differing_tied_head_raises(equal: bool, tmp_path: Path) -> None:
    config = released.config_of("qwen2")
    config["llm_config"]["tie_word_embeddings"] = True
    tensors = released.random_tensors(config)
    if equal:
        tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()
        converted_logits(save_released(tmp_path, tensors, config))
        return
    with pytest.raises(CheckpointError, match=r"tied: lm_head\.weight differs from the embeddings"):
        converted_logits(save_released(tmp_path, tensors, config))


def test_from_released_with_wrong_tensors_raises_all_names(tmp_path: Path) -> None:
    config = released.config_of("internlm2")
    tensors = released.random_tensors(config)
    del tensors["language_model.model.layers.1.ffn_norm.weight"]
    tensors["mask_encoder.4.weight"] = torch.zeros(1)
    tensors["mlp1.1.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as error:
        converted_logits(save_released(tmp_path, tensors, config))
    assert str(error.value).splitlines()[1:] == [
        "  missing: model.language_model.layers.1.post_attention_layernorm.weight",
        "  unexpected: mask_encoder.4.weight",
        "  shape of model.multi_modal_projector.linear_1.bias: [7], the configuration asks for [48]",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ps_version": "v1"}, "ps_version is v1"),
        ({"llm_config": {"architectures": ["Phi3ForCausalLM"]}}, "the language model is Phi3ForCausalLM; only Qwen2"),
        ({"num_mask_token": None}, "it has no num_mask_token"),
    ],
)
def test_from_released_with_unsupported_model_raises(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    config = {name: value for name, value in released.config_of("qwen2", **changes).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        from_released(tmp_path, 1, 2)


def test_from_released_without_weights_raises(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(released.config_of("qwen2")))
    with pytest.raises(CheckpointError, match="no weights in"):
        from_released(tmp_path, 1, 2)


def test_from_released_without_tokenizer_needs_token_ids(tmp_path: Path) -> None:
    config = released.config_of("qwen2")
    save_released(tmp_path, released.random_tensors(config), config)
    with pytest.raises(CheckpointError, match="from_released needs image_token_id and mask_token_id"):
        from_released(tmp_path)
