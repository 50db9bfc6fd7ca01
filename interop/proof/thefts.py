"""The thefts: what of the evidence directory is handed to the attacker, row by row.

Most of a row is data: which files, and as what the attacker reads them. The keys in the stolen
store are taken out of it first.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from certs.keystore.hazmat import unseal_every_private_key
from interop.errors import InputError
from interop.proof import layout
from interop.proof.directory import read_bounded
from interop.proof.model import (
    CA_KEYS,
    CLIENT_KEY,
    EXPORTER,
    HARVEST,
    HARVEST_ML_KEM,
    KEY_STORE,
    LATER_TRAFFIC,
    SERVER_KEY,
    TARGET_KEY,
    TRAFFIC,
    Theft,
    ephemeral_key_of,
    pre_shared_keys_of,
    secrets_of,
    ticket_key_of,
)
from interop.proof.stolen import StolenFiles, load_stolen
from interop.wire.key_log import KeyLog
from interop.wire.session import KeyMaterial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from certs.keystore.hazmat import StolenKey
    from interop.proof.model import Session

__all__ = ["read_key_log", "thefts"]

_MAX_SECRET_FILE_BYTES: Final = 1024 * 1024
_AUTHORITIES: Final = ("root", "issuing")


# Single secrets of sessions: the kind of theft, its title, and where it lies if it was stolen.
_SINGLE_SECRETS: Final[tuple[tuple[str, str, Callable[[str], str]], ...]] = (
    (EXPORTER, "Exporter secret", layout.exporter_secret_of),
    (TRAFFIC, "First traffic secret", lambda name: layout.traffic_secret_of(name, 0)),
    (LATER_TRAFFIC, "Third traffic secret", lambda name: layout.traffic_secret_of(name, 2)),
)


class _Row(NamedTuple):
    """A theft of files; `kind` is the field of `StolenFiles` that they go to."""

    name: str
    title: str
    kind: str
    files: tuple[str, ...]


def thefts(
    directory: Path, sessions: Sequence[Session], *, target_keys: Sequence[Path] = ()
) -> Iterator[tuple[Theft, KeyMaterial]]:
    """Yield every theft with what it hands to the attacker, in the order of the rows.

    `target_keys` are those of somebody's own server, which the directory does not hold.
    Raises `InputError`, or a `CertsError` for the key store, where the directory lacks something or
    holds something else.
    """
    for row in _long_term_keys(directory, sessions):
        yield _theft(row), _read(directory, row)
    if target_keys:
        stolen, _ = load_stolen(StolenFiles(server_keys=target_keys))
        yield Theft(name=TARGET_KEY, title="Every key of the target", files=()), stolen
    in_store = _keys_of_store(directory)
    authorities = tuple(key for key in in_store if key.name in _AUTHORITIES)
    if len(authorities) < len(_AUTHORITIES):
        raise InputError(f"{directory}: the stolen key store lacks the keys of the CAs")
    for name, title, keys in (
        (CA_KEYS, "CA keys", authorities),
        (KEY_STORE, "Key store with its KEK", in_store),
    ):
        theft = Theft(name=name, title=title, files=(layout.KEY_STORE, layout.KEK))
        yield theft, KeyMaterial(server_private_keys=tuple(key.private_key for key in keys))
    for row in (*_ephemeral_keys(sessions), *_tickets(sessions), *_secrets(directory, sessions)):
        yield _theft(row), _read(directory, row)


def _theft(row: _Row) -> Theft:
    return Theft(name=row.name, title=row.title, files=row.files)


def _read(directory: Path, row: _Row) -> KeyMaterial:
    paths = [directory / path for path in row.files]
    stolen, problems = load_stolen(StolenFiles(**{row.kind: paths}))
    if problems:
        raise InputError(f"{problems[0].file}: {problems[0].message}")
    return stolen


def _long_term_keys(directory: Path, sessions: Sequence[Session]) -> Iterator[_Row]:
    found = sorted((directory / layout.STOLEN).glob(f"*{layout.SERVER_KEY_SUFFIX}"))
    if not found:
        raise InputError(f"{directory}: no stolen server key in {layout.STOLEN}/")
    files = tuple(path.relative_to(directory).as_posix() for path in found)
    yield _Row(SERVER_KEY, "Server key", "server_keys", files)
    if clients := sorted({session.client_key for session in sessions} - {""}):
        files = tuple(map(layout.client_key_of, clients))
        yield _Row(CLIENT_KEY, "Client key", "server_keys", files)


def _ephemeral_keys(sessions: Sequence[Session]) -> Iterator[_Row]:
    """Yield each ephemeral key, with both halves of a hybrid's; then all halves of either kind."""
    hybrids = {s.ephemeral_key for s in sessions if "MLKEM" in (s.group or "")} - {""}
    told = sorted({session.ephemeral_key for session in sessions} - {""})
    classical = {key: (layout.classical_key_of(key),) for key in told}
    kem = {key: (layout.ml_kem_key_of(key),) for key in told if key in hybrids}
    for name, title, files in (
        *(
            (ephemeral_key_of(key), f"Ephemeral key {key}", classical[key] + kem.get(key, ()))
            for key in told
        ),
        (HARVEST, "Every classical (EC)DHE key that was told", sum(classical.values(), ())),
        (HARVEST_ML_KEM, "Every ML-KEM key that was told", sum(kem.values(), ())),
    ):
        yield _Row(name, title, "ephemeral_keys", files)


def _tickets(sessions: Sequence[Session]) -> Iterator[_Row]:
    for key in sorted({session.ticket_key for session in sessions} - {""}):
        files = (layout.ticket_key_of(key),)
        yield _Row(ticket_key_of(key), f"Ticket key of server {key}", "ticket_keys", files)
    issuing = {s.resumes for s in sessions if s.version == "TLS 1.3"} - {""}
    for name in sorted(issuing):
        title = f"Pre-shared keys of {name}'s tickets"
        files = (layout.pre_shared_keys_of(name),)
        yield _Row(pre_shared_keys_of(name), title, "pre_shared_keys", files)


def _secrets(directory: Path, sessions: Sequence[Session]) -> Iterator[_Row]:
    for kind, title, path_of in _SINGLE_SECRETS:
        for name in (session.name for session in sessions):
            path = path_of(name)
            if (directory / path).is_file():
                yield _Row(f"{kind}:{name}", f"{title} of {name}", "key_logs", (path,))
    for name in (session.name for session in sessions):
        path = layout.key_log_of(name)
        yield _Row(secrets_of(name), f"Secrets of {name}", "key_logs", (path,))


def _keys_of_store(directory: Path) -> tuple[StolenKey, ...]:
    # The thief works on a private copy: evidence may have lost its file modes on the way here
    # (archives, artifact stores), and a KEK that others can read is refused.
    with tempfile.TemporaryDirectory(prefix="pfs-theft-") as folder:
        kek = Path(folder, "kek")
        kek.touch(mode=0o600)
        kek.write_bytes(read_bounded(directory / layout.KEK, _MAX_SECRET_FILE_BYTES))
        store = Path(folder, "store")
        try:
            shutil.copyfile(directory / layout.KEY_STORE, store)
        except OSError as error:
            raise InputError(f"{directory / layout.KEY_STORE}: {error.strerror}") from error
        return tuple(unseal_every_private_key(store, f"file:{kek}"))


def read_key_log(path: Path) -> KeyLog:
    """Read a key log of the evidence; every line of it must be sound, for we wrote it."""
    key_log = KeyLog.parse(read_bounded(path, _MAX_SECRET_FILE_BYTES))
    if key_log.problem_count:
        raise InputError(f"{path}: {key_log.problem_count} damaged lines")
    return key_log
