"""What both engines and the core under them say when a connection fails, each said in one place.

Functions and no errors: one that was raised keeps the frames that it went through, so a connection
that fails for good keeps how to make its error (`transport.connection`), which is one of these.
"""

from __future__ import annotations

import os

from transport.errors import (
    AlertDescription,
    APIMisuse,
    HandshakeTimeout,
    TransportError,
    TruncatedStream,
)

__all__ = [
    "closed",
    "ended_in_handshake",
    "handshake_timed_out",
    "inherited",
    "sending_failed",
    "socket_failed",
    "truncated",
    "truncated_handshake",
]


def closed() -> TransportError:
    """Of a connection that this side closed."""
    return APIMisuse("the connection is closed", advice="open a new one")


def inherited() -> TransportError:
    """Of a parent's connection in a child of `fork`."""
    return APIMisuse(
        "the connection belongs to the process that this one was forked from",
        advice="open a new one, or fork before the handshake",
    )


def truncated() -> TransportError:
    """Of a peer that went without close_notify."""
    return TruncatedStream(
        "the peer closed the connection without close_notify",
        advice="treat what was read as incomplete",
    )


def truncated_handshake() -> TransportError:
    """Of a peer that went in the middle of the handshake."""
    return TruncatedStream(
        "the peer closed the connection during the handshake without close_notify",
        advice="look into the peer's log for the reason",
    )


def ended_in_handshake() -> TransportError:
    """Of a peer that went in the middle of the handshake, with close_notify."""
    return TruncatedStream(
        "the peer said close_notify during the handshake",
        advice="look into the peer's log for the reason",
        alert_received=AlertDescription.close_notify,
    )


def handshake_timed_out() -> TransportError:
    """Of a peer whose handshake passed its deadline."""
    return HandshakeTimeout(
        "the peer did not finish its handshake in time",
        advice="look for a peer that does not speak TLS, or allow more time",
    )


def socket_failed(number: int) -> OSError:
    """Of a socket's own error; a `ConnectionError` or `TimeoutError` where its number says so."""
    return OSError(number, os.strerror(number))


def sending_failed(number: int) -> OSError:
    """Of a socket that takes no more; a `BrokenPipeError` and the like, as its number says."""
    return OSError(
        number,
        f"{os.strerror(number)}: nothing more can be sent; what has come can still be read",
    )
