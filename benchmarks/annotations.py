"""`ureca bench annotations`: time and memory of reading annotation files, against reading all of them with json.

`named`: one SA-1B file of which a training set names a few masks: all masks parsed, against the named ones.
`million`: an SA-1B file with 10^6 annotations, which is refused: parsed as a whole, against refused from its text.
`coco`: a COCO file of a whole dataset: parsed as a whole and grouped by image, against one pass and a temporary file.

Each side is a process of its own; memory is its peak resident set, less that of a process that only imports.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ureca.errors import AnnotationError
from ureca.masks.annotations import image_annotations, parse_annotations
from ureca.masks.coco import CocoFile
from ureca.masks.rle import encode

_SIZE = (1500, 2250)
_NUM_MASKS = 100  # as images of SA-1B have
_NUM_NAMED = 6  # as URECA's training set names of each
_NUM_TIMES = 20
_ANNOTATIONS_PER_IMAGE = 7  # as COCO's images have


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print its table; returns 0."""
    parser = argparse.ArgumentParser(prog="ureca bench annotations", description=__doc__)
    parser.add_argument("--million", type=int, default=1_000_000, help="annotations of the refused file (default 10^6)")
    parser.add_argument("--coco", type=int, default=860_000, help="annotations of the COCO file (default 860,000)")
    arguments = parser.parse_args(argv)
    print("| file | side | seconds | peak MiB |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.json")
        _, idle_mib = _measured("nothing", path)
        for name, write in (
            ("named", _write_named),
            ("million", lambda path: _write_many(path, arguments.million)),
            ("coco", lambda path: _write_coco(path, arguments.coco)),
        ):
            write(path)
            found = {}
            for side in _SIDES[name]:
                found[side] = seconds, mib = _measured(f"{name} {side}", path)
                print(f"| {name} | {side} | {seconds:.4f} | {mib - idle_mib:.0f} |", flush=True)
            (before, before_mib), (after, after_mib) = found.values()
            ratio = (before_mib - idle_mib) / max(1.0, after_mib - idle_mib)
            print(f"| {name} | ratio | {before / after:.1f} | {ratio:.1f} |", flush=True)
    return 0


def _measured(step: str, path: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.annotations", *step.split(), str(path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()  # noqa: S603
    return float(printed[0]), float(printed[1])


def _write_named(path: Path) -> None:
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: _SIZE[0], : _SIZE[1]]
    records = []
    for id in range(_NUM_MASKS):
        y, x, radius = random.integers(0, _SIZE[0]), random.integers(0, _SIZE[1]), random.integers(20, 300)
        wobble = 12 * np.sin(columns / 7) + 12 * np.cos(rows / 5)  # ragged edges, as SAM's masks have
        mask = (rows - y) ** 2 + (columns - x) ** 2 < (radius + wobble) ** 2
        records.append({"id": id, "segmentation": dict(encode(mask)), "area": int(mask.sum())})
    path.write_text(json.dumps({"image": {"height": _SIZE[0], "width": _SIZE[1]}, "annotations": records}))


def _write_many(path: Path, number: int) -> None:
    record = {"segmentation": {"size": [80, 120], "counts": "Zi0b1n00000000000000"}, "bbox": [1, 2, 3, 4], "area": 2000}
    with path.open("w") as file:
        file.write('{"image": {"height": 80, "width": 120}, "annotations": [')
        file.writelines(f"{', ' if id else ''}{json.dumps({'id': id, **record})}" for id in range(number))
        file.write("]}")


def _write_coco(path: Path, number: int) -> None:
    random = np.random.default_rng(0)
    num_images = number // _ANNOTATIONS_PER_IMAGE + 1
    outline = [round(float(value), 2) for value in random.uniform(0, 480, 48)]
    with path.open("w") as file:
        file.write('{"images": [')
        file.writelines(
            f'{", " if id else ""}{{"id": {id}, "file_name": "{id:012d}.jpg", "height": 480, "width": 640}}'
            for id in range(num_images)
        )
        file.write('], "annotations": [')
        for id, image_id in enumerate(random.integers(0, num_images, number).tolist()):
            record = {"id": id, "image_id": image_id, "segmentation": [outline], "area": 5000.5, "iscrowd": 0}
            file.write(f"{', ' if id else ''}{json.dumps(record)}")
        file.write("]}")


def _named_all(path: Path) -> None:
    data = path.read_bytes()
    for _ in range(_NUM_TIMES):
        masks = {mask.id: mask for mask in parse_annotations(data)}
        assert len([masks[id] for id in range(_NUM_NAMED)]) == _NUM_NAMED  # noqa: S101


def _named_alone(path: Path) -> None:
    data = path.read_bytes()
    for _ in range(_NUM_TIMES):
        assert len(parse_annotations(data, only=[str(id) for id in range(_NUM_NAMED)])) == _NUM_NAMED  # noqa: S101


def _million_parsed(path: Path) -> None:
    content = json.loads(path.read_bytes())
    assert len(content["annotations"]) > 0  # noqa: S101


def _million_refused(path: Path) -> None:
    try:
        parse_annotations(path.read_bytes())
    except AnnotationError as error:
        assert error.kind == "too_many_masks", error  # noqa: S101


def _coco_parsed(path: Path) -> None:
    content = json.loads(path.read_bytes())
    of_image = defaultdict(list)
    for record in content["annotations"]:
        of_image[record["image_id"]].append(record)
    for image in content["images"][:_NUM_TIMES]:
        if records := of_image[image["id"]]:
            image_annotations(image, records, {})


def _coco_in_one_pass(path: Path) -> None:
    with CocoFile.read(path) as file:
        for id in list(file.images)[:_NUM_TIMES]:
            if file.num_annotations(id):
                file.annotations(id)


_SIDES: Mapping[str, Mapping[str, Callable[[Path], None]]] = {
    "named": {"all masks": _named_all, "named masks": _named_alone},
    "million": {"parsed": _million_parsed, "refused": _million_refused},
    "coco": {"parsed": _coco_parsed, "one pass": _coco_in_one_pass},
}


def _run(name: str, side: str, path: Path) -> None:
    started = time.process_time()
    if name != "nothing":
        _SIDES[name][side](path)
    seconds = time.process_time() - started
    # The peak of the resource module would include the parent's, from which this process was forked.
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(seconds / (_NUM_TIMES if name == "named" else 1), int(peak.split()[1]) / 1024)


if __name__ == "__main__":
    _run(sys.argv[1], " ".join(sys.argv[2:-1]), Path(sys.argv[-1]))
