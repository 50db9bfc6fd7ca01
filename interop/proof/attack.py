"""`pfs attack`: the attacker on capture files, anyone's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from interop.capture.files import CaptureProblem, read_streams
from interop.capture.items import SECRETS_TYPE_TLS_KEY_LOG, DecryptionSecrets
from interop.direction import Direction
from interop.proof.attacker import Attacker, PlaintextSink, SessionResult, discard
from interop.proof.directory import shown_path
from interop.proof.results import ResultFile
from interop.proof.stolen import Problem
from interop.wire.key_log import KeyLog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from interop.wire.session import KeyMaterial

__all__ = ["AttackReport", "AttackedSession", "attack_captures"]


class AttackedSession(SessionResult, frozen=True, kw_only=True):
    """What came of one session, and which capture it is in."""

    capture: str


class AttackReport(NamedTuple):
    """What came of attacking some captures; the sessions are on disk, see `results`."""

    sessions: ResultFile
    problems: tuple[Problem, ...]


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
    sessions = ResultFile(AttackedSession)
    problems: list[Problem] = []
    for number, path in enumerate(captures, start=1):

        def settle(result: SessionResult, number: int = number, path: Path = path) -> None:
            facts = msgspec.structs.asdict(result)
            sessions.add(number, AttackedSession(capture=shown_path(path), **facts))

        sink: PlaintextSink = discard
        if plaintext is not None:
            prefix = f"{number}-" if len(captures) > 1 else ""
            sink = _writer(plaintext, f"{prefix}{path.name}")
        attacker = Attacker(keys, sink, settle)
        for event in read_streams(path):
            match event:
                case CaptureProblem(packet_number=packet, message=message):
                    where = "" if packet is None else f"packet {packet}: "
                    problems.append(Problem(shown_path(path), f"{where}{message}"))
                case DecryptionSecrets(secrets_type=kind, data=data):
                    if use_secrets_blocks and kind == SECRETS_TYPE_TLS_KEY_LOG:
                        attacker.add_key_log(KeyLog.parse(data))
                case _:
                    attacker.feed(event)
        attacker.finish()
    return AttackReport(sessions, tuple(problems))


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
