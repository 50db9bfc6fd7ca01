"""The recorded sessions as data: which client speaks to which server, and what becomes of it.

`SCENARIOS` is the list, in the order of recording: who resumes comes after the session that issued
the ticket. Each entry is recorded in a capture of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from interop.peers.names import TLSVersion

__all__ = ["OUR_SERVERS", "SCENARIOS", "TARGET_SCENARIOS", "ClientKind", "Scenario", "ServerKind"]

ClientKind: TypeAlias = Literal[
    "pfs", "telltale", "openssl s_client", "curl", "static-rsa", "tickets"
]
ServerKind: TypeAlias = Literal[
    "blocking", "asyncio", "resuming", "static-rsa", "tickets", "reusing", "target"
]
ResumptionMode: TypeAlias = Literal["", "psk_dhe_ke", "psk_ke", "0-RTT"]

OUR_SERVERS: tuple[ServerKind, ...] = ("blocking", "asyncio", "resuming")


@dataclass(frozen=True)
class Scenario:
    """One session to record; `group` narrows what the client offers, None leaves its default.

    `ephemeral_key` is the name under which the private key of the exchange is kept, by the end
    that tells it; a name that an earlier entry has means that the same key is used again.
    `resumes` names the entry whose ticket is used, and `mode` how, which matters on TLS 1.3.
    `ticket_key` and `client_key` name the server's ticket key and the client's certificate key.
    With `updates_key` the client tells its traffic secrets, and updates them before and after the
    payload.
    """

    name: str
    client: ClientKind
    server: ServerKind
    version: TLSVersion
    group: str | None = None
    ephemeral_key: str = ""
    resumes: str = ""
    mode: ResumptionMode = ""
    ticket_key: str = ""
    client_key: str = ""
    updates_key: bool = False

    @property
    def weak(self) -> bool:
        """Whether a server had better refuse it."""
        return self.client == "static-rsa" or self.mode in {"psk_ke", "0-RTT"}


SCENARIOS = (
    Scenario("tls12-ecdhe", "pfs", "blocking", "1.2"),
    Scenario("tls13-x25519", "pfs", "blocking", "1.3", "x25519"),
    Scenario("tls13-x25519mlkem768", "pfs", "asyncio", "1.3", "X25519MLKEM768"),
    Scenario("mutual-tls-upload", "pfs", "resuming", "1.3", client_key="client"),
    Scenario(
        "tls13-resumed", "pfs", "resuming", "1.3", client_key="client", resumes="mutual-tls-upload"
    ),
    Scenario("s_client-tls12", "openssl s_client", "asyncio", "1.2"),
    Scenario("s_client-tls13", "openssl s_client", "blocking", "1.3"),
    Scenario("curl-tls13", "curl", "asyncio", "1.3"),
    # A client that tells its ephemeral keys, to our servers; the second is a control.
    Scenario("told-x25519", "telltale", "blocking", "1.3", "x25519", "told-x25519"),
    Scenario("told-x25519-again", "telltale", "asyncio", "1.3", "x25519", "told-x25519"),
    Scenario("told-secp256r1", "telltale", "asyncio", "1.3", "secp256r1", "told-secp256r1"),
    Scenario(
        "told-x25519mlkem768",
        "telltale",
        "blocking",
        "1.3",
        "X25519MLKEM768",
        "told-x25519mlkem768",
    ),
    Scenario(
        "told-key-update",
        "telltale",
        "asyncio",
        "1.3",
        "x25519",
        "told-key-update",
        updates_key=True,
    ),
    # Controls: weak servers.
    Scenario("control-static-rsa", "static-rsa", "static-rsa", "1.2"),
    Scenario("reused-key", "pfs", "reusing", "1.3", "x25519", "reused-key"),
    Scenario("reused-key-again", "pfs", "reusing", "1.3", "x25519", "reused-key"),
    Scenario("ticket-tls12", "tickets", "tickets", "1.2", ticket_key="tickets"),
    Scenario(
        "ticket-tls12-resumed",
        "tickets",
        "tickets",
        "1.2",
        resumes="ticket-tls12",
        ticket_key="tickets",
    ),
    Scenario(
        "ticket-tls13",
        "tickets",
        "tickets",
        "1.3",
        ephemeral_key="ticket-tls13",
        ticket_key="tickets",
    ),
    *(
        Scenario(
            f"ticket-tls13-{mode.lower().replace('-', '')}",
            "tickets",
            "tickets",
            "1.3",
            resumes="ticket-tls13",
            mode=mode,
            ticket_key="tickets",
        )
        for mode in ("psk_dhe_ke", "psk_ke", "0-RTT")
    ),
)

# What is tried on somebody's own server: what it should do, and then what it had better refuse.
TARGET_SCENARIOS = (
    Scenario("target-tls12-ecdhe", "pfs", "target", "1.2"),
    Scenario("target-tls13-x25519", "pfs", "target", "1.3", "x25519"),
    Scenario("target-tls13-secp256r1", "pfs", "target", "1.3", "secp256r1"),
    Scenario("target-tls13-x25519mlkem768", "pfs", "target", "1.3", "X25519MLKEM768"),
    Scenario("target-s_client-tls12", "openssl s_client", "target", "1.2"),
    Scenario("target-s_client-tls13", "openssl s_client", "target", "1.3"),
    Scenario("target-curl-tls13", "curl", "target", "1.3"),
    *(
        Scenario(
            f"target-told-{group.lower()}",
            "telltale",
            "target",
            "1.3",
            group,
            f"target-told-{group.lower()}",
        )
        for group in ("x25519", "secp256r1", "X25519MLKEM768")
    ),
    Scenario("target-static-rsa", "static-rsa", "target", "1.2"),
    Scenario("target-tls12-ticket", "tickets", "target", "1.2"),
    Scenario("target-tls13-ticket", "tickets", "target", "1.3"),
    *(
        Scenario(
            f"target-tls13-{mode.lower().replace('-', '')}",
            "tickets",
            "target",
            "1.3",
            resumes="target-tls13-ticket",
            mode=mode,
        )
        for mode in ("psk_dhe_ke", "psk_ke", "0-RTT")
    ),
)
