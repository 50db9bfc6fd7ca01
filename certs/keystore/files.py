"""Files that appear whole, with mode 0600 from their first byte, and never over another file.

A file is made under a name of its own beside its destination and then *linked* to it. link(2) fails
if the destination exists, so of two creators exactly one wins, and a crash leaves either no file or
a complete one. (rename(2) would replace the loser's or the winner's file without a word.)

`publish_file` writes what is no secret: others may read it, and a newer one may take its place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from certs.errors import StoreError, StoreFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "OWNER_ONLY",
    "create_file",
    "drafted",
    "new_file",
    "publish_file",
    "writing_to",
]

OWNER_ONLY = 0o600
_PUBLIC = 0o644  # less the umask


@contextmanager
def new_file(destination: Path) -> Iterator[Path]:
    """Yield an empty 0600 file to fill; afterwards it stands at `destination`, durably.

    The caller closes what it opens before leaving the block. Raises `FileExistsError` if the
    destination exists by then, and any other `OSError` as it comes; nothing is left behind.
    """
    if destination.exists() or destination.is_symlink():
        raise FileExistsError(str(destination))
    with _draft(destination, OWNER_ONLY, os.link) as draft:
        yield draft


@contextmanager
def _draft(destination: Path, mode: int, put: Callable[[Path, Path], None]) -> Iterator[Path]:
    draft = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.new")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    try:
        yield draft
        _synchronise(draft)
        put(draft, destination)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    _synchronise(destination.parent)


@contextmanager
def drafted(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty 0600 file to fill, which stands at `destination` once the block is done.

    Raises `StoreError` if it exists or cannot be written; nothing is left behind then.
    """
    path = Path(destination).absolute()
    try:
        with new_file(path) as draft:
            yield draft
    except FileExistsError:
        raise StoreError(
            f"{path} exists and is never overwritten; choose another path", fault=StoreFault.EXISTS
        ) from None
    except OSError as error:
        fault = StoreFault.FULL if error.errno == errno.ENOSPC else StoreFault.UNREADABLE
        raise StoreError(f"cannot write {path}: {error.strerror}", fault=fault) from None


@contextmanager
def writing_to(destination: str | os.PathLike[str]) -> Iterator[Callable[[bytes], object]]:
    """Yield what writes to a new 0600 file, as `drafted` does."""
    with drafted(destination) as draft, draft.open("wb") as file:
        yield file.write


def create_file(destination: Path, content: bytes) -> None:
    """Write a new 0600 file with this content; `FileExistsError` if the name is taken."""
    with new_file(destination) as draft:
        draft.write_bytes(content)


def publish_file(destination: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a file that others may read, too; it is there whole or not at all.

    Raises `FileExistsError` if the name is taken; with `replace` it takes that one's place.
    """
    put = os.replace if replace else os.link
    with _draft(destination.resolve() if replace else destination, _PUBLIC, put) as draft:
        draft.write_bytes(content)


def _synchronise(path: Path) -> None:
    """Force a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
