"""Key derivation of TLS 1.2 (RFC 5246 section 5; RFC 7627 for the extended main secret).

RFC 9846 calls `main_secret` what RFC 5246 called ``master_secret``; the label on the wire keeps
the old word.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

__all__ = [
    "CLIENT_FINISHED",
    "MAIN_SECRET_LENGTH",
    "SERVER_FINISHED",
    "KeyBlock",
    "exporter_value",
    "extended_main_secret",
    "key_block",
    "main_secret",
    "prf",
    "verify_data",
]

CLIENT_FINISHED = b"client finished"
SERVER_FINISHED = b"server finished"

MAIN_SECRET_LENGTH = 48
_VERIFY_DATA_LENGTH = 12


class KeyBlock(NamedTuple):
    """The six values that the key block is cut into (RFC 5246 section 6.3)."""

    client_mac_key: bytes
    server_mac_key: bytes
    client_key: bytes
    server_key: bytes
    client_iv: bytes
    server_iv: bytes

    def __repr__(self) -> str:
        return f"KeyBlock({len(self.client_key)}-byte keys)"


def prf(hash_name: str, secret: bytes, label: bytes, seed: bytes, length: int) -> bytes:
    """Run P_hash of TLS 1.2 to `length` bytes (RFC 5246 section 5)."""
    seed = label + seed
    output = b""
    step = seed
    while len(output) < length:
        step = hmac.digest(secret, step, hash_name)
        output += hmac.digest(secret, step + seed, hash_name)
    return output[:length]


def main_secret(
    hash_name: str, premaster_secret: bytes, client_random: bytes, server_random: bytes
) -> bytes:
    """Derive the 48-byte main secret from the two randoms (RFC 5246 section 8.1)."""
    seed = client_random + server_random
    return prf(hash_name, premaster_secret, b"master secret", seed, MAIN_SECRET_LENGTH)


def extended_main_secret(hash_name: str, premaster_secret: bytes, session_hash: bytes) -> bytes:
    """Derive the 48-byte main secret from the handshake's hash (RFC 7627 section 4).

    `session_hash` covers the messages up to and including ClientKeyExchange.
    """
    label = b"extended master secret"
    return prf(hash_name, premaster_secret, label, session_hash, MAIN_SECRET_LENGTH)


def key_block(
    hash_name: str,
    main: bytes,
    client_random: bytes,
    server_random: bytes,
    *,
    mac_key_length: int,
    key_length: int,
    iv_length: int,
) -> KeyBlock:
    """Cut the key block; all lengths in bytes (RFC 5246 section 6.3)."""
    lengths = [n for n in (mac_key_length, key_length, iv_length) for _ in range(2)]
    block = prf(hash_name, main, b"key expansion", server_random + client_random, sum(lengths))
    parts = []
    for length in lengths:
        parts.append(block[:length])
        block = block[length:]
    return KeyBlock(*parts)


def verify_data(hash_name: str, main: bytes, label: bytes, handshake_hash: bytes) -> bytes:
    """Compute the contents of Finished, 12 bytes (RFC 5246 section 7.4.9)."""
    return prf(hash_name, main, label, handshake_hash, _VERIFY_DATA_LENGTH)


def exporter_value(
    hash_name: str,
    main: bytes,
    label: bytes,
    randoms: bytes,
    *,
    length: int,
    context: bytes | None = None,
) -> bytes:
    """Derive exported keying material of `length` bytes (RFC 5705 section 4).

    `randoms` is the client random followed by the server random.
    """
    seed = randoms
    if context is not None:
        seed += len(context).to_bytes(2, "big") + context
    return prf(hash_name, main, label, seed, length)
