"""How much a server takes on: connection caps, a handshake rate, deadlines. No clock, no sockets.

All of it is arithmetic on times that the caller passes in (seconds of a monotonic clock), so that a
test can let a minute pass in no time, and so that a jump of the wall clock changes nothing.

**Order of the checks.** `ConnectionLedger.admit` first asks for room, then for a token of the
handshake rate. A client that is over its cap therefore uses up nobody's tokens, and one that was
refused holds no place.

**Who is one client.** An IPv4 address; of IPv6 the /64, since that is what one customer gets, and a
cap on single addresses would cap nothing.

**Deadlines** wait in a heap by the time they are next *looked at*. Activity does not move an entry:
when its time comes the engine asks the kernel how long the connection was idle and, if it was not
long enough, files it again for later. So a busy connection costs a look every few seconds, not a
timer operation for every read.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, ip_address
from itertools import count
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from transport.errors import APIMisuse

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ConnectionLedger", "DeadlineHeap", "Limits", "Refusal", "TokenBucket", "client_key"]

_IPV6_CUSTOMER_BITS: Final = 64
_MIN_PRUNED_ITEMS: Final = 1000
_Item = TypeVar("_Item")


class Refusal(StrEnum):
    """Why a connection was turned away before its handshake."""

    TOO_MANY_CONNECTIONS = "too many connections"
    TOO_MANY_FROM_ADDRESS = "too many connections from this address"
    TOO_MANY_HANDSHAKES = "too many handshakes a second"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one worker process takes on; None switches a limit off.

    `handshakes_per_second` allows bursts of `handshake_burst`, a second's worth unless given.
    `header_timeout_seconds` is for the application to keep: how long a request's head may take.
    `idle_timeout_seconds` ends a connection on which no byte moved in either direction for so long,
    `lifetime_seconds` any that is older. `drain_seconds` is how long open requests may go on after
    the server was asked to stop. Raises `APIMisuse` for a value that is not positive.
    """

    max_connections: int = 10_000
    max_connections_per_address: int | None = None
    handshakes_per_second: float | None = None
    handshake_burst: int | None = None
    handshake_timeout_seconds: float = 10.0
    header_timeout_seconds: float = 10.0
    idle_timeout_seconds: float | None = 75.0
    lifetime_seconds: float | None = None
    shutdown_timeout_seconds: float = 5.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise APIMisuse(
                    f"{name} is {value!r}", advice="give a positive number, or leave it out"
                )

    def token_bucket(self, now: float) -> TokenBucket | None:
        """Return a full bucket for the handshake rate, None if there is no such limit."""
        if self.handshakes_per_second is None:
            return None
        burst = self.handshake_burst or max(1, round(self.handshakes_per_second))
        return TokenBucket(self.handshakes_per_second, burst, now)


class TokenBucket:
    """A rate: `rate_per_second` tokens flow in, `burst` fit; full at first."""

    __slots__ = ("_burst", "_rate_per_second", "_tokens", "_updated")

    def __init__(self, rate_per_second: float, burst: int, now: float) -> None:
        self._rate_per_second = rate_per_second
        self._burst = float(burst)
        self._tokens = float(burst)
        self._updated = now

    def take(self, now: float) -> bool:
        """Take a token if there is one. A `now` before an earlier one adds nothing."""
        if now > self._updated:
            inflow = (now - self._updated) * self._rate_per_second
            self._tokens = min(self._burst, self._tokens + inflow)
            self._updated = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class ConnectionLedger:
    """Who is connected. Each successful `admit` must be followed by one `release` of its key."""

    __slots__ = ("_bucket", "_by_key", "_max_connections", "_max_per_key", "_open")

    def __init__(self, limits: Limits, now: float) -> None:
        self._max_connections = limits.max_connections
        self._max_per_key = limits.max_connections_per_address
        self._bucket = limits.token_bucket(now)
        self._by_key: dict[str, int] = {}
        self._open = 0

    @property
    def open_connections(self) -> int:
        """How many are connected."""
        return self._open

    def admit(self, key: str, now: float) -> Refusal | None:
        """Count a new connection of the client `key` (see `client_key`), or say why not."""
        if self._open >= self._max_connections:
            return Refusal.TOO_MANY_CONNECTIONS
        of_key = self._by_key.get(key, 0)
        if self._max_per_key is not None and of_key >= self._max_per_key:
            return Refusal.TOO_MANY_FROM_ADDRESS
        if self._bucket is not None and not self._bucket.take(now):
            return Refusal.TOO_MANY_HANDSHAKES
        self._open += 1
        self._by_key[key] = of_key + 1
        return None

    def release(self, key: str) -> None:
        """Forget one connection of `key`."""
        remaining = self._by_key[key] - 1
        self._open -= 1
        if remaining:
            self._by_key[key] = remaining
        else:
            del self._by_key[key]  # or the table would grow with every address ever seen


def client_key(host: str) -> str:
    """Return what counts as one client: the IPv4 address, or the /64 of an IPv6 address.

    A text that is no address (a Unix socket's) is one client as it is.
    """
    if ":" not in host:
        return host
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    prefix = int(address) >> _IPV6_CUSTOMER_BITS << _IPV6_CUSTOMER_BITS
    return f"{IPv6Address(prefix)}/{_IPV6_CUSTOMER_BITS}"


class DeadlineHeap(Generic[_Item]):
    """Items by the time when each is to be looked at; `is_over` recognises those that ended.

    An item that ended stays until its time comes, or until such items are more than half: taking
    one out of the middle would cost a search for each connection.
    """

    __slots__ = ("_heap", "_is_over", "_order", "_over")

    def __init__(self, is_over: Callable[[_Item], bool]) -> None:
        self._heap: list[tuple[float, int, _Item]] = []
        self._is_over = is_over
        self._order = count()
        self._over = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, due: float, item: _Item) -> None:
        """File an item that is not over."""
        heapq.heappush(self._heap, (due, next(self._order), item))

    def item_ended(self) -> None:
        """Take note that one item, filed or not, is over from now on."""
        self._over += 1
        if self._over > _MIN_PRUNED_ITEMS and self._over > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if not self._is_over(entry[2])]
            heapq.heapify(self._heap)
            self._over = 0

    def pop_due(self, now: float) -> _Item | None:
        """Take out one item that is not over and whose time has come, None if there is none."""
        while self._heap and self._heap[0][0] <= now:
            item = heapq.heappop(self._heap)[2]
            if not self._is_over(item):
                return item
            self._over = max(self._over - 1, 0)
        return None
