"""What happens in a server, said once: a line in the log, a count in the metrics.

Engines and supervisor call a method here for each thing that happens; what it is called in the log
and how it is counted is decided in this one place. The rule is one line and one clear reason for
each failure: whoever handles an error reports it here and nobody else does.

**Floods are summed up.** The first few of a kind in a second are written, and the others counted in
one line: see `transport.server_floods`. The metrics count each one. Refusals and failed handshakes
cost a peer next to nothing, so there it is a few indeed; what comes after a handshake has cost the
peer that, and a hundred are written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from transport.credentials import describe_credential
from transport.errors import AlertDescription, TransportError, is_the_peers_doing
from transport.server_floods import FloodGuard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certs.credential import Credential
    from transport.negotiated import NegotiatedSession
    from transport.server_limits import Refusal
    from transport.server_log import EventLog

__all__ = ["Meter", "NoMeter", "ServerEvents", "failure_facts", "peer_text"]

_MAX_REFUSALS: Final = 1  # lines of a kind in a second
_MAX_FAILURES: Final = 10
_MAX_ENDS: Final = 100


class Meter(Protocol):
    """What is counted; called from any thread, and never raises."""

    def opened(self) -> None:
        """Count a connection in."""

    def closed(self) -> None:
        """Count a connection out."""

    def handshake_done(self, session: NegotiatedSession, seconds: float) -> None:
        """Count a handshake that passed its check."""

    def handshake_failed(self, reason: str) -> None:
        """Count a handshake that did not, by a reason of few different values."""

    def refused(self, reason: str) -> None:
        """Count a connection turned away before its handshake."""

    def connection_failed(self, reason: str) -> None:
        """Count a connection that ended otherwise than its handler meant it to."""

    def credentials_loaded(self, *, taken: bool) -> None:
        """Count an attempt to load the credentials."""


class NoMeter:
    """Counts nothing."""

    def opened(self) -> None:
        """Do nothing."""

    def closed(self) -> None:
        """Do nothing."""

    def handshake_done(self, session: NegotiatedSession, seconds: float) -> None:
        """Do nothing."""

    def handshake_failed(self, reason: str) -> None:
        """Do nothing."""

    def refused(self, reason: str) -> None:
        """Do nothing."""

    def connection_failed(self, reason: str) -> None:
        """Do nothing."""

    def credentials_loaded(self, *, taken: bool) -> None:
        """Do nothing."""


class ServerEvents:
    """The one place that log and metrics are fed from.

    With `log_connections`, each successful handshake is a line too, with what it negotiated.
    """

    def __init__(self, log: EventLog, meter: Meter, *, log_connections: bool = False) -> None:
        self.log = log
        self.meter = meter
        self._log_connections = log_connections
        self._floods = FloodGuard(log)

    def flush(self) -> None:
        """Say what was left out of a flood until now; for the end of a server."""
        self._floods.flush()

    # Connections

    def refused(self, address: object, reason: Refusal) -> None:
        """Report a connection turned away by a limit."""
        self.meter.refused(reason.value)
        if self._floods.admits("refused", "reason", reason.value, most=_MAX_REFUSALS):
            self.log.write("refused", peer=peer_text(address), reason=reason.value)

    def handshake_done(self, address: object, session: NegotiatedSession, seconds: float) -> None:
        """Report a handshake that passed its check and its authorization."""
        self.meter.handshake_done(session, seconds)
        if self._log_connections:
            self.log.write(
                "connected",
                peer=peer_text(address),
                version=str(session.version),
                suite=session.suite,
                group=session.group,
                server_name=session.server_name,
                alpn=session.alpn,
                resumed=session.resumed,
                seconds=round(seconds, 4),
            )

    def handshake_failed(self, address: object, error: OSError, seconds: float) -> None:
        """Report a handshake that failed, or whose peer was not authorized."""
        kind = type(error).__name__
        self.meter.handshake_failed(kind)
        if self._floods.admits("handshake_failed", "kind", kind, most=_MAX_FAILURES):
            self.log.write(
                "handshake_failed",
                peer=peer_text(address),
                seconds=round(seconds, 4),
                **failure_facts(error),
            )

    def connection_cut(self, address: object, reason: str) -> None:
        """Report a connection that the server ended at a deadline."""
        self.meter.connection_failed(reason)
        if self._floods.admits("cut", "reason", reason, most=_MAX_ENDS):
            self.log.write("cut", peer=peer_text(address), reason=reason)

    def connection_failed(self, address: object, error: BaseException) -> None:
        """Report a connection whose handler raised."""
        kind = type(error).__name__
        self.meter.connection_failed(kind)
        event = "connection_failed" if is_the_peers_doing(error) else "handler_failed"
        if self._floods.admits(event, "kind", kind, most=_MAX_ENDS):
            self.log.write(event, peer=peer_text(address), **failure_facts(error))

    def accepting_paused(self, error: OSError) -> None:
        """Report that no connection can be accepted for want of descriptors or memory."""
        self.log.write("accepting_paused", reason=error.strerror)

    # The server itself

    def credentials_loaded(self, credentials: Sequence[Credential]) -> None:
        """Report the credentials that new connections use from now on."""
        self.meter.credentials_loaded(taken=True)
        for credential in credentials:
            self.log.write("credential_loaded", **describe_credential(credential))

    def credentials_kept(self, error: Exception) -> None:
        """Report that new credentials cannot be used, so that the old ones stay."""
        self.meter.credentials_loaded(taken=False)
        self.log.write("credential_kept", **failure_facts(error))

    def staple_failed(self, error: Exception) -> None:
        """Report that an OCSP response cannot be had, or cannot be stapled; called by a thread."""
        self.log.write("staple_failed", **failure_facts(error))


def failure_facts(error: BaseException) -> dict[str, object]:
    """Return what a log says of an error: its kind, reason, advice and alerts.

    Of an error that is none of this package's, and so may quote anything, a foreign exception's
    text is left out: only an `OSError`'s or a `CertsError`'s is known to hold no secret.
    """
    if isinstance(error, TransportError):
        return {
            "kind": type(error).__name__,
            "reason": error.problem,
            "advice": error.advice,
            "alert_sent": _alert_name(error.alert_sent),
            "alert_received": _alert_name(error.alert_received),
        }
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return {"kind": type(error).__name__, "reason": f"{where}{error.strerror or error}"}
    kind = type(error)
    if kind.__module__ == "certs.errors":
        return {"kind": kind.__name__, "reason": str(error)}
    return {"kind": kind.__name__, "reason": f"{kind.__name__}{_raised_at(error)}"}


def _raised_at(error: BaseException) -> str:
    traceback, where = error.__traceback__, ""
    while traceback is not None:
        where = f" in {traceback.tb_frame.f_code.co_qualname} at line {traceback.tb_lineno}"
        traceback = traceback.tb_next
    return where


def _alert_name(alert: AlertDescription | None) -> str | None:
    return None if alert is None else alert.name


def peer_text(address: object) -> str:
    """Write a socket address as ``host:port``, IPv6 in brackets."""
    if isinstance(address, tuple) and len(address) >= 2:  # noqa: PLR2004 - host and port
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address)
