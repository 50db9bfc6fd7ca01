"""What can go wrong while looking at an endpoint from outside.

Lacking a key is not here: it is a result (`interop.wire.session.Undecryptable`), because the
experiments count it.
"""

from __future__ import annotations

__all__ = ["DissectError", "InputError", "InteropError", "PeerUnavailable"]


class InteropError(Exception):
    """Base of this package's errors; its text is one line that says what to do."""


class InputError(InteropError):
    """Something the caller handed in (a file, a key, an option) cannot be used."""


class DissectError(InteropError):
    """Bytes that are not what their position says they are.

    `offset` is in bytes from the start of the dissected unit (record, message, block, packet);
    `path` names the field, outermost first, separated by dots (``client_hello.extensions``).
    """

    def __init__(self, message: str, *, offset: int, path: str) -> None:
        super().__init__(f"{path} at byte {offset}: {message}")
        self.message = message
        self.offset = offset
        self.path = path


class PeerUnavailable(InteropError):
    """A foreign program is not installed, or is too old for what was asked of it."""
