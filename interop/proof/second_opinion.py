"""tshark as the second opinion on the matrix: the same captures, the same stolen files.

tshark reads key logs and RSA keys; what else is stolen it cannot be asked about, which becomes the
reason of an opinion. For each theft it reads all captures in one go, one behind the other (pcapng
sections may follow each other), for starting it costs more than its work does. A session that it
opens so and our attacker did not is tried again alone, because from a neighbouring session tshark
may have learnt more than was stolen.

All of it is bounded: by `LIMIT_SECONDS`, and by the size of the captures. What tshark cannot do in
that is not asked, with that reason; nothing here fails a run because of tshark's shortcomings.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from interop.errors import InputError, PeerUnavailable
from interop.peers.processes import PeerFailed
from interop.peers.programs import find_program, format_version
from interop.peers.tshark import DecryptedStream, decrypt_with_tshark
from interop.proof import layout
from interop.proof.application import payload_in
from interop.proof.directory import read_bounded
from interop.proof.opinions import Opinion, SecondOpinion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interop.peers.programs import Program
    from interop.proof.model import Cell, Session, Theft

__all__ = ["LIMIT_SECONDS", "PROGRAM", "ask", "not_run"]

PROGRAM = "tshark"
LIMIT_SECONDS = 60.0
_MAX_CAPTURE_BYTES = 64 * 1024 * 1024
_MAX_KEY_BYTES = 1024 * 1024


class _Unanswered(Exception):
    """Why tshark gave no answer."""


def not_run(reason: str) -> SecondOpinion:
    """Return the opinion of a run that did not ask."""
    return SecondOpinion(program=PROGRAM, version=None, reason=reason)


def ask(
    directory: Path,
    sessions: Sequence[Session],
    thefts: Sequence[Theft],
    cells: Sequence[Cell],
    *,
    payload_bytes: int,
    payload_sha256: str,
    limit_seconds: float = LIMIT_SECONDS,
) -> SecondOpinion:
    """Ask tshark about every cell of the evidence in `directory`."""
    try:
        program = find_program(PROGRAM)
    except PeerUnavailable as error:
        return not_run(str(error))
    with tempfile.TemporaryDirectory(prefix="pfs-opinion-") as private:
        asking = _Asking(
            directory,
            sessions,
            Path(private),
            program,
            payload=(payload_bytes, payload_sha256),
            deadline=time.monotonic() + limit_seconds,
        )
        closed = {(cell.session, cell.stolen) for cell in cells if cell.observed == "closed"}
        asking.join_captures()
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a program of its own
            rows = pool.map(lambda theft: asking.opinions_on(theft, closed), thefts)
            opinions = tuple(opinion for row in rows for opinion in row)
    return SecondOpinion(
        program=PROGRAM, version=format_version(program.version), opinions=opinions
    )


class _Asking:
    """One round of questions, under one deadline."""

    def __init__(
        self,
        directory: Path,
        sessions: Sequence[Session],
        private: Path,
        program: Program,
        *,
        payload: tuple[int, str],
        deadline: float,
    ) -> None:
        self._directory = directory
        self._sessions = sessions
        self._private = private
        self._program = program
        self._payload = payload
        self._deadline = deadline
        self._all_captures: Path | None = None
        self._listed: list[DecryptedStream] | None = None  # by whichever row is the first

    def join_captures(self) -> None:
        """Make the one file of all captures, if they are not too large; do this first."""
        with suppress(_Unanswered):
            self._captures()

    def opinions_on(self, theft: Theft, closed: set[tuple[str, str]]) -> list[Opinion]:
        """Return the opinions on one row, in the order of the sessions."""
        try:
            key_log, rsa_keys = self._usable(theft)
            opinions = []
            for session, stream in zip(
                self._sessions, self._read_all(key_log, rsa_keys), strict=True
            ):
                read = stream
                if stream.opened and (session.name, theft.name) in closed:
                    capture = self._directory / session.capture
                    read = (self._decrypt(capture, key_log, rsa_keys) or [stream])[0]
                opinions.append(self._opinion(session, theft, read))
        except _Unanswered as unanswered:
            return [
                Opinion(
                    session=session.name,
                    stolen=theft.name,
                    observed=None,
                    reason=str(unanswered),
                )
                for session in self._sessions
            ]
        return opinions

    def _read_all(self, key_log: Path | None, rsa_keys: list[Path]) -> list[DecryptedStream]:
        """Let tshark read all captures at once; one stream a session, in their order."""
        streams = self._decrypt(self._captures(), key_log, rsa_keys, listed=self._listed)
        if len(streams) != len(self._sessions):
            raise _Unanswered(f"{PROGRAM} does not see each capture as one session")
        self._listed = streams
        return streams

    def _opinion(self, session: Session, theft: Theft, stream: DecryptedStream) -> Opinion:
        payload = payload_in(stream.client_to_server)
        length_bytes, sha256 = self._payload
        return Opinion(
            session=session.name,
            stolen=theft.name,
            observed="opened" if stream.opened else "closed",
            recovered_bytes=len(payload),
            whole=len(payload) == length_bytes
            and hmac.compare_digest(hashlib.sha256(payload).hexdigest(), sha256),
        )

    def _usable(self, theft: Theft) -> tuple[Path | None, list[Path]]:
        """Return what tshark can use of a theft: one key log, and RSA keys."""
        if not theft.files:
            raise _Unanswered("the key is not in the evidence")
        paths = [self._directory / file for file in theft.files]
        if all(path.name.endswith(layout.KEY_LOG_SUFFIX) for path in paths):
            if len(paths) == 1:
                return paths[0], []
            joined = self._private / f"{theft.name.replace(':', '-')}{layout.KEY_LOG_SUFFIX}"
            joined.write_bytes(b"".join(read_bounded(path, _MAX_KEY_BYTES) for path in paths))
            return joined, []
        if all(path.name.endswith(layout.SERVER_KEY_SUFFIX) for path in paths):
            rsa_keys = [path for path in paths if _is_rsa(path)]
            if rsa_keys:
                return None, rsa_keys
            raise _Unanswered(f"of private keys {PROGRAM} can use those for RSA only")
        raise _Unanswered(f"{PROGRAM} can use key logs and RSA keys, and this is neither")

    def _captures(self) -> Path:
        """Return all sessions' captures in one file."""
        if self._all_captures is None:
            paths = [self._directory / session.capture for session in self._sessions]
            if sum(path.stat().st_size for path in paths) > _MAX_CAPTURE_BYTES:
                limit = _MAX_CAPTURE_BYTES // (1024 * 1024)
                raise _Unanswered(f"the captures are larger than {limit} MiB together")
            joined = self._private / "all.pcapng"
            with joined.open("wb") as file:
                for path in paths:
                    file.write(path.read_bytes())
            self._all_captures = joined
        return self._all_captures

    def _decrypt(
        self,
        capture: Path,
        key_log: Path | None,
        rsa_keys: list[Path],
        *,
        listed: list[DecryptedStream] | None = None,
    ) -> list[DecryptedStream]:
        """Let tshark read `capture`; with several keys, each session as the first that opens it."""
        best: list[DecryptedStream] = []
        for rsa_key in rsa_keys or (None,):
            remaining = self._deadline - time.monotonic()
            if remaining <= 0:
                raise _Unanswered(f"{PROGRAM} was not done with the others in time")
            try:
                found = decrypt_with_tshark(
                    capture,
                    key_log=key_log,
                    rsa_key=rsa_key,
                    listed=listed,
                    timeout_seconds=remaining,
                    program=self._program,
                )
            except (PeerFailed, InputError) as error:
                # Its own words may hold paths of this machine, which are nobody's business.
                raise _Unanswered(f"{PROGRAM} failed at it, or was not done in time") from error
            best = [
                mine if mine.opened else other
                for mine, other in zip(best or found, found, strict=True)
            ]
        return best


def _is_rsa(path: Path) -> bool:
    return isinstance(load_pem_private_key(read_bounded(path, _MAX_KEY_BYTES), None), RSAPrivateKey)
