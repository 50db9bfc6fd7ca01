"""What the commands take of somebody's own server: its address, its name, and a census of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interop.errors import InputError
from interop.peers.endpoints import check_server_name, is_ip_address
from transport import APIMisuse
from transport.commands.addresses import DEFAULT_TLS_PORT, parse_address
from transport.server_names import ascii_hostname

if TYPE_CHECKING:
    from interop.peers.endpoints import Address

__all__ = ["HANDSHAKES", "HANDSHAKES_AT_A_TARGET", "read_target"]

# What a census takes unless told otherwise; a target is somebody's server.
HANDSHAKES: Final = 10_000
HANDSHAKES_AT_A_TARGET: Final = 500


def read_target(text: str, server_name: str | None) -> tuple[Address, str]:
    """Return the address, on port 443 unless it says so, and the name to expect there.

    The name is the host unless given, as certificates spell it. Raises `InputError`.
    """
    try:
        address = parse_address(text, default_port=DEFAULT_TLS_PORT)
        name = server_name or address[0]
        if not is_ip_address(name):
            name = check_server_name(ascii_hostname(name))
    except APIMisuse as error:
        raise InputError(str(error)) from error
    return address, name
