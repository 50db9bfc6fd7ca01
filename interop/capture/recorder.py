"""A relay on loopback that writes down what passes, as a capture any analyser accepts.

`relay` moves the bytes and `synthesis` makes packets of them; here the two meet a file. Every
batch of packets is one `write` to the kernel, with no buffer of ours, before the relay acts on
what it recorded. Whoever kills the process, at any time, finds a capture that reads to its end
and holds at least what the ends got to see.

The capture shows the client's address and port, and the server's, as a tap on a direct
connection would; the relay's own two ports do not appear. The relay listens on the loopback
address of the server's IP version, so that both ends are of one.
"""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from interop.capture.relay import RelayLoop
from interop.capture.synthesis import MAXIMUM_SEGMENT_BYTES
from interop.capture.writer import PcapngWriter
from interop.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["RecordingRelay"]

_BACKLOG: Final = 1024
_LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class RecordingRelay:
    """Relays TCP connections to a server and records them as pcapng.

    `server` is a host and a port; clients connect to `address` instead. `capture_path` must not
    exist; it is created with mode 0600. Payload is recorded in segments of at most
    `segment_bytes`. Leaving the context waits up to `drain_seconds` for open connections, unless
    an exception is on its way out; what is open then is reset, and the capture says so. Entering
    raises `InputError` for a server name that does not resolve and a capture that cannot be
    created; leaving raises the `OSError` that kept the relay from recording, if one did.
    """

    def __init__(
        self,
        server: tuple[str, int],
        capture_path: Path | str,
        *,
        segment_bytes: int = MAXIMUM_SEGMENT_BYTES,
        drain_seconds: float = 10.0,
    ) -> None:
        if not 0 < segment_bytes <= MAXIMUM_SEGMENT_BYTES:
            raise ValueError(f"segments of {segment_bytes} bytes do not fit into IP packets")
        self._server = server
        self._path = Path(capture_path)
        self._segment_bytes = segment_bytes
        self._drain_seconds = drain_seconds
        self._address = ("", 0)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for clients to connect to."""
        return self._address

    @property
    def connections(self) -> int:
        """How many connections were accepted so far."""
        return self._loop.accepted

    def add_secrets(self, key_log: bytes) -> None:
        """Write a Decryption Secrets Block at the capture's present end.

        Readers that make one pass use it for the packets after it only;
        `interop.capture.files.embed_secrets` puts one before all packets of a finished capture.
        """
        self._file.add_secrets(key_log)

    def __enter__(self) -> Self:
        family, server = _resolve(self._server)
        self._file = _CaptureFile(self._path)
        try:
            listener = socket.create_server((_LOOPBACK[family], 0), family=family, backlog=_BACKLOG)
        except OSError:
            self._file.close()
            raise
        self._address = listener.getsockname()[:2]
        self._loop = RelayLoop(listener, server, self._file.record, self._segment_bytes)
        self._thread = threading.Thread(
            target=self._loop.run, name=f"recording relay on port {self._address[1]}", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.stop(0.0 if kind else self._drain_seconds)
        self._thread.join()
        self._file.close()
        if self._loop.failure is not None and kind is None:
            raise self._loop.failure


def _resolve(server: tuple[str, int]) -> tuple[socket.AddressFamily, tuple[str, int]]:
    host, port = server
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        raise InputError(f"{host}: {error}") from None
    for family, _, _, _, address in found:
        if family in _LOOPBACK:
            return family, (str(address[0]), int(address[1]))
    raise InputError(f"{host}: neither an IPv4 nor an IPv6 address")


class _CaptureFile:
    """The capture being written; secrets may come from another thread than packets do."""

    def __init__(self, path: Path) -> None:
        self._writer = PcapngWriter()
        self._lock = threading.Lock()
        self._last_ns = 0
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        system = platform.uname()
        self._write(
            self._writer.start(
                hardware=system.machine,
                operating_system=f"{system.system} {system.release}",
                application="pfs recording relay",
                interface="relay",
            )
        )

    def record(self, packets: Sequence[bytes], comment: str) -> None:
        """Append packets of one moment; the comment goes to the first."""
        # The clock may be set back while a capture is written; time in a capture is not.
        self._last_ns = now_ns = max(self._last_ns, time.time_ns())
        blocks = [self._writer.packet(now_ns, packets[0], comment=comment)]
        blocks += [self._writer.packet(now_ns, packet) for packet in packets[1:]]
        self._write(b"".join(blocks))

    def add_secrets(self, key_log: bytes) -> None:
        self._write(self._writer.secrets(key_log))

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        with self._lock:
            written = os.write(self._descriptor, data)
            while written < len(data):  # a full disk takes a part, and then raises
                written += os.write(self._descriptor, data[written:])
