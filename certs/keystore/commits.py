"""Group commit: what several threads change at the same time becomes durable together.

Theory of operation
-------------------
A durable commit waits for the disk, and every operation of a store makes one, since it is recorded
before its result is given out. So threads do not commit by themselves. Each puts what it wants done
on a queue; the first to come finds nobody at work and *leads*: it takes the write lock, does what
stands on the queue in one transaction, and wakes those it did it for. Whoever comes meanwhile
waits, and when the leader is done the first of them leads the next batch. One caller alone is its
own leader at once, and no time is spent on waiting for company: company is who came during the last
commit.

*Each for himself.* In a batch each part runs inside a savepoint. A part that fails is undone alone
and its caller gets its exception; the others go on. What concerns the database as a whole (locked,
full, lost) fails the batch, and each caller gets that error.

*The records* of a batch are appended to the audit log in one go after its parts have succeeded, in
the order of the queue. An operation that only reads has no part, just a record.

*A part runs on the leader's thread* and must not start another commit.

*Interrupts.* A Ctrl-C that reaches a waiting thread takes its part off the queue, if no leader has
taken it yet; if one has, the thread waits for the outcome and then raises. One that reaches a
leader undoes its batch, and the others of the batch are told that.

Batches are of one process. Several processes take turns at the database's write lock.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from certs.errors import StoreError, StoreFault
from certs.keystore.database import DuplicateRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from certs.keystore.audit import AuditEntry
    from certs.keystore.audit_log import AuditLog
    from certs.keystore.database import Database

__all__ = ["GroupCommit"]

_MOST_TOGETHER = 64  # bounds how long a batch holds the write lock
_Result = TypeVar("_Result")


@dataclass(slots=True, eq=False)
class _Part(Generic[_Result]):
    """What one caller wants done, and then what came of it."""

    work: Callable[[Connection], _Result] | None
    entry: Callable[[], AuditEntry]
    # Held until the part is done or its caller is to lead: a lock is the cheapest thing to wait on.
    turn: threading.Lock = field(default_factory=threading.Lock)
    taken: bool = False
    done: bool = False
    result: _Result | None = None
    error: BaseException | None = None


class GroupCommit:
    """The one door to the write lock of an open store; shared by all that act on it."""

    def __init__(self, database: Database, log: AuditLog) -> None:
        self.log = log
        self._database = database
        self._lock = threading.Lock()
        self._waiting: deque[_Part[object]] = deque()
        self._leader: _Part[object] | None = None

    def run(
        self, work: Callable[[Connection], _Result], entry: Callable[[], AuditEntry]
    ) -> _Result:
        """Do `work` in a write transaction and record it there; return what it returned.

        `entry` is called once `work` is done. Raises what `work` raised, which was undone then, or
        `StoreError` or `AuditLogAltered` for the batch.
        """
        return cast("_Result", self._run(_Part(work, entry)))

    def record(self, entry: AuditEntry) -> None:
        """Append one entry to the audit log, durably."""
        self._run(_Part(None, lambda: entry))

    def _run(self, part: _Part[object]) -> object:
        try:
            part.turn.acquire()
            with self._lock:
                self._waiting.append(part)
                if self._leader is None:
                    self._leader = part
            if self._leader is not part:
                part.turn.acquire()
            if not part.done:
                self._lead(part)
        except BaseException:
            self._withdraw(part)
            raise
        if part.error is not None:
            raise part.error
        return part.result

    def _lead(self, own: _Part[object]) -> None:
        batch: list[_Part[object]] = []
        try:
            with self._lock:
                while self._waiting and len(batch) < _MOST_TOGETHER:
                    batch.append(self._waiting.popleft())
                    batch[-1].taken = True
            self._commit(batch)
        except BaseException as error:
            for part in batch:
                if part is own or isinstance(error, Exception):
                    part.error = part.error or error
                else:
                    part.error = part.error or _interrupted(self._database.name)
            if not isinstance(error, Exception):
                raise
        finally:
            self._hand_over(own)
            for part in batch:
                part.done = True
                if part is not own:
                    part.turn.release()

    def _hand_over(self, own: _Part[object]) -> None:
        with self._lock:
            if self._leader is own:
                self._leader = self._waiting[0] if self._waiting else None
                if self._leader is not None:
                    self._leader.turn.release()

    def _commit(self, batch: list[_Part[object]]) -> None:
        with self._database.write() as connection:
            entries = []
            for part in batch:
                self._attempt(connection, part, alone=len(batch) == 1)
                if part.error is None:
                    entries.append(part.entry())
            self.log.append(connection, entries)

    def _attempt(self, connection: Connection, part: _Part[object], *, alone: bool) -> None:
        if part.work is None:
            return
        if alone:
            part.result = part.work(connection)
            return
        try:
            with self._database.savepoint(connection):
                part.result = part.work(connection)
        except Exception as error:  # whatever a part raises is its caller's, who gets it
            if isinstance(error, StoreError) and not isinstance(error, DuplicateRow):
                raise  # the database itself: nobody's part can be done
            part.error = error

    def _withdraw(self, part: _Part[object]) -> None:
        """Take an interrupted caller's part back, or wait for what comes of it."""
        with self._lock:
            if part in self._waiting:
                self._waiting.remove(part)
        self._hand_over(part)
        if part.taken and not part.done:
            part.turn.acquire()


def _interrupted(name: str) -> StoreError:
    return StoreError(
        f"what {name} was to store was broken off with another thread's work; look whether it is "
        "there, and try again",
        fault=StoreFault.LOCKED,
    )
