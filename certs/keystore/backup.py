"""Backups: all rows of a store in one encrypted file, whichever database it is in.

docs/formats.md ("Backup") specifies every byte. The file begins with a few lines in the clear, what
is needed to find the KEK and to unwrap the root key with it; the rest is one sealed stream
(`certs.keystore.streaming`) under a key derived from the root key, with those lines as associated
data. In it are the rows, each with its length before it, and at the end their number and the
checkpoint of the audit log.

So a backup opens with the KEK that the store was under when it was made, and with no other; nothing
of it, not even a name, can be read without; and every change to it, its end cut off included, is
found. Writing and reading take memory for a segment.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec

from certs.errors import CorruptEnvelope, InvalidInput
from certs.keystore.kek.provider import MAX_WRAPPED_BYTES
from certs.keystore.rows import every_row
from certs.keystore.streaming import StreamOpener, StreamSealer
from certs.keystore.tables import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from sqlalchemy import Connection

    from certs.keystore.identity import RootRow
    from certs.keystore.keyring import Keyring

__all__ = ["BackupHeader", "BackupRows", "read_header", "write_backup"]

_FORMAT = b"pfs-backup/1\n"
_MOST_HEADER_BYTES = 16_384
_MOST_ROW_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18
_LENGTH = struct.Struct(">I")


_Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Said(msgspec.Struct, forbid_unknown_fields=True):
    """The header's line of JSON: its fields in this order, bytes in base64."""

    created_at: _Number
    root_generation: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    schema: _Number
    store_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    wrapped_root_key: Annotated[bytes, msgspec.Meta(max_length=MAX_WRAPPED_BYTES)]


@dataclass(frozen=True, slots=True)
class BackupHeader:
    """What a backup says in the clear; `text` is exactly that. Times are seconds since 1970."""

    store_id: bytes
    schema: int
    root_generation: int
    wrapped_root_key: bytes
    created_at: int
    text: bytes


class _End(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    rows: int
    checkpoint: bytes


def write_backup(
    connection: Connection,
    keyring: Keyring,
    root: RootRow,
    write: Callable[[bytes], object],
    *,
    now: int,
    checkpoint: bytes,
) -> int:
    """Write a backup of one view of a store, piece by piece; return how many rows it holds.

    `checkpoint` is the audit log's, signed.
    """
    said = _Said(now, root.generation, SCHEMA_VERSION, root.store_id.hex(), root.wrapped)
    header = _FORMAT + msgspec.json.encode(said) + b"\n"
    write(header)
    stream = StreamSealer(keyring.backup_key(), header)
    rows = 0
    for name, values in every_row(connection):
        write(stream.update(_framed(msgspec.msgpack.encode([name, *values]))))
        rows += 1
    write(stream.update(_framed(b"")))
    write(stream.update(msgspec.msgpack.encode(_End(rows, checkpoint))))
    write(stream.finish())
    return rows


def read_header(file: BinaryIO) -> BackupHeader:
    """Read a backup up to its sealed part; `InvalidInput` if it is none."""
    first, second = file.readline(len(_FORMAT)), file.readline(_MOST_HEADER_BYTES)
    if first == _FORMAT and second.endswith(b"\n"):
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            said = msgspec.json.decode(second, type=_Said)
            return BackupHeader(
                store_id=bytes.fromhex(said.store_id),
                schema=said.schema,
                root_generation=said.root_generation,
                wrapped_root_key=said.wrapped_root_key,
                created_at=said.created_at,
                text=first + second,
            )
    raise InvalidInput("that is no backup of a key store")


class BackupRows:
    """The rows of a backup, read once; afterwards `checkpoint` is the audit log's.

    Iterating raises `CorruptEnvelope` for a backup that is not as it was written, at the latest at
    its end, so what is done with the rows must be undone then.
    """

    def __init__(self, file: BinaryIO, keyring: Keyring, header: BackupHeader) -> None:
        self._file = file
        self._stream = StreamOpener(keyring.backup_key(), header.text)
        self._waiting = bytearray()
        self._ended = False
        self.rows = 0
        self.checkpoint = b""

    def __iter__(self) -> Iterator[tuple[str, list[object]]]:
        while length := _LENGTH.unpack(self._take(_LENGTH.size))[0]:
            if length > _MOST_ROW_BYTES:
                raise _malformed()
            try:
                row = msgspec.msgpack.decode(self._take(length), type=list[object])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise _malformed() from None
            if not row or not isinstance(row[0], str):
                raise _malformed()
            self.rows += 1
            yield row[0], row[1:]
        while not self._ended:
            self._more()
        try:
            end = msgspec.msgpack.decode(bytes(self._waiting), type=_End)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise _malformed() from None
        if end.rows != self.rows:
            raise _malformed()
        self.checkpoint = end.checkpoint

    def _take(self, count: int) -> bytes:
        while len(self._waiting) < count and not self._ended:
            self._more()
        if len(self._waiting) < count:
            raise _malformed()
        taken = bytes(self._waiting[:count])
        del self._waiting[:count]
        return taken

    def _more(self) -> None:
        piece = self._file.read(_PIECE_BYTES)
        self._ended = not piece
        self._waiting += self._stream.update(piece) if piece else self._stream.finish()
        if len(self._waiting) > 2 * _MOST_ROW_BYTES + _PIECE_BYTES + (1 << 20):
            raise _malformed()


def _framed(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content


def _malformed() -> CorruptEnvelope:
    return CorruptEnvelope("the backup opens, but does not hold what a backup holds; take another")
