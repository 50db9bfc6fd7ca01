"""Taking connections from a listening socket that does not block.

A connection can break while it waits in the kernel's queue, and Linux then tells the accepting
process of that connection's network errors (accept(2)); nothing is wrong with the listener, and the
next one may be fine. Where descriptors or memory have run out it is another matter: accepting fails
at once and goes on failing while the listener stays readable. Whoever accepts then pauses until a
connection of its own has ended, a second at most. Who waits is in the kernel's queue.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

__all__ = ["ACCEPT_PAUSE_SECONDS", "NoRoom", "accept_next"]

ACCEPT_PAUSE_SECONDS: Final = 1.0

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
