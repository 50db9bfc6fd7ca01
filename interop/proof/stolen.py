"""Key files as a thief holds them: read, checked, and turned into the attacker's vocabulary.

Each reader takes what the stacks themselves write. A file that holds something else is refused with
a sentence that says what it is or should be, because a theft that silently came to nothing looks
like a session that stayed closed.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import (
    dsa,
    ec,
    ed448,
    ed25519,
    mldsa,
    mlkem,
    rsa,
    x448,
    x25519,
)
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from interop.errors import DissectError, InputError
from interop.proof.directory import read_bounded
from interop.wire.groups import EphemeralPrivateKey, finite_field_private_key
from interop.wire.key_log import KeyLog
from interop.wire.material import (
    EphemeralKey,
    KeyMaterial,
    PreSharedKey,
    Secret,
    ServerKey,
    SessionSecrets,
    TicketKey,
)
from interop.wire.registry import ProtocolVersion
from interop.wire.tickets import TICKET_KEY_LENGTHS, openssl_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Problem", "StolenFiles", "load_stolen"]

_MAX_KEY_BYTES = 1024 * 1024
_MAX_EPHEMERAL_KEYS_BYTES = 64 * 1024 * 1024
_MAX_KEY_LOG_BYTES = 1024 * 1024 * 1024
_MAX_PRE_SHARED_KEY_LENGTH = 2**16 - 1  # what RFC 4279 has room for; TLS 1.3 has no limit

_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_SESSION_LABEL = b"SSL SESSION PARAMETERS"
_PARAMETERS_SUFFIX = b" PARAMETERS"  # `openssl ecparam -genkey` puts them before the key

_ServerKey: TypeAlias = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | mldsa.MLDSA44PrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
    | dsa.DSAPrivateKey
)
_Ephemeral: TypeAlias = (
    x25519.X25519PrivateKey
    | x448.X448PrivateKey
    | ec.EllipticCurvePrivateKey
    | mlkem.MLKEM768PrivateKey
    | mlkem.MLKEM1024PrivateKey
)


class Problem(msgspec.Struct, frozen=True):
    """Something in an input file that could not be used; the rest of it was."""

    file: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StolenFiles:
    """Which files hold what was stolen, by kind."""

    server_keys: Sequence[Path] = ()
    key_logs: Sequence[Path] = ()
    ephemeral_keys: Sequence[Path] = ()
    ticket_keys: Sequence[Path] = ()
    pre_shared_keys: Sequence[Path] = ()


def load_stolen(files: StolenFiles) -> tuple[KeyMaterial, list[Problem]]:
    """Read what was stolen; return it with the key-log lines that could not be used.

    Raises `InputError` for a file that cannot be read or holds something else altogether.
    """
    secrets: list[Secret] = []
    problems: list[Problem] = []
    for path in files.key_logs:
        parsed = _load_key_log(path)
        problems += _problems(path, parsed)
        secrets.append(SessionSecrets(parsed))
    secrets += [ServerKey(_load_server_key(path)) for path in files.server_keys]
    for path in files.ephemeral_keys:
        secrets += [EphemeralKey(key) for key in _load_ephemeral_keys(path)]
    for path in files.ticket_keys:
        secrets += _load_ticket_keys(path)
    for path in files.pre_shared_keys:
        secrets += [PreSharedKey(key) for key in _load_pre_shared_keys(path)]
    return KeyMaterial.of(*secrets), problems


def _load_key_log(path: Path) -> KeyLog:
    """Read a key log; one in which nobody has written anything yet is one, too."""
    content = read_bounded(path, _MAX_KEY_LOG_BYTES)
    key_log = KeyLog.parse(content)
    if not key_log and any(line.strip()[:1] not in (b"", b"#") for line in content.splitlines()):
        first = "".join(f": {problem.message}" for problem in [*_problems(path, key_log)][:1])
        raise InputError(f"{path}: not a key log: no line of it gives a secret of a session{first}")
    return key_log


def _problems(path: Path, key_log: KeyLog) -> Iterator[Problem]:
    for label, number in key_log.unknown_labels.items():
        yield Problem(str(path), f"line {number}: the label {label} is not known")
    for problem in key_log.problems:
        yield Problem(str(path), f"line {problem.line_number}: {problem.reason}")
    if unnamed := key_log.problem_count - len(key_log.problems):
        yield Problem(str(path), f"{unnamed} more lines could not be used")


def _load_private_key(path: Path, pem: bytes) -> object:
    try:
        return load_pem_private_key(pem, None)
    except TypeError:
        raise InputError(
            f"{path}: the key is encrypted; decrypt it: openssl pkey -in {path.name} -out FILE"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path}: not a private key in PEM") from None


def _load_server_key(path: Path) -> _ServerKey:
    key = _load_private_key(path, read_bounded(path, _MAX_KEY_BYTES))
    if not isinstance(key, _ServerKey):
        raise InputError(
            f"{path}: not a server's key: TLS servers have RSA, ECDSA, EdDSA, ML-DSA or DSA keys"
        )
    return key


def _load_ephemeral_keys(path: Path) -> list[EphemeralPrivateKey]:
    """Read the keys of a PEM file, one or many: the halves of hybrids, say."""
    keys: list[EphemeralPrivateKey] = []
    for block in _PEM_BLOCK.finditer(read_bounded(path, _MAX_EPHEMERAL_KEYS_BYTES)):
        if block[1].endswith(_PARAMETERS_SUFFIX):
            continue
        # cryptography is giving up finite-field Diffie-Hellman, so that is read here.
        if (finite_field := finite_field_private_key(_base64(path, block[2]))) is not None:
            keys.append(finite_field)
            continue
        key = _load_private_key(path, block[0] + b"\n")
        if not isinstance(key, _Ephemeral):
            raise InputError(
                f"{path}: not a key of a key exchange: those are of (EC)DH, X25519, X448, "
                "ML-KEM-768 or ML-KEM-1024"
            )
        keys.append(key)
    if not keys:
        raise InputError(f"{path}: not a private key in PEM")
    return keys


def _load_ticket_keys(path: Path) -> list[TicketKey]:
    """Read one ticket key as bytes, or several as text: a line each, in base64 or hexadecimal."""
    content = read_bounded(path, _MAX_KEY_BYTES)
    if len(content) in TICKET_KEY_LENGTHS:
        return [TicketKey(content)]
    keys = []
    for line in content.split():
        for decode in (binascii.unhexlify, _strict_base64):
            try:
                key = decode(line)
            except ValueError:
                continue
            if len(key) in TICKET_KEY_LENGTHS:
                keys.append(TicketKey(key))
                break
        else:
            break
    if not keys or len(keys) != len(content.split()):
        lengths = ", ".join(map(str, TICKET_KEY_LENGTHS))
        raise InputError(
            f"{path}: not a ticket key: {lengths} bytes, or such keys as text, one a line"
        )
    return keys


def _load_pre_shared_keys(path: Path) -> list[bytes]:
    """Read keys in hexadecimal, one a line, perhaps behind an identity; or stored sessions."""
    content = read_bounded(path, _MAX_KEY_BYTES)
    blocks = [block[2] for block in _PEM_BLOCK.finditer(content) if block[1] == _SESSION_LABEL]
    if blocks:
        return [_key_of_session(path, _base64(path, block)) for block in blocks]
    keys = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            key = binascii.unhexlify(line.rpartition(b":")[2].strip())
        except ValueError:
            raise InputError(
                f"{path}: line {number}: no pre-shared key in hexadecimal, such as a GnuTLS "
                "password file has, and no stored session of OpenSSL"
            ) from None
        if not 0 < len(key) <= _MAX_PRE_SHARED_KEY_LENGTH:
            raise InputError(f"{path}: line {number}: a pre-shared key of {len(key)} bytes")
        keys.append(key)
    if not keys:
        raise InputError(f"{path}: no pre-shared key is in it")
    return keys


def _key_of_session(path: Path, data: bytes) -> bytes:
    try:
        session = openssl_session(data)
    except DissectError as error:
        raise InputError(f"{path}: not a stored session of OpenSSL: {error}") from None
    if session.version != ProtocolVersion.TLS_1_3 or not session.secret:
        raise InputError(f"{path}: a stored session, but not of TLS 1.3: it has no pre-shared key")
    return session.secret


def _strict_base64(text: bytes) -> bytes:
    return b64decode(text, validate=True)


def _base64(path: Path, text: bytes) -> bytes:
    """Decode what stands in a PEM block; headers, as encrypted keys have, decode to nothing."""
    try:
        return b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        if b":" in text:
            return b""
        raise InputError(f"{path}: damaged PEM") from None
