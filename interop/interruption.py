"""A Ctrl-C that is not lost.

Python raises `KeyboardInterrupt` wherever the program happens to be, and drops it if that is inside
a destructor or the callback of a weak reference; an import runs some of those. Long work would go
on then as if nothing had been said. So an interrupt is remembered too, and long work asks for it.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["raise_lost_interrupt", "remember_interrupts"]

_seen: list[int] = []


def remember_interrupts() -> None:
    """Install the handler of SIGINT; for the main thread of a command.

    Whoever started us with SIGINT ignored, as a shell does with ``pfs prove &``, is obeyed.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def raise_lost_interrupt() -> None:
    """Raise `KeyboardInterrupt` if one was raised already and did not end the work."""
    if _seen:
        raise KeyboardInterrupt


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    _seen.append(number)
    raise KeyboardInterrupt
