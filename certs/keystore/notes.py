"""Signed notes and checkpoints: how a log states its size and root so that others can check it.

A *note* is a text with Ed25519 signatures below it (C2SP signed-note). A *checkpoint* is a note
whose text names the log, its size and its root (C2SP tlog-checkpoint). The tools and witnesses of
other transparency logs read both.

Reading is strict, and bounded before it begins. A note counts only under a key that the caller
names: signatures by others are passed over, one by the named key that does not verify is an error.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from certs.errors import BadSignature, InvalidInput
from certs.keystore.merkle import HASH_BYTES

__all__ = ["MAX_NOTE_BYTES", "SIGNATURE_BYTES", "Checkpoint", "NoteKey", "decode_base64"]

MAX_NOTE_BYTES = 65_536
SIGNATURE_BYTES = 64

_ED25519 = b"\x01"
_KEY_BYTES = 32
_ID_BYTES = 4
_MOST_SIGNATURES = 100
_NAME = re.compile(r"[^\s+\x00-\x1f]{1,256}")
_KEY = re.compile(r"([^\s+\x00-\x1f]{1,256})\+([0-9a-f]{8})\+([A-Za-z0-9+/=]{1,100})")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_MOST_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class NoteKey:
    """The public key that a log signs with, and its name: 32 bytes; no blanks, no plus sign."""

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None or len(self.public_key) != _KEY_BYTES:
            raise InvalidInput("a log's key has a name without blanks or '+', and 32 bytes")

    @classmethod
    def parse(cls, text: str) -> NoteKey:
        """Read ``name+id+key`` (C2SP signed-note, "Verifier keys"); raise `InvalidInput`."""
        parts = _KEY.fullmatch(text)
        if parts is not None:
            content = decode_base64(parts[3])
            if content is not None and content[:1] == _ED25519 and len(content) == _KEY_BYTES + 1:
                key = cls(parts[1], content[1:])
                if key.key_id.hex() == parts[2]:
                    return key
        raise InvalidInput("that is no Ed25519 verifier key; give NAME+ID+KEY as it was printed")

    def __str__(self) -> str:
        encoded = base64.b64encode(_ED25519 + self.public_key).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    @property
    def key_id(self) -> bytes:
        """4 bytes that tell keys of one name apart; no proof of anything."""
        named = self.name.encode() + b"\n" + _ED25519 + self.public_key
        return sha256(named).digest()[:_ID_BYTES]

    def signed(self, text: str, signature: bytes) -> bool:
        """Return whether this key made the signature, 64 bytes, over the text."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True

    def note(self, text: str, signature: bytes) -> bytes:
        """Return a note from a text and this key's signature over it."""
        encoded = base64.b64encode(self.key_id + signature).decode()
        return f"{text}\n\N{EM DASH} {self.name} {encoded}\n".encode()

    def open(self, note: bytes) -> str:
        """Return a note's text; `InvalidInput` if it is none, `BadSignature` if not signed so."""
        text, signatures = _split(note)
        mine = [
            content[_ID_BYTES:]
            for name, content in signatures
            if name == self.name and content[:_ID_BYTES] == self.key_id
        ]
        if not mine:
            raise BadSignature(f"the note bears no signature of {self}; give the right key")
        if not all(self.signed(text, signature) for signature in mine):
            raise BadSignature(f"the note was not signed by {self.name} as it stands")
        return text


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's name, its number of entries, and the root over them."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def open(cls, note: bytes, key: NoteKey) -> Checkpoint:
        """Read a signed checkpoint of the log that `key` is named after.

        Raises `InvalidInput` for anything else, `BadSignature` if the key did not sign it.
        """
        lines = key.open(note).split("\n")
        if len(lines) >= len(("origin", "size", "root", "")):
            origin, size, encoded = lines[:3]
            root = decode_base64(encoded)
            known = _SIZE.fullmatch(size) is not None and int(size) <= _MOST_SIZE
            if known and origin == key.name and root is not None and len(root) == HASH_BYTES:
                return cls(origin, int(size), root)
        raise InvalidInput(f"that is no checkpoint of {key.name}; give one that was exported")


def decode_base64(text: str) -> bytes | None:
    """Return what standard base64 encodes, or None if it is not in its one canonical form."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return content if base64.b64encode(content).decode() == text else None


def _split(note: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    if len(note) > MAX_NOTE_BYTES:
        raise InvalidInput(f"a signed note has at most {MAX_NOTE_BYTES} bytes")
    try:
        whole = note.decode()
    except UnicodeDecodeError:
        raise InvalidInput("a signed note is UTF-8 text; this is not") from None
    text, blank, below = whole.rpartition("\n\n")
    lines = below.split("\n")
    if not blank or _CONTROL.search(whole) or lines[-1] or len(lines) > _MOST_SIGNATURES:
        raise InvalidInput("that is no signed note: a text, an empty line, and signatures")
    signatures = []
    for line in lines[:-1]:
        words = line.split(" ")
        content = decode_base64(words[-1])
        if len(words) != len(("dash", "name", "signature")) or words[0] != "\N{EM DASH}":
            content = None
        if content is None or len(content) <= _ID_BYTES or _NAME.fullmatch(words[1]) is None:
            raise InvalidInput("a signature line of the note is malformed")
        signatures.append((words[1], content))
    if not signatures:
        raise InvalidInput("that note bears no signature")
    return text + "\n", signatures
