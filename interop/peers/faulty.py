"""DELIBERATELY BROKEN. Servers whose session keys repeat, for a census to find.

A census that has never found anything proves nothing by finding nothing. Each fault here is one
that was met in the field, in a real TLS 1.3 handshake of tlslite-ng, all of whose randomness comes
through one function that can be replaced:

- `REUSED_KEY`: one ephemeral key for the life of the process;
- `CLONED_GENERATOR`: a random generator in the process's own memory, which does not notice a
  `fork`, so that the children of one parent draw the same;
- `REPEATED_RANDOM`: server randoms from a generator of four bits;
- `FIXED_EXPORTER`: an exporter secret that does not depend on the handshake.

`NONE` is the control: the same server without a fault. `FaultyRecipe` makes it an end in memory,
and ``python -m interop.peers.faulty FAULT CHAIN KEY`` a server on loopback that forks for each
connection, prints its port, and lives until it is terminated.

Never use this to protect anything. It needs tlslite-ng, which `pfs-transport[dev]` brings.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socketserver
import sys
import warnings
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from certs.credential import Credential, TrustAnchors
from interop.census.ends import EXPORTER_BYTES, EXPORTER_LABEL, KeyLogLines, OpenSSLEnd
from interop.errors import PeerUnavailable
from transport import DEFAULT_POLICY, ProtocolVersion
from transport.context import client_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Fault", "FaultyEnds", "FaultyPair", "FaultyRecipe", "FaultyServerEnd"]

_GROUP: Final = "x25519"
_RANDOM_BYTES: Final = 32
_CONNECTION_SECONDS: Final = 20.0
_DRAWING: Final = ("tlslite.tlsconnection", "tlslite.keyexchange")


class Fault(StrEnum):
    """What is wrong with a server."""

    NONE = "none"
    REUSED_KEY = "reused-key"
    CLONED_GENERATOR = "cloned-generator"
    REPEATED_RANDOM = "repeated-random"
    FIXED_EXPORTER = "fixed-exporter"


class _ClonedGenerator:
    """A generator whose whole state is here, and is copied by a `fork`."""

    def __init__(self) -> None:
        self._seed, self._drawn = os.urandom(32), 0

    def __call__(self, count: int) -> bytearray:
        drawn = bytearray()
        while len(drawn) < count:
            self._drawn += 1
            drawn += sha256(self._seed + self._drawn.to_bytes(8, "big")).digest()
        return drawn[:count]


def _four_bits(count: int) -> bytearray:
    return bytearray(sha256(bytes((os.urandom(1)[0] & 0x0F,))).digest()[:count])


@functools.cache
def _one_key(count: int) -> bytes:
    return os.urandom(count)


# By fault: what each of the two modules that draw draws from; None is what it drew from before.
_GENERATORS: Final[dict[Fault, Callable[[], tuple[Any, Any]]]] = {
    Fault.REUSED_KEY: lambda: (None, lambda count: bytearray(_one_key(count))),
    Fault.CLONED_GENERATOR: lambda: (_ClonedGenerator(),) * 2,
    Fault.REPEATED_RANDOM: lambda: (_four_bits, None),
}


def _tlslite() -> Any:
    try:
        with warnings.catch_warnings():  # it imports asyncore, which Python is giving up
            warnings.simplefilter("ignore", DeprecationWarning)
            from tlslite import api  # noqa: PLC0415 - not installed with what users need
    except ImportError as error:
        raise PeerUnavailable(
            "tlslite-ng is not installed; type: pip install tlslite-ng"
        ) from error
    return api


def _break_generators(fault: Fault) -> None:
    """Let tlslite-ng draw as the fault has it, in this process and from now on."""
    _tlslite()
    replacements = _GENERATORS.get(fault, lambda: (None, None))()
    for name, replacement in zip(_DRAWING, replacements, strict=True):
        if replacement is not None:
            vars(sys.modules[name])["getRandomBytes"] = replacement
    _one_key(_RANDOM_BYTES)  # before any fork


class _Memory:
    """What tlslite-ng takes for a socket."""

    def __init__(self) -> None:
        self.received, self.sent = bytearray(), bytearray()

    def recv(self, count: int) -> bytes:
        if not self.received:
            raise OSError(errno.EWOULDBLOCK, "nothing has come yet")
        data = bytes(self.received[:count])
        del self.received[:count]
        return data

    def send(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        pass


class FaultyServerEnd:
    """The server's side of a handshake in memory (`interop.census.ends.End`)."""

    def __init__(self, credential: Credential, fault: Fault) -> None:
        self._fault = fault
        self._memory = _Memory()
        self._connection, self._steps = _begin(self._memory, credential)

    def handshake(self) -> bool:
        """Take the handshake as far as it goes; True when it is done."""
        # Each step says what it waits for: 0 to read, 1 to write.
        return all(step != 0 for step in self._steps)

    def receive_data(self, data: bytes) -> None:
        """Hand over bytes of the peer."""
        self._memory.received += data

    def data_to_send(self) -> bytes:
        """Return the bytes to take to the peer, perhaps none."""
        data = bytes(self._memory.sent)
        self._memory.sent.clear()
        return data

    def export(self) -> bytes:
        """Return keying material, with `FIXED_EXPORTER` from a secret that is always the same."""
        if self._fault is Fault.FIXED_EXPORTER:
            self._connection.session.exporterMasterSecret = bytearray(32)
        label = bytearray(EXPORTER_LABEL.encode("ascii"))
        return bytes(self._connection.keyingMaterialExporter(label, EXPORTER_BYTES))


def _begin(sock: Any, credential: Credential) -> tuple[Any, Iterator[int]]:
    """Return a connection, and the steps of its handshake as a server."""
    api = _tlslite()
    settings = api.HandshakeSettings()
    settings.minVersion = settings.maxVersion = (3, 4)
    settings.eccCurves = settings.keyShares = [_GROUP]
    settings.ticket_count = 0
    chain = api.X509CertChain()
    chain.parsePemList(credential.certificates_pem().decode("ascii"))
    key = api.parsePEMKey(credential.private_key_pem().decode("ascii"), private=True)
    connection = api.TLSConnection(sock)
    steps = connection.handshakeServerAsync(certChain=chain, privateKey=key, settings=settings)
    return connection, steps


@dataclass(frozen=True, slots=True)
class FaultyPair:
    """An honest client and a broken server."""

    client: OpenSSLEnd
    server: FaultyServerEnd

    @staticmethod
    def negotiated() -> str:
        """Say what is all that the client offers."""
        return f"TLS 1.3 {_GROUP}"


class FaultyEnds:
    """Makes pairs of an honest client and a broken server (`interop.census.ends.Ends`)."""

    def __init__(self, credential: Credential, server_name: str, fault: Fault) -> None:
        self._credential, self._server_name, self._fault = credential, server_name, fault
        self.key_log = KeyLogLines()
        policy = DEFAULT_POLICY.narrowed(versions=[ProtocolVersion.TLS_1_3], groups=[_GROUP])
        anchors = TrustAnchors((credential.leaf,))
        self._client = client_context(anchors, policy, key_log=self.key_log)

    def pair(self, _number: int) -> FaultyPair:
        """Return both ends of a handshake."""
        return FaultyPair(
            OpenSSLEnd(self._client.context, server_name=self._server_name),
            FaultyServerEnd(self._credential, self._fault),
        )

    def renewed(self) -> FaultyEnds:
        """Return the like with a new context."""
        return FaultyEnds(self._credential, self._server_name, self._fault)

    @staticmethod
    def resuming() -> None:
        """Return None: it does not resume."""


@dataclass(frozen=True, slots=True)
class FaultyRecipe:
    """What a broken server is made of (`interop.census.ends.Recipe`)."""

    certificates: bytes
    private_key: bytes
    server_name: str
    fault: Fault

    def open(self) -> FaultyEnds:
        """Break tlslite-ng in this process, and return ends that use it."""
        _break_generators(self.fault)
        credential = Credential.from_pem(self.certificates, self.private_key)
        return FaultyEnds(credential, self.server_name, self.fault)


class _Server(socketserver.ForkingTCPServer):
    allow_reuse_address = True
    max_children = 16

    def __init__(self, credential: Credential) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.credential = credential


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.settimeout(_CONNECTION_SECONDS)
        connection, steps = _begin(self.request, self.server.credential)  # type: ignore[attr-defined]
        with contextlib.suppress(OSError, ValueError, _tlslite().TLSError):
            for _ in steps:
                pass
            connection.close()


def _serve(fault: Fault, chain: Path, key: Path) -> None:
    _break_generators(fault)
    with _Server(Credential.from_pem(chain.read_bytes(), key.read_bytes())) as server:
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    _serve(Fault(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
