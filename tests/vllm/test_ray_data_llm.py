"""`examples/ray_data_llm.py`: ``ray.data.llm`` with a checkpoint, against transformers; run by ``make long-vllm``."""

import io
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.vllm.reference import NUM_NEW_TOKENS, NUM_SCENES, QUESTION, draw_inputs

pytest.importorskip("vllm", reason="needs the environment of `make long-vllm`")

pytestmark = [pytest.mark.long, pytest.mark.timeout(1700)]

CHECKPOINTS = ["fused", "adapter", "scenes"]
EXAMPLE = Path(__file__).parents[2] / "examples/ray_data_llm.py"
ENGINE = {"dtype": "float32", "block_size": 32, "max_num_seqs": 16, "max_model_len": 2048}


@pytest.fixture(scope="module")
def example() -> Iterator[dict[str, Any]]:
    import ray

    ray.init(
        address="local",
        num_cpus=6,  # an actor for each of Ray's stages
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
    )
    yield runpy.run_path(str(EXAMPLE))
    ray.shutdown()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [
        {"region_id": f"{number}/{index}", "image": image, "mask": mask}
        for number, (image, masks) in enumerate(draw_inputs())
        for index, mask in enumerate(masks)
    ]


@pytest.fixture(scope="module")
def expected(checkpoints: Path) -> dict[str, list[int]]:
    return tokens_of_regions(checkpoints / "fused")


def tokens_of_regions(checkpoint: Path) -> dict[str, list[int]]:
    """Return the tokens that transformers generates, by the ids of ``rows``."""
    reference = json.loads((checkpoint / "reference.json").read_text())
    return {
        f"{number}/{index}": tokens
        for number, of_image in enumerate(reference["regions"])
        for index, tokens in enumerate(of_image)
    }


def new_tokens(checkpoint: Path, token_ids: Any) -> list[int]:
    """Return the tokens before the end, at most as many as the reference has."""
    from transformers import AutoTokenizer

    tokens, end = list(token_ids), AutoTokenizer.from_pretrained(checkpoint).eos_token_id
    return (tokens[: tokens.index(end)] if end in tokens else tokens)[:NUM_NEW_TOKENS]


def test_ray_data_llm_generates_the_token_ids_of_transformers(
    checkpoints: Path, rows: list[dict[str, Any]], expected: dict[str, list[int]], example: dict[str, Any]
) -> None:
    import ray

    checkpoint = checkpoints / "fused"
    captioned = example["add_captions"](ray.data.from_items(rows), str(checkpoint), **ENGINE).take_all()
    assert len(captioned) == len(rows)
    assert {row["region_id"]: new_tokens(checkpoint, row["token_ids"]) for row in captioned} == expected
    assert len({tuple(tokens) for tokens in expected.values()}) > len(expected) // 2


def png(image: Any, mask: Any = None) -> bytes:
    """Return a PNG file; the mask is its alpha channel."""
    file = io.BytesIO()
    Image.fromarray(image if mask is None else np.dstack([image, mask.astype(np.uint8) * 255])).save(file, "PNG")
    return file.getvalue()


def test_ray_data_llm_captions_image_files_and_alpha_channels_and_names_the_regions_that_it_cannot_caption(
    checkpoints: Path, rows: list[dict[str, Any]], expected: dict[str, list[int]], example: dict[str, Any]
) -> None:
    import ray

    files = [
        {**row, "image": png(row["image"])}
        if index % 2
        else {**row, "image": png(row["image"], row["mask"]), "mask": None}
        for index, row in enumerate(rows)
    ]
    image, mask = rows[0]["image"], rows[0]["mask"]
    bad = {
        "cut off": ({"image": png(image)[:200], "mask": mask}, "image: .*truncated|image: .*corrupt"),
        "no image": ({"image": b"<html>", "mask": mask}, "image: .*not an image|image: .*not_an_image"),
        "size": ({"image": png(image), "mask": mask[:-1]}, r"mask 0 is \[95, 96\] .*its image \[96, 96\]"),
        "empty": ({"image": png(image), "mask": np.zeros_like(mask)}, "mask 0 has no pixel set"),
        "kind": ({"image": png(image), "mask": mask.astype(np.uint8)}, "mask 0 must be a bool array"),
        "no mask": ({"image": png(image), "mask": None}, "1 placeholders of the modality mask, but 0 items"),
    }
    mixed = [*files[:3], *({"region_id": name, **row} for name, (row, _) in bad.items()), *files[3:]]
    checkpoint = checkpoints / "fused"
    captioned = example["add_captions"](ray.data.from_items(mixed), str(checkpoint), **ENGINE).take_all()
    assert sorted(row["region_id"] for row in captioned) == sorted(row["region_id"] for row in mixed)
    good = {row["region_id"]: new_tokens(checkpoint, row["token_ids"]) for row in captioned if not row["error"]}
    assert good == expected
    errors = {row["region_id"]: row["error"] for row in captioned if row["error"]}
    assert errors.keys() == bad.keys()
    for name, (_, message) in bad.items():
        assert re.search(message, errors[name]), errors[name]


def test_ray_data_llm_with_an_adapter_generates_the_token_ids_of_transformers(
    checkpoints: Path, rows: list[dict[str, Any]], example: dict[str, Any]
) -> None:
    import ray

    adapter = checkpoints / "adapter_lora"
    captioned = example["add_captions"](ray.data.from_items(rows), str(adapter), **ENGINE).take_all()
    tokens = {row["region_id"]: new_tokens(checkpoints / "adapter", row["token_ids"]) for row in captioned}
    assert tokens == tokens_of_regions(checkpoints / "adapter")


def test_ray_data_llm_with_rays_own_stages_generates_the_token_ids_of_transformers(
    checkpoints: Path, rows: list[dict[str, Any]], expected: dict[str, list[int]], example: dict[str, Any]
) -> None:
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    checkpoint = checkpoints / "fused"
    content = [{"type": "image"}, {"type": "mask"}, {"type": "text", "text": QUESTION}]
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=str(checkpoint),
            engine_kwargs={**ENGINE, "enforce_eager": True, "limit_mm_per_prompt": {"image": 1, "mask": 1}},
            placement_group_config={"bundles": [{"CPU": 1}]},
        ),
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": content}],
            "multimodal_data": {"image": Image.fromarray(row["image"]), "mask": row["mask"]},
            "sampling_params": {"temperature": 0.0, "max_tokens": NUM_NEW_TOKENS},
        },
        postprocess=lambda row: {name: row[name] for name in ("region_id", "generated_tokens")},
    )
    captioned = processor(ray.data.from_items(rows)).take_all()
    assert {row["region_id"]: new_tokens(checkpoint, row["generated_tokens"]) for row in captioned} == expected


def test_ray_data_llm_example_prints_the_captions_of_transformers(
    checkpoints: Path, example: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    from ureca.model.checkpoint_files import folder_of

    tokenizer = AutoTokenizer.from_pretrained(folder_of("scenes"))
    with np.load(checkpoints / "scenes.npz") as file:
        ids = [tokens for number in range(NUM_SCENES) for tokens in json.loads(str(file[f"captions_{number}"]))]
    expected = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in ids]
    assert example["main"]([]) == 0
    printed = re.findall(r"^\d+/\d+: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert sorted(printed) == sorted(expected)
    assert len(set(expected)) > len(expected) // 2
