"""A command, run to its end and measured: seconds by the clock and of CPU, the most memory held.

The kernel counts to a process's peak what the process held that it was forked from, which a
benchmark that has just made a capture holds plenty of. So this file is also a program: a small
process of its own that starts the command, waits for it, and reports what the kernel says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["Measures", "measure"]


class Measures(NamedTuple):
    """What a command took; CPU seconds are those of all its threads."""

    wall_seconds: float
    cpu_seconds: float
    peak_mebibytes: float


def measure(command: Sequence[str | Path], output: BinaryIO) -> Measures:
    """Run a command, its standard output into a file; exit if it fails."""
    # An installed program has its bytecode on disk; compiling ours anew each time is no part of it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    reading, writing = os.pipe()
    with os.fdopen(reading) as report:
        process = subprocess.Popen(
            [sys.executable, "-IS", __file__, str(writing), *command],
            stdout=output,
            stderr=subprocess.DEVNULL,
            env=environment,
            pass_fds=(writing,),
        )
        os.close(writing)
        line = report.read()
    if process.wait() or not line:
        sys.exit(f"{command[0]} failed")
    return Measures(*json.loads(line))


def _launch(report: int, command: list[str]) -> int:
    os.set_inheritable(report, False)  # noqa: FBT003 - the standard library's own signature
    started = time.perf_counter()
    process = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(process, 0)
    elapsed = time.perf_counter() - started
    measures = Measures(elapsed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
    os.write(report, json.dumps(measures).encode())
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(_launch(int(sys.argv[1]), sys.argv[2:]))
