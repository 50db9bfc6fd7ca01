"""The one place through which every operation of a store goes, before it acts and answers.

`KeyStore` wraps each of its public operations in `Gate.perform`::

    with self._gate.perform("sign", name, version) as act:
        ...                      # act.version, act.signed_sha256 are filled in when they are known
        return signature

*Before.* Entering is where access is decided: a gate that refuses raises, and nothing was done.

*After.* The block ends before its result leaves the method, so a gate that records an outcome when
the block ends (value or exception) has recorded it before the caller has anything. If recording
fails, the exception takes the result's place.

*With.* An operation that changes the store calls `Act.commit_with` last in the transaction that
changes it, so that the change and its record are one commit. A gate then has nothing left to
record at the block's end, unless the block raises after all (the transaction was undone).

Names of operations are `OPERATIONS`; for those on the store as a whole the key's name is empty.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection

__all__ = ["OPERATIONS", "Act", "Gate", "OpenGate"]

OPERATIONS = frozenset(
    {
        # one key
        "create",
        "import",
        "show",
        "versions",
        "rotate",
        "disable",
        "enable",
        "public-key",
        "sign",
        "verify",
        "wrap",
        "unwrap",
        "generate-data-key",
        "export",
        "secret-set",
        "secret-get",
        "delete",
        "recover",
        "purge",
        # the store as a whole
        "list",
        "snapshot",
        "rotate-store",
        "rewrap",
        "rekey",
    }
)


@dataclass(slots=True)
class Act:
    """One operation under way; the store fills in what becomes known only while it runs.

    `version` is the version acted on. `signed_sha256` is the SHA-256 of what is about to be signed
    (of the digest, for a prehashed signature), set before the private key is opened.
    """

    operation: str
    name: str
    version: int | None = None
    signed_sha256: bytes | None = None

    def commit_with(self, connection: Connection) -> None:
        """Record success in the transaction that makes the change; its commit is the record's."""


class Gate(Protocol):
    """Who decides whether an operation may go on, and who remembers that it did."""

    def perform(
        self, operation: str, name: str, version: int | None = None
    ) -> AbstractContextManager[Act]:
        """Admit one operation and stay until it has ended; raise to refuse it."""
        ...


class OpenGate:
    """Admits everything and remembers nothing: a store whose file and KEK are the only guards."""

    @contextmanager
    def perform(self, operation: str, name: str, version: int | None = None) -> Iterator[Act]:
        """Admit the operation."""
        yield Act(operation, name, version)
