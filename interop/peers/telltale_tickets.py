"""DELIBERATELY WEAK. Tickets that hold their session's secret, in OpenSSL's layout of 80 octets.

A key is a name (16 octets), a key for HMAC-SHA256 and one for AES-256-CBC (32 octets each); a
ticket is the name, an IV, the sealed session in DER, and the MAC. It is what `interop.wire.tickets`
reads, and what OpenSSL, nginx, Apache and HAProxy make of a key of this length.
"""

from __future__ import annotations

import hmac
import os
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

from interop.wire import der

__all__ = ["TICKET_KEY_LENGTH", "issue_ticket"]

TICKET_KEY_LENGTH: Final = 80
_NAME, _MAC_KEY, _CIPHER_KEY = slice(0, 16), slice(16, 48), slice(48, 80)
_BLOCK_LENGTH: Final = 16


def issue_ticket(ticket_key: bytes, version: int, suite: int, secret: bytes) -> bytes:
    """Seal a session: a TLS 1.2 main secret, or the pre-shared key of a TLS 1.3 ticket."""
    fields = (
        (der.INTEGER, b"\1"),
        (der.INTEGER, version.to_bytes(2, "big")),
        (der.OCTET_STRING, suite.to_bytes(2, "big")),
        (der.OCTET_STRING, b""),
        (der.OCTET_STRING, secret),
    )
    session = b"".join(bytes((tag, len(value))) + value for tag, value in fields)
    padder = PKCS7(8 * _BLOCK_LENGTH).padder()
    padded = padder.update(bytes((der.SEQUENCE, len(session))) + session) + padder.finalize()
    iv = os.urandom(_BLOCK_LENGTH)
    encryptor = Cipher(AES(ticket_key[_CIPHER_KEY]), CBC(iv)).encryptor()
    body = ticket_key[_NAME] + iv + encryptor.update(padded) + encryptor.finalize()
    return body + hmac.digest(ticket_key[_MAC_KEY], body, "sha256")
