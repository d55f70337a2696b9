"""Captions of regions by ``ray.data.llm``: a checkpoint in Ray's own processor for vLLM, in a pipeline of one's own.

    python examples/ray_data_llm.py [CHECKPOINT]

Needs an environment with vLLM and the library (docs/engines.md). The default checkpoint is the shipped model of scenes;
the regions are those of rendered scenes. Ray passes the image and the mask of a row on to vLLM, which knows the model
by the library's plugin.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from transformers import AutoTokenizer

from ureca.errors import ImageError
from ureca.image_limits import ImageLimits
from ureca.images import decode_layers
from ureca.masks.rle import decode
from ureca.model.checkpoint_files import ADAPTER_CONFIG, base_of_adapter, default_dtype, folder_of
from ureca.scenes.rendering import render

QUESTION = "Describe this region in the image."
NUM_SCENES = 3


def add_captions(regions: ray.data.Dataset, checkpoint: str, **engine_options: Any) -> ray.data.Dataset:
    """Caption regions with a checkpoint.

    Args:
        regions: a row for each region: ``region_id``, ``image`` and ``mask`` bool [H, W]. Images are uint8 RGB
            [H, W, 3] or the bytes of image files. One with an alpha channel needs no mask: the region is where alpha is
            above 0. Regions of an image follow one another, so that vLLM's prefix cache has the image.
        checkpoint: name or folder of a checkpoint, or folder of LoRA adapters.
        engine_options: further fields of vLLM's ``AsyncEngineArgs``.

    Returns:
        ``region_id``, ``caption``, ``token_ids`` and ``error`` of each region. Where a region cannot be captioned, its
        caption and tokens are empty and the error says why.
    """
    base = base_of_adapter(checkpoint)
    folder = str(folder_of(base or checkpoint))
    content = [{"type": "image"}, {"type": "mask"}, {"type": "text", "text": QUESTION}]
    prompt = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        image, mask = row["image"], row.get("mask")
        if isinstance(image, bytes):
            try:
                image, alpha = decode_layers(image, ImageLimits())
            except ImageError as error:
                return {"__inference_error__": f"image: {error}"}  # Ray's mark of a row that its stages leave out
            if mask is None and alpha is not None:
                image = np.dstack([image, alpha])
        items = {"image": Image.fromarray(image), **({} if mask is None else {"mask": mask})}
        return {
            "prompt": prompt,
            "multimodal_data": items,
            "sampling_params": {"temperature": 0.0, "max_tokens": 64},
            **({} if base is None else {"model": checkpoint}),  # another name than the base's is an adapter's
        }

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        error = row.get("__inference_error__") or ""
        return {
            "region_id": row["region_id"],
            "caption": "" if error else row["generated_text"].strip(),
            "token_ids": np.array([] if error else row["generated_tokens"], np.int64),
            "error": error,
        }

    with_gpu = ray.cluster_resources().get("GPU", 0) > 0
    adapter_options: dict[str, Any] = {}
    if base is not None:
        rank = json.loads(Path(checkpoint, ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"]
        adapter_options = {"enable_lora": True, "max_lora_rank": max(8, rank)}
    config = vLLMEngineProcessorConfig(
        model_source=folder,
        engine_kwargs={
            "dtype": default_dtype(checkpoint),
            "limit_mm_per_prompt": {"image": 1, "mask": 1},
            "enforce_eager": not with_gpu,
            **adapter_options,
            **engine_options,
        },
        placement_group_config=None if with_gpu else {"bundles": [{"CPU": 1}]},  # the default is a GPU
        should_continue_on_error=True,
        # All rows have the same prompt, and vLLM converts text to tokens and back.
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    # Ray leaves rows with an error out of a processor's own `postprocess`.
    return build_processor(config, preprocess=ask)(regions).map(answer)


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
    errors: Counter[str] = Counter()
    for row in captions.iter_rows():
        print(f"{row['region_id']}: {row['error'] or row['caption']}")
        errors[row["error"]] += bool(row["error"])
    for error, count in (+errors).items():
        print(f"{count} regions without a caption: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
