"""Where passphrases and PINs come from: a file, a descriptor or a terminal, never an argument.

What stands in a URI or a command line is seen by every process on the machine and ends up in shell
histories and logs. So a URI only says where the secret is: a file that its owner alone can read, a
descriptor that the parent process has opened, or, if it says nothing, whoever sits at the terminal.

Files are checked through their open descriptor, so what was checked is what is read. Symbolic links
are followed (secrets mounted into containers are links); a named pipe or a device is refused
without waiting for a writer.
"""

from __future__ import annotations

import getpass
import os
import stat
from typing import TYPE_CHECKING

from certs.errors import KEKUnavailable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "MAX_SECRET_BYTES",
    "ask_on_terminal",
    "read_descriptor",
    "read_owner_only_file",
    "read_secret_line",
]

MAX_SECRET_BYTES = 1024
_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_owner_only_file(path: Path, what: str, most_bytes: int) -> bytes:
    """Return up to `most_bytes` of a file; `what` names it in errors, such as ``KEK file``.

    Raises `KEKUnavailable` if it cannot be read, is open to group or others, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            _check_mode(path, what, os.fstat(descriptor).st_mode)
            return file.read(most_bytes)
    except OSError as error:
        raise KEKUnavailable(f"cannot read the {what} {path}: {error.strerror}") from None


def read_secret_line(path: Path, what: str) -> bytes:
    """Return what a secret's file holds, less one newline at its end."""
    content = read_owner_only_file(path, what, MAX_SECRET_BYTES + 3)
    return _one_line(content, f"the {what} {path}")


def read_descriptor(descriptor: int, what: str) -> bytes:
    """Return what an inherited descriptor yields until its end, less one newline at the end."""
    chunks: list[bytes] = []
    try:
        while sum(map(len, chunks)) < MAX_SECRET_BYTES + 3:
            chunk = os.read(descriptor, MAX_SECRET_BYTES)
            if not chunk:
                break
            chunks.append(chunk)
    except OSError as error:
        raise KEKUnavailable(
            f"cannot read the {what} from descriptor {descriptor}: {error.strerror}"
        ) from None
    return _one_line(b"".join(chunks), f"the {what} on descriptor {descriptor}")


def ask_on_terminal(prompt: str, instead: str) -> bytes:
    """Ask whoever sits at the controlling terminal, without echo; `instead` is the other way.

    Raises `KEKUnavailable` if there is no terminal (standard input is never read instead), or if
    the answer does not come.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        raise KEKUnavailable(f"there is no terminal to ask on; {instead}") from None
    try:
        answer = getpass.getpass(f"{prompt}: ")
    except (EOFError, OSError):
        raise KEKUnavailable(f"the terminal was closed before an answer; {instead}") from None
    return _one_line(answer.encode("utf-8", "surrogateescape"), "the answer")


def _one_line(content: bytes, where: str) -> bytes:
    line = content.removesuffix(b"\n").removesuffix(b"\r")
    if not line or len(line) > MAX_SECRET_BYTES or b"\n" in line or b"\0" in line:
        raise KEKUnavailable(
            f"{where} must be one line of 1 to {MAX_SECRET_BYTES} bytes; write it so"
        )
    return line


def _check_mode(path: Path, what: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise KEKUnavailable(f"{path} is not a regular file; a {what} is one")
    if mode & _GROUP_AND_OTHERS:
        raise KEKUnavailable(
            f"{path} has mode {stat.S_IMODE(mode):04o}, so others can use it; run: chmod 600 {path}"
        )
