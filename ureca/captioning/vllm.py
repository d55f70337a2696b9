"""Captions of regions by a URECA checkpoint in a vLLM engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ureca.captioning.engine import CaptionJob, GeneratedCaption, PreparedJob, RequestEngine, TextSoFar
from ureca.errors import AnswerError
from ureca.hashing import digest
from ureca.llm.load import process_load
from ureca.llm.settings import VllmEngineSettings
from ureca.llm.vllm import VllmEngine, VllmInterface
from ureca.model.checkpoint_files import ADAPTER_CONFIG, base_of_adapter, default_dtype, folder_of
from ureca.model.prepared import region_view
from ureca.model.processing import UrecaProcessor, region_conversation

_MAX_REGIONS_IN_FLIGHT = 256
_MAX_DECODED_MASKS = 16


class VllmCaptionEngine(RequestEngine[str]):
    """Captions by a URECA checkpoint in vLLM, which batches the regions of all images.

    Jobs are prepared to the digest of their image.

    Args:
        checkpoint: folder of a checkpoint, or of adapters.
        settings: options of the engine.
        dtype: data type of the weights; "auto" for the checkpoint's, see ``default_dtype`` in
            ``ureca.model.checkpoint_files``.
        region_prompt: see ``ureca.model.prompt``; None for the checkpoint's own.
        max_restarts: see ``VllmEngine``.
        clock: monotonic time in seconds, for ``check_progress``.

    Raises:
        SettingsError: vLLM is not installed, or cannot run the checkpoint.
    """

    def __init__(
        self,
        checkpoint: str,
        settings: VllmEngineSettings,
        *,
        dtype: str = "auto",
        region_prompt: str | None = None,
        max_restarts: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        num_slots = settings.engine_options.get("max_num_seqs")
        super().__init__(2 * num_slots if isinstance(num_slots, int) else _MAX_REGIONS_IN_FLIGHT)
        vllm = VllmInterface.load("engine vllm", "use --engine transformers")
        from ureca.model.vllm import register

        register()
        base = base_of_adapter(checkpoint)
        options: dict[str, Any] = dict(settings.engine_options)
        self._lora_request = None
        if base is not None:
            from vllm.lora.request import LoRARequest

            rank = int(json.loads(Path(checkpoint, ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"])
            options = {"enable_lora": True, "max_lora_rank": max(8, rank), **options}
            self._lora_request = LoRARequest("adapter", 1, checkpoint)
        folder = str(folder_of(base or checkpoint))
        self._processor = UrecaProcessor.from_pretrained(folder)
        if region_prompt is not None:
            self._processor.region_prompt = region_prompt
        self._engine = VllmEngine(
            vllm,
            "model",
            folder,
            settings.model_copy(update={"engine_options": options}),
            dtype=default_dtype(checkpoint) if dtype == "auto" else dtype,
            limit_mm_per_prompt={"image": 1, "mask": 1, "video": 0},
            max_restarts=max_restarts,
        )
        self._decoding = asyncio.Semaphore(_MAX_DECODED_MASKS)
        self._clock = clock
        self._num_running = 0
        self._last_progress = clock()
        self._load = process_load()
        self._load.set_slots(self, num_slots if isinstance(num_slots, int) else _MAX_REGIONS_IN_FLIGHT)

    def prepare(self, job: CaptionJob) -> PreparedJob[str]:
        """Hash the image of a job, so that vLLM need not hash it for each of its regions."""
        return PreparedJob(job, digest([job.pixels]).hex())

    async def caption_region(self, prepared: PreparedJob[str], index: int) -> AsyncIterator[GeneratedCaption]:
        """Caption one region; mask i of a job samples with ``seed + i``."""
        job, settings = prepared.job, prepared.job.settings
        async with self._decoding:
            prompt = await asyncio.to_thread(self._build_prompt, prepared, index)
        so_far = TextSoFar(job.stop, partial=job.partial)
        if not self._num_running:
            self._last_progress = self._clock()
        self._num_running += 1
        try:
            with self._load.busy_request():
                outputs = self._engine.stream(
                    prompt,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    max_tokens=settings.max_new_tokens,
                    seed=settings.seed + index,
                    partial=job.partial or bool(job.stop),
                    lora_request=self._lora_request,
                )
                async with aclosing(outputs):  # ends the generation of a caption with a stop string, or of a lost job
                    async for output in outputs:
                        self._last_progress = self._clock()
                        caption = self._read(index, output)
                        kept = so_far.cut(caption.text)
                        if kept is not None:
                            yield GeneratedCaption(index, kept, caption.num_tokens, "stop", caption.num_prompt_tokens)
                            return
                        if caption.finish_reason is not None:
                            yield caption
                        elif (words := so_far.words(caption.text)) is not None:
                            yield GeneratedCaption(index, words, caption.num_tokens, None)
        except AnswerError as error:
            yield GeneratedCaption(index, error.message, 0, "error", failure=error.kind)
        finally:
            self._num_running -= 1

    def check_progress(self, max_step_s: float) -> None:
        """Check that vLLM lives and makes progress.

        Raises:
            RuntimeError: vLLM has died, or no region has got a token for ``max_step_s`` seconds.
        """
        self._engine.check_alive()
        if self._num_running and self._clock() - self._last_progress > max_step_s:
            raise RuntimeError(f"vLLM has written nothing for more than {max_step_s:g} seconds")

    def close(self) -> None:
        """Shut down vLLM and its processes."""
        super().close()
        self._engine.close()

    def _read(self, index: int, output: Any) -> GeneratedCaption:
        """Read the text so far of a region; vLLM's own differs where tokens are no valid UTF-8."""
        written = output.outputs[0]
        token_ids = list(written.token_ids)
        if written.finish_reason == "stop" and token_ids:
            token_ids.pop()  # the end token
        text = self._processor.decode(token_ids, skip_special_tokens=True).strip()
        num_prompt_tokens = len(output.prompt_token_ids or ())
        return GeneratedCaption(index, text, len(token_ids), written.finish_reason, num_prompt_tokens)

    def _build_prompt(self, prepared: PreparedJob[str], index: int) -> dict[str, Any]:
        pixels = prepared.job.pixels
        with_mask = self._processor.region_prompt == "mask"
        conversation = region_conversation(prepared.job.settings.question, with_mask=with_mask)
        region = prepared.job.masks[index].decode()
        view = region_view(pixels, region, self._processor.region_prompt)
        # Keys by content, so that vLLM finds what it has computed before.
        items: dict[str, Any] = {"image": Image.fromarray(np.ascontiguousarray(view))}
        keys = {"image": prepared.content if view is pixels else digest([view]).hex()}
        if with_mask:
            items["mask"] = region
            keys["mask"] = digest([prepared.content, np.packbits(region)]).hex()
        return {
            "prompt": str(self._processor.apply_chat_template(conversation, add_generation_prompt=True)),
            "multi_modal_data": items,
            "multi_modal_uuids": {name: [key] for name, key in keys.items()},
        }
