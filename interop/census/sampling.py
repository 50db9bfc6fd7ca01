"""Making handshakes in memory, under each of the conditions, and taking their values down.

One function a condition; `Sampler.batch` chooses. What leaves is fingerprints: values stay in the
process that saw them.

Handshakes are looked at 32 at a time (`_Notes`). The library's key exchange drives everything else
out of the processor's caches, and code that runs cold takes five times as long: reading the hellos
of a handshake took 55 microseconds right after it, and takes 11 in a row with others.
"""

from __future__ import annotations

import os
import pickle
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from OpenSSL import SSL

from interop.census.conditions import Batch, Condition
from interop.census.hellos import HandshakeWatch
from interop.census.values import Findings, Gathered
from interop.errors import InteropError
from interop.wire.record import HEADER_LENGTH
from transport import openssl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interop.census.ends import End, Ends, KeyLogLines, OpenSSLEnd, OpenSSLPair, Pair

__all__ = ["Sampler", "records_of", "take_tickets"]

_MOST_FLIGHTS: Final = 16
_LOOKED_AT_ONCE: Final = 32
_HANDSHAKES_A_CONTEXT: Final = 25
_THREADS: Final = 4
_CHILDREN: Final = 2
_RESUMPTIONS_A_CHAIN: Final = 9
_PIPE_BYTES: Final = 1 << 16


class Sampler:
    """Makes batches of handshakes with `ends`, whose contexts live as long as it does."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._begun = False
        self._ways = {
            Condition.ONE_CONTEXT: self._in_one_context,
            Condition.MANY_CONTEXTS: self._in_many_contexts,
            Condition.THREADS: self._in_threads,
            Condition.FORKED: self._in_forked_children,
            Condition.RESTARTS: self._in_one_context,  # what is new is the process
            Condition.RESUMPTION: self._resuming,
        }

    def batch(self, batch: Batch) -> Gathered:
        """Make a batch. Raises what its ends raise, and `InteropError`."""
        findings = Findings()
        self._ways[batch.condition](findings, batch.first, batch.size)
        self._begun = True
        return findings.gathered(batch.condition)

    def _in_one_context(self, findings: Findings, first: int, size: int) -> None:
        _sample(self._ends, findings, first, size)

    def _in_many_contexts(self, findings: Findings, first: int, size: int) -> None:
        for start in range(first, first + size, _HANDSHAKES_A_CONTEXT):
            length = min(_HANDSHAKES_A_CONTEXT, first + size - start)
            _sample(self._ends.renewed(), findings, start, length)

    def _in_threads(self, findings: Findings, first: int, size: int) -> None:
        threads = [_SamplingThread(self._ends, *part) for part in _parts(first, size, _THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
            findings.merge(thread.gathered())

    def _in_forked_children(self, findings: Findings, first: int, size: int) -> None:
        """Fork children that go on with this process's contexts, beside it, and beside each other.

        A generator that does not notice draws the same in all of them.
        """
        ours, *theirs = _parts(first, size, 1 + _CHILDREN)
        before = 0
        if not self._begun and ours.size:  # a generator that has not been used is not copied
            before = 1
            self._in_one_context(findings, ours.first, 1)
        children = [_fork(self._ends, *part) for part in theirs if part.size]
        self._in_one_context(findings, ours.first + before, ours.size - before)
        for child in children:
            findings.merge(child.gathered())

    def _resuming(self, findings: Findings, _first: int, size: int) -> None:
        """Resume sessions in chains: a full handshake, then some that each resume the last."""
        ends = self._ends.resuming()
        if ends is None:
            raise InteropError("these ends cannot resume")
        session: SSL.Session | None = None
        notes = _Notes(findings)
        for number in range(size):
            if number % (1 + _RESUMPTIONS_A_CHAIN) == 0:
                session = None
            pair = ends.pair(session)
            tickets = notes.take(pair, ends.key_log)
            session = _earn(pair, tickets, findings)
        notes.look()


class _Noted(NamedTuple):
    """One handshake, as it was seen: its flights, True for the client's, and what else it gave."""

    negotiated: str
    flights: list[tuple[bool, bytes]]
    secrets: list[bytes]
    exporter: bytes


class _Notes:
    """Handshakes that were made and not looked at yet."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._noted: list[_Noted] = []

    def take(self, pair: Pair, key_log: KeyLogLines) -> bytes:
        """Make a handshake and note it; return what the server sends after it."""
        key_log.take()
        flights: list[tuple[bool, bytes]] = []
        rest = _shake_hands(pair.client, pair.server, flights)
        self._noted.append(_Noted(pair.negotiated(), flights, key_log.take(), pair.server.export()))
        if len(self._noted) >= _LOOKED_AT_ONCE:
            self.look()
        return rest

    def look(self) -> None:
        """Look at what was noted."""
        noted, self._noted = self._noted, []
        for handshake in noted:
            watch = HandshakeWatch()
            for from_client, data in handshake.flights:
                (watch.client if from_client else watch.server)(data)
            self._findings.handshake(handshake.negotiated, watch.values)
            self._findings.add_secrets(handshake.secrets)
            self._findings.add((("exporter", handshake.exporter),))


def _sample(ends: Ends, findings: Findings, first: int, size: int) -> None:
    """Make handshakes and take down all that they bring."""
    notes = _Notes(findings)
    for number in range(first, first + size):
        notes.take(ends.pair(number), ends.key_log)
    notes.look()


def _earn(pair: OpenSSLPair, tickets: bytes, findings: Findings) -> SSL.Session:
    psks = list(take_tickets(pair.client, tickets))
    session = pair.client.connection.get_session()
    if not psks or session is None:
        raise InteropError("a server of the census that resumes has sent no ticket")
    findings.add(("psk", psk) for psk in psks)
    pair.end()
    return session


def _shake_hands(client: End, server: End, flights: list[tuple[bool, bytes]]) -> bytes:
    """Take a handshake to its end; return what the server sends after it, undelivered."""
    client_done = server_done = False
    for _ in range(_MOST_FLIGHTS):
        if not client_done:
            client_done = client.handshake()
        data = client.data_to_send()
        if data:
            flights.append((True, data))
            server.receive_data(data)
        if not server_done:
            server_done = server.handshake()
        data = server.data_to_send()
        if client_done and server_done:
            return data
        if data:
            flights.append((False, data))
            client.receive_data(data)
    raise InteropError("a handshake of the census does not come to an end")


def records_of(data: bytes) -> Iterator[bytes]:
    """Split a flight into its records."""
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position + 3 : position + HEADER_LENGTH], "big")
        end = position + HEADER_LENGTH + length
        yield data[position:end]
        position = end


def take_tickets(client: OpenSSLEnd, flight: bytes) -> Iterator[bytes]:
    """Hand a client what came after the handshake, a record at a time; yield each ticket's PSK.

    On TLS 1.3 the library derives the PSK (RFC 9846 section 4.7.1) as it reads the ticket, and
    keeps it as the session's "master key". Two tickets read at once would show the last alone.
    """
    last = _main_secret(client.connection)
    for record in records_of(flight):
        client.receive_data(record)
        openssl.read(client.connection, 1)  # whatever else the server says is of no interest
        psk = _main_secret(client.connection)
        if psk is not None and psk != last:
            last = psk
            yield psk


def _main_secret(connection: SSL.Connection) -> bytes | None:
    """Return what the library keeps in the session; None where that is empty yet."""
    try:
        return connection.master_key()
    except SSL.Error:
        return None


class _Part(NamedTuple):
    first: int
    size: int


def _parts(first: int, size: int, count: int) -> list[_Part]:
    """Divide a range of handshakes."""
    parts = []
    for number in range(count):
        length = size // count + (number < size % count)
        parts.append(_Part(first, length))
        first += length
    return parts


class _SamplingThread(threading.Thread):
    def __init__(self, ends: Ends, first: int, size: int) -> None:
        super().__init__(daemon=True)
        self._ends, self._first, self._size = ends, first, size
        self._findings = Findings()
        self._failure: Exception | None = None

    def run(self) -> None:
        try:
            _sample(self._ends, self._findings, self._first, self._size)
        except Exception as error:  # noqa: BLE001 - raised again by whoever asks
            self._failure = error

    def gathered(self) -> Gathered:
        if self._failure is not None:
            raise self._failure
        return self._findings.gathered(Condition.THREADS)


class _Child(NamedTuple):
    """A forked child, and the end of the pipe that it writes to."""

    pid: int
    descriptor: int

    def gathered(self) -> Gathered:
        """Wait for its end and return what it gathered."""
        with open(self.descriptor, "rb", buffering=_PIPE_BYTES) as pipe:  # noqa: PTH123
            result = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if status:
            words = result.decode("utf-8", "replace") or f"status {status}"
            raise InteropError(f"a forked worker of the census failed: {words}")
        gathered = pickle.loads(result)  # noqa: S301 - by our own child, over our own pipe
        if not isinstance(gathered, Gathered):
            raise InteropError("a forked worker of the census answered something else")
        return gathered


def _fork(ends: Ends, first: int, size: int) -> _Child:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return _Child(pid, reading)
    status = 1
    try:
        os.close(reading)
        findings = Findings()
        try:
            _sample(ends, findings, first, size)
            result, status = pickle.dumps(findings.gathered(Condition.FORKED)), 0
        except Exception as error:  # noqa: BLE001 - the parent says it
            result = f"{type(error).__name__}: {error}".encode()
        with open(writing, "wb") as pipe:  # noqa: PTH123 - a descriptor
            pipe.write(result)
    finally:
        os._exit(status)  # nothing of the parent's may run here: no handlers, no flushing
