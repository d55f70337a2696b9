"""Independent implementation of the released model: random checkpoints in its layout, and its forward pass.

Plain functions over a dict of tensors, from the public descriptions of InternViT, InternVL-2.5, Qwen2, InternLM2 and
the paper; nothing of transformers or of this project's model is used, so that a conversion can be held against it.
"""

import math
from typing import Any

import torch
from torch.nn import functional as F

Tensors = dict[str, torch.Tensor]

IMAGE_ID, MASK_ID = 90, 91


def config_of(language_model: str, **changes: Any) -> dict[str, Any]:
    """config.json of a tiny released model; the language model "qwen2" or "internlm2"."""
    llm = {
        "architectures": ["Qwen2ForCausalLM" if language_model == "qwen2" else "InternLM2ForCausalLM"],
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    if language_model == "internlm2":
        llm |= {"bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "qkv_bias": True,
        "qk_normalization": False,
    }
    return {
        "model_type": "internvl_chat",
        "vision_config": vision,
        "llm_config": llm,
        "force_image_size": 56,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "dynamic_image_size": True,
        "max_dynamic_patch": 4,
        "dynamic_mask_size": True,
        "num_mask_token": 3,
        "use_llm_lora": 0,
        "use_backbone_lora": 0,
        **changes,
    }


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    vision, llm = config["vision_config"], config["llm_config"]
    width, inner, patches = vision["hidden_size"], vision["intermediate_size"], (56 // 14) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "vision_model.embeddings.position_embedding": (1, patches + 1, width),
    }
    for layer in range(vision["num_hidden_layers"]):
        name = f"vision_model.encoder.layers.{layer}."
        shapes |= {name + "attn.qkv.weight": (3 * width, width), name + "attn.qkv.bias": (3 * width,)}
        shapes |= {name + "attn.proj.weight": (width, width), name + "attn.proj.bias": (width,)}
        shapes |= {name + "mlp.fc1.weight": (inner, width), name + "mlp.fc1.bias": (inner,)}
        shapes |= {name + "mlp.fc2.weight": (width, inner), name + "mlp.fc2.bias": (width,)}
        shapes |= {name + end: (width,) for end in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
        shapes |= {name + end: (width,) for end in ("ls1", "ls2")}
    out = llm["hidden_size"]
    shapes |= {"mlp1.0.weight": (4 * width,), "mlp1.0.bias": (4 * width,)}
    shapes |= {"mlp1.1.weight": (out, 4 * width), "mlp1.1.bias": (out,)}
    shapes |= {"mlp1.3.weight": (out, out), "mlp1.3.bias": (out,)}
    tokens = config["num_mask_token"]
    shapes |= {"mask_encoder.0.weight": (tokens, 1, 3, 3), "mask_encoder.0.bias": (tokens,)}
    shapes |= {"mask_encoder.2.weight": (tokens, tokens, 3, 3), "mask_encoder.2.bias": (tokens,)}
    shapes |= {"mask_linear.weight": (out, 14 * 14), "mask_linear.bias": (out,)}
    return shapes | _llm_shapes(llm)


def _llm_shapes(llm: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, vocab = llm["hidden_size"], llm["intermediate_size"], llm["vocab_size"]
    head = width // llm["num_attention_heads"]
    kv = head * llm["num_key_value_heads"]
    qwen2 = llm["architectures"] == ["Qwen2ForCausalLM"]
    embed, output = ("model.embed_tokens", "lm_head") if qwen2 else ("model.tok_embeddings", "output")
    shapes: dict[str, tuple[int, ...]] = {
        f"language_model.{embed}.weight": (vocab, width),
        f"language_model.{output}.weight": (vocab, width),
        "language_model.model.norm.weight": (width,),
    }
    for layer in range(llm["num_hidden_layers"]):
        name = f"language_model.model.layers.{layer}."
        if qwen2:
            for projection, rows in (("q", width), ("k", kv), ("v", kv)):
                shapes[name + f"self_attn.{projection}_proj.weight"] = (rows, width)
                shapes[name + f"self_attn.{projection}_proj.bias"] = (rows,)
            linear = {"self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width)}
            linear |= {"mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
            norms = ("input_layernorm", "post_attention_layernorm")
        else:
            linear = {"attention.wqkv": (width + 2 * kv, width), "attention.wo": (width, width)}
            linear |= {"feed_forward.w1": (inner, width), "feed_forward.w3": (inner, width)}
            linear |= {"feed_forward.w2": (width, inner)}
            norms = ("attention_norm", "ffn_norm")
        shapes |= {f"{name}{part}.weight": shape for part, shape in linear.items()}
        shapes |= {f"{name}{norm}.weight": (width,) for norm in norms}
    return shapes


def random_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes_of(config).items():
        spread = 0.5 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
        tensors[name] = torch.randn(shape, generator=generator) * spread
    return tensors


def logits_of(
    tensors: Tensors, config: dict[str, Any], ids: torch.Tensor, pixels: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    """ids [L], pixels [tiles, 3, 56, 56], masks [tiles, 1, 56, 56] -> logits [L, vocabulary]."""
    llm = config["llm_config"]
    qwen2 = llm["architectures"] == ["Qwen2ForCausalLM"]
    embeddings = tensors[f"language_model.model.{'embed_tokens' if qwen2 else 'tok_embeddings'}.weight"][ids]
    embeddings[ids == config.get("image_id", IMAGE_ID)] = image_features(tensors, config, pixels).flatten(0, 1)
    embeddings[ids == config.get("mask_id", MASK_ID)] = mask_features(tensors, masks).flatten(0, 1)
    hidden = embeddings
    for layer in range(llm["num_hidden_layers"]):
        of_layer = _cut(tensors, f"language_model.model.layers.{layer}.")
        first, second = ("input_layernorm", "post_attention_layernorm") if qwen2 else ("attention_norm", "ffn_norm")
        normed = _rms_norm(hidden, of_layer[first + ".weight"], llm["rms_norm_eps"])
        hidden = hidden + (_qwen2_attention if qwen2 else _internlm2_attention)(of_layer, llm, normed)
        normed = _rms_norm(hidden, of_layer[second + ".weight"], llm["rms_norm_eps"])
        gate, up, down = (
            ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
            if qwen2
            else ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
        )
        gated = F.silu(normed @ of_layer[gate + ".weight"].T) * (normed @ of_layer[up + ".weight"].T)
        hidden = hidden + gated @ of_layer[down + ".weight"].T
    hidden = _rms_norm(hidden, tensors["language_model.model.norm.weight"], llm["rms_norm_eps"])
    return hidden @ tensors[f"language_model.{'lm_head' if qwen2 else 'output'}.weight"].T


def image_features(tensors: Tensors, config: dict[str, Any], pixels: torch.Tensor) -> torch.Tensor:
    """[tiles, 3, 56, 56] -> [tiles, 4, D]."""
    vision = config["vision_config"]
    width, heads, eps = vision["hidden_size"], vision["num_attention_heads"], vision["layer_norm_eps"]
    of_embeddings = _cut(tensors, "vision_model.embeddings.")
    weight, bias = of_embeddings["patch_embedding.weight"], of_embeddings["patch_embedding.bias"]
    patches = F.conv2d(pixels, weight, bias, stride=14).flatten(2).transpose(1, 2)
    hidden = torch.cat([of_embeddings["class_embedding"].expand(len(pixels), -1, -1), patches], dim=1)
    hidden = hidden + of_embeddings["position_embedding"]
    for layer in range(vision["num_hidden_layers"]):
        of_layer = _cut(tensors, f"vision_model.encoder.layers.{layer}.")
        normed = F.layer_norm(hidden, (width,), of_layer["norm1.weight"], of_layer["norm1.bias"], eps)
        qkv = _linear(of_layer, "attn.qkv", normed)
        queries, keys, values = qkv.view(*hidden.shape[:2], 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        weights = (queries @ keys.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1)
        attended = (weights @ values).transpose(1, 2).flatten(2)
        hidden = hidden + of_layer["ls1"] * _linear(of_layer, "attn.proj", attended)
        normed = F.layer_norm(hidden, (width,), of_layer["norm2.weight"], of_layer["norm2.bias"], eps)
        inner = F.gelu(_linear(of_layer, "mlp.fc1", normed))
        hidden = hidden + of_layer["ls2"] * _linear(of_layer, "mlp.fc2", inner)
    # Pixel shuffle: a token is the 2 x 2 patches of its cell, rows of the cell last to vary slowest.
    grid = hidden[:, 1:].view(-1, 2, 2, 2, 2, width).permute(0, 1, 3, 2, 4, 5).reshape(len(pixels), 4, 4 * width)
    normed = F.layer_norm(grid, (4 * width,), tensors["mlp1.0.weight"], tensors["mlp1.0.bias"])
    return _linear(tensors, "mlp1.3", F.gelu(_linear(tensors, "mlp1.1", normed)))


def mask_features(tensors: Tensors, masks: torch.Tensor) -> torch.Tensor:
    """[tiles, 1, 56, 56] -> [tiles, T, D]."""
    for index in (0, 2):
        weight, bias = tensors[f"mask_encoder.{index}.weight"], tensors[f"mask_encoder.{index}.bias"]
        masks = F.conv2d(masks, weight, bias, stride=2, padding=1).relu()
    return _linear(tensors, "mask_linear", masks.flatten(2))


def _qwen2_attention(tensors: Tensors, llm: dict[str, Any], hidden: torch.Tensor) -> torch.Tensor:
    head = llm["hidden_size"] // llm["num_attention_heads"]
    queries, keys, values = (_linear(tensors, f"self_attn.{name}_proj", hidden) for name in "qkv")
    attended = [
        _attend(
            queries[:, query * head : (query + 1) * head],
            *(part[:, group * head : (group + 1) * head] for part in (keys, values)),
            llm["rope_theta"],
        )
        for query in range(llm["num_attention_heads"])
        for group in [query // (llm["num_attention_heads"] // llm["num_key_value_heads"])]
    ]
    return torch.cat(attended, dim=1) @ tensors["self_attn.o_proj.weight"].T


def _internlm2_attention(tensors: Tensors, llm: dict[str, Any], hidden: torch.Tensor) -> torch.Tensor:
    """Packed rows: for each key-value head its query heads, its key head, its value head."""
    head = llm["hidden_size"] // llm["num_attention_heads"]
    queries_of_a_group = llm["num_attention_heads"] // llm["num_key_value_heads"]
    packed = hidden @ tensors["attention.wqkv.weight"].T
    attended = []
    for group in packed.split((queries_of_a_group + 2) * head, dim=1):
        *queries, keys, values = group.split(head, dim=1)
        attended += [_attend(query, keys, values, llm["rope_theta"]) for query in queries]
    return torch.cat(attended, dim=1) @ tensors["attention.wo.weight"].T


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, theta: float) -> torch.Tensor:
    """One head, causal, with rotary positions: each [L, d] -> [L, d]."""
    length, size = query.shape
    scores = _rotate(query, theta) @ _rotate(key, theta).T / math.sqrt(size)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return scores.masked_fill(~causal, -torch.inf).softmax(-1) @ value


def _rotate(states: torch.Tensor, theta: float) -> torch.Tensor:
    """Channel i and channel i + d/2 are turned together by position x theta^(-2i/d)."""
    length, size = states.shape
    angles = torch.arange(length)[:, None] * theta ** (-torch.arange(0, size, 2) / size)
    first, second = states[:, : size // 2], states[:, size // 2 :]
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=1)


def _rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * hidden / (hidden.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def _linear(tensors: Tensors, name: str, hidden: torch.Tensor) -> torch.Tensor:
    return hidden @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def _cut(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
