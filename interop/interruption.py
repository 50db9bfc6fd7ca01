"""A Ctrl-C that is not lost.

Python raises `KeyboardInterrupt` wherever the program happens to be, and drops it if that is inside
a destructor or the callback of a weak reference; an import runs some of those. Long work would go
on then as if nothing had been said. So an interrupt is remembered too, and long work asks for it.

Work that drives the TLS library from Python's main thread has the same trouble in its callbacks,
and more: an interrupt in the middle of a handshake leaves the other side waiting for a deadline.
`run_aside` takes such work to a thread of its own, where no signal lands, and which ends where it
asks.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["raise_lost_interrupt", "remember_interrupts", "run_aside"]

_GRACE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.2
_seen: list[int] = []
_Result = TypeVar("_Result")


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


def run_aside(work: Callable[[], _Result]) -> _Result:
    """Run `work` in a thread, and return or raise what it does; for the main thread of a command.

    When this thread is interrupted, or told to exit, `raise_lost_interrupt` raises in the other:
    the work ends where it calls that, within 30 seconds or unheard.
    """
    results: list[_Result] = []
    failures: list[BaseException] = []
    begun, done = threading.Event(), threading.Event()

    def run() -> None:
        begun.set()
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by who waits for it
            failures.append(error)
        finally:
            done.set()

    try:
        threading.Thread(target=run, name="pfs-work", daemon=True).start()
        # Not `join`: one that was interrupted takes the thread for ended. And again and again: a
        # signal that the system hands to another thread does not wake this one by itself.
        while not done.wait(_LOOK_SECONDS):
            pass
    except BaseException:
        _seen.append(0)
        if begun.wait(_LOOK_SECONDS):  # or the interrupt came before it was even started
            done.wait(_GRACE_SECONDS)
        raise
    if failures:
        raise failures[0]
    return results[0]
