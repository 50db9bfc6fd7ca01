"""Who erred, which alert crossed the wire, and what to do about it.

Every failure of an endpoint is a `TransportError`, and its type says whose fault it was: ours
(`APIMisuse`, `PolicyViolation`) or the peer's (all others). It is an `OSError` because that is what
code written for `ssl.SSLSocket` catches: `http.server`, `socketserver` and `http.client` then treat
a refused peer as they treat a broken connection, which is what it is.

A text has two halves, the problem and the advice. OpenSSL's own words appear in quotes at most;
the table that turns them into these types is `transport.translation`.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "APIMisuse",
    "AlertDescription",
    "AlertReceived",
    "CertificateRejected",
    "HandshakeTimeout",
    "PeerIncompatible",
    "PeerMisbehaved",
    "PolicyError",
    "PolicyViolation",
    "TransportError",
    "TruncatedStream",
    "is_the_peers_doing",
]


class AlertDescription(IntEnum):
    """Alerts by the names and numbers of RFC 9846 section 6 and the IANA registry.

    Three are left over from TLS 1.2 and older: `decryption_failed`, `export_restriction` and
    `no_renegotiation`.
    """

    close_notify = 0
    unexpected_message = 10
    bad_record_mac = 20
    decryption_failed = 21
    record_overflow = 22
    handshake_failure = 40
    bad_certificate = 42
    unsupported_certificate = 43
    certificate_revoked = 44
    certificate_expired = 45
    certificate_unknown = 46
    illegal_parameter = 47
    unknown_ca = 48
    access_denied = 49
    decode_error = 50
    decrypt_error = 51
    export_restriction = 60
    protocol_version = 70
    insufficient_security = 71
    internal_error = 80
    inappropriate_fallback = 86
    user_canceled = 90
    no_renegotiation = 100
    missing_extension = 109
    unsupported_extension = 110
    unrecognized_name = 112
    bad_certificate_status_response = 113
    unknown_psk_identity = 115
    certificate_required = 116
    no_application_protocol = 120


class TransportError(OSError):
    """Base of this package's errors; `str()` is one line: the problem, then what to do.

    `alert_sent` is the alert this side put on the wire, `alert_received` the one the peer did;
    each is None where none crossed, or where the peer was gone before it could.
    """

    def __init__(
        self,
        problem: str,
        *,
        advice: str,
        alert_sent: AlertDescription | None = None,
        alert_received: AlertDescription | None = None,
    ) -> None:
        super().__init__(f"{problem}; {advice}")
        self.problem = problem
        self.advice = advice
        self.alert_sent = alert_sent
        self.alert_received = alert_received

    def recipe(self) -> Callable[[], TransportError]:
        """Return what makes this error anew, without the traceback and all that it keeps alive."""
        rebuild, arguments = self.__reduce__()
        return partial(rebuild, *arguments)

    def __reduce__(self) -> tuple[Callable[..., TransportError], tuple[object, ...]]:
        # OSError's own reduction would call __init__ without the keyword arguments.
        return _rebuild, (
            type(self),
            self.problem,
            self.advice,
            self.alert_sent,
            self.alert_received,
        )


def _rebuild(
    kind: type[TransportError],
    problem: str,
    advice: str,
    alert_sent: AlertDescription | None,
    alert_received: AlertDescription | None,
) -> TransportError:
    return kind(problem, advice=advice, alert_sent=alert_sent, alert_received=alert_received)


class APIMisuse(TransportError):
    """The calling program asked for something that cannot be done; nothing crossed the wire."""


class PolicyError(APIMisuse):
    """A policy that would admit something without forward secrecy, or that names the unknown."""


class PolicyViolation(TransportError):
    """The handshake worked, and ended in parameters that this side's policy does not admit.

    Or, at start-up: the TLS library did not take the policy that it was given.
    """


class PeerMisbehaved(TransportError):
    """The peer broke the protocol, or does not speak TLS at all."""


class PeerIncompatible(TransportError):
    """The peer follows the protocol but shares no version, suite, group or scheme with us."""


class CertificateRejected(TransportError):
    """The peer's certificate is missing, untrusted, expired, or for another name."""


class AlertReceived(TransportError):
    """The peer refused us and said why in a fatal alert."""


class TruncatedStream(TransportError, ConnectionError):
    """The connection ended without close_notify: what was read may be incomplete.

    RFC 9846 section 6.1: only close_notify tells the end of data from an attacker's cut.
    """


class HandshakeTimeout(TransportError, TimeoutError):
    """The peer did not finish its handshake before the deadline."""


# How a connection ends that a peer, or the network, broke off. One that was accepted is never
# refused: that is said of another connection, to a database perhaps.
_BROKEN_OFF: Final = (
    BrokenPipeError,
    ConnectionAbortedError,
    ConnectionResetError,
    TimeoutError,
)


def is_the_peers_doing(error: BaseException) -> bool:
    """Return whether what ended a server's handler is its peer's doing: daily life, and no bug.

    Every other error is the handler's own, an `OSError` of a file that is not there included.
    """
    if isinstance(error, TransportError):
        return not isinstance(error, APIMisuse)
    return isinstance(error, _BROKEN_OFF)
