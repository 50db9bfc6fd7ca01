"""PostgreSQL, the database that key stores are shared in: a server in a private folder.

It listens on a socket in that folder and on no network. PostgreSQL refuses to run as root, so root
runs it as ``nobody``. All of it is gone when the block ends.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interop.peers.processes import ChildProcess, completed
from interop.peers.programs import find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PostgreSQLServer", "run_postgresql"]

_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 20.0
_UNPRIVILEGED: Final = "nobody"
_OWNER: Final = "pfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgreSQLServer:
    """A running server: its socket's folder, its process, and psql's path to talk to it with."""

    folder: Path
    process: ChildProcess
    psql: Path

    def new_database(self) -> str:
        """Make an empty database; return its URL."""
        name = f"d{secrets.token_hex(6)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def url(self, name: str, *, user: str = _OWNER) -> str:
        """Return the URL of a database."""
        return f"postgresql://{user}@/{name}?host={self.folder}"

    def run(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as the server's owner; return what psql printed, without headings."""
        arguments = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement)
        with ChildProcess(self.psql, [*arguments, self.url(database)]) as child:
            done = completed(child, timeout_seconds=_SECONDS)
            if done.exit_code != 0:
                raise child.failure("refused a statement")
        return done.stdout.decode()


@contextlib.contextmanager
def run_postgresql(
    *, durable: bool = True, data_folder: Path | None = None, settings: tuple[str, ...] = ()
) -> Iterator[PostgreSQLServer]:
    """Run a server of one's own for as long as the block runs.

    Without `durable` it does not wait for the disk, which is for tests that kill no server.
    `data_folder` is an empty folder for its data, else one of its own. `settings` are
    ``name=value``. Raises PeerUnavailable or PeerFailed.
    """
    program, psql = find_program("postgresql"), find_program("psql").path
    user = pwd.getpwnam(_UNPRIVILEGED) if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pfs-pg-") as name:
        folder = Path(name)  # short: a socket's path has at most 107 bytes
        data = data_folder or folder / "data"
        for each in (folder, data_folder):
            if user is not None and each is not None:
                os.chown(each, user.pw_uid, user.pw_gid)
        initdb = program.path.with_name("initdb")
        options = ("-D", str(data), "-U", _OWNER, "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        with ChildProcess(initdb, options, user=user) as child:
            if completed(child, timeout_seconds=_SECONDS).exit_code != 0:
                raise child.failure("made no cluster")
        wanted = (
            "listen_addresses=",
            f"unix_socket_directories={folder}",
            f"fsync={'on' if durable else 'off'}",
            *settings,
        )
        arguments = ["-D", str(data), *(part for each in wanted for part in ("-c", each))]
        with ChildProcess(program.path, arguments, user=user, stop_seconds=_STOP_SECONDS) as server:
            server.wait_for_words(
                b"ready to accept connections",
                timeout_seconds=_SECONDS,
                purpose="accepted connections",
            )
            yield PostgreSQLServer(folder=folder, process=server, psql=psql)
