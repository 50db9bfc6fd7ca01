"""How the commands read ``HOST:PORT``."""

from __future__ import annotations

from typing import Final

from transport.errors import APIMisuse

__all__ = ["DEFAULT_TLS_PORT", "parse_address", "show_address"]

DEFAULT_TLS_PORT: Final = 443
_LOOPBACK: Final = "127.0.0.1"
_MAX_PORT: Final = 65535


def parse_address(text: str, *, default_port: int | None = None) -> tuple[str, int]:
    """Split ``HOST:PORT``, ``[IPv6]:PORT`` or ``PORT`` (on 127.0.0.1); raise `APIMisuse`.

    With `default_port`, a host alone is enough.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon and text.isascii() and text.isdigit():
        host, port_text = _LOOPBACK, text
    elif default_port is not None and (not colon or text.endswith("]")):
        host, port_text = text, str(default_port)
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    valid_port = port_text.isascii() and port_text.isdigit() and int(port_text) <= _MAX_PORT
    if not host or not valid_port or (":" in host and not bracketed):
        raise APIMisuse(
            f"{text!r} is not an address",
            advice="write HOST:PORT, such as 127.0.0.1:8443 or [::1]:8443",
        )
    return host, int(port_text)


def show_address(address: tuple[str, int]) -> str:
    """Write an address as `parse_address` takes it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
