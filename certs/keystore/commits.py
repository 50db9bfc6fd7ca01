"""Group commit: what several threads change at the same time becomes durable together.

Theory of operation
-------------------
A durable commit waits for the disk, and every operation of a store makes one, since it is recorded
before its result is given out. So threads do not commit by themselves. Each puts what it wants done
on a queue; the first to come finds nobody at work and *leads*: it takes the write lock, does what
stands on the queue in one transaction, and wakes those it did it for. Whoever comes meanwhile
waits, and when the leader is done the first of them leads the next batch. One caller alone is its
own leader at once.

*Company.* The threads that a leader has just served are likely to come again, but not before the
next leader: it would find the queue nearly empty, and a transaction takes the interpreter longer
than an operation does. So a leader waits for as many as were there last time, served or waiting,
and for no longer than half of what the last commit took. Eight callers on a fast disk get 1.4 times
what they would get without; who has no company waits for none.

*Each for himself.* A part that fails is undone alone and its caller gets its exception; the others
go on. Since few fail, a batch is tried without precautions first; should one fail, all is undone
and done again with a savepoint around each part. What concerns the database as a whole (locked,
full, lost) fails the batch, and each caller gets that error. A part may thus run twice.

*New keys* of a batch are inserted together, by a statement for each table: a statement takes longer
than what it says.

*The records* of a batch are appended to the audit log in one go after its parts have succeeded, in
the order of the queue, but what changes what was there comes last: the others of the batch go by
what they read before.

*A part runs on the leader's thread* and must not start another commit.

*Interrupts.* A Ctrl-C that reaches a waiting thread takes its part off the queue, if no leader has
taken it yet; if one has, the thread waits for the outcome and then raises. One that reaches a
leader undoes its batch, and the others of the batch are told that.

*What operations relied on* may have been changed meanwhile, by another process or in an earlier
batch: those are `Outdated`, are neither done nor recorded, and their callers do them again
(`certs.keystore.memory`). New keys change nothing that anyone can have relied on.

Batches are of one process. Several processes take turns at the database's write lock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, cast

from certs.errors import StoreError, StoreFault
from certs.keystore.database import DuplicateRow
from certs.keystore.memory import Memory, Outdated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from certs.keystore.audit import AuditEntry
    from certs.keystore.audit_log import AuditLog
    from certs.keystore.database import Database
    from certs.keystore.records import NewKey

__all__ = ["GroupCommit"]

_Manner = Literal["alone", "together", "each for himself"]
_MOST_TOGETHER = 64  # bounds how long a batch holds the write lock
_Result = TypeVar("_Result")


@dataclass(slots=True, eq=False)
class _Part(Generic[_Result]):
    """What one caller wants done, and then what came of it."""

    work: Callable[[Connection], _Result] | None
    entry: Callable[[], AuditEntry]
    addition: NewKey | None = None
    relied_on: int | None = None  # the generation of what was remembered
    # Held until the part is done or its caller is to lead: a lock is the cheapest thing to wait on.
    turn: threading.Lock = field(default_factory=threading.Lock)
    taken: bool = False
    done: bool = False
    result: _Result | None = None
    error: BaseException | None = None
    line: bytes = b""  # what the log is to say

    def do(self, work: Callable[[Connection], _Result] | None, connection: Connection) -> None:
        """Do the work, if there is any, and say what is to be logged of it."""
        if work is not None:
            self.result = work(connection)
        self.line = self.entry().encode()


class _PartFailed(Exception):
    """One part of a batch failed; which one, and how, shows when each runs for himself."""


class GroupCommit:
    """The one door to the write lock of an open store; shared by all that act on it."""

    def __init__(
        self,
        database: Database,
        log: AuditLog,
        insert: Callable[[Connection, Sequence[NewKey]], None],
    ) -> None:
        self.log = log
        self.memory = Memory()
        self._database = database
        self._insert = insert
        self._lock = threading.Lock()
        self._waiting: deque[_Part[object]] = deque()
        self._arrived = threading.Condition(self._lock)
        self._company = 1  # how many callers are likely to come
        self._patience_seconds = 0.0
        self._leader: _Part[object] | None = None

    def run(
        self, work: Callable[[Connection], _Result], entry: Callable[[], AuditEntry]
    ) -> _Result:
        """Do `work` in a write transaction and record it there; return what it returned.

        `entry` is called once `work` is done. Raises what `work` raised, which was undone then, or
        `StoreError` or `AuditLogAltered` for the batch.
        """
        return cast("_Result", self._run(_Part(work, entry)))

    def add(self, addition: NewKey, entry: AuditEntry, relied_on: int | None) -> None:
        """Insert a new key and record it; raises `DuplicateRow`, and otherwise as `record` does."""
        self._run(_Part(None, lambda: entry, addition, relied_on))

    def record(self, entry: AuditEntry, relied_on: int | None) -> None:
        """Append one entry to the audit log, durably.

        `relied_on` is the memory's generation when an operation began that relied on it; raises
        `Outdated`, with nothing recorded, if it has forgotten since.
        """
        self._run(_Part(None, lambda: entry, relied_on=relied_on))

    def _run(self, part: _Part[object]) -> object:
        try:
            part.turn.acquire()
            with self._lock:
                self._waiting.append(part)
                if self._leader is None:
                    self._leader = part
                elif len(self._waiting) == self._company:
                    self._arrived.notify()
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
                self._arrived.wait_for(
                    lambda: len(self._waiting) >= self._company, self._patience_seconds
                )
                while self._waiting and len(batch) < _MOST_TOGETHER:
                    batch.append(self._waiting.popleft())
                    batch[-1].taken = True
            started = time.monotonic()
            self._commit(batch)
            self._patience_seconds = (time.monotonic() - started) / 2
        except BaseException as error:
            for part in batch:
                if part is own or isinstance(error, Exception):
                    part.error = part.error or error
                else:
                    part.error = part.error or _interrupted(self._database.name)
            if not isinstance(error, Exception):
                raise
        finally:
            self._hand_over(own, len(batch))
            for part in batch:
                part.done = True
                if part is not own:
                    part.turn.release()

    def _hand_over(self, own: _Part[object], served: int = 0) -> None:
        with self._lock:
            if self._leader is own:
                self._company = min(max(served + len(self._waiting), 1), _MOST_TOGETHER)
                self._leader = self._waiting[0] if self._waiting else None
                if self._leader is not None:
                    self._leader.turn.release()

    def _commit(self, batch: list[_Part[object]]) -> None:
        if len(batch) == 1:
            self._transact(batch, "alone")
            return
        try:
            self._transact(batch, "together")
        except _PartFailed:
            self._transact(batch, "each for himself")

    def _transact(self, batch: list[_Part[object]], manner: _Manner) -> None:
        changed = False
        try:
            with self._database.write() as connection:
                end = self.log.end(connection)
                if not end.is_ours:
                    self.memory.forget()
                parts = [part for part in batch if not self._is_outdated(part)]
                if manner == "together":
                    self._add_together(connection, parts)
                lines = []
                for part in sorted(parts, key=lambda part: part.work is not None):
                    self._attempt(connection, part, manner)
                    if part.error is None:
                        changed = changed or part.work is not None
                        lines.append(part.line)
                self.log.append(connection, lines, end)
        finally:
            if changed:
                self.memory.forget()

    def _is_outdated(self, part: _Part[object]) -> bool:
        if part.relied_on in (None, self.memory.generation):
            return False
        part.error = Outdated()
        return True

    def _add_together(self, connection: Connection, parts: list[_Part[object]]) -> None:
        additions = [part.addition for part in parts if part.addition is not None]
        try:
            if additions:
                self._insert(connection, additions)
        except Exception:  # noqa: BLE001 - whose it is shows when each runs for himself
            raise _PartFailed from None

    def _insert_one(self, addition: NewKey, connection: Connection) -> None:
        self._insert(connection, [addition])

    def _attempt(self, connection: Connection, part: _Part[object], manner: _Manner) -> None:
        addition = part.addition if manner != "together" else None
        work = part.work if addition is None else partial(self._insert_one, addition)
        undone_alone = manner == "each for himself"
        try:
            with self._database.savepoint(connection) if undone_alone else nullcontext():
                part.do(work, connection)
        except Exception as error:  # whatever a part raises is its caller's, who gets it
            if manner == "alone":
                raise
            if manner == "together":
                raise _PartFailed from None
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
