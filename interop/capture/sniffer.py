"""Packets as the kernel saw them: tcpdump or dumpcap on the loopback interface, for one port.

Theory of operation
-------------------
The two hard parts of running a sniffer beside a test are knowing when it listens and knowing
when it has everything. Both are answered by a *marker*: a UDP datagram with random content that
the sniffer sends to itself on loopback, through a port that the capture filter lets pass.

* The tool's line on standard error says that it listens; a marker seen in its output proves it.
* Packets are captured in order. When a marker sent after the last packet of interest shows up in
  the output, so has every packet before it, and the tool can be stopped without losing any.

The tool writes to a pipe, and a thread of ours copies it to the file: so the file has our mode,
0600, whatever user the tool turns into, and the markers are seen as they pass, with no
polling of a growing file. They stay in the capture; readers of TCP never see them.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from interop.errors import InputError, PeerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["PacketSniffer"]

_MARKER_BYTES: Final = 16
_RETRY_SECONDS: Final = 0.25
_PATIENCE_SECONDS: Final = 15.0
_CHUNK_BYTES: Final = 1024 * 1024


class _Tool(NamedTuple):
    """How a program is told to write the packets of a filter to standard output."""

    program: str
    arguments: tuple[str, ...]
    listening: str  # on standard error, once the capture filter is in place


_DROPPED: Final = re.compile(
    r"(?:received/dropped on interface .*: \d+/)?(\d+)(?: packets? dropped by kernel| \(pcap:)"
)

# A buffer of 64 MiB each, so that a burst on a busy machine is not dropped.
_TOOLS: Final = (
    _Tool(
        "tcpdump",
        (
            "-i",
            "{interface}",
            "-n",
            "-s",
            "0",
            "-U",
            "--immediate-mode",
            "-B",
            "65536",
            "-w",
            "-",
            "{filter}",
        ),
        "listening on",
    ),
    _Tool(
        "dumpcap",
        ("-q", "-i", "{interface}", "-s", "0", "-B", "64", "-w", "-", "-f", "{filter}"),
        "Capturing on",
    ),
)


class PacketSniffer:
    """Captures a TCP port's traffic on loopback while the context is open.

    `path` must not exist; it is created with mode 0600. Entered, it captures; left, the file
    holds every packet from before. Raises `PeerUnavailable` when no tool is installed or it is
    not allowed to capture, and `InputError` when the file cannot be created.
    """

    def __init__(self, port: int, path: Path | str, *, interface: str = "lo") -> None:
        self._port = port
        self._path = Path(path)
        self._interface = interface
        self._seen = threading.Event()
        self._listening = threading.Event()
        self._ended = threading.Event()
        self._marker = b""
        self._complaints: list[str] = []

    def __enter__(self) -> Self:
        tool = next((each for each in _TOOLS if shutil.which(each.program)), None)
        if tool is None:
            raise PeerUnavailable("neither tcpdump nor dumpcap is installed; install tcpdump")
        self._tool = tool
        self._marker_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._marker_socket.bind(("127.0.0.1", 0))
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            self._marker_socket.close()
            raise InputError(f"{self._path}: {error.strerror}") from None
        self._start()
        try:
            self._await(self._listening, "listen", lambda: None)
            self._await_marker()
        except PeerUnavailable:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._await_marker()
        finally:
            self._end()
        dropped = sum(map(int, _DROPPED.findall("\n".join(self._complaints))))
        if dropped and kind is None:
            raise PeerUnavailable(f"{self._tool.program} dropped {dropped} packets")

    def _start(self) -> None:
        marker_port = self._marker_socket.getsockname()[1]
        values = {
            "interface": self._interface,
            "filter": f"tcp port {self._port} or (udp and src and dst port {marker_port})",
        }
        self._process = subprocess.Popen(
            [self._tool.program, *(each.format(**values) for each in self._tool.arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._threads = [
            threading.Thread(target=target, name=f"{self._tool.program} {name}", daemon=True)
            for target, name in ((self._copy_packets, "packets"), (self._read_messages, "messages"))
        ]
        for thread in self._threads:
            thread.start()

    def _end(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._marker_socket.close()
        os.close(self._descriptor)

    def _await_marker(self) -> None:
        """Send a marker until it comes out of the tool; dumpcap says too early that it listens."""
        self._seen.clear()
        self._marker = secrets.token_bytes(_MARKER_BYTES)
        own_address = self._marker_socket.getsockname()
        self._await(
            self._seen,
            "deliver packets",
            lambda: self._marker_socket.sendto(self._marker, own_address),
        )

    def _await(self, event: threading.Event, what: str, ask: Callable[[], object]) -> None:
        for _ in range(int(_PATIENCE_SECONDS / _RETRY_SECONDS)):
            ask()
            if event.wait(_RETRY_SECONDS):
                return
            if self._ended.is_set():
                break
        said = "; ".join(self._complaints) or "it said nothing"
        raise PeerUnavailable(f"{self._tool.program} does not {what} on {self._interface}: {said}")

    def _copy_packets(self) -> None:
        pipe = self._process.stdout
        if pipe is None:
            return
        tail = b""
        while chunk := os.read(pipe.fileno(), _CHUNK_BYTES):
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            marker = self._marker
            if marker and marker in tail + chunk:
                self._seen.set()
            tail = chunk[-_MARKER_BYTES:]
        self._ended.set()

    def _read_messages(self) -> None:
        pipe = self._process.stderr
        if pipe is None:
            return
        for line in pipe:
            message = line.decode(errors="replace").strip()
            self._complaints.append(message)
            if self._tool.listening in message:
                self._listening.set()
