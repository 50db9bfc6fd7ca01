"""Which way bytes travel, for captures, sessions and attackers alike."""

from __future__ import annotations

from enum import Enum

__all__ = ["Direction"]


class Direction(Enum):
    """One of the two directions of a connection."""

    CLIENT_TO_SERVER = "client to server"
    SERVER_TO_CLIENT = "server to client"

    # What Enum would have is written in Python, and much is kept by direction.
    __hash__ = object.__hash__

    @property
    def opposite(self) -> Direction:
        """The other way."""
        return _OPPOSITE[self]


_OPPOSITE = {
    Direction.CLIENT_TO_SERVER: Direction.SERVER_TO_CLIENT,
    Direction.SERVER_TO_CLIENT: Direction.CLIENT_TO_SERVER,
}
