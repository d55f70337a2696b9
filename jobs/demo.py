"""``make demo``: curate five real photographs with no weights and no network; serve the model that it trains."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import skimage

from ureca.data.output import Output
from ureca.jobs import curate, report
from ureca.jobs.serve import stop_signal
from ureca.pipelines.serve_settings import ServeSettings

_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
_SHIPPED = Path(skimage.__file__).parent / "data"
_CAPTIONS_SHOWN = 5
_NOTHING = "(nothing: it ended before its first word)"


def main(argv: Sequence[str]) -> int:
    """Show a part of the system in the folder ``argv[0]``: ``argv[1]`` is curate (if left out) or serve.

    To serve takes the model that ``make demo-science`` leaves in the folder.
    """
    folder = Path(argv[0] if argv else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    return _serve(folder) if argv[1:] == ["serve"] else _curate(folder)


def _curate(folder: Path) -> int:
    """Photographs that ship inside scikit-image, anew each time."""
    images = folder / "images.txt"
    images.write_text("".join(f"{_SHIPPED / name}\n" for name in _PHOTOGRAPHS), encoding="utf-8")
    output = folder / "photographs"
    status = curate.main([str(images), str(output), "--verification.kind", "rule_based", "--overwrite"])
    return status or report.main([str(output), "--to", str(folder / "report.html")])


def _serve(folder: Path) -> int:
    """Caption a scene and a photograph by the trained model, through the running service.

    It stays up for whoever sits at a terminal.
    """
    from ureca.pipelines.serve import serving

    trained = folder / "science"
    model = trained / "models" / "dynamic" / "model"
    print("third part: the model that was given masks captions through a service", flush=True)
    with serving(ServeSettings(model=str(model), port=_free_port())) as address:
        stop = stop_signal()
        _show_scene(address, trained / "scenes" / "test")
        _show_photograph(address, _SHIPPED / "coffee.png")
        if sys.stdin.isatty():
            print(f"\n{address} has a page, to point at regions yourself. Ctrl-C ends it.", flush=True)
            stop.wait()
    command = os.path.relpath(Path(sys.executable).with_name("ureca"))
    print(f"\n{command} serve --model {model}\nserves it again, with a page to point at regions; docs/serve.md")
    return 0


def _show_scene(address: str, scenes: Path) -> None:
    """What the model says of the first scene's largest regions, beside what is true."""
    from ureca.serving.client import caption_regions

    scene = next(iter(Output.of_run(str(scenes)).rows()))
    image = Path(scene["uri"])
    regions = sorted(scene["regions"], key=lambda region: -region["area_px"])[:_CAPTIONS_SHOWN]
    rles = [{"size": [scene["height"], scene["width"]], "counts": region["rle"]} for region in regions]
    print(f"\n{image}, a drawn scene that it has not seen; its largest regions:")
    for region, said in zip(regions, caption_regions(address, image, rles), strict=True):
        print(f"  it says  {said or _NOTHING}\n  true is  {region['caption']}")
    print("A model this small, trained for two minutes, is often wrong; docs/science.md tells what more time brings.")


def _show_photograph(address: str, image: Path) -> None:
    """What the model says of the largest regions that the service finds in a photograph."""
    from ureca.serving.client import caption_regions, largest_regions

    regions = largest_regions(address, image, _CAPTIONS_SHOWN)
    print(f"\n{image}, a photograph; the largest regions that the service finds in it:")
    for region, said in zip(
        regions, caption_regions(address, image, [region["rle"] for region in regions]), strict=True
    ):
        x, y, width, height = map(int, region["bbox_xywh"])
        print(f"  x {x:3}-{x + width - 1:3}, y {y:3}-{y + height - 1:3}  {said or _NOTHING}")
    print("Of photographs it knows nothing: it has seen drawn scenes only.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
