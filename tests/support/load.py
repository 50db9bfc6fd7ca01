"""Honest clients that come again and again, and how it went for them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from served import DEADLINE_SECONDS

import transport
from certs.credential import TrustAnchors

if TYPE_CHECKING:
    from pathlib import Path


class Load:
    """Clients that connect, ask once, and close, over and over, and a count of how that went."""

    def __init__(self, address: tuple[str, int], ca_file: Path, clients: int = 3) -> None:
        self._address = address
        self._anchors = TrustAnchors.from_pem(ca_file.read_bytes())
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answered = 0
        self.failures: list[OSError] = []
        self.certificates: set[bytes | None] = set()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.until_answered(20)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()

    def until_answered(self, more: int) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        wanted = self.answered + more
        while self.answered < wanted:
            assert time.monotonic() < deadline, self.failures
            time.sleep(0.005)  # a poll of what other threads count

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                certificate = self._ask()
            except OSError as error:
                with self._lock:
                    self.failures.append(error)
            else:
                with self._lock:
                    self.answered += 1
                    self.certificates.add(certificate)

    def _ask(self) -> bytes | None:
        with transport.connect(
            self._address,
            trust_anchors=self._anchors,
            server_hostname="localhost",
            timeout_seconds=DEADLINE_SECONDS,
        ) as connection:
            connection.settimeout(DEADLINE_SECONDS)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"MLKEM768\n"):
                data = connection.recv(65536)
                if not data:
                    raise ConnectionError("the answer is not whole")
                answer += data
            return connection.negotiated.peer_certificate
