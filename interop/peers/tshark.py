"""tshark, the second opinion: an independent reader and decryptor of captures.

Three things about tshark 4 shape this module. It guesses protocols by port before it looks at the
bytes, so a session on a port that some protocol registered is not seen as TLS: heuristics are asked
for first. It takes a segment that another overtook for lost, and what follows it for undecryptable,
unless it is told to put segments in order; even on loopback a recorder sees some overtaken. And the
two nodes of its ``follow,tls`` output are in the order of the first *decrypted* data, which in
TLS 1.3 comes from the server: who is the client is read from the ClientHello.

HOME is private and empty, so nobody's preferences, key logs or plugins take part.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from interop.errors import InputError
from interop.peers.endpoints import Address, absolute_file
from interop.peers.processes import Completed, PeerFailed, last_words, run_to_completion
from interop.peers.programs import Program, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "CaptureIssue",
    "DecryptedStream",
    "decrypt_with_tshark",
    "tshark_version",
    "validate_capture",
]

_DEFAULT_TIMEOUT_SECONDS: Final = 300.0
_LISTING_LIMIT_BYTES: Final = 64 << 20
_STREAMS_A_RUN: Final = 100
_BAD_CAPTURE_EXIT_CODES: Final = frozenset({2, 3})  # before Wireshark 4.2, and since
_SEPARATOR: Final = "\x1f"

_SEVERITIES: Final = {
    0x00100000: "comment",
    0x00200000: "chat",
    0x00400000: "note",
    0x00600000: "warning",
    0x00800000: "error",
}
_SEVERITY_MASK: Final = 0x00F00000
_WARNING: Final = 0x00600000
_GROUPS: Final = {
    0x01: "checksum",
    0x02: "sequence",
    0x03: "response",
    0x04: "request",
    0x05: "undecoded",
    0x06: "reassembly",
    0x07: "malformed",
    0x08: "debug",
    0x09: "protocol",
    0x0A: "security",
    0x0B: "comments",
    0x0C: "decryption",
    0x0D: "assumption",
    0x0E: "deprecated",
    0x0F: "receive",
    0x10: "interface",
}


@dataclass(slots=True)
class DecryptedStream:
    """One TLS session as tshark read it; the plaintext is empty where it could not decrypt.

    `index` is tshark's number of the TCP stream, in order of first appearance.
    """

    index: int
    client: Address
    server: Address
    client_to_server: bytes = field(default=b"", repr=False)
    server_to_client: bytes = field(default=b"", repr=False)

    @property
    def opened(self) -> bool:
        """Say whether any application data was decrypted."""
        return bool(self.client_to_server or self.server_to_client)


@dataclass(frozen=True, slots=True)
class CaptureIssue:
    """Something that tshark finds wrong: `frame` counts from 1, None for the file as a whole."""

    frame: int | None
    severity: str
    group: str
    message: str


def tshark_version(program: Program | None = None) -> tuple[int, ...]:
    """Give the version of the tshark installed; raises PeerUnavailable if there is none."""
    return (program or find_program("tshark")).version


def decrypt_with_tshark(
    capture: Path,
    *,
    key_log: Path | None = None,
    rsa_key: Path | None = None,
    listed: Sequence[DecryptedStream] | None = None,
    timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS,
    program: Program | None = None,
) -> list[DecryptedStream]:
    """Decrypt the TLS sessions of `capture`, in their order, with what was stolen.

    `key_log` is a key log file, `rsa_key` an unencrypted PEM file; the secrets blocks of a pcapng
    are used without being asked for. A session that does not open is in the list, empty. Only
    sessions whose ClientHello is in the capture are. Where the same capture was read before,
    `listed` (what came of it) spares tshark half of its work.

    Raises InputError for a capture or key that tshark cannot read, PeerUnavailable, PeerFailed.
    """
    program = program or find_program("tshark")
    with tempfile.TemporaryDirectory(prefix="pfs-tshark-") as folder:
        options = _reading(absolute_file(capture, "capture"))
        if key_log is not None:
            options += ["-o", f"tls.keylog_file:{absolute_file(key_log, 'key log')}"]
        if rsa_key is not None:
            # A name of our own: tshark's table of keys has a quoting that paths can break.
            alias = Path(folder, "rsa.key")
            alias.symlink_to(absolute_file(rsa_key, "RSA key"))
            options += ["-o", f'uat:rsa_keys:"{alias}",""']
        if listed is None:
            streams = _list_streams(program, options, timeout_seconds)
        else:
            streams = {
                known.index: DecryptedStream(known.index, known.client, known.server)
                for known in listed
            }
        indexes = list(streams)
        for start in range(0, len(indexes), _STREAMS_A_RUN):
            follow = [
                f"follow,tls,raw,{index}" for index in indexes[start : start + _STREAMS_A_RUN]
            ]
            arguments = [*options, "-q", *(part for one in follow for part in ("-z", one))]
            with Path(folder, "follow").open("w+b") as output:
                _run(program, arguments, timeout_seconds, stdout_file=output)
                output.seek(0)
                _read_follow(output, streams)
    return list(streams.values())


def _reading(capture: Path) -> list[str]:
    return [
        *("-n", "-r", str(capture)),
        *("-o", "tcp.try_heuristic_first:TRUE"),
        *("-o", "tcp.reassemble_out_of_order:TRUE"),
        # What is inside does not matter here, and reassembling large messages is slow.
        *("--disable-protocol", "http", "--disable-protocol", "http2"),
    ]


def _list_streams(
    program: Program, options: Sequence[str], timeout_seconds: float
) -> dict[int, DecryptedStream]:
    fields = (
        "tcp.stream",
        "ip.src",
        "ipv6.src",
        "tcp.srcport",
        "ip.dst",
        "ipv6.dst",
        "tcp.dstport",
    )
    chosen = [part for name in fields for part in ("-e", name)]
    arguments = [*options, "-Y", "tls.handshake.type == 1", "-T", "fields", *chosen]
    done = _run(program, [*arguments, "-E", "occurrence=f"], timeout_seconds)
    streams: dict[int, DecryptedStream] = {}
    for line in done.stdout.decode("ascii", "replace").splitlines():
        columns = line.split("\t")
        if len(columns) != len(fields):
            raise PeerFailed(f"tshark printed {len(columns)} columns instead of {len(fields)}")
        number, source4, source6, source_port, to4, to6, to_port = columns
        index = int(number)
        client, server = (source4 or source6, int(source_port)), (to4 or to6, int(to_port))
        streams.setdefault(index, DecryptedStream(index, client, server))
    return streams


def _read_follow(output: IO[bytes], streams: dict[int, DecryptedStream]) -> None:
    """Read the blocks of ``follow,tls,raw``: a head with the nodes, then hex, node 1's indented."""
    stream: DecryptedStream | None = None
    pieces: dict[bool, list[bytes]] = {}
    first_is_client = True

    def store() -> None:
        if stream is not None:
            stream.client_to_server = b"".join(pieces[first_is_client])
            stream.server_to_client = b"".join(pieces[not first_is_client])

    for raw in output:
        line = raw.rstrip(b"\r\n")
        if match := re.fullmatch(rb"Filter: tcp\.stream eq (\d+)", line):
            store()
            stream = streams[int(match[1])]
            pieces = {True: [], False: []}
        elif match := re.fullmatch(rb"Node 0: .*:(\d+)", line):
            first_is_client = stream is not None and int(match[1]) == stream.client[1]
        elif stream is not None and re.fullmatch(rb"\t?[0-9a-f]+", line):
            # True: sent by node 0.
            pieces[not line.startswith(b"\t")].append(bytes.fromhex(line.strip().decode("ascii")))
    store()


def validate_capture(
    capture: Path,
    *,
    check_checksums: bool = False,
    timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS,
    program: Program | None = None,
) -> list[CaptureIssue]:
    """List what tshark finds wrong in `capture`, warnings and errors, in the order of its frames.

    Captures of a real interface often hold checksums that hardware was to fill in; those that are
    written packet by packet should be right, which `check_checksums` (TCP and IPv4) makes sure of.
    A capture that ends in the middle of a packet is an issue; raises InputError for one that
    tshark cannot read at all.
    """
    program = program or find_program("tshark")
    options = [
        *("-n", "-r", str(absolute_file(capture, "capture"))),
        *("-o", "tcp.try_heuristic_first:TRUE"),
    ]
    if check_checksums:
        options += ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    names = ("frame.number", "_ws.expert.severity", "_ws.expert.group", "_ws.expert.message")
    chosen = [part for name in names for part in ("-e", name)]
    arguments = [*options, "-Y", f"_ws.expert.severity >= {_WARNING}", "-T", "fields", *chosen]
    arguments += ["-E", f"aggregator={_SEPARATOR}", "-E", "occurrence=a"]
    done = run_to_completion(
        program.path,
        arguments,
        timeout_seconds=timeout_seconds,
        stdout_limit_bytes=_LISTING_LIMIT_BYTES,
    )
    issues = list(_read_issues(done.stdout.decode("utf-8", "replace")))
    if done.exit_code != 0:
        message = _complaint(done)
        if "cut short" not in message:
            raise InputError(message)
        issues.append(CaptureIssue(None, "error", "file", message))
    return issues


def _read_issues(text: str) -> Iterator[CaptureIssue]:
    for line in text.splitlines():
        frame, severities, groups, messages = line.split("\t", 3)
        columns = (column.split(_SEPARATOR) for column in (severities, groups, messages))
        for severity_text, group_text, message in zip(*columns, strict=True):
            severity, group = int(severity_text, 0), int(group_text, 0)
            if severity & _SEVERITY_MASK >= _WARNING:
                yield CaptureIssue(
                    int(frame),
                    _SEVERITIES.get(severity & _SEVERITY_MASK, hex(severity)),
                    _GROUPS.get(group >> 24, hex(group)),
                    message,
                )


def _run(
    program: Program,
    arguments: Sequence[str],
    timeout_seconds: float,
    *,
    stdout_file: IO[bytes] | None = None,
) -> Completed:
    done = run_to_completion(
        program.path,
        arguments,
        timeout_seconds=timeout_seconds,
        stdout_file=stdout_file,
        stdout_limit_bytes=_LISTING_LIMIT_BYTES,
    )
    complaint = _complaint(done)
    if done.exit_code in _BAD_CAPTURE_EXIT_CODES or "rsa_privkeys" in complaint:
        raise InputError(complaint)
    if done.exit_code != 0:
        raise PeerFailed(f"tshark ended with exit code {done.exit_code}: {complaint}")
    return done


def _complaint(done: Completed) -> str:
    """Give what tshark complains of, without its remark about who runs it."""
    lines = done.stderr.splitlines()
    return last_words(b"\n".join(line for line in lines if not line.startswith(b"Running as user")))
