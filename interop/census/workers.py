"""A census in memory, on all processors.

Worker processes are spawned, not forked: a forked worker would begin with a copy of its parent's
random generator, which is a condition of its own. Each keeps its contexts for all its batches; the
batches of restarts have workers that live for one batch. Ctrl-C is left to the parent, which ends
the pool: workers never see it, not even while they start, since they inherit that it is blocked.
And a worker whose parent was killed ends without a word, where its pool would print a traceback.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Final, Protocol

from OpenSSL import SSL

from interop.census.conditions import Batch, Condition, plan
from interop.census.sampling import Sampler
from interop.errors import InputError, InteropError
from transport import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.pool import IMapIterator, Pool

    from interop.census.ends import Recipe
    from interop.census.values import Gathered

__all__ = ["Sink", "processors", "take_census"]

_STALLED_SECONDS: Final = 300.0


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
    Returns how many seconds it took. Raises `InputError` where no worker can be started.
    """
    started = time.monotonic()
    planned = plan(handshakes) if batches is None else list(batches)
    restarts = [batch for batch in planned if batch.condition is Condition.RESTARTS]
    others = [batch for batch in planned if batch.condition is not Condition.RESTARTS]
    done = 0
    for some, lifetime in ((restarts, 1), (others, None)):
        if not some:
            continue
        with _start_pool(min(workers or processors(), len(some)), recipe, lifetime) as pool:
            results = pool.imap_unordered(_run_batch, some)
            for _ in some:
                gathered = _next(results)
                sink.add(gathered)
                done += gathered.handshakes
                progress(done)
    return time.monotonic() - started


def _start_pool(workers: int, recipe: Recipe, lifetime: int | None) -> Pool:
    """Start a pool whose workers never see Ctrl-C.

    A signal that came in the middle of this would leave workers half started, which print a
    traceback as they die; so SIGTERM waits too, until each worker is ready for it.
    """
    resource_tracker.ensure_running()  # which unblocks signals when it begins
    # The pool's own threads start workers too, and inherit this as well.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return multiprocessing.get_context("spawn").Pool(
            workers, _begin_worker, (recipe,), lifetime
        )
    except OSError as error:
        raise InputError(
            f"the census cannot start its workers: {error.strerror}; can /dev/shm be written?"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next(results: IMapIterator[Gathered]) -> Gathered:
    """Return what comes next. A pool waits for ever for a worker that somebody has killed."""
    try:
        return results.next(_STALLED_SECONDS)
    except multiprocessing.TimeoutError:
        raise InteropError(
            f"no worker of the census has finished a batch in {_STALLED_SECONDS:.0f} seconds; "
            "was one killed, for want of memory perhaps?"
        ) from None


_recipe: Recipe
_sampler: Sampler | None = None


def _begin_worker(recipe: Recipe) -> None:
    global _recipe, _sampler
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # by which the pool ends it
    _recipe, _sampler = recipe, None


def _run_batch(batch: Batch) -> Gathered:
    """Run a batch of handshakes in this process; contexts are made with the first."""
    global _sampler  # noqa: PLW0603 - the one way in which workers keep something
    try:
        if _sampler is None:
            _sampler = Sampler(_recipe.open())
        gathered = _sampler.batch(batch)
    except (TransportError, SSL.Error) as error:  # which do not travel between processes
        raise InteropError(f"a handshake of the census failed: {error!r}") from None
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)
    return gathered
