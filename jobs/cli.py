"""The ``ureca`` command: hands its arguments to the job of a command, and loads nothing else."""

import contextlib
import difflib
import errno
import importlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from ureca import __version__
from ureca.errors import Terminated, UrecaError
from ureca.extras import EXTRA_OF_PACKAGE, install_command
from ureca.logging import log_to_stderr

COMMANDS = {
    "main": {
        "curate": "caption the regions of images uniquely and verified, by rules or an MLLM",
        "train": "train a model on captioned regions",
        "evaluate": "compare models on a benchmark, in one table",
        "caption": "caption the regions of images with a trained model",
        "serve": "caption regions over HTTP, with a page",
    },
    "data": {
        "report": "show the images, regions and captions of a run as one HTML page",
        "view": "look through all regions of a run in the browser, and correct their captions",
        "export": "write the captions of a run as JSONL, Parquet, COCO, or for annotation tools",
        "import-corrections": "read what people have corrected in Label Studio or FiftyOne",
        "scenes": "draw scenes with exact masks and provably unique, true captions",
    },
    "tools": {
        "demo": "caption photographs by rules and scenes by a small model, without network",
        "plan": "estimate what a run would take: calls, tokens, time, memory, storage",
        "status": "show the progress of a run and its failures",
        "doctor": "check this machine, and say how to fix what it lacks",
        "convert": "convert a released URECA checkpoint to the transformers layout",
        "init-tiny": "write a tiny random checkpoint for tests and dry runs",
        "init-scratch": "write an untrained small checkpoint with a tokenizer for a corpus",
        "ablate-curation": "curate with each stage left out in turn, and compare the captions",
        "science": "train small models on scenes, and compare their region prompts",
        "bench": "run a benchmark; `ureca bench` lists them",
    },
}
"""Purpose of each command, by group. The module of a command has its name."""

_ERRORS_OF_THE_FILE_SYSTEM = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EPERM, errno.EROFS}

_SIGINT_STATUS, _SIGTERM_STATUS = 130, 143
"""Statuses of a program that was interrupted, for shells."""

_BROKEN_PIPE_STATUS = 141
"""Status of a program that the signal SIGPIPE ended, for shells."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ureca COMMAND ...``; returns the exit status."""
    return _quiet_when_unread(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "--help-all"}:
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"ureca {__version__}")
        return 0
    names = [name for commands in COMMANDS.values() for name in commands]
    if arguments[0] not in names:
        close = difflib.get_close_matches(arguments[0], names, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
        print(f"ureca: there is no command {arguments[0]!r}; {hint}", file=sys.stderr)
        return 2
    return run_command(
        lambda rest: importlib.import_module(f"ureca.jobs.{arguments[0].replace('-', '_')}").main(rest), arguments[1:]
    )


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run the ``main`` of a job: an error of its user becomes one line and status 2, an interrupt status 130 or 143.

    A missing package of an extra is an error of the user. A reader of standard output that goes away (``| head``) ends
    the command quietly.
    """
    return _quiet_when_unread(lambda: _run_command(command, argv))


def _quiet_when_unread(run: Callable[[], int]) -> int:
    """Run a function that prints; a reader of standard output that has gone away ends it without a traceback."""
    try:
        status = run()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout.fileno(), select.POLLOUT)
        if not any(event & select.POLLERR for _, event in output.poll(0)):
            raise  # it was another pipe
        # The interpreter flushes once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE_STATUS


def _run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    log_to_stderr()
    try:
        with _raising_on_sigterm():
            return command(argv)
    except UrecaError as error:
        print(f"ureca: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in EXTRA_OF_PACKAGE:
            raise
        command_line = install_command(EXTRA_OF_PACKAGE[error.name])
        print(f"ureca: this needs the package {error.name}: {command_line}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _ERRORS_OF_THE_FILE_SYSTEM or error.filename is None:
            raise
        print(f"ureca: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("\nureca: interrupted; run the same command again to resume", file=sys.stderr)
        return _SIGTERM_STATUS if isinstance(interrupt, Terminated) else _SIGINT_STATUS
    except Exception as error:
        from ureca.config import HelpRequested  # loads pydantic: not for `ureca --help`

        if not isinstance(error, HelpRequested):
            raise
        from ureca.jobs.help import command_help

        print(command_help(error.settings, show_all=error.show_all))
        return 0


@contextlib.contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    """Raise ``Terminated`` on SIGTERM during the block, so that it ends a command as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    earlier = signal.getsignal(signal.SIGTERM)
    if earlier is signal.SIG_DFL:  # another handler, or that the signal is ignored, is the caller's choice
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _usage() -> str:
    lines = ["usage: ureca COMMAND ..."]
    width = max(len(name) for commands in COMMANDS.values() for name in commands)
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:<{width}}  {purpose}" for name, purpose in commands.items())]
    return "\n".join([*lines, "", "`ureca COMMAND --help` shows the usual settings of a command, --help-all all."])


if __name__ == "__main__":
    sys.exit(main())
