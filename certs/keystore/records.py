"""The rows of a store: reading them with suspicion, writing them whole.

Functions here run inside a transaction of `database`; `store` decides when one begins and ends.

A row is not even believed to be the one that was asked for. SQLite finds it through an index, which
is stored as well and can be edited: it may lead from one name or version to the row of another,
genuine and in its own place. So what was asked for is compared with what the row says it is.
Nothing read from a row is believed before `opened` has unsealed the record and compared what stands
in the clear with what was sealed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Row, insert, select, update

from certs.errors import CorruptEnvelope, KeyNotFound
from certs.key_types import public_key_der
from certs.keystore.envelope import MAX_TERM, MAX_VERSION
from certs.keystore.keyring import INVOCATION_LIMIT, Keyring, SealedTerm
from certs.keystore.kinds import PURPOSES, kind_of
from certs.keystore.names import is_name
from certs.keystore.payload import Payload, PrivateKeyPayload, parse_payload
from certs.keystore.state import KeyState
from certs.keystore.statements import (
    COUNT_SEALS,
    KEY_AND_VERSION,
    KEYS_AFTER,
    NEW_KEY,
    NEW_STATE,
    NEW_VERSION,
    NEWEST_TERM,
    ONE_KEY,
    ONE_VERSION,
)
from certs.keystore.tables import (
    as_bytes,
    as_number,
    as_text,
    as_time,
    damaged,
    key_states,
    key_versions,
    keys,
    terms,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certs.key_types import KeyType

__all__ = [
    "STATE_KIND",
    "KeyInfo",
    "NewKey",
    "SealedVersion",
    "counted_term",
    "erase_versions",
    "find_key",
    "find_version",
    "has_name",
    "insert_keys",
    "insert_term",
    "keys_after",
    "newest_term",
    "opened",
    "put_state",
    "read_version",
    "seal_state",
    "seal_version",
]

STATE_KIND = "key-state"
_LATEST_SECONDS = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What a listing shows of a key: nothing secret, and held to the key's sealed state.

    `version` is the newest version; `created_at` is when the name was first used. A deleted key can
    be recovered until `purge_at`. `revision` counts the changes to all of this.
    """

    name: str
    key_type: KeyType
    purpose: str
    exportable: bool
    version: int
    created_at: datetime
    enabled: bool = True
    disabled_versions: frozenset[int] = frozenset()
    purge_protected: bool = False
    deleted_at: datetime | None = None
    purge_at: datetime | None = None
    purged: bool = False
    revision: int = field(default=1, compare=False, repr=False)

    @property
    def state(self) -> KeyState:
        """What is sealed of it."""
        return KeyState(
            key_type=self.key_type,
            exportable=self.exportable,
            latest_version=self.version,
            created_at=_seconds(self.created_at),
            disabled=not self.enabled,
            disabled_versions=self.disabled_versions,
            purge_protected=self.purge_protected,
            deleted=self.deleted_at is not None,
            deleted_at=_seconds(self.deleted_at),
            purge_at=_seconds(self.purge_at),
            purged=self.purged,
        )


@dataclass(frozen=True, slots=True)
class SealedVersion:
    """One version of a key as its row holds it. `public_key` is empty for keys that have none."""

    info: KeyInfo
    version: int
    created_at: datetime
    term: SealedTerm
    public_key: bytes
    record: bytes


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key under a new name, with what is to be sealed as its first version, at a Unix time."""

    info: KeyInfo
    payload: Payload = field(repr=False)
    created_at: int


def find_key(connection: Connection, keyring: Keyring, name: str) -> KeyInfo:
    """Return a key; raise `KeyNotFound`, or `CorruptEnvelope` if its row is not as sealed."""
    if not is_name(name):  # nor would every text reach the database: lone surrogates do not
        raise KeyNotFound("there is no key of that name, and no key can have it; list the keys")
    row = connection.execute(ONE_KEY, {"wanted": name}).first()
    if row is None:
        raise KeyNotFound(f"there is no key named {name!r}; list the keys, or create it")
    info = _key_info(keyring, row)
    if info.name != name:
        raise _misled(f"key {name!r}")
    return info


def keys_after(
    connection: Connection, keyring: Keyring, name: str, limit: int
) -> Sequence[KeyInfo]:
    """Return up to `limit` keys in the order of their names, from the first one after `name`."""
    rows = connection.execute(KEYS_AFTER, {"last": name, "most": limit})
    page = [_key_info(keyring, row) for row in rows]
    names = [name, *(info.name for info in page)]
    if any(one >= following for one, following in pairwise(names)):
        raise _misled("the list of keys")  # nor would a listing that turns back ever end
    return page


def find_version(
    connection: Connection, keyring: Keyring, name: str, version: int | None
) -> SealedVersion:
    """Return one version of a key, the newest if None, by one statement, so of one moment.

    Raises as `find_key` and `read_version` do.
    """
    row = None
    if is_name(name):
        number = None if version is None else min(max(version, 0), MAX_VERSION)
        row = connection.execute(KEY_AND_VERSION, {"wanted": name, "number": number}).first()
    if row is None:
        return read_version(connection, find_key(connection, keyring, name), version)
    info = _key_info(keyring, row)
    if info.name != name:
        raise _misled(f"key {name!r}")
    return _held_version(info, info.version if version is None else version, row)


def read_version(connection: Connection, info: KeyInfo, version: int | None) -> SealedVersion:
    """Return one version of a key, the newest if None; raise `KeyNotFound` if there is none.

    That a key's newest version is the one its state names is checked each time: removing the row of
    a newer version must not bring an older key back into use unnoticed.
    """
    wanted = info.version if version is None else version
    number = min(max(wanted, 0), MAX_VERSION)  # not every integer is one to a database
    row = connection.execute(ONE_VERSION, {"wanted": info.name, "number": number}).first()
    return _held_version(info, wanted, row)


def _held_version(
    info: KeyInfo, wanted: int, row: Row[*tuple[object, ...]] | None
) -> SealedVersion:
    """Hold a row of `ONE_VERSION` to the key's state and to what was asked for."""
    name = info.name
    newest = None if row is None else row.newest
    if row is None or newest != info.version:
        raise CorruptEnvelope(
            f"key {name!r} should have {info.version} versions and the newest found is {newest}; "
            "restore the store from a backup"
        )
    if not 1 <= wanted <= info.version:
        raise KeyNotFound(f"key {name!r} has versions 1 to {info.version}, not {wanted}")
    if row.v_version is None or row.v_sealed_term is None:
        raise CorruptEnvelope(
            f"version {wanted} of key {name!r}, or the term that seals it, is missing from the "
            "store; restore it from a backup"
        )
    if (row.v_name, row.v_version) != (name, wanted):
        raise _misled(f"version {wanted} of key {name!r}")
    return SealedVersion(
        info=info,
        version=as_number(row.v_version, "key_versions.version", least=1),
        created_at=as_time(row.v_created_at, "key_versions.created_at"),
        term=SealedTerm(
            as_number(row.v_term, "key_versions.term", least=1, most=MAX_TERM),
            as_bytes(row.v_sealed_term, "terms.sealed"),
        ),
        public_key=as_bytes(row.v_public_key, "key_versions.public_key"),
        record=as_bytes(row.v_sealed, "key_versions.sealed"),
    )


def has_name(connection: Connection, name: str) -> bool:
    """Return whether the name was ever used."""
    return connection.execute(select(keys.c.name).where(keys.c.name == name)).first() is not None


def erase_versions(connection: Connection, info: KeyInfo) -> None:
    """Leave nothing of what was sealed for a key; certificates go on referring to its versions."""
    # Joined to nothing, the name is compared in the rows themselves: an index may lead to others'.
    connection.execute(
        update(key_versions).where(key_versions.c.name.concat("") == info.name).values(sealed=b"")
    )


def insert_keys(keyring: Keyring, connection: Connection, additions: Sequence[NewKey]) -> None:
    """Insert the rows of new names and their first versions; a driver's error if one is taken.

    Runs in a write transaction.
    """
    infos = [new.info for new in additions]
    connection.execute(
        NEW_KEY,
        [
            {
                "name": info.name,
                "key_type": info.key_type.value,
                "purpose": info.purpose,
                "exportable": int(info.exportable),
                "latest_version": info.version,
                "created_at": _seconds(info.created_at),
            }
            for info in infos
        ],
    )
    term = counted_term(connection, keyring, additions[0].created_at, seals=2 * len(additions))
    connection.execute(
        NEW_STATE,
        [
            {
                "name": info.name,
                "revision": info.revision,
                "term": term.number,
                "sealed": seal_state(keyring, term, info),
            }
            for info in infos
        ],
    )
    connection.execute(
        NEW_VERSION,
        [
            _version_row(keyring, term, new.info, new.payload, now=new.created_at)
            for new in additions
        ],
    )


def put_state(connection: Connection, keyring: Keyring, info: KeyInfo, now: int) -> int:
    """Replace a key's state, which was read in this write transaction as revision `info.revision`.

    The rows' copies of what is sealed follow it. Returns the new revision, which the audit log is
    to tell of.
    """
    following = replace(info, revision=info.revision + 1)
    term = counted_term(connection, keyring, now)
    done = connection.execute(
        update(key_states)
        .where(key_states.c.name == info.name, key_states.c.revision == info.revision)
        .values(
            revision=following.revision,
            term=term.number,
            sealed=seal_state(keyring, term, following),
        )
    )
    if done.rowcount != 1:
        raise _misled(f"the state of key {info.name!r}")
    connection.execute(
        update(keys).where(keys.c.name == info.name).values(latest_version=info.version)
    )
    return following.revision


def seal_state(keyring: Keyring, term: SealedTerm, info: KeyInfo) -> bytes:
    """Seal a key's state as its revision."""
    return keyring.seal(
        term,
        info.state.encode(),
        kind=STATE_KIND,
        name=info.name,
        version=info.revision,
        purpose=info.purpose,
    )


def seal_version(
    connection: Connection, keyring: Keyring, info: KeyInfo, payload: Payload, now: int
) -> None:
    """Seal the key as version `info.version` and insert it. Runs in a write transaction."""
    term = counted_term(connection, keyring, now)
    connection.execute(NEW_VERSION, _version_row(keyring, term, info, payload, now=now))


def opened(keyring: Keyring, sealed: SealedVersion) -> Payload:
    """Unseal a key and hold its rows to it; raise `CorruptEnvelope` if anything differs."""
    info = sealed.info
    payload = parse_payload(
        info.key_type,
        keyring.unseal(
            sealed.term,
            sealed.record,
            kind=kind_of(info.key_type),
            name=info.name,
            version=sealed.version,
            purpose=info.purpose,
        ),
    )
    _require_same(
        f"{info.name!r} version {sealed.version}",
        {
            "key type": payload.key_type is info.key_type,
            "exportable mark": payload.exportable is info.exportable,
            "public key": _public_der(payload) == sealed.public_key,
        },
    )
    return payload


def counted_term(
    connection: Connection, keyring: Keyring, now: int, *, seals: int = 1
) -> SealedTerm:
    """Return the newest term with these invocations counted; begin the next one at the limit."""
    row = connection.execute(
        COUNT_SEALS, {"seals": seals, "most": INVOCATION_LIMIT - seals}
    ).first()
    if row is not None:
        return _read_term(row)[0]
    newest, _ = newest_term(connection)
    following = keyring.new_term(newest.number + 1)
    insert_term(connection, following, invocations=seals, now=now)
    return following


def newest_term(connection: Connection) -> tuple[SealedTerm, int]:
    """Return the newest term and how often it has sealed."""
    row = connection.execute(NEWEST_TERM).first()
    if row is None:
        raise CorruptEnvelope("the store has no term to seal with; restore it from a backup")
    return _read_term(row)


def _read_term(row: Row[*tuple[object, ...]]) -> tuple[SealedTerm, int]:
    number = as_number(row.number, "terms.number", least=1, most=MAX_TERM)
    invocations = as_number(row.invocations, "terms.invocations")
    return SealedTerm(number, as_bytes(row.sealed, "terms.sealed")), invocations


def insert_term(connection: Connection, term: SealedTerm, *, invocations: int, now: int) -> None:
    """Insert the row of a new term."""
    connection.execute(
        insert(terms).values(
            number=term.number, sealed=term.sealed, invocations=invocations, created_at=now
        )
    )


def _version_row(
    keyring: Keyring, term: SealedTerm, info: KeyInfo, payload: Payload, *, now: int
) -> dict[str, str | int | bytes]:
    record = keyring.seal(
        term,
        payload.encode(),
        kind=kind_of(info.key_type),
        name=info.name,
        version=info.version,
        purpose=info.purpose,
    )
    return {
        "name": info.name,
        "version": info.version,
        "term": term.number,
        "public_key": _public_der(payload),
        "sealed": record,
        "created_at": now,
    }


def _key_info(keyring: Keyring, row: Row[tuple[object, ...]]) -> KeyInfo:
    """Return what the sealed state says, after holding the row to it."""
    name = as_text(row.name, "keys.name")
    purpose = as_text(row.purpose, "keys.purpose")
    if not is_name(name):
        raise damaged("keys.name")
    if purpose not in PURPOSES:
        raise damaged("keys.purpose")
    if row.state is None or row.sealed_term is None:
        raise CorruptEnvelope(
            f"the state of key {name!r}, or the term that seals it, is missing from the store; "
            "restore it from a backup"
        )
    revision = as_number(row.revision, "key_states.revision", least=1)
    term = SealedTerm(
        as_number(row.term, "key_states.term", least=1, most=MAX_TERM),
        as_bytes(row.sealed_term, "terms.sealed"),
    )
    state = KeyState.parse(
        keyring.unseal(
            term,
            as_bytes(row.state, "key_states.sealed"),
            kind=STATE_KIND,
            name=name,
            version=revision,
            purpose=purpose,
        )
    )
    _require_same(
        repr(name),
        {
            "key type": as_text(row.key_type, "keys.key_type") == state.key_type.value,
            "exportable mark": as_number(row.exportable, "keys.exportable", most=1)
            == int(state.exportable),
            "newest version": as_number(row.latest_version, "keys.latest_version", least=1)
            == state.latest_version,
            "time of creation": _seconds(as_time(row.created_at, "keys.created_at"))
            == state.created_at,
        },
    )
    return KeyInfo(
        name=name,
        key_type=state.key_type,
        purpose=purpose,
        exportable=state.exportable,
        version=state.latest_version,
        created_at=_time(state.created_at),
        enabled=not state.disabled,
        disabled_versions=state.disabled_versions,
        purge_protected=state.purge_protected,
        deleted_at=_time(state.deleted_at) if state.deleted else None,
        purge_at=_time(state.purge_at) if state.deleted else None,
        purged=state.purged,
        revision=revision,
    )


def _misled(what: str) -> CorruptEnvelope:
    return CorruptEnvelope(
        f"the store's index of {what} leads to another row; restore the store from a backup"
    )


def _require_same(what: str, same: dict[str, bool]) -> None:
    for column, is_same in same.items():
        if not is_same:
            raise CorruptEnvelope(
                f"the {column} of {what} was edited and is not what was sealed; "
                "restore the store from a backup"
            )


def _public_der(payload: Payload) -> bytes:
    if isinstance(payload, PrivateKeyPayload):
        return public_key_der(payload.private_key.public_key())
    return b""


def _seconds(time: datetime | None) -> int:
    return 0 if time is None else int(time.timestamp())


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(min(seconds, _LATEST_SECONDS), UTC)
