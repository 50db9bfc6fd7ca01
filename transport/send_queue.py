"""What a stream has still to send: gathered if small, and never changed once it was tried.

OpenSSL wants a write that had to wait repeated with the same bytes. What is being sent is therefore
an immutable chunk at the head of the queue, until the core has taken all of it; new data goes
behind. Small writes are gathered, so that those of one turn of the loop become one record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transport.connection import MAX_RECORD_BYTES, MAX_WRITE_BYTES, Want

if TYPE_CHECKING:
    from transport.connection import TLSCore

__all__ = ["SendQueue"]


class SendQueue:
    """The data of one connection on its way; `queued_bytes` says how much of it there is."""

    __slots__ = ("_chunks", "_gathered", "queued_bytes")

    def __init__(self) -> None:
        self._chunks: list[memoryview] = []
        self._gathered = bytearray()
        self.queued_bytes = 0

    def add(self, data: bytes | bytearray | memoryview) -> bool:
        """Take `data` behind all else; return whether it is worth a record of its own by now."""
        self.queued_bytes += len(data)
        if len(data) < MAX_RECORD_BYTES:
            self._gathered += data
            return len(self._gathered) >= MAX_RECORD_BYTES
        self._seal_gathered()
        # Bytes cannot change under us; anything else could before it is sent.
        self._append(memoryview(data if isinstance(data, bytes) else bytes(data)))
        return True

    def send(self, core: TLSCore) -> Want | None:
        """Send what the core takes; None when nothing is left. Raises what its `write` raises."""
        while True:
            if not self._chunks:
                self._seal_gathered()
            if not self._chunks:
                return None
            sent = core.write(self._chunks[0])
            if isinstance(sent, Want):
                return sent
            self.queued_bytes -= sent
            del self._chunks[0]

    def clear(self) -> None:
        """Forget all of it."""
        self._chunks.clear()
        self._gathered.clear()
        self.queued_bytes = 0

    def _seal_gathered(self) -> None:
        if self._gathered:
            self._append(memoryview(bytes(self._gathered)))
            self._gathered.clear()

    def _append(self, view: memoryview) -> None:
        for start in range(0, len(view), MAX_WRITE_BYTES):
            self._chunks.append(view[start : start + MAX_WRITE_BYTES])
