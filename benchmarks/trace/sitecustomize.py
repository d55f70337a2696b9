"""Count of the calls of every function below a folder, in each Python process that has this folder on its path.

``benchmarks.structure`` reads it. ``URECA_TRACE_ROOT`` names the folder, ``URECA_TRACE_OUTPUT`` that of the counts.
"""

import atexit
import inspect
import json
import os
import sys
import threading
from collections import Counter
from types import FrameType
from typing import Any

_INTERVAL_S = 0.5


def _install(root: str, output: str) -> None:
    calls: Counter[tuple[str, str]] = Counter()
    path = os.path.join(output, f"{os.getpid()}.json")  # noqa: PTH118 - pathlib is not loaded in every process

    def count(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        # The bodies of modules and classes, which run once for each import, have no optimised locals.
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(root):
            calls[(code.co_filename[len(root) :], f"{code.co_qualname}:{code.co_firstlineno}")] += 1

    writing = threading.Lock()  # the thread and the exit handler may write at the same time

    def write() -> None:
        with writing:
            counted = [[file, function, number] for (file, function), number in calls.copy().items()]
            with open(f"{path}.tmp", "w", encoding="utf-8") as stream:  # noqa: PTH123
                json.dump(counted, stream)
            os.replace(f"{path}.tmp", path)  # noqa: PTH105

    def write_at_intervals() -> None:
        while not threading.Event().wait(_INTERVAL_S):
            write()

    # A process that Ray kills runs no exit handlers, so that counts are also written while it runs.
    threading.Thread(target=write_at_intervals, daemon=True).start()
    atexit.register(write)
    threading.setprofile(count)
    sys.setprofile(count)


if os.environ.get("URECA_TRACE_OUTPUT"):
    _install(os.environ["URECA_TRACE_ROOT"], os.environ["URECA_TRACE_OUTPUT"])
