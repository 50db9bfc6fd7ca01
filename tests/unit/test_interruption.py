"""An interrupt that Python drops, since it came inside a destructor, still ends long work."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
