"""``make demo``: curate five photographs without weights or network, and serve the model of scenes of this package."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import skimage

from ureca.data.output import Output
from ureca.jobs import curate, report, scenes
from ureca.jobs.serve import stop_signal
from ureca.pipelines.serve_settings import ServeSettings

_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
_SHIPPED = Path(skimage.__file__).parent / "data"
_CAPTIONS_SHOWN = 5
_NUM_SCENES = 3
_EMPTY = "(empty: the caption ended before its first word)"


def main(argv: Sequence[str]) -> int:
    """Run a part of the demo in the folder ``argv[0]``: ``argv[1]`` is curate (the default) or serve."""
    folder = Path(argv[0] if argv else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    return _serve(folder) if argv[1:] == ["serve"] else _curate(folder)


def _curate(folder: Path) -> int:
    """Curate photographs from scikit-image, from the start each time."""
    images = folder / "images.txt"
    images.write_text("".join(f"{_SHIPPED / name}\n" for name in _PHOTOGRAPHS), encoding="utf-8")
    output = folder / "photographs"
    status = curate.main([str(images), str(output), "--verification.kind", "rule_based", "--overwrite"])
    return status or report.main([str(output), "--to", str(folder / "report.html")])


def _serve(folder: Path) -> int:
    """Caption unseen scenes and a photograph with the shipped model, through the service.

    On a terminal the service then runs until it is interrupted.
    """
    from ureca.pipelines.serve import serving

    drawn = folder / "scenes"
    arguments = ["--images", str(_NUM_SCENES), "--split", "test", "--size", "112", "--seed", "7", "--overwrite"]
    if status := scenes.main([str(drawn), *arguments]):
        return status
    print("third part: the model of scenes captions through a service", flush=True)
    with serving(ServeSettings(model="scenes", port=_free_port())) as address:
        stop = stop_signal()
        _show_scenes(address, drawn)
        _show_photograph(address, _SHIPPED / "coffee.png")
        if sys.stdin.isatty():
            print(f"\n{address} has a page, to point at regions yourself. Ctrl-C ends it.", flush=True)
            stop.wait()
    command = os.path.relpath(Path(sys.executable).with_name("ureca"))
    print(f"\n{command} serve --model scenes\nserves the model again, with a page to point at regions; docs/serve.md")
    return 0


def _show_scenes(address: str, drawn: Path) -> None:
    """Print the model's captions of the largest regions of each scene beside the true ones."""
    from ureca.serving.client import caption_regions

    for scene in Output.of_run(str(drawn)).rows():
        image = Path(scene["uri"])
        regions = sorted(scene["regions"], key=lambda region: -region["area_px"])[:_CAPTIONS_SHOWN]
        rles = [{"size": [scene["height"], scene["width"]], "counts": region["rle"]} for region in regions]
        print(f"\n{image}, a drawn scene that the model has not seen; its largest regions:")
        for region, said in zip(regions, caption_regions(address, image, rles), strict=True):
            print(f"  model    {said or _EMPTY}\n  truth    {region['caption']}")
    print(
        "The truth is one of several true captions; docs/science.md says how often the model is right, and how judged."
    )


def _show_photograph(address: str, image: Path) -> None:
    """Print the model's captions of the largest regions that the service finds in a photograph."""
    from ureca.serving.client import caption_regions, largest_regions

    regions = largest_regions(address, image, _CAPTIONS_SHOWN)
    print(f"\n{image}, a photograph; the largest regions that the service finds in it:")
    for region, said in zip(
        regions, caption_regions(address, image, [region["rle"] for region in regions]), strict=True
    ):
        x, y, width, height = map(int, region["bbox_xywh"])
        print(f"  x {x:3}-{x + width - 1:3}, y {y:3}-{y + height - 1:3}  {said or _EMPTY}")
    print("The model has been trained on drawn scenes only, not on photographs.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
