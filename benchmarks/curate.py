"""`ureca bench curate`: utilization of the engine by a curation, against sequential requests.

A simulated endpoint in a separate process has a fixed number of slots and a fixed time per request; further requests
wait. The job is `ureca curate` over drawn scenes with given masks. The result is the share of busy slots from
`--warm-up-s` after the first request to the last answer, including the job's end with fewer and fewer images in flight.

The sequential run sends the requests of some of the images one by one to an endpoint that answers at once; its captions
must equal the job's. For all images it would take the engine's time of all calls and its own work.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chat_endpoint import BIN_S, endpoint_process
from benchmarks.processes import ProcessTree, settled_mib
from benchmarks.scene_corpus import write_scene_corpus
from ureca.curation.curator import Curator
from ureca.curation.prompted import PromptedAnnotator
from ureca.curation.settings import PromptedConfig
from ureca.curation.stage import CurateStage
from ureca.data.in_flight import ImagesInFlight
from ureca.data.listing import list_images
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedPartition, build_mask_trees, generate_masks
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.llm.load import percentile_s
from ureca.llm.openai import OpenAIChatModel
from ureca.pipelines.curate_settings import CurateSettings
from ureca.registry import build_component

_CURATE, _MASKS, _DRIVER = "CurateActor", "MaskActor", "ureca.jobs.curate"
_SECONDS_BETWEEN_SAMPLES = 0.5
_ALL_BUSY = 0.95

Captions = dict[tuple[str, int], str | None]


@dataclass(frozen=True)
class CurationJob:
    """The parameters of one job.

    Attributes:
        num_images: number of images, from the beginning of the corpus.
        slow_every: one answer in this many is slow; 0 for none.
    """

    num_images: int
    slow_every: int

    @property
    def name(self) -> str:
        """Name of the job in the table and in file names."""
        return f"{self.num_images} images" + (f", 1 answer in {self.slow_every} slow" if self.slow_every else "")


@dataclass(frozen=True)
class CurationRun:
    """The measurements of one job.

    Attributes:
        num_calls: number of answers of the endpoint.
        busy_s: busy slot seconds in each ``BIN_S`` since the first request.
        cpu_s: CPU seconds by role.
        memory_mib: largest unshared memory of any process, sampled twice a second, by role.
        record: content of run.json.
        captions: final captions by image and region.
    """

    num_calls: int
    busy_s: Sequence[float]
    cpu_s: dict[str, float]
    memory_mib: Mapping[str, Sequence[float]]
    record: dict[str, Any]
    captions: Captions


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print its tables.

    Returns:
        1 if a caption differs from the sequential run's, else 0.
    """
    arguments = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        return _run(Path(folder), arguments)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the benchmark's arguments."""
    parser = argparse.ArgumentParser(
        prog="ureca bench curate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, nargs="+", default=[1000], help="numbers of images, a job each (default 1000)"
    )
    parser.add_argument("--side", type=int, default=224, help="side of the images in pixels (default 224)")
    parser.add_argument("--slots", type=int, default=64, help="number of the endpoint's slots (default 64)")
    parser.add_argument("--seconds", type=float, default=0.2, help="seconds per answer (default 0.2)")
    parser.add_argument(
        "--slow-every",
        type=int,
        default=50,
        help="one answer in this many is slow in another job; 0 for no such job (default 50)",
    )
    parser.add_argument(
        "--slow-times", type=float, default=20.0, help="factor by which slow answers take longer (default 20)"
    )
    parser.add_argument("--sequential", type=int, default=8, help="number of images of the sequential run (default 8)")
    parser.add_argument(
        "--warm-up-s", type=float, default=5.0, help="seconds after the first request that are ignored (default 5)"
    )
    parser.add_argument("--actors", type=int, default=2, help="number of curating actors (default 2)")
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="further options of `ureca curate`")
    return parser


def _run(folder: Path, arguments: argparse.Namespace) -> int:
    write_scene_corpus(folder / "images", max(arguments.images), arguments.side)
    print(
        f"scenes of {arguments.side} px; an endpoint with {arguments.slots} slots, "
        f"{arguments.seconds:g} s each; {arguments.actors} actors, {os.cpu_count()} cores",
        flush=True,
    )
    jobs = [CurationJob(num_images, 0) for num_images in arguments.images]
    if arguments.slow_every:
        jobs.append(CurationJob(max(arguments.images), arguments.slow_every))
    print(_HEADER, flush=True)
    runs = []
    for job in jobs:
        runs.append(_measure(folder, job, arguments))
        print(result_row(job, runs[-1], arguments), flush=True)
    print(
        "\nlargest unshared memory of any process, in MiB (and medians of the second and of the last quarter of its "
        f"time):\n{_memory(jobs, runs)}"
    )
    captions, sequential_s = _sequential(folder, jobs[-1], arguments)
    return _compare(jobs, runs, captions, sequential_s, arguments)


def _stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats", timeout=60) as response:  # noqa: S310 - our own endpoint
        stats: dict[str, Any] = json.load(response)
    return stats


def _options(folder: Path, job: CurationJob, url: str, arguments: argparse.Namespace) -> list[str]:
    """Arguments of `ureca curate`."""
    return [
        *(str(folder / "images"), str(folder / f"regions-{job.name}"), "--limit", str(job.num_images)),
        *("--masks.kind", "annotations", "--listing.annotations", "beside", "--annotator.kind", "prompted"),
        *("--mllm.kind", "openai", "--mllm.model", "stand-in", "--mllm.base-urls", f"{url}/v1"),
        # More than the endpoint's slots, so that its queue holds a request whenever a slot becomes free.
        *("--mllm.max-concurrency", str(2 * arguments.slots)),
        *("--resources.masks.num-actors", "1", "--resources.curate.num-actors", str(arguments.actors)),
        *arguments.options,
    ]


def _measure(folder: Path, job: CurationJob, arguments: argparse.Namespace) -> CurationRun:
    with endpoint_process(
        slots=arguments.slots, seconds=arguments.seconds, slow_every=job.slow_every, slow_times=arguments.slow_times
    ) as url:
        command = [sys.executable, "-m", "ureca.jobs.curate", *_options(folder, job, url, arguments)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 (our own command)
            processes = ProcessTree(process.pid, (_CURATE, _MASKS, _DRIVER))
            while process.poll() is None:
                cpu_s = processes.sample()
                time.sleep(_SECONDS_BETWEEN_SAMPLES)
        if process.returncode:
            raise RuntimeError(f"the job failed:\n{(folder / 'log').read_text()}")
        stats = _stats(url)
    output = Output.of_run(str(folder / f"regions-{job.name}"))
    rows = output.rows()
    return CurationRun(
        stats["num_answers"],
        stats["busy_s"],
        cpu_s,
        processes.memory_mib,
        output.run(),
        {(row["image_id"], region["region_id"]): region["caption"] for row in rows for region in row["regions"]},
    )


_HEADER = """
| job | calls | calls/s | busy after warm-up | of it, before the end | end | CPU ms a call: actors, all | p50 / p95 s |
|---|---|---|---|---|---|---|---|"""


def result_row(job: CurationJob, run: CurationRun, arguments: argparse.Namespace) -> str:
    """A row of the table."""
    warm_up = round(arguments.warm_up_s / BIN_S)
    shares = [slot_s / (arguments.slots * BIN_S) for slot_s in run.busy_s]
    # The end begins after the last time that all slots were busy.
    end = max((number + 1 for number, share in enumerate(shares) if share >= _ALL_BUSY), default=len(shares))
    latency = run.record["totals"]["latency_ms"]
    cells = [
        job.name,
        f"{run.num_calls}",
        f"{run.num_calls / (len(shares) * BIN_S):.0f}",
        _mean(shares[warm_up:]),
        _mean(shares[warm_up:end]),
        f"{(len(shares) - end) * BIN_S:.1f} s",
        f"{1000 * run.cpu_s[_CURATE] / run.num_calls:.2f}, {1000 * sum(run.cpu_s.values()) / run.num_calls:.2f}",
        f"{percentile_s(latency, 0.5):.2f} / {percentile_s(latency, 0.95):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _mean(shares: Sequence[float]) -> str:
    return f"{sum(shares) / len(shares):.1%}" if shares else "too short"


def _memory(jobs: Sequence[CurationJob], runs: Sequence[CurationRun]) -> str:
    lines = ["| job | curating actor | masks | driver |", "|---|---|---|---|"]
    for job, run in zip(jobs, runs, strict=True):
        cells = (_memory_cell(run.memory_mib.get(role, ())) for role in (_CURATE, _MASKS, _DRIVER))
        lines.append(f"| {job.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _memory_cell(samples: Sequence[float]) -> str:
    if not samples:
        return "not seen"
    earlier, later = settled_mib(samples)
    return f"{max(samples):.0f} ({earlier:.0f} to {later:.0f})"


def _sequential(folder: Path, job: CurationJob, arguments: argparse.Namespace) -> tuple[Captions, float]:
    """Captions of some images by sequential requests, and the seconds per call without the engine's."""
    with endpoint_process(slots=1, seconds=0.0) as url:
        settings = CurateSettings.load([*_options(folder, job, url, arguments), "--mllm.max-concurrency", "1"])
        manifest = list_images(settings.input, **settings.listing.model_dump())
        entries = [ManifestEntry.from_row(row) for row in manifest.slice(0, arguments.sequential).to_pylist()]
        started = time.monotonic()
        partition = generate_masks(0, entries, build_component("mask_generator", settings.masks), settings.image_limits)
        rows, report = asyncio.run(_curate_alone(build_mask_trees(partition, settings.tree.containment), settings))
        seconds = (time.monotonic() - started) / report.num_calls
    captions = {(row["image_id"], region["region_id"]): region["caption"] for row in rows for region in row["regions"]}
    return captions, seconds


async def _curate_alone(
    partition: MaskedPartition, settings: CurateSettings
) -> tuple[list[dict[str, Any]], PartitionReport]:
    assert isinstance(settings.annotator, PromptedConfig)  # noqa: S101 - the options say so
    model = build_component("chat_model", settings.mllm)
    annotator = PromptedAnnotator(model, settings.annotator)
    curator = Curator(
        annotator, build_component("embedder", settings.embedder), settings.tree, settings.views, settings.uniqueness
    )
    try:
        return await CurateStage(curator, ImagesInFlight(1, settings.image_limits))(partition)
    finally:
        if isinstance(model, OpenAIChatModel):
            await model.close()


def _compare(
    jobs: Sequence[CurationJob],
    runs: Sequence[CurationRun],
    captions: Captions,
    own_s: float,
    arguments: argparse.Namespace,
) -> int:
    differ = False
    print("\nsequential requests:")
    for job, run in zip(jobs, runs, strict=True):
        slow = (arguments.slow_times - 1) / job.slow_every if job.slow_every else 0.0
        engine_s = run.num_calls * arguments.seconds * (1 + slow)
        seconds = len(run.busy_s) * BIN_S
        equal = sum(run.captions[key] == caption for key, caption in captions.items() if key in run.captions)
        known = sum(key in run.captions for key in captions)
        differ = differ or equal < known
        print(
            f"{job.name}: {engine_s:.0f} s at the engine and {run.num_calls * own_s:.0f} s beside it, where the job "
            f"took {seconds:.1f} s ({(engine_s + run.num_calls * own_s) / seconds:.0f} times as long); "
            f"{equal} of {known} captions are the same"
        )
    return int(differ)
