"""`ureca bench engines`: the engines that caption regions, with the same weights and masks in one run.

Transformers with its shared prefix, vLLM with prefix caching, and vLLM without it. Each engine runs in a process of its
own, vLLM's in its own environment (--vllm-python), is warmed up on another image, and gets all regions at once, as an
actor of `ureca caption` gives them. CPU seconds are those of the engine's process and its children. The random model
never ends a caption, so that all engines do the same work, and its captions differ by mask, so that their equality
shows that no mask was swapped. Two captions of a region may part only at a token that rounding decides: the logits of
the two likeliest tokens are then closer than the error of float32.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.caption import NUM_TILES, TILE_SIZE_PX, build_captioner, check_agreement, make_scene
from benchmarks.processes import ProcessTree

ENGINES = {
    "transformers": "transformers, shared prefix",
    "vllm": "vLLM, prefix caching",
    "vllm-uncached": "vLLM without prefix caching",
}
_WARM_UP_SEED = 1000
_ROUNDING = 1e-3
"""Difference of two logits that rounding to float32 can turn around. The random model's sharp attention enlarges
errors: of its logits, whose deviation is 0.24, two differed by 4.1e-4 in float32 and by 1.6e-4 in float64."""
_REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class EngineMeasurement:
    """The cost of captions by one engine.

    Attributes:
        engine: key of `ENGINES`.
        num_images, num_regions: images, and regions of each.
        captions: captions of all regions, image by image.
        cpu_s: CPU seconds of the engine's process and its children.
        wall_s: wall-clock seconds.
    """

    engine: str
    num_images: int
    num_regions: int
    captions: list[str]
    cpu_s: float
    wall_s: float


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print its table.

    Returns:
        0, or 1 if engines disagree on a caption by more than rounding, or too many captions are equal to show a swap.
    """
    arguments = _parser().parse_args(argv)
    if arguments.worker is not None:
        asyncio.run(_work(arguments))
        return 0
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    mask_tokens = max(1, arguments.image_tokens // NUM_TILES // 32)
    captioner = build_captioner(arguments.image_tokens, mask_tokens, "cpu")
    with torch.no_grad():
        captioner.model.lm_head.weight[captioner.processor.tokenizer.eos_token_id] = 0  # never the likeliest
    num_parameters = sum(parameter.numel() for parameter in captioner.model.parameters())
    print(
        f"{arguments.image_tokens} image tokens, {arguments.new_tokens} new tokens, "
        f"{num_parameters / 1e6:.1f} M parameters, float32, {'GPU' if torch.cuda.is_available() else 'CPU'}",
        flush=True,
    )
    measurements: list[EngineMeasurement] = []
    with tempfile.TemporaryDirectory() as folder:
        captioner.model.save_pretrained(folder)
        captioner.processor.save_pretrained(folder)
        del captioner
        for engine, python in pythons(arguments.vllm_python).items():
            if python is None:
                print(f"{ENGINES[engine]}: left out, there is no environment with vLLM (--vllm-python)")
                continue
            result = Path(folder, f"{engine}.json")
            command = [python, "-m", "benchmarks.engines", "--worker", engine, "--checkpoint", folder]
            command += ["--json", str(result), "--image-tokens", str(arguments.image_tokens)]
            command += ["--new-tokens", str(arguments.new_tokens), "--workloads", *arguments.workloads]
            environment = {**os.environ, "PYTHONPATH": str(_REPOSITORY)}
            subprocess.run(command, check=True, env=environment)  # noqa: S603
            measurements += [EngineMeasurement(**each) for each in json.loads(result.read_text(encoding="utf-8"))]
        sizes = {"image_tokens": arguments.image_tokens, "num_new_tokens": arguments.new_tokens}
        agree = print_table(measurements, lambda region, caption: logit_gap(folder, region, caption, **sizes))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(each) for each in measurements], indent=1), encoding="utf-8")
    return 0 if agree else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ureca bench engines", description=__doc__)
    parser.add_argument(
        "--workloads", nargs="+", default=["1x32", "8x16"], help="images x regions of each (default 1x32 8x16)"
    )
    parser.add_argument(
        "--image-tokens",
        type=int,
        default=832,
        choices=sorted(TILE_SIZE_PX),
        help="image tokens of a prompt (default 832)",
    )
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens of each caption (default 32)")
    parser.add_argument(
        "--vllm-python",
        help="Python of the environment with vLLM (default: this one if it has vLLM, else .venv-vllm of the checkout)",
    )
    parser.add_argument("--json", type=Path, help="file to which the measurements are also written")
    parser.add_argument("--worker", choices=sorted(ENGINES), help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    return parser


def pythons(vllm_python: str | None) -> dict[str, str | None]:
    """Return the Python of each engine; None for one that there is no environment for."""
    own = _REPOSITORY / ".venv-vllm/bin/python"
    if vllm_python is None and find_spec("vllm") is not None:
        vllm_python = sys.executable
    elif vllm_python is None and own.exists():
        vllm_python = str(own)
    return {engine: sys.executable if engine == "transformers" else vllm_python for engine in ENGINES}


async def _work(arguments: argparse.Namespace) -> None:
    """Measure one engine in this process, and write its measurements."""
    import torch

    from ureca.captioning.engine import CaptionJob, load_engine
    from ureca.captioning.settings import VllmCaptioningSettings
    from ureca.masks.mask import Mask
    from ureca.model.settings import CaptionSettings

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)  # with more, waiting threads add CPU seconds
    settings = CaptionSettings(max_new_tokens=arguments.new_tokens, batch_size=64)
    options = {"max_num_seqs": 64, "enable_prefix_caching": arguments.worker == "vllm"}
    if not on_gpu:
        options |= {"enforce_eager": True, "block_size": 32}
    engine = load_engine(
        arguments.checkpoint,
        settings,
        engine="transformers" if arguments.worker == "transformers" else "vllm",
        vllm=VllmCaptioningSettings(max_model_len=4096, engine_options=options),
        dtype="float32",
        on_gpu=on_gpu,
    )

    def job(seed: int, num_regions: int) -> CaptionJob:
        image, masks = make_scene(TILE_SIZE_PX[arguments.image_tokens], num_regions, seed)
        return CaptionJob(image, tuple(Mask.from_array(id, mask) for id, mask in enumerate(masks)), settings)

    tree = ProcessTree(os.getpid(), ())
    measurements = []
    next_seed = 0
    try:
        await engine.caption(job(_WARM_UP_SEED, 2))
        for workload in arguments.workloads:
            num_images, num_regions = map(int, workload.split("x"))
            jobs = [job(next_seed + number, num_regions) for number in range(num_images)]
            next_seed += num_images  # no engine has seen an image before
            used_before_s, started = sum(tree.sample().values()), time.perf_counter()
            captions = await asyncio.gather(*map(engine.caption, jobs))
            wall_s, cpu_s = time.perf_counter() - started, sum(tree.sample().values()) - used_before_s
            texts = [caption.text for of_image in captions for caption in of_image]
            measurements.append(EngineMeasurement(arguments.worker, num_images, num_regions, texts, cpu_s, wall_s))
    finally:
        engine.close()
    arguments.json.write_text(json.dumps([asdict(each) for each in measurements]), encoding="utf-8")


def logit_gap(
    checkpoint: str, region: tuple[int, int, int], other: str, *, image_tokens: int, num_new_tokens: int
) -> float:
    """Difference of the two highest logits of transformers at the token where another engine's caption parts.

    Args:
        checkpoint: folder of the model.
        region: seed of its image, number of regions of the image, and index among them.
        other: the other engine's caption, unequal to that of transformers.
        image_tokens, num_new_tokens: those of the benchmark.
    """
    import torch

    from ureca.model.checkpoints import load_checkpoint
    from ureca.model.processing import region_conversation
    from ureca.model.settings import CaptionSettings

    model, processor = load_checkpoint(checkpoint, dtype="float32")
    seed, num_regions, index = region
    image, masks = make_scene(TILE_SIZE_PX[image_tokens], num_regions, seed)
    conversation = region_conversation(CaptionSettings().question, with_mask=True)
    prompt = str(processor.apply_chat_template(conversation, add_generation_prompt=True))
    inputs = processor(images=[image], text=[prompt], masks=[masks[index]], return_tensors="pt")
    with torch.inference_mode():
        generated = model.generate(
            **inputs,
            max_new_tokens=num_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = generated.sequences[0, inputs["input_ids"].shape[1] :]
    num_equal = 0
    gaps = []
    for end, logits in enumerate(generated.logits, 1):
        highest = logits[0].topk(2).values
        gaps.append(float(highest[0] - highest[1]))
        # Unfinished characters, of one byte or another, are replacement characters.
        so_far = processor.decode(tokens[:end], skip_special_tokens=True).lstrip()
        finished = so_far.rstrip("\N{REPLACEMENT CHARACTER}")
        if not other.startswith(finished):
            break
        if finished == so_far:
            num_equal = end
    return min(gaps[num_equal:], default=float("inf"))


def print_table(
    measurements: Sequence[EngineMeasurement], gap_of: Callable[[tuple[int, int, int], str], float]
) -> bool:
    """Print a row for each engine and workload, and a line for each caption that differs.

    Args:
        measurements: those of each engine, its workloads in the same order; seeds of images count up from 0.
        gap_of: ``logit_gap`` of a region and another engine's caption.

    Returns:
        True if captions differ by mask, and engines agree but for rounding.
    """
    agree = bool(measurements)
    parted = []
    first_seeds: dict[str, int] = {}
    print("| images x regions | engine | regions per CPU s | times transformers | regions/s (wall) | captions equal |")
    print("|---|---|---|---|---|---|")
    for row in measurements:
        first = next(
            each for each in measurements if (each.num_images, each.num_regions) == (row.num_images, row.num_regions)
        )
        num_equal, _ = check_agreement(first.captions, row.captions)
        _, is_telling = check_agreement(first.captions, first.captions)
        agree = agree and is_telling and len(row.captions) == len(first.captions)
        first_seed = first_seeds.get(row.engine, 0)
        first_seeds[row.engine] = first_seed + row.num_images
        for number, (ours, theirs) in enumerate(zip(first.captions, row.captions, strict=False)):
            if ours != theirs:
                image, index = divmod(number, row.num_regions)
                gap = gap_of((first_seed + image, row.num_regions, index), theirs)
                agree = agree and gap < _ROUNDING
                parted.append(
                    f"{row.num_images} x {row.num_regions}, {ENGINES[row.engine]}: caption {number} parts at a token "
                    f"that is the likeliest by {gap:.1e}"
                )
        per_cpu_s, wall = len(row.captions) / row.cpu_s, len(row.captions) / row.wall_s
        print(
            f"| {row.num_images} x {row.num_regions} | {ENGINES[row.engine]} | {per_cpu_s:.2f} | "
            f"{first.cpu_s / row.cpu_s:.2f} | {wall:.2f} | {num_equal} of {len(first.captions)} |"
        )
    print("\n".join(parted))
    return agree


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
