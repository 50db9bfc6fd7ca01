"""HAProxy, the proxy that ends TLS in front of somebody's plaintext server.

It is given its listening socket as nginx is (see there), and says in master-worker mode when it is
ready. What it receives it passes on to `backend` over HTTP/1.1 in the clear, as it is deployed. It
writes no key log; take the secrets from the client.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interop.errors import InputError, PeerUnavailable
from interop.peers.endpoints import Address, RunningServer, ServerOptions, absolute_file
from interop.peers.names import openssl_groups, openssl_suites
from interop.peers.processes import ChildProcess
from interop.peers.programs import Program, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run_haproxy"]

_BACKLOG: Final = 511

_CONFIGURATION: Final = """\
global
  maxconn 256
  tune.ssl.cachesize {cached_sessions}
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend tls
  bind fd@{descriptor} ssl {choices}
  default_backend plain
backend plain
  server plain {backend[0]}:{backend[1]}
"""


@contextlib.contextmanager
def run_haproxy(
    options: ServerOptions, backend: Address, *, program: Program | None = None
) -> Iterator[RunningServer]:
    """End TLS before the plaintext HTTP server at `backend`, an IPv4 address, in this block.

    Raises PeerUnavailable if it is not installed or a key log is asked for, InputError for what
    cannot be configured, and PeerFailed with its last words if it does not start.
    """
    program = program or find_program("haproxy")
    if options.key_log is not None:
        raise PeerUnavailable("HAProxy writes no key log: take it from the client")
    with (
        tempfile.TemporaryDirectory(prefix="pfs-haproxy-") as folder,
        socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener,
    ):
        configuration = Path(folder, "haproxy.cfg")
        configuration.write_text(
            _CONFIGURATION.format(
                cached_sessions=20_000 if options.tickets else 0,
                descriptor=listener.fileno(),
                choices=_choices(program, options, Path(folder)),
                backend=backend,
            ),
            "utf-8",
        )
        with ChildProcess(
            program.path,
            ["-W", "-db", "-f", str(configuration)],
            inherited_descriptors=[listener.fileno()],
        ) as child:
            child.wait_for_words(
                b"Loading success",
                timeout_seconds=options.start_seconds,
                purpose="started a worker",
            )
            yield RunningServer(
                program=program,
                address=("127.0.0.1", int(listener.getsockname()[1])),
                key_log=None,
                child=child,
            )


def _choices(program: Program, options: ServerOptions, folder: Path) -> str:
    credential = options.credential
    chain = absolute_file(credential.certificate_chain, "certificate chain")
    key = absolute_file(credential.private_key, "private key")
    pem = folder / "credential.pem"  # both in one file, as it wants them
    pem.touch(0o600)
    pem.write_bytes(chain.read_bytes() + b"\n" + key.read_bytes())
    versions = sorted(options.versions)
    choices = [
        f"crt {_quoted(pem)}",
        *(f"ssl-min-ver TLSv{versions[0]}", f"ssl-max-ver TLSv{versions[-1]}"),
    ]
    if options.groups is not None:
        choices.append(f"curves {openssl_groups(program, options.groups)}")
    older, newer = openssl_suites(options.suites or (), options.versions)
    if older:
        choices.append(f"ciphers {older}")
    if newer:
        choices.append(f"ciphersuites {newer}")
    if not options.tickets:
        choices.append("no-tls-tickets")
    if options.client_ca_file is not None:
        ca_file = _quoted(absolute_file(options.client_ca_file, "client CA file"))
        choices.append(f"ca-file {ca_file} verify required")
    return " ".join(choices)


def _quoted(path: Path) -> str:
    """Quote a path for HAProxy; raises InputError for one that it would read as something else."""
    text = str(path)
    if any(character in text for character in "'\n\r\0"):
        raise InputError(f"HAProxy cannot be given the path {text!r}")
    return f"'{text}'"
