"""The attacker: recorded streams and stolen keys in, what they open out.

One attacker serves every experiment and `pfs attack` alike, whatever was stolen and whoever's
capture it is, so that a session that stays closed here stayed closed to the very code that
opened its control.

Streams are identified as TLS by their first bytes. A connection whose opening was not captured
has no known client; the side that sends a ClientHello is taken for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interop.capture.reassembly import (
    Connection,
    StreamClosed,
    StreamData,
    StreamEvent,
    StreamGap,
    StreamOpened,
)
from interop.wire.session import Direction, KeyMaterial, TLSSession

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Attacker", "SessionResult"]

PlaintextSink = "Callable[[int, Direction, bytes], None]"
