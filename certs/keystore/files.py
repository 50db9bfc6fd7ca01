"""Files that appear whole, with mode 0600 from their first byte, and never over another file.

A file is made under a name of its own beside its destination and then *linked* to it. link(2) fails
if the destination exists, so of two creators exactly one wins, and a crash leaves either no file or
a complete one. (rename(2) would replace the loser's or the winner's file without a word.)
"""

from __future__ import annotations

import contextlib
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["OWNER_ONLY", "create_file", "new_file"]

OWNER_ONLY = 0o600


@contextmanager
def new_file(destination: Path) -> Iterator[Path]:
    """Yield an empty 0600 file to fill; afterwards it stands at `destination`, durably.

    The caller closes what it opens before leaving the block. Raises `FileExistsError` if the
    destination exists by then, and any other `OSError` as it comes; nothing is left behind.
    """
    if destination.exists() or destination.is_symlink():
        raise FileExistsError(str(destination))
    draft = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.new")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY))
    try:
        yield draft
        _synchronise(draft)
        os.link(draft, destination)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    _synchronise(destination.parent)


def create_file(destination: Path, content: bytes) -> None:
    """Write a new 0600 file with this content; `FileExistsError` if the name is taken."""
    with new_file(destination) as draft:
        draft.write_bytes(content)


def _synchronise(path: Path) -> None:
    """Force a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
