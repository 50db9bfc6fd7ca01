"""A census in memory, on all processors.

Worker processes are spawned, not forked: a forked worker would begin with a copy of its parent's
random generator, which is a condition of its own. A worker has a pipe to its parent, and keeps its
contexts for all its batches. It is ended once it has no batch in hand. Those of restarts are given
one, so each is made by a process of its own; others have the next in hand while they make one, and
never wait for the parent to count.

*Other endings.* A worker that dies closes its pipe: the census fails at once and says so. One
whose parent was killed finds the pipe closed, and ends without a word. Ctrl-C is left to the
parent, which ends its workers: they never see it, not even while they start, since they inherit
that it is blocked.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from contextlib import closing, suppress
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING, Final, Protocol

from OpenSSL import SSL

from interop.census.conditions import Batch, Condition, plan
from interop.census.sampling import Sampler
from interop.census.values import Gathered
from interop.errors import DissectError, InputError, InteropError
from transport import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from multiprocessing.connection import Connection

    from interop.census.ends import Recipe

__all__ = ["Sink", "processors", "take_census"]

_SPAWN: Final = multiprocessing.get_context("spawn")


class Sink(Protocol):
    """Where what was gathered goes."""

    def add(self, gathered: Gathered) -> None:
        """Take what some handshakes brought."""


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def take_census(
    handshakes: int,
    recipe: Recipe,
    sink: Sink,
    *,
    workers: int | None = None,
    batches: Iterable[Batch] | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> float:
    """Make `handshakes` handshakes on `workers` processes (default: one a processor).

    `batches` are those of `plan` unless given. `progress` is called with the number done so far.
    Returns how many seconds it took. Raises `InputError` where no worker can be started, and
    `InteropError` if one ends before its work is done.
    """
    started = time.monotonic()
    planned = plan(handshakes) if batches is None else list(batches)
    restarts = [batch for batch in planned if batch.condition is Condition.RESTARTS]
    others = [batch for batch in planned if batch.condition is not Condition.RESTARTS]
    done = 0
    for some, in_hand in ((restarts, 1), (others, 2)):
        with closing(_gather(some, recipe, workers or processors(), in_hand)) as results:
            for gathered in results:
                sink.add(gathered)
                done += gathered.handshakes
                progress(done)
    return time.monotonic() - started


def _gather(
    batches: Iterable[Batch], recipe: Recipe, most: int, in_hand: int
) -> Generator[Gathered]:
    """Yield what each batch brought; `most` workers have up to `in_hand` batches each."""
    waiting = deque(batches)
    workers: dict[object, _Worker] = {}  # by their pipes
    try:
        while waiting or workers:
            while waiting and len(workers) < most:
                worker = _Worker(recipe)
                workers[worker.pipe] = worker
                worker.give(waiting.popleft())
            for worker in workers.values():
                while waiting and worker.in_hand < in_hand:
                    worker.give(waiting.popleft())
            for pipe in connection.wait([worker.pipe for worker in workers.values()]):
                worker = workers[pipe]
                yield worker.take()
                if not worker.in_hand:
                    workers.pop(pipe).end()
    finally:
        for worker in workers.values():
            worker.end()


class _Worker:
    """A process that makes batches; `in_hand` is how many it has been given and not returned."""

    def __init__(self, recipe: Recipe) -> None:
        """Start it.

        A signal that came in the middle of that would leave it half started, and it would print a
        traceback as it dies; so SIGTERM waits too, until it is ready for it.
        """
        resource_tracker.ensure_running()  # which unblocks signals when it begins
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.pipe, theirs = _SPAWN.Pipe()
            self._process = _SPAWN.Process(target=_work, args=(recipe, theirs), daemon=True)
            self._process.start()
            theirs.close()
        except OSError as error:
            raise InputError(f"the census cannot start its workers: {error.strerror}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.in_hand = 0

    def give(self, batch: Batch) -> None:
        """Let it make a batch."""
        with suppress(ConnectionError):  # it ended: `take` tells why
            self.pipe.send(batch)
        self.in_hand += 1

    def take(self) -> Gathered:
        """Return what a batch brought."""
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise InteropError(
                f"a worker of the census ended with status {self._process.exitcode} before its "
                "work was done; was it killed, for want of memory perhaps?"
            ) from None
        if not isinstance(answer, Gathered):
            raise answer
        self.in_hand -= 1
        return answer

    def end(self) -> None:
        """End it, whatever it is doing."""
        self.pipe.close()
        self._process.terminate()
        self._process.join()
        self._process.close()


def _work(recipe: Recipe, parent: Connection) -> None:
    """Make the batches that come, until none can come any more."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    sampler: Sampler | None = None
    with suppress(EOFError, ConnectionError):
        while True:
            batch = parent.recv()
            try:
                sampler = sampler or Sampler(recipe.open())
                answer: Gathered | Exception = sampler.batch(batch)
            except (TransportError, SSL.Error, DissectError) as error:  # which cannot be pickled
                answer = InteropError(f"a handshake of the census failed: {error!r}")
            except (InteropError, OSError) as error:
                answer = error
            parent.send(answer)
