"""Where things lie in an evidence directory. Paths are relative to it, with POSIX separators."""

from __future__ import annotations

__all__ = [
    "CAPTURES",
    "CENSUS",
    "KEK",
    "KEY_LOG_SUFFIX",
    "KEY_STORE",
    "REPORT_HTML",
    "REPORT_JSON",
    "SERVER_KEY_SUFFIX",
    "STOLEN",
    "capture_of",
    "classical_key_of",
    "client_key_of",
    "exporter_secret_of",
    "fingerprints_of",
    "key_log_of",
    "ml_kem_key_of",
    "pre_shared_keys_of",
    "server_key_of",
    "ticket_key_of",
    "traffic_secret_of",
]

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
CAPTURES = "captures"
STOLEN = "stolen"
CENSUS = "census"
KEY_STORE = f"{STOLEN}/key-store.sqlite3"
KEK = f"{STOLEN}/key-store.kek"
KEY_LOG_SUFFIX = ".keylog"
SERVER_KEY_SUFFIX = ".key.pem"


def capture_of(session: str) -> str:
    """Return the capture of a recorded session, or of a replay."""
    return f"{CAPTURES}/{session}.pcapng"


def key_log_of(session: str) -> str:
    """Return the key log of a recorded session, or of a replay."""
    return f"{STOLEN}/{session}{KEY_LOG_SUFFIX}"


def server_key_of(key: str) -> str:
    """Return the private key of a server."""
    return f"{STOLEN}/{key}{SERVER_KEY_SUFFIX}"


def classical_key_of(key: str) -> str:
    """Return the classical private key of a key exchange: all of it, or half of a hybrid's."""
    return f"{STOLEN}/{key}.ephemeral.pem"


def ml_kem_key_of(key: str) -> str:
    """Return the ML-KEM half of a hybrid's private keys."""
    return f"{STOLEN}/{key}.ephemeral-ml-kem.pem"


def client_key_of(key: str) -> str:
    """Return the private key of a client's certificate."""
    return f"{STOLEN}/{key}.client-key.pem"


def ticket_key_of(key: str) -> str:
    """Return the key of a server's tickets, 80 octets."""
    return f"{STOLEN}/{key}.ticket-key"


def pre_shared_keys_of(session: str) -> str:
    """Return what a client kept of the tickets of a session, as OpenSSL stores it."""
    return f"{STOLEN}/{session}.psk.pem"


def traffic_secret_of(session: str, generation: int) -> str:
    """Return one generation of the client's traffic secret, as a key log of one line."""
    return f"{STOLEN}/{session}.traffic-{generation}{KEY_LOG_SUFFIX}"


def exporter_secret_of(session: str) -> str:
    """Return the exporter secret of a session, as a key log of one line."""
    return f"{STOLEN}/{session}.exporter{KEY_LOG_SUFFIX}"


def fingerprints_of(kind: str) -> str:
    """Return the census fingerprints of one kind of value."""
    return f"{CENSUS}/{kind}.fingerprints"
