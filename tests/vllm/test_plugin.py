"""The vLLM plugin against transformers: token ids, caches and errors; run by ``make long-vllm``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.vllm.reference import NUM_MASKS, NUM_NEW_TOKENS, NUM_SCENES, VARIANTS, draw_inputs, prompt_of

vllm = pytest.importorskip("vllm", reason="needs the environment of `make long-vllm`")

pytestmark = pytest.mark.long

CHECKPOINTS = [*VARIANTS, "scenes"]
NUM_PREFIX_BLOCK_TOKENS = 32


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Engine:
    """A vLLM engine of a checkpoint, in this process."""

    def __init__(
        self, checkpoint: Path, adapter: Path | None = None, *, dtype: str = "float32", **options: Any
    ) -> None:
        from ureca.model.processing import UrecaProcessor

        self.adapter = adapter
        self.llm = vllm.LLM(
            str(checkpoint),
            dtype=dtype,
            enforce_eager=True,
            max_model_len=2048,
            block_size=NUM_PREFIX_BLOCK_TOKENS,
            max_num_seqs=16,
            limit_mm_per_prompt={"image": 1, "mask": 4},
            mm_processor_cache_gb=0.2,
            disable_log_stats=True,
            **({"enable_lora": True, "max_lora_rank": 8} if adapter else {}),
            **options,
        )
        self.processor = UrecaProcessor.from_pretrained(checkpoint)

    def num_encoded_tiles(self) -> dict[str, int]:
        """Count the tiles that the encoders have computed so far."""
        return self.llm.apply_model(lambda model: dict(model.num_encoded_tiles))[0]

    def generate(self, requests: list[dict[str, Any]], **sampling: Any) -> list[Any]:
        from vllm.lora.request import LoRARequest

        lora = LoRARequest("adapter", 1, str(self.adapter)) if self.adapter else None
        parameters = vllm.SamplingParams(**{"temperature": 0.0, "max_tokens": NUM_NEW_TOKENS, **sampling})
        return self.llm.generate(requests, parameters, use_tqdm=False, lora_request=lora)

    def request(self, image: Any, masks: list[Any], *, num_placeholders: int | None = None) -> dict[str, Any]:
        prompt = prompt_of(self.processor, len(masks) if num_placeholders is None else num_placeholders)
        return {"prompt": prompt, "multi_modal_data": {"image": Image.fromarray(image), "mask": masks}}


@pytest.fixture(scope="module")
def engine(checkpoints: Path, variant: str) -> Iterator[Engine]:
    adapter = checkpoints / f"{variant}_lora" if VARIANTS[variant].with_adapter else None
    yield Engine(checkpoints / variant, adapter)


def new_tokens(engine: Engine, output: Any) -> list[int]:
    tokens = list(output.outputs[0].token_ids)
    return tokens[:-1] if tokens[-1:] == [engine.processor.tokenizer.eos_token_id] else tokens


def test_plugin_generates_the_token_ids_of_transformers(engine: Engine, checkpoints: Path, variant: str) -> None:
    reference = json.loads((checkpoints / variant / "reference.json").read_text())
    inputs = draw_inputs()
    requests = [engine.request(image, [mask]) for image, masks in inputs for mask in masks]
    made = [new_tokens(engine, output) for output in engine.generate(requests)]
    expected = [tokens for of_image in reference["regions"] for tokens in of_image]
    assert made == expected
    # So that a swap of masks would be seen; a random pooled encoder tells some apart less well.
    num_different = [len({tuple(tokens) for tokens in of_image}) for of_image in reference["regions"]]
    assert min(num_different) >= (NUM_MASKS - 2 if variant == "hybrid" else NUM_MASKS)


def test_two_masks_in_a_prompt_generate_the_token_ids_of_transformers(
    engine: Engine, checkpoints: Path, variant: str
) -> None:
    reference = json.loads((checkpoints / variant / "reference.json").read_text())
    outputs = engine.generate([engine.request(image, masks[:2]) for image, masks in draw_inputs()])
    assert [new_tokens(engine, output) for output in outputs] == reference["pairs"]


def test_regions_of_an_image_encode_it_once_and_share_its_prefix(engine: Engine) -> None:
    (image, masks) = draw_inputs(seed=77)[3]
    tiles = engine.processor.image_processor.cut(image)
    before = engine.num_encoded_tiles()
    outputs = engine.generate([engine.request(image, [mask]) for mask in masks])
    assert engine.num_encoded_tiles()["image"] - before["image"] == len(tiles)
    start = outputs[0].prompt_token_ids.index(engine.processor.mask_token_id)
    shared = (start - 1) // NUM_PREFIX_BLOCK_TOKENS * NUM_PREFIX_BLOCK_TOKENS
    again = engine.generate([engine.request(image, [mask]) for mask in masks])
    assert all(output.num_cached_tokens >= shared for output in again)
    assert [new_tokens(engine, output) for output in again] == [new_tokens(engine, output) for output in outputs]
    assert engine.num_encoded_tiles()["image"] - before["image"] == len(tiles)


@pytest.mark.parametrize(
    ("masks_of", "num_placeholders", "message"),
    [
        (lambda mask: [mask.astype(np.uint8)], 1, "mask 0 must be a bool array"),
        (lambda mask: [np.zeros_like(mask)], 1, "mask 0 has no pixel set"),
        (lambda mask: [mask[:-1]], 1, "mask 0 is .* its image"),
        (lambda mask: [], 1, "1 placeholders of the modality mask, but 0 items"),
        (lambda mask: [mask, mask], 1, "1 placeholders of the modality mask, but 2 items"),
        (lambda mask: [mask] * 5, 5, "(?i)at most 4 mask"),
    ],
)
def test_wrong_masks_are_refused_by_name(engine: Engine, masks_of: Any, num_placeholders: int, message: str) -> None:
    from vllm.exceptions import VLLMValidationError

    image, masks = draw_inputs()[0]
    request = engine.request(image, masks_of(masks[0]), num_placeholders=num_placeholders)
    with pytest.raises(VLLMValidationError, match=message):
        engine.generate([request])
    assert engine.generate([engine.request(image, masks[:1])])  # the engine goes on


def test_image_with_alpha_is_an_image_and_a_mask(engine: Engine, checkpoints: Path, variant: str) -> None:
    reference = json.loads((checkpoints / variant / "reference.json").read_text())
    image, masks = draw_inputs()[1]
    alphas = [
        masks[1].astype(np.uint8) * 255,
        np.full(masks[1].shape, 255, np.uint8),
        np.zeros_like(masks[1], np.uint8),
    ]
    expected = [reference["regions"][1][1], reference["whole"][1], reference["whole"][1]]
    for num_placeholders in (1, 0):  # a client of a server knows no masks
        prompt = prompt_of(engine.processor, num_placeholders)
        requests = [
            {"prompt": prompt, "multi_modal_data": {"image": Image.fromarray(np.dstack([image, alpha]), "RGBA")}}
            for alpha in alphas
        ]
        assert [new_tokens(engine, output) for output in engine.generate(requests)] == expected


def test_shipped_model_of_scenes_writes_the_captions_of_transformers(checkpoints: Path) -> None:
    from ureca.model.checkpoint_files import folder_of

    with np.load(checkpoints / "scenes.npz") as file:
        scenes = [
            (file[f"image_{number}"], list(file[f"masks_{number}"]), json.loads(str(file[f"captions_{number}"])))
            for number in range(NUM_SCENES)
        ]
    engine = Engine(Path(folder_of("scenes")))
    requests = [engine.request(image, [mask]) for image, masks, _ in scenes for mask in masks]
    expected = [tokens for _, _, captions in scenes for tokens in captions]
    assert [new_tokens(engine, output) for output in engine.generate(requests)] == expected
    assert len({tuple(tokens) for tokens in expected}) > len(expected) // 2
