"""Epochs of a TLS 1.3 direction (see the theory of operation in `tls13`)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from interop.wire.key_schedule import digest_length, next_traffic_secret, traffic_keys
from interop.wire.material import Direction
from interop.wire.protection import Opened, TLS13Opener

if TYPE_CHECKING:
    from collections.abc import Iterable

    from interop.wire.material import SecretSource
    from interop.wire.suites import SuiteParameters

__all__ = ["Epoch", "EpochName", "Side"]

_CLIENT, _SERVER = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT


class EpochName(Enum):
    """What a span of a direction's records is protected with."""

    EARLY = "early"
    HANDSHAKE = "handshake"
    APPLICATION = "application"

    __hash__ = object.__hash__  # as in `Direction`


# What the secret of each epoch is called in a key log (RFC 9850 section 2.2), and by RFC 9846.
_SECRET_NAMES = {
    (_CLIENT, EpochName.EARLY): ("CLIENT_EARLY_TRAFFIC_SECRET", "client_early_traffic_secret"),
    (_CLIENT, EpochName.HANDSHAKE): (
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "client_handshake_traffic_secret",
    ),
    (_SERVER, EpochName.HANDSHAKE): (
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "server_handshake_traffic_secret",
    ),
    (_CLIENT, EpochName.APPLICATION): (
        "CLIENT_TRAFFIC_SECRET_0",
        "client_application_traffic_secret_0",
    ),
    (_SERVER, EpochName.APPLICATION): (
        "SERVER_TRAFFIC_SECRET_0",
        "server_application_traffic_secret_0",
    ),
}


class Epoch:
    """One span under one secret: known, pending, or missing for a reason."""

    def __init__(self, direction: Direction, name: EpochName) -> None:
        self.name = name
        self.log_label, self.secret_name = _SECRET_NAMES[direction, name]
        self.source: SecretSource | None = None
        self.missing: str | None = None
        self.proven = False  # whether a record has been opened
        self.noted = False  # whether the session's facts say so
        self._candidates: list[tuple[bytes, str, TLS13Opener]] = []
        self._suite: SuiteParameters | None = None

    @property
    def known(self) -> bool:
        """Whether there is anything to try."""
        return bool(self._candidates)

    @property
    def pending(self) -> bool:
        """Whether its secret may still come."""
        return not self._candidates and self.missing is None

    @property
    def secret(self) -> bytes:
        """The secret, the likeliest one while several are candidates."""
        return self._candidates[0][0]

    @property
    def opener(self) -> TLS13Opener:
        """The opener of `secret`."""
        return self._candidates[0][2]

    def provide(
        self,
        source: SecretSource,
        secrets: Iterable[bytes],
        suites: Iterable[SuiteParameters],
    ) -> None:
        """Make known: any of `secrets` under any of `suites` may turn out to be the one."""
        self.source = source
        for suite in suites:
            length = digest_length(suite.hash_name)
            for secret in secrets:
                if suite.cipher is None or len(secret) != length:
                    continue
                keys = traffic_keys(suite.hash_name, secret, suite.cipher.key_length)
                opener = TLS13Opener(suite.cipher, keys)
                self._candidates.append((secret, suite.hash_name, opener))
                self._suite = suite
        if not self._candidates:
            self.missing = f"the {self.name.value} secret from the {source.value} fits no suite"

    def open(self, record: memoryview) -> Opened | None:
        """Open a record; the candidate that succeeds is the only one left afterwards."""
        for candidate in self._candidates:
            if (opened := candidate[2].open(record)) is not None:
                if not self.proven:
                    self.proven = True
                    self._candidates = [candidate]
                return opened
        return None

    def update(self) -> None:
        """Go to the next generation (RFC 9846 section 7.2)."""
        secret, hash_name, _ = self._candidates[0]
        suite = self._suite
        if suite is None or suite.cipher is None:
            return
        following = next_traffic_secret(hash_name, secret)
        keys = traffic_keys(hash_name, following, suite.cipher.key_length)
        self._candidates = [(following, hash_name, TLS13Opener(suite.cipher, keys))]


class Side:
    """Where one half stands among its epochs."""

    def __init__(self, direction: Direction, *names: EpochName) -> None:
        self.epochs = [Epoch(direction, name) for name in names]
        self.index = 0
        self.epoch = self.epochs[0]  # of the next record
        self.protected = False  # whether a protected record has come

    def get(self, name: EpochName) -> Epoch | None:
        """Find an epoch; there may be no early one."""
        return next((epoch for epoch in self.epochs if epoch.name is name), None)

    def drop_early(self) -> None:
        """Forget the early epoch: a second ClientHello ends early data (section 4.1.2)."""
        if self.index or self.epochs[0].name is not EpochName.EARLY:
            return
        self.epochs = self.epochs[1:]
        self._enter(0)

    def move_to(self, name: EpochName) -> None:
        """Make `name` the epoch of the next record."""
        self._enter(next(i for i, epoch in enumerate(self.epochs) if epoch.name is name))

    def _enter(self, index: int) -> None:
        self.index = index
        self.epoch = self.epochs[index]

    def open(self, record: memoryview) -> Opened | None:
        """Try the current epoch, and where that may be passed over, the next known one."""
        current = self.epoch
        opened = current.opener.open(record) if current.proven else current.open(record)
        if opened is not None:
            return opened
        if current.known and current.name is not EpochName.EARLY:
            return None
        for index in range(self.index + 1, len(self.epochs)):
            if self.epochs[index].known:
                if (opened := self.epochs[index].open(record)) is not None:
                    self._enter(index)
                return opened
        return None
