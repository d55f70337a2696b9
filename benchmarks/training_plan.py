"""`ureca bench training-plan`: memory and time of the order of the samples, at the size of a large corpus.

A corpus of so many regions is drawn (100 regions an image, as in SA-1B), as the token counts of an index. The driver's
part of a run then computes and stores the order of an epoch (``RunPlan.store``), and a worker's part opens it and reads
micro-batches all over it, each in a process of its own. Reported are the peaks of the memory that is private to the
process (anonymous pages): what it shares with others, and what the machine can drop, are the pages of mapped files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_REGIONS_OF_IMAGE = 100
_IMAGES_PER_ROW_GROUP = 1 << 16
_RANKS = 128


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print a line of figures for each size.

    Returns:
        1 if a process takes more memory than the limit, else 0.
    """
    parser = argparse.ArgumentParser(prog="ureca bench training-plan", description=__doc__)
    parser.add_argument(
        "--regions", type=float, nargs="+", default=[2e6, 20e6], help="numbers of regions (default 2e6 20e6)"
    )
    parser.add_argument("--max-mib", type=float, default=500.0, help="limit of each process in MiB (default 500)")
    parser.add_argument("--folder", type=Path, help="folder for files, 10 bytes a region; default: a temporary one")
    parser.add_argument("--part", choices=["driver", "worker"], help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.part is not None:
        part = _store if arguments.part == "driver" else _read
        print(json.dumps(_measured(lambda: part(arguments.folder))))
        return 0
    most = 0.0
    for num_regions in map(int, arguments.regions):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            _draw(Path(folder), num_regions)
            figures = {part: _run(part, folder) for part in ("driver", "worker")}
            size = sum(path.stat().st_size for path in Path(folder, "plan").rglob("*.bin"))
        most = max(most, *(figure["peak_mib"] for figure in figures.values()))
        print(
            f"{num_regions / 1e6:g} M regions: driver {figures['driver']['peak_mib']:.0f} MiB private at most, "
            f"{figures['driver']['cpu_s']:.0f} CPU s; worker {figures['worker']['peak_mib']:.0f} MiB, "
            f"{figures['worker']['cpu_s']:.1f} CPU s for {figures['worker']['result']} micro-batches; "
            f"files {size / 2**20:.0f} MiB an epoch",
            flush=True,
        )
    print(f"limit {arguments.max_mib:g} MiB a process, most {most:.0f} MiB")
    return int(most > arguments.max_mib)


def _draw(folder: Path, num_regions: int) -> None:
    """Write counts.parquet of an index, row group by row group."""
    from ureca.training.index import COUNTS

    rng = np.random.default_rng(0)
    num_images = max(1, num_regions // _REGIONS_OF_IMAGE)
    with pq.ParquetWriter(folder / "counts.parquet", COUNTS, compression="zstd") as writer:
        for start in range(0, num_images, _IMAGES_PER_ROW_GROUP):
            number = min(_IMAGES_PER_ROW_GROUP, num_images - start)
            tokens = rng.integers(40, 120, number * _REGIONS_OF_IMAGE, np.int32)
            offsets = np.arange(0, len(tokens) + 1, _REGIONS_OF_IMAGE, dtype=np.int32)
            columns = [
                pa.array(rng.integers(0, 2**63, number, np.uint64)),
                pa.ListArray.from_arrays(np.arange(number + 1, dtype=np.int32), rng.integers(1, 8, number, np.uint8)),
                pa.ListArray.from_arrays(offsets, tokens),
            ]
            writer.write_table(pa.table(columns, schema=COUNTS))


def _run(part: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training_plan", "--part", part, "--folder", folder]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    figures: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return figures


def _store(folder: Path) -> int:
    from ureca.training.index import map_counts
    from ureca.training.sampler import RunPlan
    from ureca.training.settings import AugmentationSettings, MicroBatchSettings
    from ureca.training.token_costs import TokenCosts

    plan = RunPlan.store(
        folder / "plan",
        lambda files: map_counts(pq.ParquetFile(folder / "counts.parquet"), files),
        TokenCosts(image=40, image_tile=256, region=2, mask_tile=16),
        MicroBatchSettings(),
        AugmentationSettings(),
        content="drawn",
        seed=0,
        world_size=_RANKS,
        epochs=1,
    )
    return plan.num_steps


def _read(folder: Path) -> int:
    from ureca.training.sampler import RunPlan

    plan = RunPlan.open(folder / "plan", _RANKS)
    steps = np.linspace(0, plan.num_steps - 1, min(plan.num_steps, 2000)).astype(int).tolist()
    return sum(len(plan.micro_batches(step, step % _RANKS)) for step in steps)


def _measured(work: Callable[[], int]) -> dict[str, Any]:
    """Run some work, and watch the private memory of this process."""
    peak, is_done = [_private_mib()], threading.Event()

    def watch() -> None:
        while not is_done.wait(0.01):
            peak.append(max(peak.pop(), _private_mib()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.process_time()
    try:
        result = work()
    finally:
        cpu_s = time.process_time() - started
        is_done.set()
        watcher.join()
    return {"peak_mib": peak[0], "cpu_s": cpu_s, "result": result}


def _private_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
