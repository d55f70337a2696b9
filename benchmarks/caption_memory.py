"""`ureca bench caption-memory`: memory of `ureca caption` as the corpus grows.

The same job runs over growing parts of one corpus: small drawn scenes with few masks and a tiny checkpoint, so that
thousands of images take minutes. The unshared memory of each process is sampled twice a second; Ray's object store,
which has a fixed size, and files do not count.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ProcessTree
from benchmarks.scene_corpus import write_scene_corpus
from ureca.data.output import Output
from ureca.model.initialization import save_tiny

_ROLES = {"CaptionActor": "captioning actor", "MaskActor": "masks", "ureca.jobs.caption": "driver"}
_SECONDS_BETWEEN_SAMPLES = 0.5


@dataclass(frozen=True)
class MemoryRun:
    """The memory of one job.

    Attributes:
        num_images, num_regions: numbers of captioned images and regions.
        wall_s: duration, including the start of Ray and the loading of the model.
        peak_mib: largest unshared memory of any process, by role.
    """

    num_images: int
    num_regions: int
    wall_s: float
    peak_mib: dict[str, float]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print its table.

    Returns:
        1 if the memory of a process grew more than allowed, else 0.
    """
    arguments = _parser().parse_args(argv)
    sizes = sorted(arguments.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scene_corpus(folder / "images", sizes[-1], arguments.side, arguments.masks)
        save_tiny(folder / "model")
        print(f"scenes of {arguments.side} px, at most {arguments.masks} masks each; MiB of one process at most\n")
        print(f"| images | regions | seconds | {' | '.join(_ROLES.values())} |\n|---|---|---|---|---|---|", flush=True)
        runs = []
        for num_images in sizes:
            runs.append(_measure(folder, num_images))
            print(_row(runs[-1]), flush=True)
    return _growth_status(runs, arguments.most_growth_mib)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca bench caption-memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [100, 1000, 10_000]
    parser.add_argument(
        "--images", type=int, nargs="+", default=sizes, help="numbers of images, a job each (default 100 1000 10000)"
    )
    parser.add_argument("--side", type=int, default=112, help="side of the images in pixels (default 112)")
    parser.add_argument("--masks", type=int, default=2, help="largest number of masks of an image (default 2)")
    parser.add_argument(
        "--most-growth-mib",
        type=float,
        default=64.0,
        help="largest growth of a process's memory over the jobs (default 64)",
    )
    return parser


def _measure(folder: Path, num_images: int) -> MemoryRun:
    output = folder / f"captions-{num_images}"
    command = [
        *(
            sys.executable,
            "-m",
            "ureca.jobs.caption",
            str(folder / "images"),
            str(output),
            "--model",
            str(folder / "model"),
        ),
        *("--limit", str(num_images), "--captioner.max-new-tokens", "4"),
        *("--masks.kind", "annotations", "--listing.annotations", "beside"),
        *("--resources.masks.num-actors", "1", "--resources.caption.num-actors", "1"),
    ]
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 (our own command)
        processes = ProcessTree(job.pid, tuple(_ROLES))
        while job.poll() is None:
            processes.sample()
            time.sleep(_SECONDS_BETWEEN_SAMPLES)
    if job.returncode:
        raise RuntimeError(f"the job failed:\n{(folder / 'log').read_text()}")
    report = Output.of_run(str(output)).report()
    if report.num_images != num_images or report.num_failed:
        raise RuntimeError(f"{report.num_images} of {num_images} images, of which {report.num_failed} failed")
    return MemoryRun(num_images, report.num_regions, time.monotonic() - began, processes.peak_mib())


def _row(run: MemoryRun) -> str:
    peaks = (f"{run.peak_mib[role]:.0f}" for role in _ROLES)
    return f"| {run.num_images} | {run.num_regions} | {run.wall_s:.0f} | {' | '.join(peaks)} |"


def _growth_status(runs: Sequence[MemoryRun], most_growth_mib: float) -> int:
    first, last = runs[0], runs[-1]
    grown = {title: last.peak_mib[role] - first.peak_mib[role] for role, title in _ROLES.items()}
    print("\ngrowth in MiB: " + ", ".join(f"{title} {mib:+.0f}" for title, mib in grown.items()))
    return int(max(grown.values()) > most_growth_mib)
