"""``make demo``: curate five real photographs with no weights and no network; serve the model that it trains."""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import skimage

from jobs import curate, report
from jobs.serve import ending
from ureca.settings.serve import ServeSettings

_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
_SHIPPED = Path(skimage.__file__).parent / "data"
_CAPTIONS_SHOWN = 5


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
    status = curate.main([str(images), str(output), "--verification.kind", "describer", "--overwrite"])
    return status or report.main([str(output), "--to", str(folder / "report.html")])


def _serve(folder: Path) -> int:
    """Caption a scene and a photograph by the trained model, through the running service.

    It stays up for whoever sits at a terminal.
    """
    from pipelines.serve import serving
    from pipelines.serving_client import largest_captions

    trained = folder / "science"
    model = trained / "models" / "dynamic" / "model"
    scene = min((trained / "scenes" / "test" / "images").glob("*.png"))
    with serving(ServeSettings(model=str(model), port=_free_port())) as address:
        ended = ending()
        for image in (scene, _SHIPPED / "coffee.png"):
            print(f"{image.name}, its largest regions:")
            for caption in largest_captions(address, image, _CAPTIONS_SHOWN):
                print(f"  {caption or '(the model wrote nothing)'}")
        print("A model this small, trained this shortly, is often wrong, and of photographs it knows nothing.")
        print(f"{address}: the page, to point at regions yourself", flush=True)
        if sys.stdin.isatty():
            print("Ctrl-C ends it.", flush=True)
            ended.wait()
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    from jobs.cli import run_verb

    sys.exit(run_verb(main, sys.argv[1:]))
