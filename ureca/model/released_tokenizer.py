"""Tokenizers of released checkpoints, without remote code: Qwen2's files or InternLM2's sentencepiece model."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from ureca.errors import CheckpointError

NORMAL, USER_DEFINED = 1, 4
"""Types of a sentencepiece piece."""


def load_released_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a checkpoint's folder.

    Args:
        directory: contains tokenizer.json, or vocab.json and merges.txt (Qwen2), or tokenizer.model (InternLM2).

    Raises:
        CheckpointError: if there is none of them, or the sentencepiece model is of another kind than InternLM2's.
    """
    if (directory / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(directory, config=None)
    if (directory / "vocab.json").exists():
        return Qwen2Tokenizer.from_pretrained(directory)
    if (directory / "tokenizer.model").exists():
        return _from_sentencepiece(directory)
    raise CheckpointError(
        f"no tokenizer in {directory}: neither tokenizer.json, vocab.json with merges.txt, nor tokenizer.model. "
        "Without one, from_released needs image_token_id and mask_token_id, and `ureca convert` cannot work."
    )


def _from_sentencepiece(directory: Path) -> PreTrainedTokenizerFast:
    """Convert InternLM2's byte-fallback BPE; added tokens may replace unused pieces of the model."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((directory / "tokenizer.model").read_bytes())
    _check_is_supported(model, directory)
    settings = _read_json(directory / "tokenizer_config.json")
    added = _added_tokens(directory, settings)

    pieces = [added[i].content if i in added else piece.piece for i, piece in enumerate(model.pieces)]
    normal, whole = (
        [piece.piece for i, piece in enumerate(model.pieces) if piece.type == kind and i not in added]
        for kind in (NORMAL, USER_DEFINED)
    )
    tokenizer = Tokenizer(
        models.BPE(
            {piece: token_id for token_id, piece in enumerate(pieces)},
            _merges(normal),
            unk_token=model.trainer_spec.unk_piece,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = _normalizer(model.normalizer_spec)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in whole])
    for token_id, token in sorted(added.items()):
        tokenizer.add_special_tokens([token])
        if tokenizer.token_to_id(token.content) != token_id:
            raise CheckpointError(
                f"{directory}: the added token {token.content} should have id {token_id}, "
                f"but {tokenizer.token_to_id(token.content)} comes next: an added token before it is missing"
            )
    return _wrap(tokenizer, settings)


def _normalizer(spec: Any) -> normalizers.Sequence:
    steps: list[normalizers.Normalizer] = []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _wrap(tokenizer: Tokenizer, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    defaults = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    names = {role: _content(settings.get(role) or default) for role, default in defaults.items()}
    bos = names["bos_token"]
    if settings.get("add_bos_token", True):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        model_max_length=settings.get("model_max_length", 32768),
        **names,
    )


def _added_tokens(directory: Path, settings: dict[str, Any]) -> dict[int, AddedToken]:
    """Read added tokens by id, from tokenizer_config.json or the older added_tokens.json."""
    tokens = {int(token_id): _content(token) for token_id, token in settings.get("added_tokens_decoder", {}).items()}
    for content, token_id in _read_json(directory / "added_tokens.json").items():
        tokens.setdefault(int(token_id), content)
    return {token_id: AddedToken(content, special=True, normalized=False) for token_id, content in tokens.items()}


def _merges(pieces: list[str]) -> list[tuple[str, str]]:
    """List the merges of a sentencepiece BPE, which joins the pair whose union is first in its list of pieces."""
    known = set(pieces)
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def _check_is_supported(model: Any, directory: Path) -> None:
    bpe = 2
    if model.trainer_spec.model_type != bpe or not model.trainer_spec.byte_fallback:
        raise CheckpointError(f"{directory}/tokenizer.model is not a BPE model with byte fallback, as InternLM2's is")
    if model.normalizer_spec.precompiled_charsmap:
        raise CheckpointError(f"{directory}/tokenizer.model replaces characters, which InternLM2's does not")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
