"""``ureca bench NAME``: measure both sides of a claim in one run and print the ratio."""

import sys
from collections.abc import Sequence

from ureca.errors import SettingsError
from ureca.jobs.checkout import import_from_checkout

_BENCHMARKS = {
    "tree": ("benchmarks.tree", "plant mask trees on run lengths, against decoding and comparing pixels"),
    "caption": ("benchmarks.caption", "caption all regions of an image at once, against one call a region"),
    "train": ("benchmarks.train", "train on all regions of an image at once, against one region a pass"),
    "curate": ("benchmarks.curate", "curate with a stand-in endpoint, against one question at a time"),
    "plan": ("benchmarks.plan", "predict a curation from a smaller one, against what it then takes"),
    "resume": ("benchmarks.resume", "list and resume a corpus of a million images"),
    "serve": ("benchmarks.serve", "requests a second of the service, against a batch size of one"),
    "caption-memory": ("benchmarks.caption_memory", "memory of `ureca caption` as the corpus grows"),
    "caption-corpus": ("benchmarks.caption_corpus", "caption a corpus on Ray, against a loop over its regions"),
}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark that is named; returns its exit status."""
    names = "\n".join(f"  {name:<14} {purpose}" for name, (_, purpose) in _BENCHMARKS.items())
    usage = f"usage: ureca bench NAME ...\n\n{names}"
    if not argv or argv[0] in {"-h", "--help"}:
        print(usage)
        return 0 if argv else 2
    if argv[0] not in _BENCHMARKS:
        raise SettingsError(f"there is no benchmark {argv[0]!r}\n\n{usage}")
    module, _ = _BENCHMARKS[argv[0]]
    status: int = import_from_checkout(module).main(list(argv[1:]))
    return status


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
