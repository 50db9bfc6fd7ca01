"""tcpdump, for captures that our own recorder had no part in.

A recorder killed too early loses what the kernel still holds for it, and no wait of fixed length is
long enough. So the end of a recording is marked: when the block ends, a UDP datagram with random
bytes goes over the same interface, and only when it has come out of tcpdump, which means that all
before it has too, is tcpdump stopped. The datagram is then cut off again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from typing import TYPE_CHECKING, Final

from interop.errors import InputError, PeerUnavailable
from interop.peers.processes import ChildProcess, PeerFailed
from interop.peers.programs import Program, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["record_with_tcpdump"]

_MARK_BYTES: Final = 32
# Before the mark in its record: the record's header in pcap, Ethernet, IPv4 and UDP.
_HEADERS_BEFORE_MARK_BYTES: Final = 16 + 14 + 20 + 8
_CAPTURE_LIMIT_BYTES: Final = 512 << 20
_TAIL_BYTES: Final = 1 << 20
_KERNEL_BUFFER_KIB: Final = 65536


@contextlib.contextmanager
def record_with_tcpdump(
    capture: Path,
    *,
    ports: Sequence[int],
    start_seconds: float = 15.0,
    flush_seconds: float = 30.0,
    program: Program | None = None,
) -> Iterator[None]:
    """Record TCP `ports` on loopback while the block runs; `capture` is complete after it.

    `capture` is a new pcap file of mode 0600, at most 512 MiB. Raises PeerUnavailable if tcpdump is
    missing or may not record here (it needs root, or CAP_NET_RAW), InputError if the file exists,
    PeerFailed if packets were lost.
    """
    program = program or find_program("tcpdump")
    try:
        descriptor = os.open(capture, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        raise InputError(f"capture {capture} cannot be written: {error.strerror}") from error
    mark = secrets.token_bytes(_MARK_BYTES)
    with (
        os.fdopen(descriptor, "wb") as file,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as marker,
    ):
        marker.bind(("127.0.0.1", 0))
        mark_port = int(marker.getsockname()[1])
        wanted = [f"tcp port {port}" for port in ports]
        expression = " or ".join([*wanted, f"udp port {mark_port}"])
        with ChildProcess(
            program.path,
            ["-i", "lo", "-U", "-w", "-", "-B", str(_KERNEL_BUFFER_KIB), expression],
            stdout_limit_bytes=_CAPTURE_LIMIT_BYTES,
        ) as child:
            _wait_ready(child, start_seconds)
            yield
            marker.sendto(mark, ("127.0.0.1", mark_port))
            child.wait_until(
                lambda: child.stdout_overflowed or mark in child.stdout_tail(_TAIL_BYTES),
                timeout_seconds=flush_seconds,
                purpose="passed on all it recorded",
            )
            if child.stdout_overflowed:
                raise child.failure("recorded more than was agreed")
            recorded = child.stdout()
        if b"\n0 packets dropped by kernel" not in child.stderr():
            raise child.failure("lost packets")
        file.write(recorded[: recorded.rindex(mark) - _HEADERS_BEFORE_MARK_BYTES])


def _wait_ready(child: ChildProcess, start_seconds: float) -> None:
    try:
        child.wait_for_words(b"listening on", timeout_seconds=start_seconds, purpose="recorded")
    except PeerFailed as error:
        if b"permission" in child.stderr():
            raise PeerUnavailable("tcpdump may not record on loopback here: run as root") from error
        raise
