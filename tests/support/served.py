"""`pfs serve`, or a program like it, in processes of its own: what it says, and what it holds."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from interop.peers.processes import ChildProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from interop.peers.endpoints import CredentialFiles

PFS = Path(sys.executable).with_name("pfs")
DEADLINE_SECONDS = 30.0
LOG_BYTES = 32 << 20


class Served:
    """A running server that logs JSON lines; it listens."""

    def __init__(self, child: ChildProcess) -> None:
        self.child = child
        (listening,) = self.wait_for("listening")
        self.address = (str(listening["host"]), int(str(listening["port"])))

    @property
    def name(self) -> str:
        """Give the address as programs are told it."""
        return f"{self.address[0]}:{self.address[1]}"

    def log(self, event: str) -> list[dict[str, object]]:
        whole = self.child.stderr().rpartition(b"\n")[0].splitlines()
        lines = [json.loads(line) for line in whole if line.startswith(b"{")]
        return [line for line in lines if line["event"] == event]

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, object]]:
        self.child.wait_until(
            lambda: len(self.log(event)) >= count,
            timeout_seconds=DEADLINE_SECONDS,
            purpose=f"logged {event}",
        )
        return self.log(event)

    def workers(self) -> list[int]:
        """Give the process id of each worker, that of the newest where one was replaced."""
        by_name = {str(line["child"]): line["child_pid"] for line in self.log("started")}
        return [int(str(pid)) for name, pid in by_name.items() if name.startswith("worker")]


def files_of(credential: CredentialFiles) -> list[str]:
    return ["--cert", str(credential.certificate_chain), "--key", str(credential.private_key)]


@contextmanager
def running(
    program: Path, *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    with ChildProcess(
        program,
        [str(argument) for argument in arguments],
        stderr_limit_bytes=LOG_BYTES,
        extra_environment=environment,
    ) as child:
        yield Served(child)


def serve(*arguments: str | Path) -> AbstractContextManager[Served]:
    return running(PFS, "serve", *arguments, "--listen", "127.0.0.1:0")
