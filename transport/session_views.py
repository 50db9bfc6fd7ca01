"""What `ssl.SSLSocket` and `ssl.SSLObject` tell of a session, told from our `NegotiatedSession`.

Code written for the standard library asks `version()`, `cipher()`, `getpeercert()` and the like.
The answers here have its shapes, but come from the proof of what was negotiated, and suites go by
their IANA names. New code should read `negotiated` instead: it is typed, and has the group.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, Protocol, overload

from cryptography import x509

from transport.errors import APIMisuse
from transport.policy import ProtocolVersion

if TYPE_CHECKING:
    from datetime import datetime

    from transport.negotiated import NegotiatedSession

__all__ = ["SessionViews"]

_STANDARD_LIBRARY_VERSIONS: Final = {
    ProtocolVersion.TLS_1_2: "TLSv1.2",
    ProtocolVersion.TLS_1_3: "TLSv1.3",
}
_CACHED_CERTIFICATES: Final = 64
_MONTHS: Final = "JanFebMarAprMayJunJulAugSepOctNovDec"


class _HasNegotiated(Protocol):
    @property
    def negotiated(self) -> NegotiatedSession: ...

    def export_keying_material(
        self, label: str, length_bytes: int, context: bytes | None = None
    ) -> bytes: ...


class SessionViews:
    """Methods in the shapes of `ssl.SSLSocket`; mixed into what has `negotiated`.

    Before the handshake they return None or False, but for `getpeercert`, which raises
    `ValueError`.
    """

    __slots__ = ()

    def version(self: _HasNegotiated) -> str | None:
        """Return "TLSv1.2" or "TLSv1.3"."""
        session = _session(self)
        return None if session is None else _STANDARD_LIBRARY_VERSIONS[session.version]

    def cipher(self: _HasNegotiated) -> tuple[str, str, int] | None:
        """Return the suite's IANA name, the version, and the suite's key length in bits."""
        session = _session(self)
        if session is None:
            return None
        bits = 128 if "_AES_128_" in session.suite else 256
        return session.suite, _STANDARD_LIBRARY_VERSIONS[session.version], bits

    def compression(self) -> None:
        """Return None: nothing here compresses (RFC 9846 section 4.2.2 forbids it)."""
        return

    def selected_alpn_protocol(self: _HasNegotiated) -> str | None:
        """Return the agreed application protocol (RFC 7301), if any."""
        session = _session(self)
        return None if session is None else session.alpn

    def selected_npn_protocol(self) -> None:
        """Return None: ALPN replaced NPN."""
        return

    def shared_ciphers(self) -> None:
        """Return None: the client's offer is not kept."""
        return

    @property
    def session(self) -> None:
        """None: what a client resumes is the business of `transport.sessions`."""
        return

    @property
    def session_reused(self: _HasNegotiated) -> bool:
        """Whether the session was resumed."""
        session = _session(self)
        return session is not None and session.resumed

    def get_channel_binding(self: _HasNegotiated, cb_type: str = "tls-exporter") -> bytes | None:
        """Return the channel binding "tls-exporter" (RFC 9266); no other is offered."""
        if cb_type != "tls-exporter":
            raise ValueError(f"{cb_type} channel binding type not implemented")
        if _session(self) is None:
            return None
        return self.export_keying_material("EXPORTER-Channel-Binding", 32, b"")

    @overload
    def getpeercert(
        self: _HasNegotiated, binary_form: Literal[False] = False
    ) -> dict[str, object] | None: ...
    @overload
    def getpeercert(self: _HasNegotiated, binary_form: Literal[True]) -> bytes | None: ...
    def getpeercert(
        self: _HasNegotiated,
        binary_form: bool = False,  # noqa: FBT001 - the signature of ssl.SSLSocket
    ) -> dict[str, object] | bytes | None:
        """Return the peer's certificate: as a dictionary, or in DER; None if it showed none.

        The dictionary has what the standard library's has, subject alternative names of the types
        DNS, IP Address and URI included.
        """
        session = _session(self)
        if session is None:
            raise ValueError("handshake not done yet")
        if session.peer_certificate is None or binary_form:
            return session.peer_certificate
        return dict(_certificate_fields(session.peer_certificate))


def _session(connection: _HasNegotiated) -> NegotiatedSession | None:
    try:
        return connection.negotiated
    except APIMisuse:
        return None


@lru_cache(maxsize=_CACHED_CERTIFICATES)
def _certificate_fields(certificate: bytes) -> tuple[tuple[str, object], ...]:
    parsed = x509.load_der_x509_certificate(certificate)
    fields: list[tuple[str, object]] = [
        ("subject", _name(parsed.subject)),
        ("issuer", _name(parsed.issuer)),
        ("version", parsed.version.value + 1),
        ("serialNumber", _whole_bytes(f"{parsed.serial_number:X}")),
        ("notBefore", _time(parsed.not_valid_before_utc)),
        ("notAfter", _time(parsed.not_valid_after_utc)),
    ]
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return tuple(fields)
    alternatives = (
        *(("DNS", name) for name in names.get_values_for_type(x509.DNSName)),
        *(("IP Address", str(address)) for address in names.get_values_for_type(x509.IPAddress)),
        *(("URI", uri) for uri in names.get_values_for_type(x509.UniformResourceIdentifier)),
    )
    return (*fields, ("subjectAltName", alternatives))


def _name(name: x509.Name) -> tuple[tuple[tuple[str, str], ...], ...]:
    return tuple(
        tuple(
            (attribute.oid._name, _text(attribute.value))  # noqa: SLF001 - the only place of its name
            for attribute in part
        )
        for part in name.rdns
    )


def _whole_bytes(digits: str) -> str:
    return digits if len(digits) % 2 == 0 else f"0{digits}"


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()


def _time(moment: datetime) -> str:
    # Names of months in English whatever the locale, and the day padded with a space.
    month = _MONTHS[3 * moment.month - 3 : 3 * moment.month]
    return f"{month} {moment.day:2d} {moment:%H:%M:%S %Y} GMT"
