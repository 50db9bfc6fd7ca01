"""Taking connections from a listening socket that does not block.

A connection can break while it waits in the kernel's queue, and Linux then tells the accepting
process of that connection's network errors (accept(2)); nothing is wrong with the listener, and the
next one may be fine. Where descriptors or memory have run out it is another matter: accepting fails
at once and goes on failing while the listener stays readable. Whoever accepts then pauses until a
connection of its own has ended, a second at most. Who waits is in the kernel's queue.

A drain takes who has connected already, or closing the listener would reset them: at most as many
as fit in a queue (`MOST_QUEUED`), since under a storm a queue is never empty.

Whom a limit turns away gets a fatal alert in the clear, so that the peer's log says more than
"connection reset".
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from transport.errors import AlertDescription
from transport.sockets import close_politely

if TYPE_CHECKING:
    import socket

__all__ = ["ACCEPT_PAUSE_SECONDS", "MOST_QUEUED", "NoRoom", "accept_next", "refuse_politely"]

ACCEPT_PAUSE_SECONDS: Final = 1.0
MOST_QUEUED: Final = 4096  # what Linux cuts every backlog to, unless told (net.core.somaxconn)

# A fatal alert before any key exists. RFC 9846 section 6.2 on internal_error: "an internal error
# unrelated to the peer or the correctness of the protocol".
_BUSY_ALERT: Final = bytes((21, 3, 3, 0, 2, 2, AlertDescription.internal_error))

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PASSING: Final = frozenset(
    {
        errno.EAGAIN,
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EPERM,  # a firewall's
        errno.EPROTO,
        errno.ETIMEDOUT,
    }
)


class NoRoom(OSError):
    """No connection can be accepted for want of descriptors or memory."""


def accept_next(listener: socket.socket) -> tuple[socket.socket, tuple[str, int]] | None:
    """Accept the next connection; None if there is none, or it broke while it waited.

    Raises `NoRoom`, and `OSError` for what is no listening socket any more.
    """
    try:
        return listener.accept()
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise NoRoom(error.errno, error.strerror) from None
        if error.errno in _PASSING:
            return None
        raise


def refuse_politely(transport: socket.socket) -> None:
    """Close a connection before its handshake with a fatal alert that says so."""
    transport.settimeout(0)
    with suppress(OSError):
        transport.send(_BUSY_ALERT)
    close_politely(transport)
