"""Go's crypto/tls, a stack of its own, by a small server that is compiled before it runs.

The program is `go_server.go` beside this. It offers what Go's configuration offers: TLS 1.3 suites
cannot be chosen, and of the groups only those that every Go has.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interop.errors import InputError, PeerUnavailable
from interop.peers.endpoints import RunningServer, ServerOptions, absolute_file, prepare_key_log
from interop.peers.processes import ChildProcess, PeerFailed, clean_environment, last_words
from interop.peers.programs import Program, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run_go_http"]

_SOURCE: Final = Path(__file__).with_name("go_server.go")
_GROUPS: Final = frozenset({"x25519", "secp256r1", "secp384r1", "secp521r1"})
_COMPILE_SECONDS: Final = 180.0  # a Go that brings no compiled library compiles that first


@contextlib.contextmanager
def run_go_http(
    options: ServerOptions, folder: Path, *, program: Program | None = None
) -> Iterator[RunningServer]:
    """Serve the files of `folder` over HTTP/1.1, and take any upload, in this block.

    Raises PeerUnavailable if there is no Go or it lacks a suite, InputError for what its TLS cannot
    be asked for, and PeerFailed with its last words if it does not compile or start.
    """
    program = program or find_program("go")
    arguments = _arguments(options, folder)
    with tempfile.TemporaryDirectory(prefix="pfs-go-") as place:
        server = Path(place, "server")
        _compile(program, server, Path(place))
        with ChildProcess(server, arguments) as child:
            try:
                child.wait_until(
                    lambda: child.stdout().endswith(b"\n"),
                    timeout_seconds=options.start_seconds,
                    purpose="said its address",
                )
            except PeerFailed:
                if b"no suite" in child.stderr():
                    raise PeerUnavailable(f"this Go knows not all of {options.suites}") from None
                raise
            host, _, port = child.stdout().decode("ascii").strip().rpartition(":")
            yield RunningServer(
                program=program,
                address=(host, int(port)),
                key_log=options.key_log,
                child=child,
            )


def _compile(program: Program, server: Path, place: Path) -> None:
    environment = clean_environment(place) | {"GO111MODULE": "off"}
    # What an earlier run compiled of Go's own library is taken from where Go keeps it.
    environment["GOCACHE"] = os.environ.get("GOCACHE") or str(_user_cache() / "go-build")
    try:
        done = subprocess.run(
            [program.path, "build", "-o", server, _SOURCE],
            capture_output=True,
            env=environment,
            cwd=place,
            timeout=_COMPILE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"go build took more than {_COMPILE_SECONDS:.0f} seconds") from None
    if done.returncode:
        raise PeerFailed(f"go build failed: {last_words(done.stderr)}")


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _arguments(options: ServerOptions, folder: Path) -> list[str]:
    credential = options.credential
    versions = sorted(options.versions)
    arguments = [
        f"-chain={absolute_file(credential.certificate_chain, 'certificate chain')}",
        f"-key={absolute_file(credential.private_key, 'private key')}",
        f"-folder={folder.absolute()}",
        *(f"-min={versions[0]}", f"-max={versions[-1]}"),
        f"-tickets={'true' if options.tickets else 'false'}",
    ]
    if options.groups is not None:
        if unknown := set(options.groups) - _GROUPS:
            raise InputError(f"Go cannot be asked for the groups {', '.join(sorted(unknown))}")
        arguments.append(f"-groups={','.join(options.groups)}")
    if options.suites is not None:
        if "1.3" in options.versions:
            raise InputError("Go chooses the suites of TLS 1.3 by itself; ask for TLS 1.2 alone")
        arguments.append(f"-suites={','.join(options.suites)}")
    if options.client_ca_file is not None:
        arguments.append(f"-client-ca={absolute_file(options.client_ca_file, 'client CA file')}")
    if options.key_log is not None:
        arguments.append(f"-key-log={prepare_key_log(options.key_log)}")
    return arguments
