"""TCP sockets under connections: made ready, closed so that the peer loses nothing, and forks.

**Closing a socket politely.** Closing a TCP socket with unread bytes makes the kernel send RST
instead of FIN, and RST destroys what the peer has not read yet: our alert, our close_notify, or the
data before it. Unread bytes are normal (a TLS 1.3 server sends tickets that a client which
only writes never reads), so `close_politely` ends its own direction first, then discards what
is there. Bytes that arrive after the close do the same harm: they throw away what the kernel has
not sent yet, so an upload lost its end to the server's tickets. A client that has received nothing
therefore waits in its engine, a second at most, for the peer to end before the socket is closed.

**Forks.** A child has a copy of every connection, keys and counters included. If it wrote one
record, close_notify say, then that and the parent's next one would be sealed under the same key and
nonce, which gives AES-GCM's authentication key away; and if it shut the socket down, its parent's
connection would end. So a connection whose handshake is done belongs to the process that did it:
in a child `transport.connection` refuses to use it, and closing it closes the child's descriptor
and nothing else. One without a handshake belongs to whoever does it, as servers that fork for each
connection want it; the process that then closes its own copy of it must not shut it down either.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from contextlib import suppress
from typing import Final

__all__ = [
    "FORKS",
    "Forks",
    "close_politely",
    "error_of_sending",
    "poll_milliseconds",
    "prepare_socket",
]

_MAX_DISCARDED_BYTES: Final = 256 * 1024
_READ_BYTES: Final = 64 * 1024
_MAX_POLL_MILLISECONDS: Final = 2**31 - 1  # what poll(2) takes: three weeks and a half


class Forks:
    """How often this process has forked, or was made by a fork; and how often the latter."""

    __slots__ = ("as_child", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self.as_child = 0

    def _in_parent(self) -> None:
        self.seen += 1

    def _in_child(self) -> None:
        self.seen += 1
        self.as_child += 1

    def watch(self) -> None:
        """Count from now on; once, for the life of the process."""
        os.register_at_fork(after_in_parent=self._in_parent, after_in_child=self._in_child)


FORKS: Final = Forks()
FORKS.watch()


def prepare_socket(transport: socket.socket) -> None:
    """Make a connected socket fit for a `TLSCore`: non-blocking, and without Nagle's algorithm.

    Records are written whole, so there is nothing to gather that would be worth the delay.
    """
    transport.settimeout(0)
    if transport.family in (socket.AF_INET, socket.AF_INET6):
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def poll_milliseconds(deadline: float | None) -> int | None:
    """Return how long to poll until a deadline of `time.monotonic`; None for one that never comes.

    A deadline too far away is cut: who finds nothing ready has to look at the clock again.
    """
    if deadline is None:
        return None
    # Rounded up, or the last millisecond would be a busy loop.
    milliseconds = max(deadline - time.monotonic(), 0.0) * 1000 + 1
    return int(min(milliseconds, _MAX_POLL_MILLISECONDS))


def error_of_sending(transport: socket.socket) -> int:
    """Return the error number that sending would end in, or 0 while the socket is whole."""
    poll = select.poll()
    poll.register(transport, 0)  # an error, or the end of both directions
    if not poll.poll(0):
        return 0
    return transport.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.EPIPE


def close_politely(transport: socket.socket) -> None:
    """Close a non-blocking socket so that the peer can still read what was sent to it.

    Ends our direction, discards what has arrived (256 KiB at most), closes; never waits.
    """
    try:
        transport.shutdown(socket.SHUT_WR)
        with suppress(BlockingIOError):  # nothing more to discard
            discarded = 0
            while discarded < _MAX_DISCARDED_BYTES and (chunk := transport.recv(_READ_BYTES)):
                discarded += len(chunk)
        transport.shutdown(socket.SHUT_RDWR)  # wakes threads that still wait in poll(2)
    except OSError:  # not connected any more
        pass
    finally:
        transport.close()
