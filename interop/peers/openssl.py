"""OpenSSL's own command line: `s_client`, and `s_server` in two ways of answering.

`s_client` is made safe for binary payloads by ``-ign_eof`` and ``-nocommands``: without them a line
of the payload that begins with Q or R would end or renegotiate the session. Its request comes from
an unnamed file, so neither side can wait for the other.

`s_server` has no mode that takes a PUT and answers it. Two of its modes are combined with a little
help from this side:

* `run_s_server_files` (``-WWW``) serves the files of a folder to GET, any number of times: payloads
  from server to client.
* `run_s_server_answering` (``-quiet``, which also switches its command letters off) prints what it
  receives and sends what it is given. We read the request from its output, write the answer to its
  input once the request is complete, and then end that input, on which ``-no_ign_eof`` makes it
  close the session properly. End of input can be given once, so this server takes one connection.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, Unpack

from interop.errors import InputError
from interop.peers.endpoints import (
    MAXIMUM_PAYLOAD_BYTES,
    Address,
    ClientOptions,
    ClientResult,
    CredentialFiles,
    Negotiated,
    RunningServer,
    ServerOptions,
    absolute_file,
    address_text,
    check_server_name,
    is_ip_address,
    open_request_body,
    prepare_key_log,
    request_stream,
)
from interop.peers.messages import RequestCollector, ok_response, request_head
from interop.peers.names import (
    TLSVersion,
    group_from_openssl,
    openssl_groups,
    openssl_suites,
    suite_from_openssl,
    version_from_openssl,
)
from interop.peers.processes import (
    ChildProcess,
    Completed,
    completed,
    last_words,
    run_to_completion,
    wait_for_port,
)
from interop.peers.programs import Program, find_program

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

__all__ = [
    "PSK_IDENTITY",
    "AnsweringServer",
    "SClientOptions",
    "exchange_with_s_client",
    "fetch_with_s_client",
    "run_s_server_answering",
    "run_s_server_files",
    "send_with_s_client",
]


class SClientOptions(ClientOptions, total=False):
    """What ``s_client`` can be asked beyond the other clients.

    `session_out` is where it stores the session for later, keys and all; `session_in` one that it
    resumes. `early_data` is a file that it sends as 0-RTT data of a resumed session, before the
    request. `pre_shared_key` is one that the server has under the identity "client".
    """

    session_in: Path | None
    session_out: Path | None
    early_data: Path | None
    pre_shared_key: bytes | None


# s_server reads its input in pieces of its own; one this short it reads, and sends, at once.
_MAXIMUM_ANSWER_BYTES: Final = 4096
PSK_IDENTITY: Final = "client"
_MAXIMUM_CHAIN_DEPTH: Final = 5
_RESPONSE_LIMIT_BYTES: Final = MAXIMUM_PAYLOAD_BYTES + (1 << 16)
_VERSIONS: Final[tuple[TLSVersion, ...]] = ("1.0", "1.1", "1.2", "1.3")


def send_with_s_client(
    address: Address,
    payload: bytes | Path,
    *,
    target: str = "/upload",
    program: Program | None = None,
    **options: Unpack[SClientOptions],
) -> ClientResult:
    """Send `payload` (at most 64 MiB) as a PUT with ``openssl s_client`` and take the response.

    A session whose server cannot be verified sends nothing. The server must close.

    Raises InputError for what cannot be asked, PeerUnavailable if openssl is missing or too old
    for the groups, PeerFailed if the session is not over in time.
    """
    with open_request_body(payload) as (body, length_bytes):
        head = request_head("PUT", target, options["server_name"], length_bytes)
        with request_stream(head, body) as request:
            return _run_client(program, address, options, request)


def fetch_with_s_client(
    address: Address,
    target: str,
    *,
    program: Program | None = None,
    **options: Unpack[SClientOptions],
) -> ClientResult:
    """GET `target` with ``openssl s_client``; otherwise as `send_with_s_client`."""
    head = request_head("GET", target, options["server_name"], 0)
    with open_request_body(head) as (request, _):
        return _run_client(program, address, options, request)


def _run_client(
    program: Program | None, address: Address, options: SClientOptions, request: IO[bytes]
) -> ClientResult:
    program = program or find_program("openssl")
    with _client_arguments(program, address, options) as arguments:
        done = run_to_completion(
            program.path,
            [*arguments, "-ign_eof"],
            stdin=request,
            timeout_seconds=options["timeout_seconds"],
            stdout_limit_bytes=_RESPONSE_LIMIT_BYTES,
        )
    return _client_result(program, done)


def exchange_with_s_client(
    address: Address,
    payload: bytes,
    *,
    response_bytes: int,
    program: Program | None = None,
    **options: Unpack[SClientOptions],
) -> ClientResult:
    """Send `payload` as it is, wait for `response_bytes` in return, and close properly.

    For servers that echo. Otherwise as `send_with_s_client`, except that the client closes.
    """
    program = program or find_program("openssl")
    # Non-blocking: an echo larger than the buffers must be read while the payload is written.
    with (
        _client_arguments(program, address, options) as arguments,
        ChildProcess(
            program.path,
            [*arguments, "-no_ign_eof", "-nbio"],
            stdin="pipe",
            stdout_limit_bytes=_RESPONSE_LIMIT_BYTES,
        ) as child,
    ):
        child.feed(payload)
        child.wait_until(
            lambda: child.stdout_bytes() >= response_bytes or child.exit_code is not None,
            timeout_seconds=options["timeout_seconds"],
            purpose=f"received {response_bytes} bytes",
        )
        child.close_stdin()
        done = completed(child, timeout_seconds=options["timeout_seconds"])
    return _client_result(program, done)


@contextlib.contextmanager
def _client_arguments(
    program: Program, address: Address, options: SClientOptions
) -> Iterator[list[str]]:
    server_name = check_server_name(options["server_name"])
    name_options = (
        ["-noservername", "-verify_ip", server_name]
        if is_ip_address(server_name)
        else ["-servername", server_name, "-verify_hostname", server_name]
    )
    version = options.get("version")
    key_log = options.get("key_log")
    with _credential_arguments(options.get("credential")) as credential_options:
        yield [
            "s_client",
            "-brief",  # prints what was negotiated to stderr, and nothing but the data to stdout
            "-nocommands",
            *("-connect", address_text(address)),
            *name_options,
            "-verify_return_error",
            *("-CAfile", str(absolute_file(options["ca_file"], "CA file"))),
            "-no-CApath",
            "-no-CAstore",
            *_shared_arguments(
                program,
                (version,) if version else None,
                options.get("groups"),
                options.get("suites"),
            ),
            *credential_options,
            *_key_log_arguments(key_log),
            *_resumption_arguments(options),
        ]


def _resumption_arguments(options: SClientOptions) -> list[str]:
    arguments = []
    if (stored := options.get("session_out")) is not None:
        arguments += ["-sess_out", str(stored.absolute())]
    if (shown := options.get("session_in")) is not None:
        arguments += ["-sess_in", str(absolute_file(shown, "stored session"))]
    if (early := options.get("early_data")) is not None:
        arguments += ["-early_data", str(absolute_file(early, "early data"))]
    if (key := options.get("pre_shared_key")) is not None:
        arguments += ["-psk_identity", PSK_IDENTITY, "-psk", key.hex(), "-allow_no_dhe_kex"]
    return arguments


@contextlib.contextmanager
def _credential_arguments(credential: CredentialFiles | None) -> Iterator[list[str]]:
    """Spell a credential; the program wants the chain without its leaf, in a file of its own."""
    if credential is None:
        yield []
        return
    chain = absolute_file(credential.certificate_chain, "certificate chain")
    key = absolute_file(credential.private_key, "private key")
    arguments = ["-cert", str(chain), "-key", str(key)]
    end = b"-----END CERTIFICATE-----"
    _, _, above_leaf = chain.read_bytes().partition(end)
    if end not in above_leaf:
        yield arguments
        return
    with tempfile.NamedTemporaryFile(prefix="pfs-peer-", suffix=".pem") as intermediates:
        intermediates.write(above_leaf)
        intermediates.flush()
        yield [*arguments, "-cert_chain", intermediates.name]


def _client_trust_arguments(client_ca_file: Path | None) -> list[str]:
    if client_ca_file is None:
        return ["-no-CAfile"]
    ca_file = str(absolute_file(client_ca_file, "client CA file"))
    return ["-Verify", str(_MAXIMUM_CHAIN_DEPTH), "-verify_return_error", "-CAfile", ca_file]


def _key_log_arguments(key_log: Path | None) -> list[str]:
    return [] if key_log is None else ["-keylogfile", str(prepare_key_log(key_log))]


def _shared_arguments(
    program: Program,
    versions: Sequence[TLSVersion] | None,
    groups: Iterable[str] | None,
    suites: Iterable[str] | None,
) -> list[str]:
    """Spell what `s_client` and `s_server` say the same way."""
    arguments: list[str] = []
    if versions is not None:
        ordered = sorted(_VERSIONS.index(version) for version in versions)
        if not ordered or ordered != list(range(ordered[0], ordered[-1] + 1)):
            raise InputError("versions must be one or several neighbours of 1.0, 1.1, 1.2, 1.3")
        arguments += ["-min_protocol", f"TLSv{_VERSIONS[ordered[0]]}".removesuffix(".0")]
        arguments += ["-max_protocol", f"TLSv{_VERSIONS[ordered[-1]]}".removesuffix(".0")]
    if groups is not None:
        arguments += ["-groups", openssl_groups(program, groups)]
    older, newer = openssl_suites(suites or (), versions)
    if older:
        arguments += ["-cipher", older]
    if newer:
        arguments += ["-ciphersuites", newer]
    return arguments


def _client_result(program: Program, done: Completed) -> ClientResult:
    text = done.stderr.decode("utf-8", "replace")
    version = re.search(r"^Protocol version: (\S+)", text, re.MULTILINE)
    suite = re.search(r"^Ciphersuite: (\S+)", text, re.MULTILINE)
    group = re.search(
        r"^(?:Server|Peer) Temp Key: (?:ECDH, )?([^,\s]+)|^Negotiated TLS1\.3 group: (\S+)",
        text,
        re.MULTILINE,
    )
    negotiated = None
    if version is not None and suite is not None:
        negotiated = Negotiated(
            version=version_from_openssl(version[1]),
            suite=suite_from_openssl(suite[1]),
            group=group_from_openssl(group[1] or group[2]) if group else "",
        )
    return ClientResult(
        program=program,
        exit_code=done.exit_code,
        response=done.stdout,
        stderr_tail=last_words(done.stderr),
        negotiated=negotiated,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweringServer(RunningServer):
    """An `s_server` that answers the first request it gets, and then ends."""

    collector: RequestCollector

    def wait_request(self, *, timeout_seconds: float) -> RequestCollector:
        """Wait until the request is complete and the session over; raises PeerFailed otherwise."""
        self.child.wait_exit(timeout_seconds=timeout_seconds)
        if not self.collector.complete:
            problem = self.collector.problem or "ended before the request was complete"
            raise self.child.failure(problem)
        return self.collector


@contextlib.contextmanager
def _server_arguments(program: Program, options: ServerOptions) -> Iterator[list[str]]:
    # -no_ticket alone means stateful tickets in TLS 1.3, not none.
    no_tickets = [] if options.tickets else ["-no_ticket", "-num_tickets", "0", "-no_cache"]
    with _credential_arguments(options.credential) as credential_options:
        yield [
            "s_server",
            *("-accept", "127.0.0.1:0"),
            *credential_options,
            *_client_trust_arguments(options.client_ca_file),
            "-no-CApath",
            "-no-CAstore",
            *_shared_arguments(program, options.versions, options.groups, options.suites),
            *no_tickets,
            *_key_log_arguments(options.key_log),
        ]


@contextlib.contextmanager
def run_s_server_files(
    options: ServerOptions, folder: Path, *, program: Program | None = None
) -> Iterator[RunningServer]:
    """Serve the files of `folder` to GET with ``openssl s_server -WWW`` while the block runs.

    Raises PeerUnavailable, InputError, or PeerFailed with its last words if it does not start.
    """
    program = program or find_program("openssl")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    with (
        _server_arguments(program, options) as arguments,
        ChildProcess(
            program.path, [*arguments, "-WWW"], working_directory=folder.absolute()
        ) as child,
    ):
        port = wait_for_port(child, timeout_seconds=options.start_seconds)
        yield RunningServer(
            program=program,
            address=("127.0.0.1", port),
            key_log=options.key_log,
            child=child,
        )


@contextlib.contextmanager
def run_s_server_answering(
    options: ServerOptions, response_body: bytes = b"received", *, program: Program | None = None
) -> Iterator[AnsweringServer]:
    """Take one request (body at most 64 MiB) with ``openssl s_server`` and answer it with 200.

    `response_body` is short: with its head it must fit 4096 bytes. Raises as `run_s_server_files`.
    """
    program = program or find_program("openssl")
    answer = ok_response(response_body)
    if len(answer) > _MAXIMUM_ANSWER_BYTES:
        raise InputError(f"an answer of {len(answer)} bytes is more than {_MAXIMUM_ANSWER_BYTES}")
    collector = RequestCollector()

    def on_stdout(data: bytes) -> None:
        was_finished = collector.finished
        collector.receive(data)
        if collector.finished and not was_finished:
            child.feed(answer if collector.complete else b"", then_close=True)

    with _server_arguments(program, options) as arguments:
        child = ChildProcess(
            program.path,
            [*arguments, "-quiet", "-no_ign_eof", "-naccept", "1"],
            stdin="pipe",
            on_stdout=on_stdout,
        )
        with child:
            port = wait_for_port(child, timeout_seconds=options.start_seconds)
            yield AnsweringServer(
                program=program,
                address=("127.0.0.1", port),
                key_log=options.key_log,
                child=child,
                collector=collector,
            )
