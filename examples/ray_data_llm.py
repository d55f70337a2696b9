"""Captions of regions by ``ray.data.llm``: a checkpoint in Ray's own processor for vLLM, in a pipeline of one's own.

    python examples/ray_data_llm.py [CHECKPOINT]

Needs an environment with vLLM and the library (docs/engines.md). The default checkpoint is the shipped model of scenes;
the regions are those of rendered scenes. Ray passes the image and the mask of a row on to vLLM, which knows the model
by the library's plugin.
"""

import sys
from typing import Any

import ray
from PIL import Image
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from transformers import AutoTokenizer

from ureca.masks.rle import decode
from ureca.model.checkpoint_files import default_dtype, folder_of
from ureca.scenes.rendering import render

QUESTION = "Describe this region in the image."
NUM_SCENES = 3


def add_captions(regions: ray.data.Dataset, checkpoint: str, **engine_options: Any) -> ray.data.Dataset:
    """Caption regions with a checkpoint.

    Args:
        regions: a row for each region: ``region_id``, ``image`` uint8 RGB [H, W, 3] and ``mask`` bool [H, W]. Regions
            of an image follow one another, so that vLLM's prefix cache has the image.
        checkpoint: name or folder of the checkpoint.
        engine_options: further fields of vLLM's ``AsyncEngineArgs``.

    Returns:
        ``region_id``, ``caption`` and ``token_ids`` of each region.
    """
    folder = str(folder_of(checkpoint))
    content = [{"type": "image"}, {"type": "mask"}, {"type": "text", "text": QUESTION}]
    prompt = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "prompt": prompt,
            "multimodal_data": {"image": Image.fromarray(row["image"]), "mask": row["mask"]},
            "sampling_params": {"temperature": 0.0, "max_tokens": 64},
        }

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "region_id": row["region_id"],
            "caption": row["generated_text"].strip(),
            "token_ids": row["generated_tokens"],
        }

    with_gpu = ray.cluster_resources().get("GPU", 0) > 0
    config = vLLMEngineProcessorConfig(
        model_source=folder,
        engine_kwargs={
            "dtype": default_dtype(checkpoint),
            "limit_mm_per_prompt": {"image": 1, "mask": 1},
            "enforce_eager": not with_gpu,
            **engine_options,
        },
        placement_group_config=None if with_gpu else {"bundles": [{"CPU": 1}]},  # the default is a GPU
        # All rows have the same prompt, and vLLM converts text to tokens and back.
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    return build_processor(config, preprocess=ask, postprocess=answer)(regions)


def main(argv: list[str]) -> int:
    """Caption the regions of rendered scenes."""
    ray.init(ignore_reinit_error=True)
    scenes = [render("test", 1, number, 112, 112) for number in range(NUM_SCENES)]
    rows = [
        {
            "region_id": f"{number}/{region.id}",
            "image": scene.pixels,
            "mask": decode(scene.annotations[region.id].rle),
        }
        for number, scene in enumerate(scenes)
        for region in scene.scene.regions
    ]
    captions = add_captions(ray.data.from_items(rows, override_num_blocks=NUM_SCENES), argv[0] if argv else "scenes")
    for row in captions.iter_rows():
        print(f"{row['region_id']}: {row['caption']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
