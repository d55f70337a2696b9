"""Tokenizers of released checkpoints, and the whole conversion with them."""

import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.model import released
from tests.model.inputs import box_masks, generate, noise_image, region_inputs
from tests.model.test_conversion import save_released
from ureca.errors import CheckpointError
from ureca.jobs.convert import main as convert
from ureca.model.captioner import RegionCaptioner
from ureca.model.checkpoints import load_checkpoint
from ureca.model.conversion import convert_released
from ureca.model.initialization import SENTENCES, build_tokenizer
from ureca.model.processing import IMAGE_TOKENS, MASK_TOKENS
from ureca.model.released_tokenizer import load_released_tokenizer

ENGLISH = [sentence for sentence in SENTENCES if sentence.isascii()]
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
UNUSED = tuple(f"[UNUSED_TOKEN_{index}]" for index in range(4))


def write_sentencepiece(directory: Path, **options: object) -> sentencepiece.SentencePieceProcessor:
    """An InternLM2-like tokenizer: byte-fallback BPE, chat tokens in place of unused pieces, the others behind."""
    (directory / "corpus.txt").write_text("\n".join(ENGLISH))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus.txt"),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=430,
        byte_fallback=True,
        normalization_rule_name="identity",
        user_defined_symbols=list(UNUSED),
        minloglevel=2,
        **({"remove_extra_whitespaces": False} | options),
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    added = {str(model.piece_to_id(UNUSED[index])): token for index, token in enumerate(CHAT_TOKENS)}
    added |= {str(len(model) + index): token for index, token in enumerate((*IMAGE_TOKENS, *MASK_TOKENS))}
    special = {token_id: {"content": token, "special": True} for token_id, token in added.items()}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "InternLM2Tokenizer", "added_tokens_decoder": special, "add_bos_token": True})
    )
    return model


@pytest.fixture(scope="module", params=[{}, {"add_dummy_prefix": False}, {"remove_extra_whitespaces": True}], ids=str)
def sentencepiece_directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("internlm2")
    write_sentencepiece(directory, **request.param)
    return directory


texts = st.text(st.sampled_from("abcdefgh éß鱼\n.,AREthi  "), max_size=40) | st.sampled_from(SENTENCES)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_internlm2_tokenizer_equals_sentencepiece(text: str, sentencepiece_directory: Path) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_directory / "tokenizer.model"))
    tokenizer = load_released_tokenizer(sentencepiece_directory)
    if not text.strip(" "):
        return  # sentencepiece gives nothing for text without content, where the tokenizer may give its prefix
    assert tokenizer(text, add_special_tokens=False).input_ids == model.encode(text)
    assert tokenizer.decode(model.encode(text)).lstrip(" ") == model.decode(model.encode(text)).lstrip(" ")


def test_internlm2_tokenizer_keeps_ids_of_special_tokens(sentencepiece_directory: Path) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_directory / "tokenizer.model"))
    tokenizer = load_released_tokenizer(sentencepiece_directory)
    start, end = (model.piece_to_id(UNUSED[index]) for index in range(2))
    mask = len(model) + 4
    assert tokenizer("<|im_start|>user\n<MASK_CONTEXT><MASK_CONTEXT><|im_end|>").input_ids == [
        tokenizer.bos_token_id,
        start,
        *model.encode("user\n"),
        mask,
        mask,
        end,
    ]


def test_internlm2_tokenizer_with_missing_added_token_raises(tmp_path: Path) -> None:
    model = write_sentencepiece(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    content = json.loads(path.read_text())
    del content["added_tokens_decoder"][str(len(model))]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="<IMG_CONTEXT> should have id"):
        load_released_tokenizer(tmp_path)


@pytest.mark.parametrize("options", [{"byte_fallback": False}, {"normalization_rule_name": "nmt_nfkc"}], ids=str)
def test_sentencepiece_model_of_another_kind_raises(options: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(ENGLISH))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=400,
        minloglevel=2,
        **({"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"} | options),
    )
    with pytest.raises(CheckpointError, match=r"tokenizer\.model (is not a BPE model|replaces characters)"):
        load_released_tokenizer(tmp_path)


def write_qwen2(directory: Path, *, fast: bool) -> None:
    """Qwen2's files: tokenizer.json, or vocab.json and merges.txt with the added tokens in the configuration."""
    tokenizer = build_tokenizer()
    if fast:
        tokenizer.save_pretrained(directory)
        return
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = {token: token_id for token, token_id in tokenizer.get_vocab().items() if token_id < 9}
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    (directory / "merges.txt").write_text("\n".join(" ".join(merge) for merge in model["merges"]))
    decoder = {str(token_id): {"content": token, "special": True} for token, token_id in special.items()}
    content = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(content | {"added_tokens_decoder": decoder}))


@pytest.mark.parametrize("fast", [True, False])
def test_qwen2_tokenizer_is_loaded_unchanged(fast: bool, tmp_path: Path) -> None:
    write_qwen2(tmp_path, fast=fast)
    (tmp_path / "config.json").write_text(json.dumps(released.config_of("qwen2")))
    text = "<|im_start|>user\n<mask><MASK_CONTEXT></mask>Describe the 2 red cars.<|im_end|>"
    tokenizer = load_released_tokenizer(tmp_path)
    assert tokenizer(text).input_ids == build_tokenizer()(text).input_ids
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def write_released(directory: Path, language_model: str) -> dict[str, object]:
    config = released.config_of(language_model)
    directory.mkdir()
    if language_model == "qwen2":
        write_qwen2(directory, fast=True)
        vocab_size = len(build_tokenizer())
    else:
        vocab_size = len(write_sentencepiece(directory)) + 6
    config["llm_config"]["vocab_size"] = vocab_size
    save_released(directory, released.random_tensors(config), config)
    return config


@pytest.mark.parametrize("language_model", ["qwen2", "internlm2"])
def test_convert_command_writes_a_checkpoint_that_captions(language_model: str, tmp_path: Path) -> None:
    config = write_released(tmp_path / "released", language_model)
    assert convert([str(tmp_path / "released"), str(tmp_path / "converted")]) == 0

    model, processor = load_checkpoint(tmp_path / "converted")
    assert processor.mask_values == "released"
    assert processor.image_processor.max_tiles == 4
    assert processor.num_mask_tokens == 3
    vocabulary = processor.tokenizer.get_vocab()
    assert model.config.image_token_id == vocabulary["<IMG_CONTEXT>"]
    assert model.config.mask_token_id == vocabulary["<MASK_CONTEXT>"]
    assert vocabulary["<|im_end|>"] in model.generation_config.eos_token_id

    image, masks = noise_image(60, 110), box_masks(60, 110, 3)
    inputs = region_inputs(processor, [image], masks[:1])
    ids = {"image_id": model.config.image_token_id, "mask_id": model.config.mask_token_id}
    expected = released.logits_of(
        load_file(tmp_path / "released" / "model.safetensors"),
        config | ids,
        inputs["input_ids"][0],
        inputs["pixel_values"],
        inputs["mask_values"],
    )
    assert [int(expected[-1].argmax())] == generate(model, inputs, max_new_tokens=1)[0]
    captions = RegionCaptioner(model, processor).caption(image, masks, max_new_tokens=10)
    alone = [RegionCaptioner(model, processor).caption(image, [mask], max_new_tokens=10)[0] for mask in masks]
    assert captions == alone


def test_convert_with_too_large_tokenizer_raises(tmp_path: Path) -> None:
    write_released(tmp_path / "released", "qwen2")
    config = released.config_of("qwen2")
    config["llm_config"]["vocab_size"] = 100
    save_released(tmp_path / "released", released.random_tensors(config), config)
    with pytest.raises(CheckpointError, match="480 tokens, the language model only 100 embeddings"):
        convert_released(tmp_path / "released", tmp_path / "converted")


def test_convert_to_nonempty_folder_raises(tmp_path: Path) -> None:
    write_released(tmp_path / "released", "qwen2")
    with pytest.raises(CheckpointError, match="is not empty"):
        convert_released(tmp_path / "released", tmp_path / "released")


def test_convert_with_tokenizer_without_mask_tokens_raises(tmp_path: Path) -> None:
    write_released(tmp_path / "released", "qwen2")
    build_tokenizer(mask_tokens=False).save_pretrained(tmp_path / "released")
    with pytest.raises(CheckpointError, match="does not know <MASK_CONTEXT>"):
        convert_released(tmp_path / "released", tmp_path / "converted")
