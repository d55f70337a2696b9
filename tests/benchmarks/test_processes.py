"""Measurements of other processes."""

import math
import os
import subprocess
import sys
import time

from benchmarks.processes import ProcessTree, settled_mib


def test_settled_mib_ignores_first_quarter() -> None:
    assert settled_mib([10, 60, 100, 100, 101, 101, 102, 102]) == (100, 102)
    assert settled_mib([100.0] * 3 + [500.0] + [100.0] * 12) == (100, 100)


def test_settled_mib_of_too_few_samples_is_nan() -> None:
    assert all(math.isnan(mib) for mib in settled_mib([1, 2, 3]))


def test_process_tree_measures_memory_of_child_by_role() -> None:
    hold = "import sys; held = bytearray(64 << 20); print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, "LargeChild"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        processes = ProcessTree(os.getpid(), ("LargeChild",))
        for _ in range(2):
            processes.sample()
            time.sleep(0.01)
    assert len(processes.memory_mib["LargeChild"]) == 2
    assert 64 <= processes.peak_mib()["LargeChild"] < 128
