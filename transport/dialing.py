"""From a name to a connected socket, within one deadline for all addresses of the name.

Names often have an address that does not answer, an IPv6 one on a network without IPv6 most of all.
Each address in turn therefore gets an equal part of the time that is left: one that is silent
leaves time for the others and for the handshake, and one that refuses leaves its part to them.
Both engines do the same; only the waiting differs.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["dial", "dial_in_loop"]

_Candidate = TypeVar("_Candidate")


def dial(host: str, port: int, deadline: float) -> socket.socket:
    """Return a blocking socket, connected to the first address of `host` that answers.

    The deadline is one of `time.monotonic`; looking the name up takes as long as it takes. Raises
    `TimeoutError`, and what the last address raised.
    """
    failure: OSError = _timed_out(host)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for candidate, seconds in _share_out(found, host, deadline, time.monotonic):
        family, kind, protocol, _name, address = candidate
        try:
            transport = socket.socket(family, kind, protocol)
            try:
                transport.settimeout(seconds)
                transport.connect(address)
                transport.settimeout(None)
            except BaseException:
                transport.close()
                raise
        except TimeoutError:
            failure = _timed_out(host)
        except OSError as error:
            failure = error
        else:
            return transport
    raise failure


async def dial_in_loop(host: str, port: int, deadline: float) -> socket.socket:
    """Return a non-blocking socket, connected to the first address of `host` that answers.

    The deadline is one of the running loop. Raises `TimeoutError`, and what the last address
    raised.
    """
    loop = asyncio.get_running_loop()
    failure: OSError = _timed_out(host)
    try:
        async with asyncio.timeout_at(deadline):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise failure from None
    for candidate, seconds in _share_out(found, host, deadline, loop.time):
        family, kind, protocol, _name, address = candidate
        try:
            transport = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            try:
                async with asyncio.timeout(seconds):
                    await loop.sock_connect(transport, address)
            except BaseException:
                transport.close()
                raise
        except TimeoutError:
            failure = _timed_out(host)
        except OSError as error:
            failure = error
        else:
            return transport
    raise failure


def _share_out(
    found: Sequence[_Candidate], host: str, deadline: float, clock: Callable[[], float]
) -> Iterator[tuple[_Candidate, float]]:
    """Yield each candidate with its seconds. Raises `TimeoutError` when none are left."""
    for position, candidate in enumerate(found):
        remaining_seconds = deadline - clock()
        if remaining_seconds <= 0:
            raise _timed_out(host)
        yield candidate, remaining_seconds / (len(found) - position)


def _timed_out(host: str) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"{host} took no connection in time")
