"""What a run says of the machine and the libraries it was made with.

Enough to repeat a measurement on a machine of the same kind, and nothing that names this one.
"""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from OpenSSL import SSL

from interop.proof.circumstances import Machine

__all__ = ["describe_machine", "library_versions"]

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


def library_versions() -> dict[str, str]:
    """Return the versions of the toolkit and of what it ran with.

    OpenSSL's is what the library that is loaded says of itself, not what was compiled against.
    """
    packages = ("pfs-transport", "cryptography", "pyOpenSSL")
    return {
        **{name: metadata.version(name) for name in packages},
        "OpenSSL": SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode().removeprefix("OpenSSL "),
        "Python": platform.python_version(),
    }


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
