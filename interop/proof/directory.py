"""Files of a run: an output directory that appears whole or not at all, and bounded reading.

Everything is written to a hidden sibling first and moved into place at the end, so that a run
that is interrupted, fails or fills the disk leaves what was there before as it was.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from interop.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["read_bounded", "shown_path", "whole_directory", "write_secret"]


@contextmanager
def whole_directory(
    target: Path, *, may_replace: Callable[[Path], bool] = lambda _existing: False
) -> Iterator[Path]:
    """Yield an empty directory which becomes `target` when the block ends without an exception.

    It has mode 0700. An existing `target` is replaced only if it is empty, or `may_replace` says
    so. Raises `InputError` where it is anything else, or cannot be written.
    """
    target = Path(os.path.realpath(target))
    _require_replaceable(target, may_replace)
    token = secrets.token_hex(6)
    staging = target.with_name(f".{target.name}.{token}.partial")
    retired = target.with_name(f".{target.name}.{token}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir(mode=0o700)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
    try:
        yield staging
        try:
            if target.exists():
                target.rename(retired)
            staging.rename(target)
        except OSError as error:
            if retired.exists():
                retired.rename(target)
            raise InputError(f"{target}: cannot be replaced: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def _require_replaceable(target: Path, may_replace: Callable[[Path], bool]) -> None:
    try:
        if target.is_dir() and (not any(target.iterdir()) or may_replace(target)):
            return
        if target.exists():
            kind = "a folder with other things in it" if target.is_dir() else "not a folder"
            raise InputError(f"{target}: in the way ({kind}); name a new or an empty folder")
    except OSError as error:
        raise InputError(f"{target}: cannot be looked at: {error.strerror}") from error


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file with mode 0600 from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - the descriptor carries the mode
        file.write(data)


def shown_path(path: Path | str) -> str:
    """Return a path as text that JSON and terminals take, whatever bytes it is of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Return a file's content; `InputError` if it cannot be read or is larger."""
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if len(content) > most_bytes:
        raise InputError(f"{path}: larger than {most_bytes} bytes")
    return content
