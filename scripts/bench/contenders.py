"""What the benchmarks of the endpoints share: identities, servers as processes, and measures.

**CPU seconds, not seconds.** A rate is given per CPU second of the server, all its threads and
processes together, as the kernel counts them: that stands still while others use the machine, as
far as the machine's caches let it. Contenders take turns, several times, and a ratio is that of
medians.

**Memory** is the proportional set size: what is shared with other processes counts in part.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from certs.authority import CertificateAuthority
from certs.key_types import KeyType
from certs.keystore import KeyStore
from certs.keystore.kek import create_kek
from interop.errors import InteropError, PeerUnavailable
from interop.peers.endpoints import CredentialFiles, ServerOptions
from interop.peers.nginx import run_nginx
from interop.peers.processes import ChildProcess, clean_environment
from interop.peers.programs import find_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from interop.peers.names import TLSVersion

SERVING = Path(__file__).with_name("serving.py")
START_SECONDS = 20.0
NGINX_CONNECTIONS = 20_000


class Identity(NamedTuple):
    """A server's certificate for localhost, and the file of its root."""

    credential: CredentialFiles
    ca_file: Path


class Server(NamedTuple):
    """A running server: its port, and the leader of its group of processes."""

    name: str
    port: int
    group: int

    def pids(self) -> list[int]:
        """Return its processes."""
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.getpgid(int(entry.name)) == self.group:
                        found.append(int(entry.name))
        return found

    def cpu_seconds(self) -> float:
        """Return the CPU time that its processes have used so far."""
        # The clock of another process, as clock_getcpuclockid(3) makes it: in nanoseconds, where
        # /proc counts hundredths of a second.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids())

    def memory_kibibytes(self) -> int:
        """Return the memory that its processes hold."""
        total = 0
        for pid in self.pids():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
            (size,) = re.findall(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
            total += int(size)
        return total


@contextlib.contextmanager
def make_identity(key_type: KeyType = KeyType.EC_P256) -> Iterator[Identity]:
    """Issue a server's certificate with a key of this type."""
    with tempfile.TemporaryDirectory(prefix="pfs-bench-") as name:
        folder = Path(name)
        create_kek(f"file:{folder}/kek").close()
        with KeyStore.create(folder / "store", f"file:{folder}/kek") as store:
            now = datetime.now(UTC)
            root = CertificateAuthority.create_root(store, "root", "benchmark", now)
            credential = root.issue_subordinate("issuing", "issuing", now).issue_server(
                key_name="server", dns_names=["localhost"], key_type=key_type, now=now
            )
            chain, key, ca_file = folder / "chain.pem", folder / "key.pem", folder / "ca.pem"
            chain.write_bytes(credential.certificates_pem())
            key.touch(0o600)
            key.write_bytes(credential.private_key_pem())
            ca_file.write_bytes(root.trust_anchors.pem())
        yield Identity(CredentialFiles(certificate_chain=chain, private_key=key), ca_file)


@contextlib.contextmanager
def make_rsa_identity(bits: int) -> Iterator[Identity]:
    """Make a self-signed certificate with an RSA key, larger than a key store's if need be."""
    with tempfile.TemporaryDirectory(prefix="pfs-bench-") as name:
        chain, key = Path(name, "chain.pem"), Path(name, "key.pem")
        key.touch(0o600)
        command: Sequence[str | Path] = (
            *(find_program("openssl").path, "req", "-x509", "-newkey", f"rsa:{bits}", "-nodes"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", key, "-out", chain),
        )
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        yield Identity(CredentialFiles(certificate_chain=chain, private_key=key), chain)


@contextlib.contextmanager
def run_server(
    name: str,
    identity: Identity,
    version: TLSVersion = "1.3",
    *,
    workers: int = 1,
    metrics: str | None = None,
) -> Iterator[Server]:
    """Run the contender `name`: nginx, ``pfs serve ENGINE``, or a kind of `serving.py`.

    `metrics` is the address at which ``pfs serve`` counts, none unless given.
    """
    chain, key = identity.credential.certificate_chain, identity.credential.private_key
    if name == "nginx":
        options = ServerOptions(credential=identity.credential, versions=(version,))
        with run_nginx(options, store_uploads=False, connections=NGINX_CONNECTIONS) as nginx:
            yield Server(name, nginx.address[1], nginx.child.pid)
        return
    if name.startswith("pfs serve"):
        program = Path(sys.executable).with_name("pfs")
        arguments = ["serve", "http", "--listen", "0", "--workers", str(workers)]
        arguments += ["--engine", name.removeprefix("pfs serve ")]
        arguments += ["--cert", str(chain), "--key", str(key)]
        arguments += [] if metrics is None else ["--metrics", metrics]
    else:
        program = Path(sys.executable)
        arguments = [str(SERVING), name, str(chain), str(key), version]
    with ChildProcess(program, arguments) as child:

        def port() -> int:
            # Ours here print it alone; pfs serve has it in the event "listening" of its log.
            found = re.search(
                rb'^(\d+)$|"port": (\d+)', child.stdout() + child.stderr(), re.MULTILINE
            )
            return 0 if found is None else int(found[1] or found[2])

        child.wait_until(lambda: port() > 0, timeout_seconds=START_SECONDS, purpose="said its port")
        yield Server(name, port(), child.pid)


def handshakes(
    server: Server, identity: Identity, version: TLSVersion, seconds: int, *, clients: int = 1
) -> tuple[int, float]:
    """Let `openssl s_time` do full handshakes; return how many, and the server's CPU seconds."""
    before = server.cpu_seconds()
    with start_clients(server, identity, version, seconds, clients) as running:
        outputs = [process.communicate()[0] for process in running]
    used = server.cpu_seconds() - before
    counts = [re.search(rb"(\d+) connections in \d+ real seconds", output) for output in outputs]
    if any(process.returncode for process in running) or None in counts:
        sys.exit(
            f"openssl s_time and {server.name}: {outputs[0].decode('utf-8', 'replace')[-500:]}"
        )
    return sum(int(count[1]) for count in counts if count is not None), used


@contextlib.contextmanager
def start_clients(
    server: Server, identity: Identity, version: TLSVersion, seconds: int, clients: int
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Let so many `openssl s_time` do full handshakes, one after the other, for so long."""
    command: Sequence[str | Path] = (
        *(find_program("openssl").path, "s_time", "-connect", f"127.0.0.1:{server.port}", "-new"),
        *("-time", str(seconds), "-CAfile", identity.ca_file, f"-tls{version.replace('.', '_')}"),
    )
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        running = []
        for _ in range(clients):
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=clean_environment(Path(home)),
            )
            running.append(stack.enter_context(process))
            stack.callback(process.kill)
        yield running


def allow_descriptors(count: int) -> int:
    """Raise the limit of open files; return how many connections, of `count`, there is room for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = count if hard == resource.RLIM_INFINITY else min(count, hard - 200)
    if room < count:
        print(f"only {room} connections: the limit of open files is {hard}")
    return room


def print_ratios(unit: str, ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> None:
    """Print the medians of all contenders, and the ratio of each of ours to each of theirs."""
    for name, values in (ours | theirs).items():
        print(
            f"  {name:<18} {statistics.median(values):9.1f} {unit} "
            f"({min(values):.0f} to {max(values):.0f})"
        )
    for name, values in ours.items():
        ratios = ", ".join(
            f"{statistics.median(values) / statistics.median(other):.2f} times {peer}"
            for peer, other in theirs.items()
        )
        print(f"  {name:<18} is {ratios}")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End with one line where a peer is missing or does not start."""
    try:
        yield
    except (InteropError, PeerUnavailable) as error:
        sys.exit(str(error))
