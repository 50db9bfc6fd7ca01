"""Waiting until nobody is there."""

from __future__ import annotations

import asyncio

from transport.attendance import Attendance


async def test_until_empty_waits_for_the_last_and_for_who_comes_meanwhile() -> None:
    there: Attendance[str] = Attendance()
    await there.until_empty()
    there.add("a")
    there.add("b")
    waits = [asyncio.create_task(there.until_empty()) for _ in range(2)]
    await asyncio.sleep(0)
    there.discard("a")
    there.discard("a")  # gone already
    await asyncio.sleep(0)
    assert not any(wait.done() for wait in waits)
    there.discard("b")
    there.add("c")  # before whoever waits has a turn
    await asyncio.sleep(0.01)
    assert not any(wait.done() for wait in waits)
    assert list(there) == ["c"]
    there.discard("c")
    await asyncio.wait_for(asyncio.gather(*waits), 5)


async def test_until_empty_gives_up_and_forgets_that_it_waited() -> None:
    there: Attendance[str] = Attendance()
    there.add("a")
    await there.until_empty(0.01)
    assert len(there) == 1
    there.discard("a")
    there.add("b")
    for item in there:
        there.discard(item)  # while it is gone over
    assert len(there) == 0
    await asyncio.wait_for(there.until_empty(), 5)
