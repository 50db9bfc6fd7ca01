"""What an attacker makes of recorded flights: the connections to open, and what to send on each.

A delivery is one connection, as parts: between two of them the attacker waits for the server to
answer, or to fall silent. Every function takes two flights recorded from one server, for those that
splice, and returns deliveries to be made one after another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from interop.replay.flights import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from interop.replay.flights import Flight

__all__ = [
    "Deliver",
    "Delivery",
    "at_once",
    "bare_request",
    "early_data_alone",
    "early_data_late",
    "early_data_reordered",
    "early_data_spliced",
    "early_data_truncated",
    "early_data_without_hello",
    "paced",
    "record_by_record",
    "reordered",
    "spliced",
    "truncated",
    "twice_on_one_connection",
    "without_finished",
]

Delivery: TypeAlias = tuple[bytes, ...]
Deliver: TypeAlias = "Callable[[Flight, Flight], tuple[Delivery, ...]]"


def at_once(first: Flight, _second: Flight) -> tuple[Delivery, ...]:
    """Send all of it without waiting, on two connections."""
    return ((first.raw,), (first.raw,))


def paced(first: Flight, _second: Flight) -> tuple[Delivery, ...]:
    """Send the ClientHello, and the rest once the server has answered."""
    return (first.split_after_hello(),)


def twice_on_one_connection(first: Flight, _second: Flight) -> tuple[Delivery, ...]:
    """Send the whole flight and then the same again, on one connection."""
    return ((first.raw, first.raw),)


def record_by_record(first: Flight, second: Flight) -> tuple[Delivery, ...]:
    """Send each record by itself, late: after another session's flight."""
    return ((second.raw,), tuple(unit.raw for unit in first.units))


def reordered(first: Flight, _second: Flight) -> tuple[Delivery, ...]:
    """Send the ClientHello, and then the rest backwards."""
    hello, _ = first.split_after_hello()
    rest = [unit.raw for unit in first.units if unit.role is not Role.CLIENT_HELLO]
    return ((hello, b"".join(reversed(rest))),)


def without_finished(first: Flight, _second: Flight) -> tuple[Delivery, ...]:
    """Send all but the Finished."""
    hello, _ = first.split_after_hello()
    return ((hello, first.without(Role.CLIENT_HELLO, Role.FINISHED)),)


def truncated(first: Flight, _second: Flight) -> tuple[Delivery, ...]:
    """Send up to the middle of the first request, to its end, and to the middle of the hello."""
    hello, rest = first.split_after_hello()
    requests = first.of(Role.REQUEST)
    before = rest[: rest.index(requests[0])] if requests else rest
    request = requests[0] if requests else b""
    return (
        (hello, before + request[: len(request) // 2]),
        (hello, before + request),
        (hello[: len(hello) // 2],),
    )


def spliced(first: Flight, second: Flight) -> tuple[Delivery, ...]:
    """Send the hello of one session and the rest of another, both ways."""
    one, other = first.split_after_hello(), second.split_after_hello()
    return ((one[0], other[1]), (other[0], one[1]))


def bare_request(first: Flight, _second: Flight) -> tuple[Delivery, ...]:
    """Send the requests alone, on a connection of their own."""
    return ((b"".join(first.of(Role.REQUEST)),),)


def _early(flight: Flight) -> tuple[bytes, bytes]:
    """Return the opening of a flight with 0-RTT data: up to the hello's end, and the early data."""
    units = list(flight.units)
    roles = [unit.role for unit in units]
    first = roles.index(Role.EARLY_DATA) if Role.EARLY_DATA in roles else len(units)
    return b"".join(unit.raw for unit in units[:first]), b"".join(flight.of(Role.EARLY_DATA))


def early_data_alone(first: Flight, _second: Flight) -> tuple[Delivery, ...]:
    """Send the ClientHello with its 0-RTT data, as RFC 9846 section 8 fears, and once more."""
    hello, early = _early(first)
    return ((hello + early,), (hello + early,))


def early_data_late(first: Flight, second: Flight) -> tuple[Delivery, ...]:
    """Send the 0-RTT data of the first session, after those of the second."""
    return ((b"".join(_early(second)),), (b"".join(_early(first)),))


def early_data_reordered(first: Flight, _second: Flight) -> tuple[Delivery, ...]:
    """Send the 0-RTT records in the opposite order."""
    hello, _ = _early(first)
    return ((hello + b"".join(reversed(first.of(Role.EARLY_DATA))),),)


def early_data_truncated(first: Flight, _second: Flight) -> tuple[Delivery, ...]:
    """Send the 0-RTT data up to the middle of the last record."""
    hello, early = _early(first)
    last = first.of(Role.EARLY_DATA)[-1] if early else b""
    return ((hello + early[: len(early) - len(last) // 2],),)


def early_data_spliced(first: Flight, second: Flight) -> tuple[Delivery, ...]:
    """Send the ClientHello of one session with the 0-RTT data of another, both ways."""
    return ((_early(first)[0] + _early(second)[1],), (_early(second)[0] + _early(first)[1],))


def early_data_without_hello(first: Flight, _second: Flight) -> tuple[Delivery, ...]:
    """Send the 0-RTT data alone."""
    return ((_early(first)[1],),)
