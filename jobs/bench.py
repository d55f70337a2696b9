"""``ureca bench NAME``: measure both sides of a comparison in one run and print the ratio."""

import difflib
import sys
from collections.abc import Sequence

from ureca.errors import SettingsError
from ureca.jobs.checkout import import_from_checkout

BENCHMARKS = {
    "tree": "build mask trees on run lengths, against decoding and comparing pixels",
    "listener": "captions that a guessing listener accepts, in several questions, against a single one",
    "views": "render the views of a photograph, against rendering them at the photograph's size",
    "describe": "judge the rule-based captioner's captions by the pixels, with other measures than its own",
    "segments": "recall and speed of segments, against graph segmentation and another checkout",
    "sam": "masks of everything in an image, against Segment Anything's own generator",
    "caption": "caption all regions of an image at once, against one call per region",
    "engines": "caption with transformers, and with vLLM with and without prefix caching",
    "train": "train on all regions of an image at once, against one region per pass",
    "training-plan": "memory of the order of the samples of a training run, at the size of SA-1B",
    "training-memory": "memory of training at the shapes of real models, computed without them",
    "curate": "curate with a fake endpoint, against one question at a time",
    "endpoint": "the client of chat endpoints, against a plain aiohttp client; images after a crash",
    "local": "curate a few photographs in one process, against Ray started for them",
    "plan": "predict a curation from a smaller one, against the time that it then takes",
    "resume": "list and resume a corpus of a million images",
    "annotations": "read annotation files, against parsing all that they hold",
    "view": "pages and filters of `ureca view` over 100,000 images, against a scan of the files",
    "serve": "requests per second of the service, against a batch size of one",
    "serve-hostile": "the service under hostile load, against the same service without",
    "caption-memory": "memory of `ureca caption` as the corpus grows",
    "caption-corpus": "caption a corpus on Ray, against a loop over its regions",
}
"""Purpose of each benchmark; its module in ``benchmarks`` has its name."""


def main(argv: Sequence[str]) -> int:
    """Run the benchmark that is named; returns its exit status."""
    if not argv or argv[0] in {"-h", "--help", "--help-all"}:
        width = max(map(len, BENCHMARKS))
        names = "\n".join(f"  {name:<{width}}  {purpose}" for name, purpose in BENCHMARKS.items())
        print(f"usage: ureca bench NAME ...\n\nRun a benchmark of the repository.\n\nbenchmarks:\n{names}")
        print("\n`ureca bench NAME --help` lists a benchmark's arguments.")
        return 0 if argv else 2
    if argv[0] not in BENCHMARKS:
        close = difflib.get_close_matches(argv[0], BENCHMARKS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(BENCHMARKS)}"
        raise SettingsError(f"there is no benchmark {argv[0]!r}; {hint}")
    status: int = import_from_checkout(f"benchmarks.{argv[0].replace('-', '_')}", "bench").main(list(argv[1:]))
    return status


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
