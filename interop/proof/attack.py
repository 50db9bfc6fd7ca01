"""`pfs attack`: the attacker on capture files, anyone's, with key files as the thief holds them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from interop.capture.files import CaptureProblem, read_streams
from interop.capture.items import SECRETS_TYPE_TLS_KEY_LOG, DecryptionSecrets
from interop.direction import Direction
from interop.errors import InputError
from interop.proof.attacker import Attacker, PlaintextSink, SessionResult, discard
from interop.wire.key_log import KeyLog
from interop.wire.session import KeyMaterial

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


__all__ = ["AttackReport", "AttackedSession", "Problem", "attack_captures", "load_stolen"]

_MAX_KEY_BYTES = 1024 * 1024
_MAX_KEY_LOG_BYTES = 1024 * 1024 * 1024
_ServerKey: TypeAlias = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


class Problem(msgspec.Struct, frozen=True):
    """Something in an input file that could not be used; the rest of it was."""

    file: str
    message: str


class AttackedSession(SessionResult, frozen=True, kw_only=True):
    """What came of one session, and which capture it is in."""

    capture: str


class AttackReport(msgspec.Struct, frozen=True):
    """What came of attacking some captures."""

    sessions: tuple[AttackedSession, ...]
    problems: tuple[Problem, ...]


def load_stolen(
    server_keys: Iterable[Path], key_logs: Iterable[Path]
) -> tuple[KeyMaterial, list[Problem]]:
    """Read what was stolen; return it with the key-log lines that could not be used.

    Raises `InputError` for a file that cannot be read or holds something else altogether.
    """
    secrets = KeyLog()
    problems: list[Problem] = []
    for path in key_logs:
        parsed = KeyLog.parse(_read(path, _MAX_KEY_LOG_BYTES))
        problems += [
            Problem(str(path), f"line {problem.line_number}: {problem.reason}")
            for problem in parsed.problems
        ]
        if unnamed := parsed.problem_count - len(parsed.problems):
            problems.append(Problem(str(path), f"{unnamed} more lines could not be used"))
        secrets |= parsed
    keys = tuple(_load_server_key(path) for path in server_keys)
    return KeyMaterial(server_private_keys=keys, key_log=secrets), problems


def attack_captures(
    captures: Sequence[Path],
    keys: KeyMaterial,
    *,
    plaintext: Path | None = None,
    use_secrets_blocks: bool = True,
) -> AttackReport:
    """Attack each capture; with `plaintext`, write what is recovered into that folder.

    There are two files for a session that opened, ``CAPTURE-STREAM-client.bin`` and
    ``-server.bin``, mode 0600. Raises `InputError` for a file that is not a capture.
    """
    sessions: list[AttackedSession] = []
    problems: list[Problem] = []
    for number, path in enumerate(captures, start=1):
        sink: PlaintextSink = discard
        if plaintext is not None:
            prefix = f"{number}-" if len(captures) > 1 else ""
            sink = _writer(plaintext, f"{prefix}{path.name}")
        attacker = Attacker(keys, sink)
        for event in read_streams(path):
            match event:
                case CaptureProblem(packet_number=packet, message=message):
                    where = "" if packet is None else f"packet {packet}: "
                    problems.append(Problem(str(path), f"{where}{message}"))
                case DecryptionSecrets(secrets_type=kind, data=data):
                    if use_secrets_blocks and kind == SECRETS_TYPE_TLS_KEY_LOG:
                        attacker.add_key_log(KeyLog.parse(data))
                case _:
                    attacker.feed(event)
        sessions += [
            AttackedSession(capture=str(path), **msgspec.structs.asdict(result))
            for result in attacker.finish()
        ]
    return AttackReport(tuple(sessions), tuple(problems))


def _writer(folder: Path, name: str) -> PlaintextSink:
    """Return a sink that appends to a file for each stream and direction.

    Files are opened anew for each piece: a capture has more streams than a process has
    descriptors, and pieces are large where there is much to write.
    """
    sides = {Direction.CLIENT_TO_SERVER: "client", Direction.SERVER_TO_CLIENT: "server"}

    def write(stream: int, direction: Direction, data: bytes | bytearray) -> None:
        path = folder / f"{name}-{stream}-{sides[direction]}.bin"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "ab") as file:  # noqa: PTH123 - the descriptor carries the mode
            file.write(data)

    return write


def _load_server_key(path: Path) -> _ServerKey:
    content = _read(path, _MAX_KEY_BYTES)
    try:
        key = load_pem_private_key(content, None)
    except TypeError:
        raise InputError(
            f"{path}: the key is encrypted; decrypt it: openssl pkey -in {path.name} -out FILE"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path}: not a private key in PEM") from None
    if not isinstance(key, _ServerKey):
        raise InputError(f"{path}: not a server's key: TLS servers have RSA, ECDSA or EdDSA keys")
    return key


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if len(content) > limit_bytes:
        raise InputError(f"{path}: larger than {limit_bytes} bytes")
    return content
