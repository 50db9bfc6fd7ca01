"""What a run says of the machine it was made with.

Enough to repeat a measurement on a machine of the same kind, and nothing that names this one.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from interop.proof.circumstances import Machine

__all__ = ["describe_machine"]

_PROCESSOR_FILE = Path("/proc/cpuinfo")
_MAX_PROCESSOR_BYTES = 64 * 1024


def describe_machine() -> Machine:
    """Return this machine's operating system, kernel and processors."""
    return Machine(
        system=_system(),
        kernel=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        processor_model=_processor_model(),
        processors=len(os.sched_getaffinity(0)),
    )


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _processor_model() -> str:
    """Read the processor's name where Linux says it; Arm's kernels leave it out."""
    try:
        with _PROCESSOR_FILE.open("rb") as file:
            text = file.read(_MAX_PROCESSOR_BYTES).decode("utf-8", "replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or "not known"
