"""`ureca bench resume`: time and memory of the driver for listing and resuming a large corpus.

The corpus is a list of names without images. The output has the files of all partitions but one, as links to one real
file. Each step runs in a separate process; memory is the peak resident set, including Python and the libraries, which
the first row shows alone.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from ureca.data.listing import list_images
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport, partition_offsets

_LINKS_PER_FILE = 50_000  # near the limit of common file systems


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print its table; returns 0."""
    parser = argparse.ArgumentParser(prog="ureca bench resume", description=__doc__)
    parser.add_argument(
        "--images", type=int, nargs="+", default=[100_000, 1_000_000], help="numbers of images (default 100000 1000000)"
    )
    arguments = parser.parse_args(argv)
    print("| images | partitions | step | seconds | peak MiB |\n|---|---|---|---|---|", flush=True)
    for num_images in arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            _write_names(Path(folder), num_images)
            num_partitions = len(partition_offsets(num_images, None)) - 1
            for name in _STEPS:
                command = [sys.executable, "-m", "benchmarks.resume", name, folder]
                seconds, mib = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()  # noqa: S603
                print(f"| {num_images} | {num_partitions} | {name} | {seconds} | {mib} |", flush=True)
                if name == "first session":
                    _write_parts(Path(folder), num_partitions)
    return 0


def _write_names(folder: Path, num_images: int) -> None:
    with (folder / "names.txt").open("w", encoding="utf-8") as names:
        names.writelines(f"/corpus/{number // 10_000:04d}/sa_{number}.jpg\n" for number in range(num_images))


def _write_parts(folder: Path, num_partitions: int) -> None:
    """Write the files of all partitions but the last."""
    row = {"image_id": "sa_0", "uri": "sa_0.jpg", "height": 1, "width": 1, "regions": [], "error": None}
    output = Output(str(folder / "out"))
    output.write_partition(0, [row], PartitionReport(num_calls=1, seconds={"masks": 1.0}))
    file = Path(output.part_files()[0])
    for partition in range(1, num_partitions - 1):
        part = file.with_name(f"part-{partition:06d}.parquet")
        if partition % _LINKS_PER_FILE:
            part.hardlink_to(file)
        else:
            file = Path(shutil.copy(file, part))


def _imports(folder: Path) -> None:
    Output(str(folder / "out"))


def _list(folder: Path) -> pa.Table:
    return list_images(str(folder / "names.txt"))


def _first_session(folder: Path) -> None:
    Output(str(folder / "out")).add_images(_list(folder), None)


def _resume(folder: Path) -> None:
    output = Output(str(folder / "out"))
    output.add_images(_list(folder), None)
    missing = output.partition_sizes().keys() - set(output.done_partitions())
    if len(missing) != 1:
        raise RuntimeError(f"{len(missing)} partitions are missing, not one")


def _totals(folder: Path) -> None:
    Output(str(folder / "out")).report()


_STEPS: Mapping[str, Callable[[Path], object]] = {
    "imports": _imports,
    "listing": _list,
    "first session": _first_session,
    "resume": _resume,
    "totals": _totals,
}


def _measure(name: str, folder: Path) -> None:
    started = time.perf_counter()
    _STEPS[name](folder)
    seconds = time.perf_counter() - started
    peak_kib = int(Path("/proc/self/status").read_text(encoding="ascii").split("VmHWM:")[1].split()[0])
    print(f"{seconds:.2f} {peak_kib / 2**10:.0f}")


if __name__ == "__main__":
    _measure(sys.argv[1], Path(sys.argv[2]))
