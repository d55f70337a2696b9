"""Captions of regions by a URECA checkpoint in a vLLM engine."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ureca.captioning.captioners import Rows, UncutImage
from ureca.captioning.images import caption_rows, failed_caption, finished_caption, mask_failures
from ureca.captioning.settings import VllmEngineSettings
from ureca.data.masked import MaskedImage
from ureca.errors import AnswerError
from ureca.hashing import digest
from ureca.images import Pixels
from ureca.llm.load import process_load
from ureca.llm.vllm import VllmEngine, VllmInterface
from ureca.masks.mask import Mask
from ureca.model.checkpoint_files import ADAPTER_CONFIG, base_of_adapter
from ureca.model.prepared import region_view
from ureca.model.processing import UrecaProcessor, region_conversation
from ureca.model.settings import CaptionSettings

_MAX_REGIONS_IN_FLIGHT = 256
_MAX_DECODED_MASKS = 16


class VllmCaptioner:
    """Captions by a URECA checkpoint in vLLM, which batches the regions of all images. An ``ImageCaptioner``.

    The regions of an image are requested one after another, so that vLLM computes their common beginning, the image,
    once and keeps it in its prefix cache.

    Args:
        checkpoint: folder of a checkpoint, or of adapters.
        settings: question and generation of captions; ``batch_size`` is not used.
        engine: options of the engine.
        dtype: data type of the weights, or "auto".
        region_prompt: see ``ureca.model.prompt``; None for the checkpoint's own.

    Raises:
        SettingsError: vLLM is not installed, or cannot run the checkpoint.
    """

    def __init__(
        self,
        checkpoint: str,
        settings: CaptionSettings,
        engine: VllmEngineSettings,
        *,
        dtype: str = "auto",
        region_prompt: str | None = None,
    ) -> None:
        vllm = VllmInterface.load("engine vllm", "use --engine transformers")
        from ureca.model.vllm import register

        register()
        base = base_of_adapter(checkpoint)
        options: dict[str, Any] = dict(engine.engine_options)
        self._lora_request = None
        if base is not None:
            from vllm.lora.request import LoRARequest

            rank = int(json.loads(Path(checkpoint, ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"])
            options = {"enable_lora": True, "max_lora_rank": max(8, rank), **options}
            self._lora_request = LoRARequest("adapter", 1, checkpoint)
        folder = str(base or checkpoint)
        self._processor = UrecaProcessor.from_pretrained(folder)
        if region_prompt is not None:
            self._processor.region_prompt = region_prompt
        self._engine = VllmEngine(
            vllm,
            "model",
            folder,
            tensor_parallel_size=engine.tensor_parallel_size,
            dtype=dtype,
            max_model_len=engine.max_model_len,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            limit_mm_per_prompt={"image": 1, "mask": 1, "video": 0},
            engine_options=options,
        )
        conversation = region_conversation(settings.question, with_mask=self._processor.region_prompt == "mask")
        self._prompt = str(self._processor.apply_chat_template(conversation, add_generation_prompt=True))
        self._settings = settings
        num_slots = options.get("max_num_seqs")
        self._slots = asyncio.Semaphore(2 * num_slots if isinstance(num_slots, int) else _MAX_REGIONS_IN_FLIGHT)
        self._decoding = asyncio.Semaphore(_MAX_DECODED_MASKS)
        self._load = process_load()
        self._load.set_slots(self, num_slots if isinstance(num_slots, int) else _MAX_REGIONS_IN_FLIGHT)

    def prepare(self, pixels: Pixels, image: MaskedImage) -> UncutImage:
        """Check the masks of an image; thread-safe."""
        return UncutImage(pixels, image.masks, image.parents, mask_failures(image.masks, pixels.shape[:2]))

    async def caption(self, image: UncutImage) -> tuple[Rows, float]:
        """Caption an image.

        Returns:
            Rows of the image, and the seconds until its last caption, those of concurrent images included.
        """
        started = time.monotonic()
        results = {id: failed_caption(reason) for id, reason in image.failures.items()}
        image_key = digest([image.pixels]).hex()

        async def caption_region(index: int, mask: Mask) -> None:
            async with self._slots:
                results[mask.id] = await self._caption_region(image, image_key, index, mask)

        async with asyncio.TaskGroup() as group:
            for index, mask in enumerate(image.masks):
                if mask.id not in results:
                    group.create_task(caption_region(index, mask))
        return caption_rows(image.masks, image.parents, results), time.monotonic() - started

    def close(self) -> None:
        """Shut down the engine and its processes."""
        self._engine.close()

    async def _caption_region(self, image: UncutImage, image_key: str, index: int, mask: Mask) -> dict[str, Any]:
        settings = self._settings
        async with self._decoding:
            prompt = await asyncio.to_thread(self._build_prompt, image.pixels, image_key, mask)
        try:
            with self._load.busy(), self._load.request():
                output = await self._engine.generate(
                    prompt,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    max_tokens=settings.max_new_tokens,
                    seed=settings.seed + index,
                    lora_request=self._lora_request,
                )
        except AnswerError as error:
            return failed_caption(error.kind)
        written = output.outputs[0]
        token_ids = list(written.token_ids)
        if written.finish_reason == "stop" and token_ids:
            token_ids.pop()  # the end token
        # vLLM's own text differs where tokens are no valid UTF-8.
        text = self._processor.decode(token_ids, skip_special_tokens=True).strip()
        return finished_caption(text, len(token_ids), written.finish_reason)

    def _build_prompt(self, pixels: Pixels, image_key: str, mask: Mask) -> dict[str, Any]:
        region = mask.decode()
        view = region_view(pixels, region, self._processor.region_prompt)
        # Keys by content, so that vLLM need not hash the image for each of its regions.
        items: dict[str, Any] = {"image": Image.fromarray(np.ascontiguousarray(view))}
        keys = {"image": image_key if view is pixels else digest([view]).hex()}
        if self._processor.region_prompt == "mask":
            items["mask"] = region
            keys["mask"] = digest([image_key, np.packbits(region)]).hex()
        return {
            "prompt": self._prompt,
            "multi_modal_data": items,
            "multi_modal_uuids": {name: [key] for name, key in keys.items()},
        }
