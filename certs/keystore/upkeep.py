"""What is done to a store as a whole: its keys above the keys renewed, copies of it made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from certs.keystore.backup import write_backup
from certs.keystore.files import drafted, writing_to
from certs.keystore.identity import read_root
from certs.keystore.kek import using_provider
from certs.keystore.maintenance import (
    Rewrapped,
    Rewrapping,
    rotate_term,
    store_wrapping,
    wrap_again,
)
from certs.keystore.oversight import KeyOversight

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from certs.keystore.kek import KEKProvider

__all__ = ["KeyUpkeep"]


class KeyUpkeep(KeyOversight):
    """The part of `KeyStore` that renews the store's own keys, and copies the store."""

    def rotate_term(self) -> int:
        """Begin a new term and return its number; what is sealed from now on is under it."""
        with self._gate.perform("rotate-store", "") as act:
            return act.commit(
                lambda connection: rotate_term(connection, self._keyring, self._now())
            )

    def rewrap(
        self,
        *,
        records_a_batch: int = 100,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Rewrapped:
        """Move every record to the newest term, while others go on using the store.

        Resumable: after a crash, the next call takes up the rest. `progress` is called after each
        commit with the number of records looked at in it. Raises `CorruptEnvelope` at the end,
        naming the first record that does not open; the others have been moved.
        """
        with self._gate.perform("rewrap", "") as act:
            run = Rewrapping(self._keyring, records_a_batch)
            looked_at = 1
            while looked_at:
                with self.database.write() as connection:
                    looked_at = run.batch(connection, self._now())
                progress(looked_at)
            report = act.commit(run.report)
            self.database.fold()
            return report

    def rekey(
        self, kek: KEKProvider | str, new_kek: KEKProvider | str, *, make_new: bool = False
    ) -> None:
        """Put the store under another KEK: afterwards only the new one opens it.

        One commit: killed before it, the old KEK opens the store; after it, the new one. Processes
        that have the store open go on. With `make_new` the KEK of the URI `new_kek` is made first,
        if this principal may do this at all. Raises `WrongKEK` if `kek` is not the present one.
        """
        with (
            self._gate.perform("rekey", "") as act,
            using_provider(kek) as current,
            using_provider(new_kek, make=make_new) as new,
        ):
            wrapping = wrap_again(self.database, current, new)
            act.commit(lambda connection: store_wrapping(connection, wrapping))
            self.database.fold()

    def snapshot(self, destination: str | os.PathLike[str]) -> None:
        """Write a consistent copy to a new file of mode 0600; the same KEK opens it."""
        # The file gets its name once this is recorded.
        with drafted(destination) as draft, self._gate.perform("snapshot", ""):
            self.database.snapshot(draft)

    def backup(self, destination: str | os.PathLike[str]) -> int:
        """Write all of the store, encrypted, to a new file of mode 0600; return how many rows.

        Consistent while others go on. `certs.keystore.recovery` checks and restores it, under the
        KEK that opens the store now.
        """
        with writing_to(destination) as write, self._gate.perform("backup", "") as act:
            with self.database.read() as connection:
                rows = write_backup(
                    connection,
                    self._keyring,
                    read_root(connection),
                    write,
                    now=self._now(),
                    checkpoint=self._gate.log.checkpoint(connection),
                )
            act.details = {"rows": str(rows)}
            return rows
