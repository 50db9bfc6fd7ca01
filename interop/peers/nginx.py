"""nginx, the server that most of the world's traffic meets, in a private folder.

The listening socket is made here and inherited (the NGINX variable, which nginx uses for upgrades
of its own binary): the port is the kernel's choice, no one can take it in between, and connections
made early wait in the queue instead of being refused. The line that says a worker was started is
what readiness is judged by, because a broken configuration would leave that queue unserved.

Everything nginx writes is in that folder, so it runs as root and as an ordinary user alike. nginx
writes no key log; take the secrets from the client.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interop.errors import InputError, PeerUnavailable
from interop.peers.endpoints import RunningServer, ServerOptions, absolute_file
from interop.peers.names import openssl_groups, openssl_suites
from interop.peers.processes import ChildProcess
from interop.peers.programs import Program, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from interop.peers.endpoints import CredentialFiles

__all__ = ["NginxServer", "run_nginx"]

_MAXIMUM_CHAIN_DEPTH: Final = 5
_CONNECTIONS: Final = 256
_BACKLOG: Final = 511  # nginx's own
_TEMPORARY_FOLDERS: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

_CONFIGURATION: Final = """\
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
error_log stderr notice;
events {{ worker_connections {connections}; }}
http {{
  access_log {access_log};
  {temporary_paths}
  client_max_body_size 65m;
  default_type application/octet-stream;
  server {{
    listen {host}:{port} ssl;
    {credential}
    ssl_protocols {protocols};
    ssl_session_tickets {tickets};
    ssl_session_cache none;
    {choices}
    location / {{ {location} }}
  }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NginxServer(RunningServer):
    """A running nginx, its `folder` of files (GET), and where a PUT puts its body.

    With `stores_uploads` a PUT to ``/name`` answers 201 and writes ``folder/name``; without, any
    request is answered 200 with a short body and a request's own body is discarded.
    """

    folder: Path
    stores_uploads: bool


@contextlib.contextmanager
def run_nginx(
    options: ServerOptions,
    folder: Path | None = None,
    *,
    store_uploads: bool = True,
    connections: int = _CONNECTIONS,
    access_log: Path | None = None,
    ticket_key: Path | None = None,
    early_data: bool = False,
    second_credential: CredentialFiles | None = None,
    program: Program | None = None,
) -> Iterator[NginxServer]:
    """Serve the files of `folder` (else of a private one) and take PUT requests in this block.

    `connections` is how many may be open at once. With `access_log` it writes a line there for each
    request it has answered. With `ticket_key`, a file of 48 or 80 bytes, its tickets are under that
    key, and `early_data` takes 0-RTT data, which anyone can replay: both are controls. A
    `second_credential`, of another kind of key, is shown to clients that cannot take the first.
    `store_uploads` needs nginx's dav module: without the module, PeerUnavailable. Raises
    PeerUnavailable too if a key log is asked for, InputError for what cannot be configured, and
    PeerFailed with nginx's last words if it does not start.
    """
    program = program or find_program("nginx")
    if options.key_log is not None:
        raise PeerUnavailable("nginx writes no key log: take it from the client")
    if store_uploads and "--with-http_dav_module" not in program.version_text:
        raise PeerUnavailable("this nginx was built without its dav module: apt-get install nginx")
    with tempfile.TemporaryDirectory(prefix="pfs-nginx-") as private, _listener() as listener:
        served = Path(private, "files") if folder is None else folder.absolute()
        served.mkdir(exist_ok=True)
        configuration = Path(private, "nginx.conf")
        address = ("127.0.0.1", int(listener.getsockname()[1]))
        text = _configuration(
            program,
            options,
            served,
            address,
            store_uploads=store_uploads,
            connections=connections,
            access_log=access_log,
            directives=[
                *_weaknesses(ticket_key, early_data=early_data),
                *_credential_directives(second_credential),
            ],
        )
        configuration.write_text(text, "utf-8")
        with ChildProcess(
            program.path,
            ["-e", "stderr", "-p", private, "-c", str(configuration)],
            inherited_descriptors=[listener.fileno()],
            extra_environment={"NGINX": f"{listener.fileno()};"},
        ) as child:
            child.wait_for_words(
                b"start worker process ",
                timeout_seconds=options.start_seconds,
                purpose="started a worker",
            )
            yield NginxServer(
                program=program,
                address=address,
                key_log=None,
                child=child,
                folder=served,
                stores_uploads=store_uploads,
            )


@contextlib.contextmanager
def _listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(_BACKLOG)
        yield listener


def _weaknesses(ticket_key: Path | None, *, early_data: bool) -> list[str]:
    directives = ["ssl_early_data on;"] if early_data else []
    if ticket_key is not None:
        key = _quoted(absolute_file(ticket_key, "ticket key"))
        directives.append(f"ssl_session_ticket_key {key};")
    return directives


def _credential_directives(credential: CredentialFiles | None) -> list[str]:
    if credential is None:
        return []
    chain = _quoted(absolute_file(credential.certificate_chain, "certificate chain"))
    key = _quoted(absolute_file(credential.private_key, "private key"))
    return [f"ssl_certificate {chain};", f"ssl_certificate_key {key};"]


def _configuration(
    program: Program,
    options: ServerOptions,
    folder: Path,
    address: tuple[str, int],
    *,
    store_uploads: bool,
    connections: int,
    access_log: Path | None,
    directives: Sequence[str],
) -> str:
    choices = list(directives)
    if options.groups is not None:
        choices.append(f"ssl_ecdh_curve {openssl_groups(program, options.groups)};")
    if options.client_ca_file is not None:
        ca_file = _quoted(absolute_file(options.client_ca_file, "client CA file"))
        choices.append(f"ssl_client_certificate {ca_file}; ssl_verify_client on;")
        choices.append(f"ssl_verify_depth {_MAXIMUM_CHAIN_DEPTH};")
    older, newer = openssl_suites(options.suites or (), options.versions)
    if older:
        choices.append(f"ssl_ciphers {older};")
    if newer:
        choices.append(f"ssl_conf_command Ciphersuites {newer};")
    location = 'return 200 "received\\n";'
    if store_uploads:
        location = f"root {_quoted(folder)}; dav_methods PUT; create_full_put_path on;"
    # As root, workers would become `nobody`, who may not enter the private folder.
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    protocols = (f"TLSv{version}".removesuffix(".0") for version in options.versions)
    return _CONFIGURATION.format(
        user=user,
        temporary_paths=" ".join(f"{name}_temp_path {name}_temp;" for name in _TEMPORARY_FOLDERS),
        connections=connections,
        access_log="off" if access_log is None else _quoted(access_log.absolute()),
        host=address[0],
        port=address[1],
        credential=" ".join(_credential_directives(options.credential)),
        protocols=" ".join(protocols),
        tickets="on" if options.tickets else "off",
        choices=" ".join(choices),
        location=location,
    )


def _quoted(path: Path) -> str:
    """Quote a path for nginx; raises InputError for one that nginx would read as something else."""
    text = str(path)
    if any(character in text for character in '"\\$\n\r\0'):
        raise InputError(f"nginx cannot be given the path {text!r}")
    return f'"{text}"'
