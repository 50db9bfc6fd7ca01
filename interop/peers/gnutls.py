"""GnuTLS's test server: the stack that shares no line with OpenSSL.

`gnutls-serv` cannot bind to one address: it listens on every interface, on a port the kernel
chooses, for as long as the block runs; nothing but our clients is told where.

Its echo mode is for text: it reads lines as commands and stops at NUL bytes. Payloads of any bytes
travel from server to client, as the data of an HTTP response.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from interop.errors import InputError
from interop.peers.endpoints import (
    MAXIMUM_PAYLOAD_BYTES,
    RunningServer,
    ServerOptions,
    absolute_file,
    prepare_key_log,
)
from interop.peers.names import gnutls_priority
from interop.peers.processes import ChildProcess, wait_for_port
from interop.peers.programs import Program, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["run_gnutls_echo", "run_gnutls_http"]


@contextlib.contextmanager
def run_gnutls_http(
    options: ServerOptions,
    body: bytes,
    *,
    pre_shared_keys: Path | None = None,
    program: Program | None = None,
) -> Iterator[RunningServer]:
    """Answer every GET with `body` (at most 64 MiB) with ``gnutls-serv --http`` in this block.

    With `pre_shared_keys`, a file of lines ``identity:hex``, it takes clients that have one of
    them, and no key exchange beside it: psk_ke in TLS 1.3. Only experiments ask for that.

    Raises PeerUnavailable, InputError, or PeerFailed with its last words if it does not start.
    """
    if len(body) > MAXIMUM_PAYLOAD_BYTES:
        raise InputError(f"a body of {len(body)} bytes is more than {MAXIMUM_PAYLOAD_BYTES}")
    with tempfile.TemporaryDirectory(prefix="pfs-peer-") as folder:
        data = Path(folder, "body")
        data.write_bytes(body)
        mode = ["--http", "--httpdata", str(data)]
        if pre_shared_keys is not None:
            mode += ["--pskpasswd", str(absolute_file(pre_shared_keys, "pre-shared keys"))]
        with _run(options, mode, program) as server:
            yield server


@contextlib.contextmanager
def run_gnutls_echo(
    options: ServerOptions, *, program: Program | None = None
) -> Iterator[RunningServer]:
    """Send back every text received, with ``gnutls-serv --echo``, while the block runs."""
    with _run(options, ["--echo", "--crlf"], program) as server:
        yield server


@contextlib.contextmanager
def _run(
    options: ServerOptions, mode: Sequence[str], program: Program | None
) -> Iterator[RunningServer]:
    program = program or find_program("gnutls-serv")
    environment = {}
    if options.key_log is not None:
        environment["SSLKEYLOGFILE"] = str(prepare_key_log(options.key_log))
    chain = absolute_file(options.credential.certificate_chain, "certificate chain")
    key = absolute_file(options.credential.private_key, "private key")
    priority = gnutls_priority(options.versions, groups=options.groups, suites=options.suites)
    if "--pskpasswd" in mode:
        priority += ":-KX-ALL:+PSK"
    arguments = [
        "--quiet",
        *("--port", "0"),
        *("--x509certfile", str(chain), "--x509keyfile", str(key)),
        *("--priority", priority),
        *mode,
    ]
    if options.client_ca_file is None:
        arguments.append("--disable-client-cert")
    else:
        ca_file = str(absolute_file(options.client_ca_file, "client CA file"))
        arguments += ["--x509cafile", ca_file, "--require-client-cert", "--verify-client-cert"]
    if not options.tickets:
        arguments += ["--noticket", "--nodb"]
    with ChildProcess(program.path, arguments, extra_environment=environment) as child:
        port = wait_for_port(child, timeout_seconds=options.start_seconds)
        yield RunningServer(
            program=program,
            address=("127.0.0.1", port),
            key_log=options.key_log,
            child=child,
        )
