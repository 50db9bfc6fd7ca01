"""A thread that looks after an object, and ends with it.

For what has to be looked at again while connections come and go: files that may change, OCSP
responses that end. The thread holds its object only while it works, so that whoever forgets the
object ends the thread too; nothing needs to be closed.

**Signals.** The thread blocks all of them, from its first instruction on. A process that waits in
`sigwait` for a signal would otherwise lose it to the thread.

**The end** is told through a `SimpleQueue`, whose `put` may be called from anywhere, even from a
collection of garbage in the waiting thread itself. An `Event` is not safe there.

**Fork.** A child has the object and not the thread. `ensure_running`, called where the object is
used, starts another one there; it costs a system call of a tenth of a microsecond.
"""

from __future__ import annotations

import os
import signal
import threading
from queue import Empty, SimpleQueue
from typing import Final, Protocol
from weakref import ref

__all__ = ["Background", "LookedAfter"]

_LONGEST_WAIT_SECONDS: Final = 3600.0


class LookedAfter(Protocol):
    """What a background thread looks after."""

    def look_after(self) -> float:
        """Do what is due; return in how many seconds to look again. Raises nothing."""


class Background:
    """Calls `look_after` of an object, `first_wait_seconds` from now, and then as it says."""

    def __init__(self, owner: LookedAfter, *, name: str, first_wait_seconds: float) -> None:
        self._ended: SimpleQueue[object] = SimpleQueue()
        self._owner = ref(owner, self._ended.put)
        self._name = name
        self._first_wait_seconds = first_wait_seconds
        self._lock = threading.Lock()
        self._process = 0
        self.ensure_running()

    def ensure_running(self) -> None:
        """Start the thread, if this is a process that has none yet."""
        if self._process == os.getpid():
            return
        if not self._lock.acquire(blocking=False):
            return  # another thread is at it
        try:
            if self._process != os.getpid():
                self._process = os.getpid()
                self._start()
        finally:
            self._lock.release()

    def _start(self) -> None:
        thread = threading.Thread(
            target=_run,
            args=(self._owner, self._ended, self._first_wait_seconds),
            name=self._name,
            daemon=True,
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            thread.start()  # inherits the mask
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(owner: ref[LookedAfter], ended: SimpleQueue[object], wait_seconds: float) -> None:
    while True:
        try:
            ended.get(timeout=min(max(wait_seconds, 0.0), _LONGEST_WAIT_SECONDS))
        except Empty:
            pass
        else:
            return
        looked_after = owner()
        if looked_after is None:
            return
        wait_seconds = looked_after.look_after()
        del looked_after  # or it would live as long as the thread
