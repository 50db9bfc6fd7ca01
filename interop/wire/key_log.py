"""Reading key logs: the SSLKEYLOGFILE format (RFC 9850), as programs really write it.

A key log is appended to by several programs at once, edited by people, and cut off by crashes. So
line ends of every kind, mixed-case hex, comments, blank lines, unknown labels and a byte order
mark are all read; a damaged line becomes a `KeyLogProblem` with its number, an unknown label is
named, and every other line counts. Nothing else that is read here appears in a repr or in a
problem's text: the lines are secrets.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["KeyLog", "KeyLogProblem"]

MAX_LINE_LENGTH = 4096  # in bytes; the longest line of RFC 9850 is an ECH_CONFIG
MAX_PROBLEMS = 1000  # kept; more are counted only

_RANDOM_LENGTH = 32
_MAIN_SECRET_LENGTHS = (48,)
_TRAFFIC_SECRET_LENGTHS = (32, 48)  # of the hashes that TLS 1.3 suites use
_LABELS = {
    "CLIENT_RANDOM": _MAIN_SECRET_LENGTHS,
    "CLIENT_EARLY_TRAFFIC_SECRET": _TRAFFIC_SECRET_LENGTHS,
    "CLIENT_HANDSHAKE_TRAFFIC_SECRET": _TRAFFIC_SECRET_LENGTHS,
    "SERVER_HANDSHAKE_TRAFFIC_SECRET": _TRAFFIC_SECRET_LENGTHS,
    "EARLY_EXPORTER_SECRET": _TRAFFIC_SECRET_LENGTHS,
    "EXPORTER_SECRET": _TRAFFIC_SECRET_LENGTHS,
}
# What programs write beside that, and nobody here needs: OpenSSL does the premaster secret of RSA,
# and secrets of later generations, which do not say which.
_UNUSED_LABELS = (
    "RSA",
    "CLIENT_TRAFFIC_SECRET_N",
    "SERVER_TRAFFIC_SECRET_N",
    "ECH_SECRET",
    "ECH_CONFIG",
)
_GENERATION_LABEL = re.compile(r"(?:CLIENT|SERVER)_TRAFFIC_SECRET_[0-9]{1,6}")
_LABEL = re.compile(r"[A-Z][A-Z0-9_]*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIELDS = 3
_NO_LABEL = "no label at the start of the line"


@dataclass(frozen=True, slots=True)
class KeyLogProblem:
    """A line that could not be used; lines are numbered from 1."""

    line_number: int
    reason: str


class _Damaged(Exception):
    """Why a line cannot be used."""


class _UnknownLabel(Exception):
    """A label that is none of those above."""


def _lengths_of(label: str) -> tuple[int, ...]:
    """Say how long a secret of this label may be; nothing for one that nobody needs."""
    if _GENERATION_LABEL.fullmatch(label):
        return _TRAFFIC_SECRET_LENGTHS
    if (lengths := _LABELS.get(label)) is not None:
        return lengths
    if label in _UNUSED_LABELS:
        return ()
    if "_" not in label:  # as likely a secret without a label, which is not to be shown
        raise _Damaged(_NO_LABEL)
    raise _UnknownLabel(label)


def _parse_line(line: bytes) -> tuple[str, bytes, bytes] | None:
    """Take a line apart: label, client random, secret; None where there is nothing to take."""
    if len(line) > MAX_LINE_LENGTH:
        raise _Damaged(f"longer than {MAX_LINE_LENGTH} bytes")
    fields = line.split()
    if not fields or fields[0].startswith(b"#"):
        return None
    try:
        label = fields[0].decode("ascii")
    except UnicodeDecodeError:
        raise _Damaged("the label is not ASCII") from None
    if not _LABEL.fullmatch(label):
        raise _Damaged(_NO_LABEL)
    lengths = _lengths_of(label)
    if not lengths:
        return None
    if len(fields) != _FIELDS:
        raise _Damaged(f"{label} takes a client random and a secret, {len(fields) - 1} found")
    try:
        client_random, secret = unhexlify(fields[1]), unhexlify(fields[2])
    except ValueError:
        raise _Damaged(f"{label}: not whole bytes in hexadecimal") from None
    if len(client_random) != _RANDOM_LENGTH:
        raise _Damaged(f"{label}: a client random has 32 bytes, this one {len(client_random)}")
    if len(secret) not in lengths:
        wanted = " or ".join(map(str, lengths))
        raise _Damaged(f"{label}: a secret of {len(secret)} bytes, {wanted} expected")
    return label, client_random, secret


class KeyLog(Mapping[bytes, Mapping[str, bytes]]):
    """Secrets by client random, then by label.

    `problems` holds the damaged lines (at most `MAX_PROBLEMS`), `problem_count` how many there
    were. `unknown_labels` tells in which line each label came first that is not known; only `parse`
    fills it.
    """

    def __init__(
        self,
        secrets: Mapping[bytes, Mapping[str, bytes]] | None = None,
        problems: tuple[KeyLogProblem, ...] = (),
        problem_count: int | None = None,
    ) -> None:
        self._secrets: dict[bytes, Mapping[str, bytes]] = {
            client_random: MappingProxyType(dict(labels))
            for client_random, labels in (secrets or {}).items()
        }
        self.unknown_labels: dict[str, int] = {}
        self.problems = problems
        self.problem_count = len(problems) if problem_count is None else problem_count

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview | str) -> KeyLog:
        """Read a key log (RFC 9850 section 2). Never raises: see `problems`.

        A line repeated is taken once. Of two lines that disagree the first counts, the second is
        a problem.
        """
        raw = data.encode("utf-8", "replace") if isinstance(data, str) else bytes(data)
        secrets: dict[bytes, dict[str, bytes]] = {}
        problems: list[KeyLogProblem] = []
        unknown_labels: dict[str, int] = {}
        count = 0
        for number, line in enumerate(raw.removeprefix(_BYTE_ORDER_MARK).splitlines(), start=1):
            try:
                if (parsed := _parse_line(line)) is None:
                    continue
                label, client_random, secret = parsed
                if secrets.setdefault(client_random, {}).setdefault(label, secret) != secret:
                    raise _Damaged(f"{label}: contradicts an earlier line for this client random")  # noqa: TRY301 - one way to report
            except _UnknownLabel as label:
                if len(unknown_labels) < MAX_PROBLEMS:
                    unknown_labels.setdefault(str(label), number)
            except _Damaged as damage:
                count += 1
                if count <= MAX_PROBLEMS:
                    problems.append(KeyLogProblem(number, str(damage)))
        log = cls(secrets, tuple(problems), count)
        log.unknown_labels = unknown_labels
        return log

    def __getitem__(self, client_random: bytes) -> Mapping[str, bytes]:
        return self._secrets[client_random]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._secrets)

    def __len__(self) -> int:
        return len(self._secrets)

    def __or__(self, other: KeyLog) -> KeyLog:
        """Put two key logs together; where they disagree, the left one counts."""
        merged = {client_random: dict(labels) for client_random, labels in other.items()}
        for client_random, labels in self.items():
            merged.setdefault(client_random, {}).update(labels)
        count = self.problem_count + other.problem_count
        return KeyLog(merged, self.problems + other.problems, count)

    def copy(self) -> KeyLog:
        """Return another key log of the same secrets, to `add` to."""
        copied = KeyLog(None, self.problems, self.problem_count)
        copied._secrets = self._secrets.copy()
        return copied

    def add(self, other: KeyLog) -> None:
        """Take another key log's secrets in as well; where they disagree, the own ones count.

        For a log that grows a little at a time: `|` copies all that came before.
        """
        for client_random, labels in other.items():
            own = self._secrets.get(client_random, {})
            self._secrets[client_random] = MappingProxyType({**labels, **own})
        self.problems = (self.problems + other.problems)[:MAX_PROBLEMS]
        self.problem_count += other.problem_count

    def __repr__(self) -> str:
        lines = sum(map(len, self._secrets.values()))
        return f"KeyLog({len(self)} sessions, {lines} secrets, {self.problem_count} problems)"
