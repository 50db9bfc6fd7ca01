"""The numbers of TLS, under the names their standards give them.

What a peer sends is an open set: new registrations, private use and GREASE (RFC 8701) all occur
in healthy traffic. So parsed messages carry plain integers, these enumerations give the known ones
a name, and `name_of` has an answer for every integer. Nothing here ever rejects a number.

`CipherSuite` has its own module, `suites`, because its names carry structure.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

__all__ = [
    "AlertDescription",
    "AlertLevel",
    "ContentType",
    "ExtensionType",
    "HandshakeType",
    "NamedGroup",
    "ProtocolVersion",
    "PskKeyExchangeMode",
    "SignatureScheme",
    "is_grease",
    "name_of",
]


class ContentType(IntEnum):
    """Record content types (RFC 9846 section 5.1)."""

    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23
    HEARTBEAT = 24


class ProtocolVersion(IntEnum):
    """Protocol versions as they cross the wire (RFC 9846 section 4.3.1 and appendix D)."""

    SSL_2_0 = 0x0002
    SSL_3_0 = 0x0300
    TLS_1_0 = 0x0301
    TLS_1_1 = 0x0302
    TLS_1_2 = 0x0303
    TLS_1_3 = 0x0304


class HandshakeType(IntEnum):
    """Handshake message types (RFC 9846 section 4; RFC 5246 section 7.4 for the older ones)."""

    HELLO_REQUEST = 0
    CLIENT_HELLO = 1
    SERVER_HELLO = 2
    NEW_SESSION_TICKET = 4
    END_OF_EARLY_DATA = 5
    ENCRYPTED_EXTENSIONS = 8
    CERTIFICATE = 11
    SERVER_KEY_EXCHANGE = 12
    CERTIFICATE_REQUEST = 13
    SERVER_HELLO_DONE = 14
    CERTIFICATE_VERIFY = 15
    CLIENT_KEY_EXCHANGE = 16
    CLIENT_CERTIFICATE_REQUEST = 17
    FINISHED = 20
    CERTIFICATE_URL = 21
    CERTIFICATE_STATUS = 22
    SUPPLEMENTAL_DATA = 23
    KEY_UPDATE = 24
    COMPRESSED_CERTIFICATE = 25
    NEXT_PROTOCOL = 67
    MESSAGE_HASH = 254


class ExtensionType(IntEnum):
    """Extension types (RFC 9846 section 4.3 and the IANA registry)."""

    SERVER_NAME = 0
    MAX_FRAGMENT_LENGTH = 1
    CLIENT_CERTIFICATE_URL = 2
    TRUSTED_CA_KEYS = 3
    TRUNCATED_HMAC = 4
    STATUS_REQUEST = 5
    USER_MAPPING = 6
    CLIENT_AUTHZ = 7
    SERVER_AUTHZ = 8
    CERT_TYPE = 9
    SUPPORTED_GROUPS = 10
    EC_POINT_FORMATS = 11
    SRP = 12
    SIGNATURE_ALGORITHMS = 13
    USE_SRTP = 14
    HEARTBEAT = 15
    APPLICATION_LAYER_PROTOCOL_NEGOTIATION = 16
    STATUS_REQUEST_V2 = 17
    SIGNED_CERTIFICATE_TIMESTAMP = 18
    CLIENT_CERTIFICATE_TYPE = 19
    SERVER_CERTIFICATE_TYPE = 20
    PADDING = 21
    ENCRYPT_THEN_MAC = 22
    EXTENDED_MAIN_SECRET = 23
    TOKEN_BINDING = 24
    CACHED_INFO = 25
    COMPRESS_CERTIFICATE = 27
    RECORD_SIZE_LIMIT = 28
    DELEGATED_CREDENTIAL = 34
    SESSION_TICKET = 35
    PRE_SHARED_KEY = 41
    EARLY_DATA = 42
    SUPPORTED_VERSIONS = 43
    COOKIE = 44
    PSK_KEY_EXCHANGE_MODES = 45
    CERTIFICATE_AUTHORITIES = 47
    OID_FILTERS = 48
    POST_HANDSHAKE_AUTH = 49
    SIGNATURE_ALGORITHMS_CERT = 50
    KEY_SHARE = 51
    TRANSPARENCY_INFO = 52
    CONNECTION_ID = 54
    EXTERNAL_ID_HASH = 55
    EXTERNAL_SESSION_ID = 56
    QUIC_TRANSPORT_PARAMETERS = 57
    TICKET_REQUEST = 58
    DNSSEC_CHAIN = 59
    NEXT_PROTOCOL_NEGOTIATION = 13172
    APPLICATION_SETTINGS = 17513
    ECH_OUTER_EXTENSIONS = 64768
    ENCRYPTED_CLIENT_HELLO = 65037
    RENEGOTIATION_INFO = 65281


class NamedGroup(IntEnum):
    """Key exchange groups (RFC 9846 section 4.3.7 and the IANA registry)."""

    SECT163K1 = 0x0001
    SECT163R1 = 0x0002
    SECT163R2 = 0x0003
    SECT193R1 = 0x0004
    SECT193R2 = 0x0005
    SECT233K1 = 0x0006
    SECT233R1 = 0x0007
    SECT239K1 = 0x0008
    SECT283K1 = 0x0009
    SECT283R1 = 0x000A
    SECT409K1 = 0x000B
    SECT409R1 = 0x000C
    SECT571K1 = 0x000D
    SECT571R1 = 0x000E
    SECP160K1 = 0x000F
    SECP160R1 = 0x0010
    SECP160R2 = 0x0011
    SECP192K1 = 0x0012
    SECP192R1 = 0x0013
    SECP224K1 = 0x0014
    SECP224R1 = 0x0015
    SECP256K1 = 0x0016
    SECP256R1 = 0x0017
    SECP384R1 = 0x0018
    SECP521R1 = 0x0019
    BRAINPOOLP256R1 = 0x001A
    BRAINPOOLP384R1 = 0x001B
    BRAINPOOLP512R1 = 0x001C
    X25519 = 0x001D
    X448 = 0x001E
    BRAINPOOLP256R1TLS13 = 0x001F
    BRAINPOOLP384R1TLS13 = 0x0020
    BRAINPOOLP512R1TLS13 = 0x0021
    CURVESM2 = 0x0029
    FFDHE2048 = 0x0100
    FFDHE3072 = 0x0101
    FFDHE4096 = 0x0102
    FFDHE6144 = 0x0103
    FFDHE8192 = 0x0104
    MLKEM512 = 0x0200
    MLKEM768 = 0x0201
    MLKEM1024 = 0x0202
    SECP256R1MLKEM768 = 0x11EB
    X25519MLKEM768 = 0x11EC
    SECP384R1MLKEM1024 = 0x11ED
    CURVESM2MLKEM768 = 0x11EE
    X25519KYBER768DRAFT00 = 0x6399
    SECP256R1KYBER768DRAFT00 = 0x639A


class SignatureScheme(IntEnum):
    """Signature schemes (RFC 9846 section 4.3.3 and the IANA registry)."""

    RSA_PKCS1_SHA1 = 0x0201
    ECDSA_SHA1 = 0x0203
    RSA_PKCS1_SHA256 = 0x0401
    ECDSA_SECP256R1_SHA256 = 0x0403
    RSA_PKCS1_SHA256_LEGACY = 0x0420
    RSA_PKCS1_SHA384 = 0x0501
    ECDSA_SECP384R1_SHA384 = 0x0503
    RSA_PKCS1_SHA384_LEGACY = 0x0520
    RSA_PKCS1_SHA512 = 0x0601
    ECDSA_SECP521R1_SHA512 = 0x0603
    RSA_PKCS1_SHA512_LEGACY = 0x0620
    SM2SIG_SM3 = 0x0708
    RSA_PSS_RSAE_SHA256 = 0x0804
    RSA_PSS_RSAE_SHA384 = 0x0805
    RSA_PSS_RSAE_SHA512 = 0x0806
    ED25519 = 0x0807
    ED448 = 0x0808
    RSA_PSS_PSS_SHA256 = 0x0809
    RSA_PSS_PSS_SHA384 = 0x080A
    RSA_PSS_PSS_SHA512 = 0x080B
    ECDSA_BRAINPOOLP256R1TLS13_SHA256 = 0x081A
    ECDSA_BRAINPOOLP384R1TLS13_SHA384 = 0x081B
    ECDSA_BRAINPOOLP512R1TLS13_SHA512 = 0x081C
    MLDSA44 = 0x0904
    MLDSA65 = 0x0905
    MLDSA87 = 0x0906


class PskKeyExchangeMode(IntEnum):
    """How a pre-shared key is used (RFC 9846 section 4.3.9)."""

    PSK_KE = 0
    PSK_DHE_KE = 1


class AlertLevel(IntEnum):
    """Alert levels (RFC 9846 section 6)."""

    WARNING = 1
    FATAL = 2


class AlertDescription(IntEnum):
    """Alert descriptions (RFC 9846 section 6 and the IANA registry)."""

    CLOSE_NOTIFY = 0
    UNEXPECTED_MESSAGE = 10
    BAD_RECORD_MAC = 20
    DECRYPTION_FAILED = 21
    RECORD_OVERFLOW = 22
    DECOMPRESSION_FAILURE = 30
    HANDSHAKE_FAILURE = 40
    NO_CERTIFICATE = 41
    BAD_CERTIFICATE = 42
    UNSUPPORTED_CERTIFICATE = 43
    CERTIFICATE_REVOKED = 44
    CERTIFICATE_EXPIRED = 45
    CERTIFICATE_UNKNOWN = 46
    ILLEGAL_PARAMETER = 47
    UNKNOWN_CA = 48
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    DECRYPT_ERROR = 51
    TOO_MANY_CIDS_REQUESTED = 52
    EXPORT_RESTRICTION = 60
    PROTOCOL_VERSION = 70
    INSUFFICIENT_SECURITY = 71
    INTERNAL_ERROR = 80
    INAPPROPRIATE_FALLBACK = 86
    USER_CANCELED = 90
    NO_RENEGOTIATION = 100
    MISSING_EXTENSION = 109
    UNSUPPORTED_EXTENSION = 110
    CERTIFICATE_UNOBTAINABLE = 111
    UNRECOGNIZED_NAME = 112
    BAD_CERTIFICATE_STATUS_RESPONSE = 113
    BAD_CERTIFICATE_HASH_VALUE = 114
    UNKNOWN_PSK_IDENTITY = 115
    CERTIFICATE_REQUIRED = 116
    GENERAL_ERROR = 117
    NO_APPLICATION_PROTOCOL = 120
    ECH_REQUIRED = 121


_VERSION_NAMES = {
    ProtocolVersion.SSL_2_0: "SSL 2.0",
    ProtocolVersion.SSL_3_0: "SSL 3.0",
    ProtocolVersion.TLS_1_0: "TLS 1.0",
    ProtocolVersion.TLS_1_1: "TLS 1.1",
    ProtocolVersion.TLS_1_2: "TLS 1.2",
    ProtocolVersion.TLS_1_3: "TLS 1.3",
}

# Where the standard's spelling is not simply the member in lower case.
_GROUP_NAMES = {
    NamedGroup.BRAINPOOLP256R1: "brainpoolP256r1",
    NamedGroup.BRAINPOOLP384R1: "brainpoolP384r1",
    NamedGroup.BRAINPOOLP512R1: "brainpoolP512r1",
    NamedGroup.BRAINPOOLP256R1TLS13: "brainpoolP256r1tls13",
    NamedGroup.BRAINPOOLP384R1TLS13: "brainpoolP384r1tls13",
    NamedGroup.BRAINPOOLP512R1TLS13: "brainpoolP512r1tls13",
    NamedGroup.CURVESM2: "curveSM2",
    NamedGroup.MLKEM512: "MLKEM512",
    NamedGroup.MLKEM768: "MLKEM768",
    NamedGroup.MLKEM1024: "MLKEM1024",
    NamedGroup.SECP256R1MLKEM768: "SecP256r1MLKEM768",
    NamedGroup.X25519MLKEM768: "X25519MLKEM768",
    NamedGroup.SECP384R1MLKEM1024: "SecP384r1MLKEM1024",
    NamedGroup.CURVESM2MLKEM768: "curveSM2MLKEM768",
    NamedGroup.X25519KYBER768DRAFT00: "X25519Kyber768Draft00",
    NamedGroup.SECP256R1KYBER768DRAFT00: "SecP256r1Kyber768Draft00",
}

_GREASE_NIBBLE = 0x0A
_OCTET_REGISTRIES = (ContentType, HandshakeType, AlertDescription, AlertLevel, PskKeyExchangeMode)


def is_grease(value: int) -> bool:
    """Tell whether a 16-bit number is one of the GREASE values.

    RFC 8701 section 2: both octets equal, each of the form 0x?A.
    """
    high, low = divmod(value, 256)
    return high == low and low % 16 == _GREASE_NIBBLE


@lru_cache(maxsize=4096)
def name_of(registry: type[IntEnum], value: int) -> str:
    """Name a number as its registry spells it, or say plainly that it is unknown.

    Never raises. Names of suites are IANA's; of other registries, the standard's lower-case ones.
    """
    try:
        member = registry(value)
    except ValueError:
        digits = 2 if registry in _OCTET_REGISTRIES else 4
        word = "GREASE" if digits > 2 and is_grease(value) else "unknown"  # noqa: PLR2004 - octets
        return f"{word} (0x{value:0{digits}x})"
    if isinstance(member, ProtocolVersion):
        return _VERSION_NAMES[member]
    if isinstance(member, NamedGroup):
        return _GROUP_NAMES.get(member, member.name.lower())
    if member.name.startswith("TLS_"):
        return member.name
    return member.name.lower()
