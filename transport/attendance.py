"""Who is there, and waiting until nobody is: the open connections of a server in an event loop."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Attendance"]

_Item = TypeVar("_Item")


class Attendance(Generic[_Item]):
    """A set of what is open; iterating goes over those that were there when it began."""

    __slots__ = ("_items", "_waiters")

    def __init__(self) -> None:
        self._items: set[_Item] = set()
        self._waiters: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[_Item]:
        return iter(tuple(self._items))

    def add(self, item: _Item) -> None:
        """Note that an item has come."""
        self._items.add(item)

    def discard(self, item: _Item) -> None:
        """Note that an item has gone."""
        self._items.discard(item)
        if self._waiters and not self._items:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def until_empty(self, timeout_seconds: float | None = None) -> None:
        """Wait until none is there, or until the timeout, which is no error."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._items:
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    try:
                        await waiter
                    finally:
                        self._waiters.remove(waiter)
