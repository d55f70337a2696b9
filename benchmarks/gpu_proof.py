"""`make gpu-proof`: what this machine does at the sizes of real models, with random weights made on its device.

On a machine with a CUDA GPU the shapes are those of InternVL with 1 and 8 billion parameters; without one they are toys
that show that every part runs. Each part reports its figures or its error, and a part for which there is no time left
says so. The result is written as JSON and Markdown; weights are random, so captions and masks mean nothing.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import engines

if TYPE_CHECKING:
    from ureca.masks.generators.prompted_network import PromptedNetwork
    from ureca.model.captioner import RegionCaptioner
    from ureca.model.modeling import UrecaForConditionalGeneration
    from ureca.model.processing import UrecaProcessor

Figures = dict[str, float | int | str]

ANSWER = "A red car with round headlights that is parked beside a tall brick building on a quiet street."
_GIB = 2**30


@dataclass(frozen=True)
class Workload:
    """Sizes of the work of all parts.

    Attributes:
        shapes: sizes of each model by its name, see ``ureca.model.settings.TinySizes``.
        image_size_px: height and width of images; as many tiles as the models allow.
        images, regions: images, and regions of each.
        max_new_tokens: tokens of a caption.
        batch_size: regions that are captioned together.
        sam: image encoder of Segment Anything, beside which SAM 2 is its large one; None: toys.
        sam_images: images to segment.
        points_per_side: points along one side of the grid of prompts.
        large_image_px: side of a square image whose masks must fit, too.
        engines: arguments of `ureca bench engines`.
    """

    shapes: dict[str, dict[str, int]]
    image_size_px: tuple[int, int]
    images: int
    regions: int
    max_new_tokens: int
    batch_size: int
    sam: str | None
    sam_images: int
    points_per_side: int
    large_image_px: int
    engines: tuple[str, ...]


_VISION = {"image_size": 448, "vision_width": 1024, "vision_layers": 24, "vision_heads": 16, "num_mask_tokens": 16}
ON_GPU = Workload(
    shapes={
        "1B": {
            **_VISION,
            **{"width": 896, "layers": 24, "heads": 14, "key_value_heads": 2, "mlp_width": 4864, "vocab_size": 151_674},
        },
        "8B": {
            **_VISION,
            **{
                "width": 4096,
                "layers": 32,
                "heads": 32,
                "key_value_heads": 8,
                "mlp_width": 14_336,
                "vocab_size": 92_553,
            },
        },
    },
    image_size_px=(896, 1344),
    images=10,
    regions=10,
    max_new_tokens=100,
    batch_size=64,
    sam="vit_h",
    sam_images=4,
    points_per_side=32,
    large_image_px=6400,
    engines=("--workloads", "8x16"),
)
TOY = Workload(
    shapes={"toy": {}},
    image_size_px=(112, 168),
    images=2,
    regions=3,
    max_new_tokens=4,
    batch_size=4,
    sam=None,
    sam_images=2,
    points_per_side=4,
    large_image_px=300,
    engines=("--workloads", "1x6", "--image-tokens", "208", "--new-tokens", "12"),
)


@dataclass
class Proof:
    """Runs parts one after another, and keeps their results.

    Attributes:
        device: torch device.
        end: time at which no further part begins, in seconds of ``time.monotonic``.
        parts: figures of each part by its name.
    """

    device: str
    end: float
    parts: dict[str, Figures] = field(default_factory=dict)

    def run(self, name: str, part: Callable[[], Figures], *, needs_s: float = 0.0) -> None:
        """Run a part, unless less than ``needs_s`` seconds are left; an error becomes its result."""
        import torch

        from ureca.memory import first_line, release_memory

        if time.monotonic() + needs_s > self.end:
            self.parts[name] = {"skipped": "no time left"}
            return
        print(f"{name} ...", flush=True)
        on_gpu = self.device == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        started, cpu_started = time.monotonic(), time.process_time()
        try:
            figures = part()
        except Exception as error:
            figures = {"error": f"{type(error).__name__}: {first_line(error)}"}
            release_memory(error)
        figures["seconds"] = round(time.monotonic() - started, 1)
        if on_gpu:
            figures["peak GiB"] = round(torch.cuda.max_memory_allocated() / _GIB, 2)
        else:
            figures["CPU seconds"] = round(time.process_time() - cpu_started, 1)
        self.parts[name] = figures
        print(f"  {_line(figures)}", flush=True)

    @property
    def has_failed(self) -> bool:
        """True if a part ended with an error."""
        return any("error" in figures for figures in self.parts.values())


def main(argv: Sequence[str]) -> int:
    """Run all parts and write the result.

    Returns:
        1 if a part failed, else 0.
    """
    import torch

    parser = argparse.ArgumentParser(prog="gpu_proof", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for result.json and result.md")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time after which no further part begins (default 8)"
    )
    parser.add_argument("--toy", action="store_true", help="toy sizes, also where there is a GPU")
    parser.add_argument("--vllm-python", help="Python of the environment with vLLM, as of `ureca bench engines`")
    arguments = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    work = TOY if arguments.toy or device == "cpu" else ON_GPU
    proof = Proof(device, time.monotonic() + 60 * arguments.minutes)
    for name, sizes in work.shapes.items():
        prove_model(proof, work, name, sizes)
    vllm_python = engines.pythons(arguments.vllm_python)["vllm"]
    if vllm_python is not None:
        proof.run("engines", lambda: compare_engines(work, vllm_python), needs_s=0.0 if work is TOY else 120.0)
    needs_s = 45.0 if work.sam else 0.0
    proof.run("Segment Anything", lambda: segment(work, _sam(work, device)), needs_s=needs_s)
    proof.run("SAM 2", lambda: segment(work, _sam2(work, device)), needs_s=needs_s)
    result = {
        "machine": _machine(device),
        "sizes": "toy" if work is TOY else "real",
        "parts": proof.parts,
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (arguments.folder / "result.md").write_text(_markdown(result), encoding="utf-8")
    print(f"written: {arguments.folder}/result.json, result.md")
    return int(proof.has_failed)


def prove_model(proof: Proof, work: Workload, name: str, sizes: dict[str, int]) -> None:
    """Caption, recover from lack of memory, and train with one model."""
    needs_s = 0.0 if work is TOY else 45.0
    held: dict[str, Any] = {}

    def build() -> Figures:
        held["model"], held["processor"] = _build(sizes, proof.device)
        num_parameters = sum(parameter.numel() for parameter in held["model"].parameters())
        return {"billion parameters": round(num_parameters / 1e9, 3), "type": str(held["model"].dtype)}

    proof.run(f"{name}: weights", build, needs_s=needs_s)
    if "model" not in held:
        return
    built: tuple[UrecaForConditionalGeneration, UrecaProcessor] = held.pop("model"), held.pop("processor")
    proof.run(f"{name}: captions (transformers)", lambda: _caption(*built, work), needs_s=needs_s)
    if find_spec("vllm") is not None and proof.device == "cuda" and name == "1B":
        proof.run(f"{name}: captions (vLLM)", lambda: _caption_by_vllm(*built, work), needs_s=3 * needs_s)
    proof.run(f"{name}: recovery", lambda: _recover(*built, work, proof.device), needs_s=needs_s)
    proof.run(f"{name}: training step, align", lambda: _train(*built, work, "align"), needs_s=needs_s / 2)
    proof.run(f"{name}: training step, tune", lambda: _train(*built, work, "tune"), needs_s=needs_s / 2)


def _build(sizes: dict[str, int], device: str) -> tuple["UrecaForConditionalGeneration", "UrecaProcessor"]:
    import torch
    from transformers import GenerationConfig

    from ureca.model.image_processing import UrecaImageProcessor
    from ureca.model.initialization import build_tokenizer, configuration_of
    from ureca.model.modeling import UrecaForConditionalGeneration
    from ureca.model.processing import UrecaProcessor
    from ureca.model.settings import TinySizes

    chosen = TinySizes(**sizes)  # type: ignore[arg-type]  # all of them are numbers
    processor = UrecaProcessor(
        UrecaImageProcessor(tile_size_px=chosen.image_size, max_tiles=chosen.max_tiles),
        build_tokenizer(),
        num_mask_tokens=chosen.num_mask_tokens,
        image_seq_length=chosen.image_seq_length,
    )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = UrecaForConditionalGeneration(configuration_of(chosen, processor))
    finally:
        torch.set_default_dtype(before)
    # No caption ends early: all have the same number of tokens.
    model.generation_config = GenerationConfig(eos_token_id=-1, pad_token_id=processor.tokenizer.pad_token_id)
    return model.eval(), processor


def _images(work: Workload) -> list[tuple[Any, list[Any]]]:
    """Draw images with their masks: boxes at random places."""
    rng = np.random.default_rng(0)
    height, width = work.image_size_px
    made = []
    for _ in range(work.images):
        masks = []
        for _ in range(work.regions):
            mask = np.zeros((height, width), np.bool_)
            top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
            mask[top : top + height // 3, left : left + width // 3] = True
            masks.append(mask)
        made.append((rng.integers(0, 256, (height, width, 3), np.uint8), masks))
    return made


def _texts(captioner: "RegionCaptioner", work: Workload) -> dict[tuple[int, int], str]:
    from ureca.model.settings import CaptionSettings

    settings = CaptionSettings(max_new_tokens=work.max_new_tokens, batch_size=work.batch_size)
    prepared = [captioner.prepare(pixels, masks) for pixels, masks in _images(work)]
    texts = {}
    for region in captioner.stream_prepared(prepared, settings):
        if region.error is not None:
            raise region.error
        texts[region.image_index, region.mask_index] = region.text
    return texts


def _caption(model: "UrecaForConditionalGeneration", processor: "UrecaProcessor", work: Workload) -> Figures:
    from ureca.model.captioner import RegionCaptioner

    captioner = RegionCaptioner(model, processor)
    prepared = captioner.prepare(*_images(work)[0])
    started = time.monotonic()
    num_regions = len(_texts(captioner, work))
    seconds = time.monotonic() - started
    return {
        "regions": num_regions,
        "tiles an image": prepared.num_tiles,
        "regions/s": round(num_regions / seconds, 2),
        "tokens/s": round(num_regions * work.max_new_tokens / seconds, 1),
    }


def _caption_by_vllm(model: "UrecaForConditionalGeneration", processor: "UrecaProcessor", work: Workload) -> Figures:
    import asyncio

    from ureca.captioning.engine import CaptionJob, load_engine
    from ureca.captioning.settings import VllmCaptioningSettings
    from ureca.masks.mask import Mask
    from ureca.model.settings import CaptionSettings

    settings = CaptionSettings(max_new_tokens=work.max_new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        options = VllmCaptioningSettings(gpu_memory_utilization=0.5)
        engine = load_engine(folder, settings, engine="vllm", vllm=options, dtype="auto", on_gpu=True)

        async def caption_all() -> list[str]:
            jobs = [
                CaptionJob(pixels, tuple(Mask.from_array(id, mask) for id, mask in enumerate(masks)), settings)
                for pixels, masks in _images(work)
            ]
            captions = await asyncio.gather(*map(engine.caption, jobs))
            return [caption.text for of_image in captions for caption in of_image]

        try:
            started = time.monotonic()
            texts = asyncio.run(caption_all())
            seconds = time.monotonic() - started
        finally:
            engine.close()
    num_tokens = sum(len(processor.tokenizer(text)["input_ids"]) for text in texts)
    return {
        "regions": len(texts),
        "regions/s": round(len(texts) / seconds, 2),
        "tokens/s": round(num_tokens / seconds, 1),
    }


def compare_engines(work: Workload, vllm_python: str) -> Figures:
    """Caption the same regions by transformers and by vLLM, each in a process of its own, and count equal captions.

    Raises:
        RuntimeError: captions differ by more than rounding.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "engines.json")
        agree = engines.main([*work.engines, "--vllm-python", vllm_python, "--json", str(file)]) == 0
        measured = [engines.EngineMeasurement(**each) for each in json.loads(file.read_text(encoding="utf-8"))]
    expected = measured[0].captions
    figures: Figures = {"regions": len(expected)}
    for each in measured:
        figures[f"{each.engine}, regions/s"] = round(len(each.captions) / each.wall_s, 2)
        if each is not measured[0]:
            pairs = zip(each.captions, expected, strict=False)
            figures[f"{each.engine}, equal captions"] = sum(ours == theirs for ours, theirs in pairs)
    if not agree:
        raise RuntimeError(f"captions differ by more than rounding: {figures}")
    return figures


@contextmanager
def _little_memory(model: "UrecaForConditionalGeneration", device: str, batch_size: int) -> Iterator[list[int]]:
    """Leave little memory beside the weights on a GPU; on a CPU refuse large batches. Yields the failures so far."""
    import torch

    from ureca.model.decoding import SuffixCache

    region_batch: Any = import_module("ureca.model.region_batch")

    failures: list[int] = []
    release, prefill = region_batch.release_memory, SuffixCache.prefill

    def counted(error: BaseException | None = None) -> None:
        failures.append(1)
        release(error)

    def limited(model: Any, prefixes: Any, suffixes: Any) -> SuffixCache:
        if len(suffixes) > max(1, batch_size // 2):
            raise MemoryError("as on a small device")
        return prefill(model, prefixes, suffixes)

    region_batch.release_memory = counted
    try:
        if device == "cuda":
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_allocated() + 2 * _GIB) / total))
        else:
            SuffixCache.prefill = limited  # type: ignore[method-assign]
        yield failures
    finally:
        region_batch.release_memory = release
        SuffixCache.prefill = prefill  # type: ignore[method-assign]
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)


def _recover(
    model: "UrecaForConditionalGeneration", processor: "UrecaProcessor", work: Workload, device: str
) -> Figures:
    """Caption with too little memory for a whole batch; every region must have its caption."""
    from ureca.model.captioner import RegionCaptioner

    captioner = RegionCaptioner(model, processor, cached_images=work.images)
    with _little_memory(model, device, work.batch_size) as failures:
        started = time.monotonic()
        texts = _texts(captioner, work)
        seconds = time.monotonic() - started
    if not failures:
        return {"regions": len(texts), "note": "there was memory enough: nothing to recover from"}
    return {"regions": len(texts), "failed allocations": len(failures), "regions/s": round(len(texts) / seconds, 2)}


def _train(model: "UrecaForConditionalGeneration", processor: "UrecaProcessor", work: Workload, phase: str) -> Figures:
    """Measure a step of two images on one device, after one that warms up; AdamW's state has the weights' type."""
    import torch

    from ureca.training.loss import PackedLoss
    from ureca.training.packing import ImageExample, Packer, RegionExample, from_bytes, to_bytes
    from ureca.training.phases import Align, Tune, build_optimizer, prepare, train_mode

    settings = Align() if phase == "align" else Tune(rank=128 if work is not TOY else 4)
    prepare(model, settings, gradient_checkpointing=True, seed=0)
    train_mode(model)
    examples = [
        ImageExample(
            pixels, tuple(RegionExample(mask, "Describe this region in the image.", ANSWER) for mask in masks[:8])
        )
        for pixels, masks in _images(work)[:2]
    ]
    packed = Packer(processor).pack(examples)
    data = to_bytes(packed, processor.image_processor)
    device = model.device
    loss_of, optimizer = PackedLoss(model), build_optimizer(model, settings)
    seconds = []
    for _ in range(3):
        _wait(device.type)
        started = time.monotonic()
        batch = from_bytes(data, processor.image_processor).to(device)
        loss = loss_of(batch) / batch.num_answer_tokens
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(device.type)
        seconds.append(time.monotonic() - started)
    if not bool(torch.isfinite(loss)):
        raise ValueError(f"the loss is {loss.item()}")
    best = min(seconds[1:])
    return {
        "tokens": len(packed.input_ids),
        "seconds a step": round(best, 3),
        "tokens/s": round(len(packed.input_ids) / best, 1),
        "million trained": round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6, 2),
    }


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def segment(work: Workload, network: "PromptedNetwork") -> Figures:
    """Segment images of 1500 x 2250 px, two at a time on a GPU, and one large image whose masks do not fit at once."""
    from benchmarks.sam import thresholds_of
    from ureca.masks.generators.everything import EverythingGenerator
    from ureca.masks.generators.settings import AutomaticMaskSettings

    rng = np.random.default_rng(0)
    height, width = (1500, 2250) if work.sam else (60, 90)
    images = [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(work.sam_images + 1)]
    settings = {"points_per_side": work.points_per_side, "points_per_batch": 256}

    def generator_of(thresholds: dict[str, float]) -> EverythingGenerator:
        # As many masks are upscaled, and kept, as with trained weights: random ones predict no quality.
        return EverythingGenerator(network, AutomaticMaskSettings.model_validate(settings | thresholds))

    generator = generator_of(thresholds_of(network, images[0]))
    generator.generate(images[0])
    on_gpu = network.device.type != "cpu"
    started = time.monotonic()
    with ThreadPoolExecutor(2 if on_gpu else 1) as executor:
        num_masks = sum(map(len, executor.map(generator.generate, images[1:])))
    seconds = time.monotonic() - started
    side = work.large_image_px
    large_image = rng.integers(0, 256, (side, side, 3), np.uint8)
    large = len(generator_of(thresholds_of(network, large_image, size=None)).generate(large_image))
    return {
        "images/s": round(work.sam_images / seconds, 3),
        "masks an image": num_masks // work.sam_images,
        "megapixels of the large image": round(side * side / 1e6, 1),
        "masks of the large image": large,
    }


def _sam(work: Workload, device: str) -> "PromptedNetwork":
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    from benchmarks.sam import build_sam
    from ureca.masks.generators.sam import SamNetwork

    if work.sam is not None:
        return SamNetwork(build_sam(work.sam).to(device))
    encoder = {"img_size": 64, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "out_chans": 16}
    transformer = TwoWayTransformer(depth=1, embedding_dim=16, num_heads=2, mlp_dim=32)
    sam = Sam(
        ImageEncoderViT(**encoder, use_rel_pos=True, window_size=2, global_attn_indexes=(0,)),
        PromptEncoder(embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4),
        MaskDecoder(num_multimask_outputs=3, transformer=transformer, transformer_dim=16),
    ).to(device)
    with torch.no_grad():
        sam.mask_decoder.iou_prediction_head.layers[-1].bias += 1  # qualities are positive, as trained ones are
    return SamNetwork(sam)


def _sam2(work: Workload, device: str) -> "PromptedNetwork":
    """Build SAM 2 with the sizes of its large checkpoint, or a toy."""
    import torch
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model
    from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig

    from ureca.devices import torch_dtype
    from ureca.masks.generators.transformers_sam import TransformersSamNetwork

    side, channels = (1024, 256) if work.sam else (64, 16)
    widths = [144, 288, 576, 1152] if work.sam else [8, 16, 32, 64]
    backbone = Sam2HieraDetConfig(
        hidden_size=widths[0],
        num_attention_heads=2 if work.sam else 1,
        image_size=[side, side],
        blocks_per_stage=[2, 6, 36, 4] if work.sam else [1, 1, 2, 1],
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[2, 4, 8, 16] if work.sam else [1, 1, 2, 2],
        window_size_per_stage=[8, 4, 16, 8] if work.sam else [8, 4, 4, 2],
        global_attention_blocks=[23, 33, 43] if work.sam else [3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[side // scale] * 2 for scale in (4, 8, 16)],
        fpn_hidden_size=channels,
    )
    decoder = {} if work.sam else {"mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": channels, "image_size": side},
        mask_decoder_config={"hidden_size": channels, **decoder},
    )
    torch.manual_seed(0)
    processor = Sam2ImageProcessor(size={"height": side, "width": side})
    on = torch.device(device)
    return TransformersSamNetwork(Sam2Model(config), processor, on, torch_dtype("auto", on))


def _machine(device: str) -> Figures:
    import torch

    from ureca import __version__

    machine: Figures = {"python": platform.python_version(), "torch": torch.__version__, "ureca": __version__}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {"GPU": properties.name, "GiB": round(properties.total_memory / _GIB, 1)}
        machine |= {"CUDA": str(torch.version.cuda)}
    else:
        machine |= {"GPU": "none", "processor": platform.machine()}
    return machine


def _line(figures: Figures) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def _markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Figures of this machine",
        "",
        f"{_line(result['machine'])}; {result['sizes']} sizes, random weights. Made by `make gpu-proof`.",
        "",
        "| part | figures |",
        "|---|---|",
        *(f"| {name} | {_line(figures)} |" for name, figures in result["parts"].items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
