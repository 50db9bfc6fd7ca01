"""What commands on keys are given: a store's address, a KEK, bytes from a file or standard input.

Secrets never come as arguments, which every user of the machine can read in the list of processes.
They come from a file, from standard input (``-``), or from a prompt that does not show them.
"""

from __future__ import annotations

import getpass
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from certs.errors import InvalidInput
from certs.keystore import KeyStore, files
from certs.keystore.access import OWNER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from certs.keystore.kek import KEKProvider

__all__ = [
    "MAX_MESSAGE_BYTES",
    "ask",
    "kek_uri",
    "open_store",
    "read_bytes",
    "read_lines",
    "read_secret",
    "require_absent",
    "store_address",
    "text_bytes",
    "write_secret",
    "writing_to",
]

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_STANDARD = Path("-")


def store_address(url: str | None) -> str:
    """Return where a store is, as `certs.keystore.address` writes it; from PFS_STORE if None."""
    text = url or os.environ.get("PFS_STORE", "")
    if not text:
        raise InvalidInput("no store was named; give --store PATH or URL, or set PFS_STORE")
    return text


def kek_uri(uri: str | None) -> str:
    """Return the KEK's URI, from PFS_KEK if None."""
    text = uri or os.environ.get("PFS_KEK", "")
    if not text:
        raise InvalidInput("no KEK was named; give --kek file:/path/to/kek, or set PFS_KEK")
    return text


def open_store(store: str | None, kek: KEKProvider | str | None) -> KeyStore:
    """Open the store that the options or the environment name, for PFS_PRINCIPAL or its owner."""
    address = store_address(store)
    principal = os.environ.get("PFS_PRINCIPAL", OWNER)
    opener = kek_uri(kek) if kek is None or isinstance(kek, str) else kek
    return KeyStore.open(address, opener, principal=principal)


def read_bytes(source: Path, most: int = MAX_MESSAGE_BYTES) -> bytes:
    """Return all of a file, or of standard input for ``-``; `InvalidInput` beyond `most` bytes."""
    if source == _STANDARD:
        return _bounded(sys.stdin.buffer, "standard input", most)
    with source.open("rb") as file:
        return _bounded(file, str(source), most)


def read_lines(file: BinaryIO, most: int) -> Iterator[bytes]:
    """Yield lines with their newlines, none longer than one byte too many."""
    while line := file.readline(most + 1):
        yield line


def read_secret(source: Path | None, most: int, *, prompt: str) -> bytes:
    """Return a secret from a file or ``-`` exactly as it stands, or ask for a line of it twice."""
    if source is not None:
        return read_bytes(source, most)
    if not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to ask at; give --in FILE, or --in -")
    first = ask(prompt)
    if ask(f"{prompt}, again") != first:
        raise InvalidInput("the two were not the same; nothing was stored")
    return first


def ask(prompt: str) -> bytes:
    """Ask at the terminal for a line, without echo; `InvalidInput` if none comes."""
    try:
        return getpass.getpass(f"{prompt}: ").encode("utf-8", "surrogateescape")
    except EOFError:
        raise InvalidInput("the terminal was closed before an answer; nothing was done") from None
    except UnicodeDecodeError:
        raise InvalidInput("what was typed is not UTF-8; nothing was done") from None


def text_bytes(text: str, what: str) -> bytes:
    """Return an argument in UTF-8; `InvalidInput` if it was given in something else."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} is not UTF-8") from None


def require_absent(*destinations: Path) -> None:
    """Raise `InvalidInput` if a file is in the way, or one place was named twice."""
    for destination in destinations:
        if destination != _STANDARD and (destination.exists() or destination.is_symlink()):
            raise InvalidInput(f"{destination} exists and is not overwritten")
    if len({*destinations}) < len(destinations):
        raise InvalidInput("two things cannot be written to one place; name another file")


@contextmanager
def writing_to(destination: Path) -> Iterator[Callable[[bytes], object]]:
    """Yield what writes to standard output for ``-``, or to a new 0600 file that appears whole."""
    if destination == _STANDARD:
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    require_absent(destination)
    with files.writing_to(destination) as write:
        yield write


def write_secret(destination: Path, content: bytes) -> None:
    """Write bytes to a new file of mode 0600, or to standard output for ``-``."""
    with writing_to(destination) as write:
        write(content)


def _bounded(file: BinaryIO, name: str, most: int) -> bytes:
    content = file.read(most + 1)
    if len(content) > most:
        raise InvalidInput(f"{name} holds more than {most} bytes")
    return content
