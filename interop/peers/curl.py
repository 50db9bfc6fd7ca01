"""curl, the client that most of the world's scripts use.

No configuration file and no proxy is read, trust is the one CA file given, and the URL's host is
the server's name while the connection goes to the address given.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Unpack

from interop.errors import InputError, PeerUnavailable
from interop.peers.endpoints import (
    MAXIMUM_PAYLOAD_BYTES,
    Address,
    ClientOptions,
    ClientResult,
    Negotiated,
    absolute_file,
    address_text,
    check_server_name,
    open_request_body,
    prepare_key_log,
)
from interop.peers.names import (
    group_from_openssl,
    openssl_groups,
    openssl_suites,
    suite_from_openssl,
    version_from_openssl,
)
from interop.peers.processes import last_words, run_to_completion
from interop.peers.programs import Program, find_program

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import IO

__all__ = ["fetch_with_curl", "send_with_curl"]

_RESPONSE_LIMIT_BYTES: Final = MAXIMUM_PAYLOAD_BYTES + (1 << 16)
# The group stands there since curl 8.8.
# Where there is none, as with static RSA, curl says "[blank]".
_NEGOTIATED: Final = re.compile(
    r"^\* SSL connection using (\S+) / (\S+)(?: / ([^\[\s]\S*))?", re.MULTILINE
)
_TARGET: Final = re.compile(r"/[A-Za-z0-9._~/-]*")


def send_with_curl(
    address: Address,
    payload: bytes | Path,
    *,
    target: str = "/upload",
    program: Program | None = None,
    **options: Unpack[ClientOptions],
) -> ClientResult:
    """Send `payload` (at most 64 MiB) as a PUT with curl and take the response.

    A key log is written by the builds of curl that were made with it: the file stays empty else.

    Raises InputError for what cannot be asked, PeerUnavailable if curl is missing or its TLS
    library cannot do what was asked, PeerFailed if the session is not over in time.
    """
    with open_request_body(payload) as (body, _):
        # By this name and not "-": curl must see a file with a length, or it would send chunks.
        url = _url(options["server_name"], address, target)
        request = ["--upload-file", "/dev/stdin", url]
        return _run(program, address, options, request, body)


def fetch_with_curl(
    address: Address,
    target: str,
    *,
    program: Program | None = None,
    **options: Unpack[ClientOptions],
) -> ClientResult:
    """GET `target` with curl; otherwise as `send_with_curl`."""
    url = _url(options["server_name"], address, target)
    return _run(program, address, options, [url], None)


def _url(server_name: str, address: Address, target: str) -> str:
    if _TARGET.fullmatch(target) is None:
        raise InputError(f"{target!r} is not a path that curl would send unchanged")
    return f"https://{address_text((check_server_name(server_name), address[1]))}{target}"


def _arguments(program: Program, address: Address, options: ClientOptions) -> list[str]:
    groups, suites = options.get("groups"), options.get("suites")
    if not program.openssl_version and (groups is not None or suites is not None):
        raise PeerUnavailable("this curl is not built on OpenSSL: it takes no groups or suites")
    arguments = [
        "--disable",  # no configuration file; must be first
        "--silent",
        "--show-error",
        "--verbose",
        "--include",
        "--raw",
        "--globoff",
        "--path-as-is",
        "--http1.1",
        *("--noproxy", "*"),
        *("--header", "Expect:"),
        *("--header", "Connection: close"),
        *("--connect-to", f"::{address_text(address)}"),
        *("--cacert", str(absolute_file(options["ca_file"], "CA file"))),
        *("--capath", "."),  # the private folder, empty: no certificates of the system
    ]
    version = options.get("version")
    if version is not None:
        arguments += [f"--tlsv{version}", "--tls-max", version]
    if groups is not None:
        arguments += ["--curves", openssl_groups(program, groups)]
    older, newer = openssl_suites(suites or (), (version,) if version else None)
    if older:
        arguments += ["--ciphers", older]
    if newer:
        arguments += ["--tls13-ciphers", newer]
    credential = options.get("credential")
    if credential is not None:
        arguments += [
            *("--cert", str(absolute_file(credential.certificate_chain, "client certificate"))),
            *("--key", str(absolute_file(credential.private_key, "client private key"))),
        ]
    return arguments


def _run(
    program: Program | None,
    address: Address,
    options: ClientOptions,
    request: Sequence[str],
    body: IO[bytes] | None,
) -> ClientResult:
    program = program or find_program("curl")
    environment = {}
    key_log = options.get("key_log")
    if key_log is not None:
        environment["SSLKEYLOGFILE"] = str(prepare_key_log(key_log))
    done = run_to_completion(
        program.path,
        [*_arguments(program, address, options), *request],
        stdin=body,
        timeout_seconds=options["timeout_seconds"],
        extra_environment=environment,
        stdout_limit_bytes=_RESPONSE_LIMIT_BYTES,
    )
    negotiated = None
    if match := _NEGOTIATED.search(done.stderr.decode("utf-8", "replace")):
        version, suite, group = match.groups("")
        negotiated = Negotiated(
            version=version_from_openssl(version),
            suite=suite_from_openssl(suite),
            group=group_from_openssl(group),
        )
    return ClientResult(
        program=program,
        exit_code=done.exit_code,
        response=done.stdout,
        stderr_tail=last_words(_without_trace(done.stderr)),
        negotiated=negotiated,
    )


def _without_trace(stderr: bytes) -> bytes:
    """Leave out the lines of ``--verbose``, unless nothing else was said."""
    lines = stderr.splitlines(keepends=True)
    own = b"".join(line for line in lines if line[:2] not in {b"* ", b"{ ", b"} ", b"> ", b"< "})
    return own or stderr
