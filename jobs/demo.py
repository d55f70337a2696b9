"""``ureca demo``: curate five photographs without weights or network, and serve the model of scenes of this package."""

import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from ureca.config import CommandSettings, Metavar
from ureca.jobs import curate, report, scenes
from ureca.jobs.serve import stop_signal
from ureca.pipelines.serve_settings import ServeSettings

_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
_PACKAGES_OF_THE_MODEL = ("torch", "transformers", "fastapi", "httpx2")
_CAPTIONS_SHOWN = 5
_NUM_SCENES = 3
_EMPTY = "(empty: the caption ended before its first word)"


class DemoSettings(CommandSettings):
    """Caption five photographs without weights or network, then unseen scenes with the model of this package."""

    command: ClassVar[str] = "demo"
    examples: ClassVar[tuple[str, ...]] = ("ureca demo    # writes demo/report.html",)

    folder: Annotated[CliPositionalArg[Path], Metavar("FOLDER")] = Field(
        default=Path("demo"), description="folder for the results; those of an earlier demo are replaced"
    )
    part: Literal["all", "photographs", "model"] = Field(
        default="all",
        description="photographs: rule-based captions and their report; model: the model of scenes behind the service, "
        "which needs ureca-ray[serve]; all: both, the second one where its packages are installed",
    )


def main(argv: Sequence[str]) -> int:
    """Run the parts of the demo; returns the status of the first one that fails, else 0."""
    settings = DemoSettings.load(argv)
    settings.folder.mkdir(parents=True, exist_ok=True)
    if settings.part != "model" and (status := _curate(settings.folder)):
        return status
    if settings.part == "photographs":
        return 0
    missing = [name for name in _PACKAGES_OF_THE_MODEL if importlib.util.find_spec(name) is None]
    if missing and settings.part == "all":
        print(
            f"\nThe second part, a trained model behind the service, needs {', '.join(missing)}:\n"
            "pip install 'ureca-ray[serve]', and run the demo again"
        )
        return 0
    return _serve(settings.folder)


def _curate(folder: Path) -> int:
    """Curate photographs from scikit-image, from the start each time."""
    images = folder / "images.txt"
    images.write_text("".join(f"{_shipped(name)}\n" for name in _PHOTOGRAPHS), encoding="utf-8")
    output = folder / "photographs"
    status = curate.main([str(images), str(output), "--verification.kind", "rule_based", "--overwrite"])
    return status or report.main([str(output), "--to", str(folder / "report.html")])


def _shipped(name: str) -> Path:
    """Return the path of a photograph that ships inside scikit-image."""
    import skimage

    return Path(skimage.__file__).parent / "data" / name


def _serve(folder: Path) -> int:
    """Caption unseen scenes and a photograph with the shipped model, through the service.

    On a terminal the service then runs until it is interrupted.
    """
    from ureca.pipelines.serve import serving

    drawn = folder / "scenes"
    arguments = ["--images", str(_NUM_SCENES), "--split", "test", "--size", "112", "--seed", "7", "--overwrite"]
    if status := scenes.main([str(drawn), *arguments]):
        return status
    print("\nthe model of scenes captions through a service", flush=True)
    with serving(ServeSettings(model="scenes", port=_free_port())) as address:
        stop = stop_signal()
        _show_scenes(address, drawn)
        describe_photograph(address, _shipped("coffee.png"))
        if sys.stdin.isatty():
            print(f"\n{address} has a page, to point at regions yourself. Ctrl-C ends it.", flush=True)
            stop.wait()
    command = os.path.relpath(Path(sys.executable).with_name("ureca"))
    print(f"\n{command} serve --model scenes\nserves the model again, with a page to point at regions; docs/serve.md")
    return 0


def _show_scenes(address: str, drawn: Path) -> None:
    """Print the model's captions of the largest regions of each scene beside the true ones."""
    from ureca.data.output import Output
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


def describe_photograph(address: str, image: Path) -> None:
    """Print captions of the largest regions that the service finds in a photograph, by the rule-based captioner.

    The model has been trained on drawn scenes only.
    """
    import ureca
    from ureca.masks.rle import Rle, decode
    from ureca.serving.client import largest_regions

    found = largest_regions(address, image, _CAPTIONS_SHOWN)
    masks = [decode(Rle(size=region["rle"]["size"], counts=region["rle"]["counts"])) for region in found]
    print(f"\n{image}, a photograph; the largest regions that the service finds, described by the rule-based captioner")
    print("(the model has been trained on drawn scenes only; `ureca serve` without --model serves this one):")
    for region in ureca.curate_image(image, masks):
        if region.caption is not None:
            print(f"  {region.caption}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
