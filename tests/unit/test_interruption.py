"""An interrupt that Python drops, since it came inside a destructor, still ends long work."""

from __future__ import annotations

import subprocess
import sys

import pytest

from interop.interruption import run_aside

PROGRAM = """
import signal
from interop.interruption import remember_interrupts
from interop.progress import ConsoleProgress
if {remembered}:
    remember_interrupts()
class Unlucky:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
with ConsoleProgress() as progress:
    progress.stage("work", total=2)
    Unlucky()
    print("went on", flush=True)
    progress.advance(1)
print("to its end")
"""


@pytest.mark.parametrize(
    ("remembered", "said"), [(True, "went on\n"), (False, "went on\nto its end\n")]
)
def test_an_interrupt_that_was_dropped_is_raised_at_the_next_step(
    *, remembered: bool, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(remembered=remembered)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == said, done.stderr
    assert (done.returncode == 0) is not remembered


def test_who_starts_us_with_interrupts_ignored_is_obeyed() -> None:
    program = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + PROGRAM.format(
        remembered=True
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "went on\nto its end\n"), done.stderr


ASIDE = """
import signal, threading, time
from interop.interruption import raise_lost_interrupt, remember_interrupts, run_aside
remember_interrupts()
begun = threading.Event()
def work():
    begun.set()
    try:
        while True:
            time.sleep(0.001)
            raise_lost_interrupt()
    finally:
        print("in good order, aside:", threading.current_thread() is not threading.main_thread())
threading.Thread(target=lambda: begun.wait() and signal.raise_signal({sent})).start()
{before}
run_aside(work)
"""


def test_work_aside_ends_where_it_asks_when_the_main_thread_is_interrupted() -> None:
    exit_in_place = "signal.signal(signal.SIGTERM, lambda *_: exit(7))"
    for sent, before, status in (
        ("signal.SIGINT", "", -2),
        ("signal.SIGTERM", exit_in_place, 7),
    ):
        program = ASIDE.format(sent=sent, before=before)
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == "in good order, aside: True\n", done.stderr
        assert done.returncode == status, done.stderr


def test_work_aside_returns_and_raises_as_if_it_were_here() -> None:
    assert run_aside(lambda: 6 * 7) == 42
    with pytest.raises(ZeroDivisionError):
        run_aside(lambda: 1 // 0)
