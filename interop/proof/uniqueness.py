"""Census of session keys: over N handshakes, no random, key share or secret comes twice.

Each handshake runs in memory between a client and a server of `transport` and is watched from
outside: randoms and key shares are read off the wire bytes by `interop.wire`, secrets come from the
server's key log, and the exporter from the connection. A hybrid key share is split into its
classical and its ML-KEM component, for a repeated component is a repetition too. A client may offer
one key in two shares of the same ClientHello; that is one value.

What is kept of a value is its fingerprint, the first 16 octets of its SHA-256: secrets do not leave
the worker that saw them, the evidence stays small, and two different values among 2^20 share a
fingerprint with a probability below 2^-88.

Zero repetitions among n values exclude, at even odds, a generator with less entropy than about
2*log2(n) bits (birthday bound). They do not show that values are unpredictable.
"""

from __future__ import annotations

import functools
import hashlib
import math
import multiprocessing
import os
import signal
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certs.credential import Credential, TrustAnchors
from interop.direction import Direction
from interop.errors import InputError
from interop.proof.model import Tally
from interop.wire.groups import split_public_value
from interop.wire.registry import NamedGroup, name_of
from interop.wire.session import KeyMaterial, TLSSession
from transport import DEFAULT_POLICY, ProtocolVersion
from transport.connection import TLSCore
from transport.context import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.pool import Pool

__all__ = [
    "FINGERPRINT_BYTES",
    "MAX_HANDSHAKES",
    "Census",
    "Sampler",
    "count_distinct",
    "excluded_bits",
    "fingerprint",
    "take_census",
]

FINGERPRINT_BYTES = 16
MAX_HANDSHAKES = 1_000_000
_BATCH_HANDSHAKES = 250

# What is sampled, in turn: the whole offer of the default policy, then single key exchanges of it.
# TLS 1.2 with a P-256 certificate needs secp256r1 beside the group that the exchange uses.
_SAMPLES: tuple[tuple[ProtocolVersion, tuple[str, ...] | None], ...] = (
    (ProtocolVersion.TLS_1_3, None),
    (ProtocolVersion.TLS_1_3, ("x25519",)),
    (ProtocolVersion.TLS_1_3, ("secp256r1",)),
    (ProtocolVersion.TLS_1_3, ("secp384r1",)),
    (ProtocolVersion.TLS_1_2, ("x25519", "secp256r1")),
    (ProtocolVersion.TLS_1_2, ("secp384r1", "secp256r1")),
)
_EXPORTER_LABEL = "EXPORTER-pfs-census"
_EXPORTER_BYTES = 32


@dataclass(frozen=True)
class Census:
    """The fingerprints of N handshakes, by kind of value, each 16 octets, concatenated."""

    handshakes: int
    fingerprints: Mapping[str, bytes]

    def tallies(self) -> dict[str, Tally]:
        """Return the tally of each kind of value."""
        return {kind: count_distinct(data) for kind, data in sorted(self.fingerprints.items())}


def fingerprint(value: bytes) -> bytes:
    """Return the 16 octets that stand for `value` in the census."""
    return hashlib.sha256(value).digest()[:FINGERPRINT_BYTES]


def count_distinct(fingerprints: bytes) -> Tally:
    """Tally concatenated fingerprints."""
    size = FINGERPRINT_BYTES
    values = {fingerprints[at : at + size] for at in range(0, len(fingerprints), size)}
    return Tally(count=math.ceil(len(fingerprints) / size), distinct=len(values))


def excluded_bits(count: int) -> float:
    """Return the entropy in bits below which `count` values would have met at even odds."""
    # P(no repetition) = exp(-n(n-1) / 2^(b+1)) = 1/2, solved for b
    return math.log2(count * (count - 1) / (2 * math.log(2))) if count > 1 else 0.0


def take_census(
    handshakes: int,
    *,
    credential: Credential,
    trust_anchors: TrustAnchors,
    server_name: str,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> Census:
    """Run `handshakes` handshakes on `workers` processes (default: one a processor).

    `credential` is the server's, which clients verify against `trust_anchors` and `server_name`.
    `progress` is called with the number done so far. Raises `InputError` for a number of
    handshakes outside 1 to 1,000,000.
    """
    if not 1 <= handshakes <= MAX_HANDSHAKES:
        raise InputError(f"a census takes 1 to {MAX_HANDSHAKES:,} handshakes, not {handshakes:,}")
    batches = [
        (first, min(_BATCH_HANDSHAKES, handshakes - first))
        for first in range(0, handshakes, _BATCH_HANDSHAKES)
    ]
    found: defaultdict[str, list[bytes]] = defaultdict(list)
    done = 0
    with _worker_pool(
        min(workers or len(os.sched_getaffinity(0)), len(batches)),
        credential.certificates_pem(),
        credential.private_key_pem(),
        trust_anchors.pem(),
        server_name,
    ) as pool:
        for size, batch in pool.imap_unordered(_run_batch, batches):
            for kind, data in batch.items():
                found[kind].append(data)
            done += size
            progress(done)
    return Census(handshakes, {kind: b"".join(parts) for kind, parts in found.items()})


def _worker_pool(workers: int, *identity: bytes | str) -> Pool:
    try:
        # spawn: a forked worker would begin with a copy of its parent's random generator.
        return multiprocessing.get_context("spawn").Pool(workers, _begin_worker, identity)
    except OSError as error:
        raise InputError(
            f"the census cannot start its workers: {error.strerror}; can /dev/shm be written?"
        ) from error


class Sampler:
    """A server and its clients, and the watching of their handshakes.

    Contexts are made once and used for all handshakes, as a server would.
    """

    def __init__(
        self, credential: Credential, trust_anchors: TrustAnchors, server_name: str
    ) -> None:
        self._lines: list[bytes] = []
        self._server_name = server_name
        self._server = server_context(credential, DEFAULT_POLICY, key_log=self)
        self._clients = [
            client_context(
                trust_anchors, DEFAULT_POLICY.narrowed(versions=[version], groups=groups)
            )
            for version, groups in _SAMPLES
        ]

    def write_line(self, line: bytes) -> None:
        """Take a line of the server's key log (`transport.KeyLog`)."""
        self._lines.append(line)

    def sample(self, number: int) -> Iterator[tuple[str, bytes]]:
        """Make handshake `number`; yield each of its values after its kind."""
        self._lines.clear()
        client_endpoint = self._clients[number % len(self._clients)]
        client = TLSCore(client_endpoint, None, server_hostname=self._server_name)
        server = TLSCore(self._server, None)
        observer = TLSSession(KeyMaterial())
        waiting: set[TLSCore] = {client, server}
        while waiting:
            for sender, receiver, direction in (
                (client, server, Direction.CLIENT_TO_SERVER),
                (server, client, Direction.SERVER_TO_CLIENT),
            ):
                if sender in waiting and sender.handshake() is None:
                    waiting.remove(sender)
                data = sender.data_to_send()
                observer.feed(direction, data)
                receiver.receive_data(data)
        yield from _read_off(observer)
        for line in self._lines:
            label, _, secret = line.split()
            kind = "main_secret" if label == b"CLIENT_RANDOM" else label.decode("ascii").lower()
            yield kind, bytes.fromhex(secret.decode("ascii"))
        yield "exporter", server.export_keying_material(_EXPORTER_LABEL, _EXPORTER_BYTES)


def _read_off(observer: TLSSession) -> Iterator[tuple[str, bytes]]:
    """Yield what anyone on the wire sees of a handshake."""
    if observer.client_random is None or observer.server_random is None:
        raise InputError("a handshake of the census was not seen to begin")
    yield "client_random", observer.client_random
    yield "server_random", observer.server_random
    for side, shares in (
        ("client", observer.client_key_shares),
        ("server", observer.server_key_shares),
    ):
        components: dict[tuple[str, bytes], None] = {}
        for group, share in shares.items():
            names = name_of(NamedGroup, group).split("MLKEM")
            parts = split_public_value(group, share, from_client=side == "client")
            for name, part in zip((names[0], f"MLKEM{names[-1]}"), parts, strict=False):
                components[f"{side}_key_share.{name.lower()}", part] = None
        yield from components


_sampler: Callable[[], Sampler]


def _begin_worker(certificates: bytes, key: bytes, anchors: bytes, server_name: str) -> None:
    """Set a worker process up; Ctrl-C is left to the parent, which ends the pool."""
    global _sampler  # noqa: PLW0603 - the one way in which a pool's initializer can hand over
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _sampler = functools.cache(
        lambda: Sampler(
            Credential.from_pem(certificates, key), TrustAnchors.from_pem(anchors), server_name
        )
    )


def _run_batch(batch: tuple[int, int]) -> tuple[int, dict[str, bytes]]:
    """Run a batch of handshakes in this process; return its size and the fingerprints."""
    first, size = batch
    sampler = _sampler()
    found: defaultdict[str, list[bytes]] = defaultdict(list)
    for number in range(first, first + size):
        for kind, value in sampler.sample(number):
            found[kind].append(fingerprint(value))
    return size, {kind: b"".join(prints) for kind, prints in found.items()}
