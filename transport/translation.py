"""The one place where OpenSSL's error queue becomes this package's errors.

OpenSSL reports a failed call as a queue of (library, function, reason) texts and sends the alert by
itself; which alert that was it does not say, and the callback that would tell runs in Python on
every handshake message, which is far too dear. The reason determines the alert, so a table does
it, and tests hold the table against the alerts that peers really saw. A reason that the table
does not know is reported as the peer's fault, in OpenSSL's words, with no alert named: better
nothing than a guess.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from transport.errors import (
    AlertDescription,
    AlertReceived,
    APIMisuse,
    CertificateRejected,
    PeerIncompatible,
    PeerMisbehaved,
    TransportError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from OpenSSL import SSL

__all__ = ["is_plain_http", "queued_reasons", "translate_error"]


class _Meaning(NamedTuple):
    kind: type[TransportError]
    alert: AlertDescription | None
    problem: str
    advice: str


_Alert = AlertDescription
_ALIGN_VERSIONS = "let both sides share TLS 1.2 or 1.3"
_ALIGN_SUITES = "offer an ECDHE suite with AES-GCM or ChaCha20-Poly1305 that suits the certificate"
_ALIGN_GROUPS = "offer x25519, secp256r1 or another group of the policy"
_ALIGN_SCHEMES = "use a certificate whose key fits the signature schemes of both sides"
_NOT_TLS = "speak TLS to this port"
_PLAIN_HTTP = frozenset({"http request", "https proxy request"})
_BROKEN = "look for a broken or hostile peer, or for a middlebox that alters the stream"

# OpenSSL's reason → whose fault, the alert that OpenSSL sends with it, what to say.
_REASONS: Mapping[str, _Meaning] = {
    reason: _Meaning(kind, alert, problem, advice)
    for kind, alert, problem, advice, reasons in (
        (
            PeerIncompatible,
            _Alert.protocol_version,
            "the peer offers no TLS version that the policy admits",
            _ALIGN_VERSIONS,
            ("unsupported protocol", "wrong ssl version", "no protocols available"),
        ),
        (
            PeerIncompatible,
            _Alert.handshake_failure,
            "the peer shares no suite with the policy and the certificate",
            _ALIGN_SUITES,
            ("no shared cipher",),
        ),
        (
            PeerIncompatible,
            _Alert.handshake_failure,
            "the peer shares no group with the policy",
            _ALIGN_GROUPS,
            ("no suitable key share", "no shared groups", "no suitable groups"),
        ),
        (
            PeerIncompatible,
            _Alert.handshake_failure,
            "the peer accepts no signature scheme that the certificate's key can make",
            _ALIGN_SCHEMES,
            ("no suitable signature algorithm", "no shared signature algorithms"),
        ),
        (
            PeerIncompatible,
            _Alert.no_application_protocol,
            "the peer shares no application protocol (ALPN)",
            "offer one of the protocols that this endpoint speaks",
            ("no application protocol",),
        ),
        (
            PeerIncompatible,
            _Alert.unrecognized_name,
            "the peer asked for a server name that is not served here",
            "connect by a name of one of the credentials, or add a credential for this name",
            ("callback failed",),  # of the callbacks in use only that for server_name can fail
        ),
        (
            PeerIncompatible,
            _Alert.handshake_failure,
            "the peer lacks secure renegotiation (RFC 5746)",
            "update the peer",
            ("unsafe legacy renegotiation disabled",),
        ),
        (
            PeerIncompatible,
            _Alert.inappropriate_fallback,
            "the peer fell back to an older version than it needed to (RFC 7507)",
            "stop the peer from retrying with older versions",
            ("inappropriate fallback",),
        ),
        (
            PeerMisbehaved,
            None,
            "the peer does not speak TLS",
            _NOT_TLS,
            ("wrong version number", "packet length too long"),
        ),
        (
            PeerMisbehaved,
            None,
            "plain HTTP on a TLS port",
            "use https:// for this port",
            ("http request", "https proxy request"),
        ),
        (
            PeerMisbehaved,
            _Alert.unexpected_message,
            "the peer sent a message out of order",
            _BROKEN,
            (
                "bad record type",
                "unexpected message",
                "unexpected record",
                "ccs received early",
                "mixed handshake and non handshake data",
                "too many key updates",
                "too many warn alerts",
                "unexpected ccs message",
                "bad length",
            ),
        ),
        (
            PeerMisbehaved,
            _Alert.unexpected_message,
            "the peer sent more empty records in a row than anyone needs",
            _BROKEN,
            ("record too small",),
        ),
        (
            PeerMisbehaved,
            _Alert.bad_record_mac,
            "a record from the peer does not decrypt",
            _BROKEN,
            ("decryption failed or bad record mac",),
        ),
        (
            PeerMisbehaved,
            _Alert.record_overflow,
            "the peer sent a record larger than TLS allows",
            _BROKEN,
            ("data length too long", "encrypted length too long"),
        ),
        (
            PeerMisbehaved,
            _Alert.decode_error,
            "the peer sent a message that cannot be parsed",
            _BROKEN,
            ("length mismatch", "bad extension", "length too short", "bad packet length"),
        ),
        (
            PeerMisbehaved,
            _Alert.decrypt_error,
            "the peer's signature or Finished message does not verify",
            _BROKEN,
            ("bad signature", "digest check failed"),
        ),
        (
            PeerMisbehaved,
            _Alert.illegal_parameter,
            "the peer chose something that was not offered or is not valid",
            _BROKEN,
            (
                "bad key share",
                "bad ecpoint",
                "wrong curve",
                "wrong cipher returned",
                "wrong signature type",
                "unknown cipher returned",
                "excessive message size",
                "inconsistent extms",
                "bad key update",
            ),
        ),
        (
            CertificateRejected,
            _Alert.certificate_required,
            "the peer sent no certificate though one is required",
            "give the peer a certificate from an authority among the trust anchors",
            ("peer did not return a certificate",),
        ),
        (
            APIMisuse,
            None,
            "a send that had to wait was repeated with other data",
            "repeat it with the same data, or close the connection",
            ("bad write retry",),
        ),
    )
    for reason in reasons
}

# The same words mean another thing when it was we who wrote: a shorter repetition of a send.
_WRITING_REASONS: Mapping[str, _Meaning] = {"bad length": _REASONS["bad write retry"]}

# What OpenSSL sends when X509_verify_cert fails with this code (its ssl_x509err2alert); other
# codes make certificate_unknown.
_VERIFY_ALERTS: Mapping[int, AlertDescription] = {
    code: alert
    for alert, codes in (
        (_Alert.unknown_ca, (2, 3, 18, 19, 20, 21, 22, 24, 25, 33, 79)),
        (_Alert.certificate_expired, (10, 12)),
        (_Alert.certificate_revoked, (23,)),
        (_Alert.decrypt_error, (7, 8)),
        (_Alert.unsupported_certificate, (26,)),
        (_Alert.handshake_failure, (50,)),
        (_Alert.internal_error, (1, 17, 65, 69, 70)),
        (
            _Alert.bad_certificate,
            (4, 5, 6, 9, 11, 13, 14, 15, 16, 27, 28, 62, 63, 64, 66, 67, 68),
        ),
    )
    for code in codes
}
_VERIFY_ADVICE: Mapping[int, str] = {
    10: "renew the peer's certificate, and check this machine's clock",
    9: "check this machine's clock",
    23: "replace the peer's certificate: it was revoked",
    26: "use a certificate whose extended key usage is for this side of TLS",
    62: "connect by a name that the certificate carries, or issue one that carries this name",
    64: "connect by an address that the certificate carries, or issue one that carries it",
}
_VERIFY_DEFAULT_ADVICE = "if its issuer is the right one, give that as a trust anchor"

_ALERT_ADVICE: Mapping[AlertDescription, str] = {
    _Alert.handshake_failure: "compare suites, groups and certificates of both sides",
    _Alert.insufficient_security: "compare suites and groups of both sides",
    _Alert.protocol_version: _ALIGN_VERSIONS,
    _Alert.unknown_ca: "the peer does not trust this side's issuer: give it the root certificate",
    _Alert.bad_certificate: "the peer rejects this side's certificate: check names and validity",
    _Alert.certificate_expired: "renew this side's certificate",
    _Alert.certificate_required: "pass a credential: the peer wants a client certificate",
    _Alert.no_application_protocol: "offer an application protocol (ALPN) that the peer speaks",
    _Alert.unrecognized_name: "the peer serves no such name: check server_hostname",
}
_ALERT_DEFAULT_ADVICE = "look into the peer's log for the reason"

# "tls alert handshake failure", "tlsv1 alert unknown ca", "tlsv13 alert certificate required"; a
# few lack the word.
_ALERT_REASON = re.compile(r"(?:tls|sslv3|ssl/tls|tlsv1|tlsv13)(?: alert)? (?P<name>[a-z0-9 ]+)")


def queued_reasons(error: SSL.Error) -> tuple[str, ...]:
    """Return the reason texts of an error's queue, first raised first."""
    queue = error.args[0] if error.args else ()
    if not isinstance(queue, list):
        return ()
    return tuple(str(entry[-1]) for entry in queue)


def is_plain_http(error: SSL.Error) -> bool:
    """Return whether the peer began with a request of HTTP instead of a ClientHello."""
    return not _PLAIN_HTTP.isdisjoint(queued_reasons(error))


def translate_error(
    error: SSL.Error, *, verify_result: int, verify_text: str, tls_1_3: bool, writing: bool = False
) -> TransportError:
    """Turn an error of OpenSSL's queue into the `TransportError` that says who erred.

    `verify_result` and `verify_text` are the connection's certificate verification outcome;
    `tls_1_3` chooses between the two alerts for a missing client certificate; `writing` says that
    the call was one that sends.
    """
    reasons = queued_reasons(error)
    if "certificate verify failed" in reasons:
        return CertificateRejected(
            f"the peer's certificate was rejected: {verify_text}",
            advice=_VERIFY_ADVICE.get(verify_result, _VERIFY_DEFAULT_ADVICE),
            alert_sent=_VERIFY_ALERTS.get(verify_result, _Alert.certificate_unknown),
        )
    for reason in reasons:
        meaning = _WRITING_REASONS.get(reason) if writing else None
        if (meaning := meaning or _REASONS.get(reason)) is not None:
            alert = meaning.alert
            if alert is _Alert.certificate_required and not tls_1_3:
                alert = _Alert.handshake_failure  # RFC 5246 section 7.4.6
            return meaning.kind(meaning.problem, advice=meaning.advice, alert_sent=alert)
        if (received := _received_alert(reason)) is not None:
            return AlertReceived(
                f"the peer refused with alert {received.name}",
                advice=_ALERT_ADVICE.get(received, _ALERT_DEFAULT_ADVICE),
                alert_received=received,
            )
    words = ", ".join(reasons) or "no reason given"
    return PeerMisbehaved(f'the TLS library refused the peer: "{words}"', advice=_BROKEN)


def _received_alert(reason: str) -> AlertDescription | None:
    match = _ALERT_REASON.fullmatch(reason)
    if match is None:
        return None
    return AlertDescription.__members__.get(match["name"].replace(" ", "_"))
