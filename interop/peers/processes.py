"""Running foreign programs: none is left behind, hung on, or believed ready too early.

Theory of operation
-------------------

A `ChildProcess` is one program in a session of its own, so that a Ctrl-C at the terminal reaches
only us and we decide how the child ends. Three helper threads watch it and share one condition:

* two pumps read its stdout and stderr as they come, into bounded memory; a program can therefore
  never block on a full pipe, nor fill ours;
* a waiter blocks in ``waitid(WEXITED | WNOWAIT)``, which reports the exit but leaves the zombie.

Everything that waits, waits on that condition under a deadline, and the death of the program is one
of the things that wakes it: a server with a bad certificate file is reported at once with what it
printed, not when the deadline passes.

The zombie matters. As long as it exists its process id, and with it the id of the process group,
cannot be given to anyone else, so a ``killpg(SIGKILL)``, which takes workers that outlived their
master (and would hold our pipes open), cannot hit a stranger. Only then is the child reaped, the
pumps (whose pipes are closed now that the whole group is dead) are joined, and the private
directory is removed.

The order in `close` is: SIGTERM to the group, wait for the leader, SIGKILL to the group, reap,
join. Everything after the wait stands in a ``finally``: a second Ctrl-C during the grace period
still kills.

The environment of a child is built from nothing. The programs here honour OPENSSL_CONF,
SSLKEYLOGFILE, CURL_HOME, GNUTLS_SYSTEM_PRIORITY_FILE, proxies, and half a dozen files in HOME; any
of them would make a result depend on who runs it. HOME is an empty private directory, and OpenSSL's
and GnuTLS's system-wide configuration is switched off, so that what is measured is the stack.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

from interop.errors import InteropError, PeerUnavailable

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

__all__ = [
    "DEFAULT_STOP_SECONDS",
    "ChildProcess",
    "Completed",
    "PeerFailed",
    "clean_environment",
    "completed",
    "last_words",
    "listening_port",
    "run_to_completion",
    "wait_for_port",
]

DEFAULT_STOP_SECONDS: Final = 5.0
_KILL_SECONDS: Final = 30.0
_DEFAULT_OUTPUT_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 16
_LAST_WORDS_CHARACTERS: Final = 600
_PROC_POLL_SECONDS: Final = 0.005
_TCP_LISTEN: Final = "0A"

# What a child may inherit. LD_LIBRARY_PATH belongs to PATH: a program found in a private prefix
# must run with the libraries that were put beside it.
_INHERITED: Final = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")


class PeerFailed(InteropError):
    """A foreign program died, hung, or printed too much; the text has its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a program that ran to its end left behind; `exit_code` is negative for a signal."""

    exit_code: int
    stdout: bytes
    stderr: bytes


def clean_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Build the environment of a child: nothing of ours that could change what it negotiates."""
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment |= {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "XDG_DATA_HOME": str(home),
        "XDG_CACHE_HOME": str(home),
        "LC_ALL": "C",
        "OPENSSL_CONF": os.devnull,
        "GNUTLS_SYSTEM_PRIORITY_FILE": os.devnull,
    }
    return environment | dict(extra or {})


def last_words(output: bytes) -> str:
    """Fold the end of a program's output into one printable line."""
    text = output[-4 * _LAST_WORDS_CHARACTERS :].decode("utf-8", "replace")
    lines = [re.sub(r"[^ -~]+", " ", line).strip() for line in text.splitlines()]
    return " / ".join(line for line in lines if line)[-_LAST_WORDS_CHARACTERS:]


class _Pump(threading.Thread):
    """Reads one pipe to its end into at most `limit_bytes` of memory: the newest are kept."""

    def __init__(
        self,
        pipe: IO[bytes],
        changed: threading.Condition,
        limit_bytes: int,
        on_data: Callable[[bytes], None] | None,
    ) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._changed = changed
        self._limit_bytes = limit_bytes
        self._on_data = on_data
        self._kept = bytearray()
        self.overflowed = False
        self.ended = False

    def run(self) -> None:
        """Read until the last holder of the pipe's other end is gone."""
        try:
            while data := os.read(self._pipe.fileno(), _READ_BYTES):
                if self._on_data is not None:
                    self._on_data(data)
                with self._changed:
                    self._kept += data
                    if len(self._kept) > self._limit_bytes:
                        self.overflowed = True
                        del self._kept[: len(self._kept) - self._limit_bytes]
                    self._changed.notify_all()
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def kept(self) -> bytes:
        """Give what is kept so far."""
        with self._changed:
            return bytes(self._kept)

    def tail(self, length_bytes: int) -> bytes:
        """Give the end of what is kept so far."""
        with self._changed:
            return bytes(self._kept[max(0, len(self._kept) - length_bytes) :])

    def kept_bytes(self) -> int:
        """Count what is kept so far."""
        with self._changed:
            return len(self._kept)


class ChildProcess:
    """A foreign program that ends, with all it started, when its ``with`` block does.

    The program runs in a session and process group of its own, in `working_directory` or else in
    its private `directory`, which is also its HOME and is removed afterwards. `stdin` is an open
    file, the string ``"pipe"`` (see `feed`), or nothing. `on_stdout` is called on the reading
    thread with each piece of output before it can be seen through `stdout`. `user` is whom
    root runs it as.

    Raises PeerUnavailable if the program cannot be executed.
    """

    def __init__(
        self,
        path: Path,
        arguments: Sequence[str],
        *,
        stdin: IO[bytes] | str | None = None,
        stdout_file: IO[bytes] | None = None,
        on_stdout: Callable[[bytes], None] | None = None,
        extra_environment: Mapping[str, str] | None = None,
        working_directory: Path | None = None,
        inherited_descriptors: Sequence[int] = (),
        user: pwd.struct_passwd | None = None,
        stdout_limit_bytes: int = _DEFAULT_OUTPUT_BYTES,
        stderr_limit_bytes: int = _DEFAULT_OUTPUT_BYTES,
        stop_seconds: float = DEFAULT_STOP_SECONDS,
    ) -> None:
        self.path = path
        self._user = user
        self._arguments = tuple(arguments)
        self._stdin = stdin
        self._stdout_file = stdout_file
        self._on_stdout = on_stdout
        self._extra_environment = dict(extra_environment or {})
        self._working_directory = working_directory
        self._inherited_descriptors = tuple(inherited_descriptors)
        self._stdout_limit_bytes = stdout_limit_bytes
        self._stderr_limit_bytes = stderr_limit_bytes
        self._stop_seconds = stop_seconds
        self._changed = threading.Condition()
        self._exit_code: int | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._waiter: threading.Thread | None = None
        self._stdout: _Pump | None = None
        self._stderr: _Pump | None = None
        self._feeder: threading.Thread | None = None
        self._private = tempfile.TemporaryDirectory(prefix="pfs-peer-")
        self.directory = Path(self._private.name)
        if user is not None:
            os.chown(self.directory, user.pw_uid, user.pw_gid)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:  # not swallowed: whatever it is, the child must not outlive it
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> None:
        standard_input: IO[bytes] | int
        if self._stdin is None:
            standard_input = subprocess.DEVNULL
        elif isinstance(self._stdin, str):
            standard_input = subprocess.PIPE
        else:
            standard_input = self._stdin
        try:
            self._popen = popen = subprocess.Popen(
                [self.path, *self._arguments],
                stdin=standard_input,
                stdout=subprocess.PIPE if self._stdout_file is None else self._stdout_file,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=self._working_directory or self.directory,
                env=clean_environment(self.directory, self._extra_environment),
                pass_fds=self._inherited_descriptors,
                start_new_session=True,
                user=None if self._user is None else self._user.pw_uid,
                group=None if self._user is None else self._user.pw_gid,
                extra_groups=None if self._user is None else [],
            )
        except OSError as error:
            raise PeerUnavailable(f"{self.path} cannot be run: {error.strerror}") from error
        self._waiter = threading.Thread(target=self._watch_exit, args=(popen.pid,), daemon=True)
        self._waiter.start()
        if popen.stdout is not None:
            self._stdout = _Pump(
                popen.stdout, self._changed, self._stdout_limit_bytes, self._on_stdout
            )
            self._stdout.start()
        if popen.stderr is not None:
            self._stderr = _Pump(popen.stderr, self._changed, self._stderr_limit_bytes, None)
            self._stderr.start()

    def _watch_exit(self, pid: int) -> None:
        report = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        status = report.si_status if report is not None else 0
        killed = report is not None and report.si_code != os.CLD_EXITED
        with self._changed:
            self._exit_code = -status if killed else status
            self._changed.notify_all()
        self._signal_group(signal.SIGKILL)  # orphaned workers would hold the pipes open

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the session and of the process group."""
        if self._popen is None:
            raise PeerFailed(f"{self.path.name} was not started")
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        with self._changed:
            return self._exit_code

    def stdout(self) -> bytes:
        """Give the newest output, up to the limit."""
        return b"" if self._stdout is None else self._stdout.kept()

    def stdout_bytes(self) -> int:
        """Count what `stdout` would give, without copying it."""
        return 0 if self._stdout is None else self._stdout.kept_bytes()

    def stdout_tail(self, length_bytes: int) -> bytes:
        """Give the last `length_bytes` of the output, without copying the rest."""
        return b"" if self._stdout is None else self._stdout.tail(length_bytes)

    def stderr(self) -> bytes:
        """Give the newest output, up to the limit."""
        return b"" if self._stderr is None else self._stderr.kept()

    @property
    def stdout_overflowed(self) -> bool:
        """Say whether more came out than is kept."""
        return self._stdout is not None and self._stdout.overflowed

    def feed(self, data: bytes, *, then_close: bool = False) -> None:
        """Hand `data` to a child started with ``stdin="pipe"``, without waiting for it to read."""
        pipe = self._popen.stdin if self._popen is not None else None
        if pipe is None or self._feeder is not None:
            raise PeerFailed(f"{self.path.name} has no open standard input")

        def write_all() -> None:
            view = memoryview(data)
            with suppress(BrokenPipeError):  # the child's exit is reported by the waiter
                while view:
                    view = view[pipe.write(view) :]
            if then_close:
                pipe.close()

        self._feeder = threading.Thread(target=write_all, daemon=True)
        self._feeder.start()

    def close_stdin(self) -> None:
        """Signal end of input, once all that was fed is written."""
        if self._feeder is not None:
            self._feeder.join(self._stop_seconds)
        if self._popen is not None and self._popen.stdin is not None:
            self._popen.stdin.close()

    def wait_until(
        self,
        condition: Callable[[], bool],
        *,
        timeout_seconds: float,
        purpose: str,
        poll_seconds: float | None = None,
    ) -> None:
        """Wait until `condition` holds; it is looked at whenever the child printed or ended.

        With `poll_seconds` it is looked at that often too, for conditions outside the child's
        output. Raises PeerFailed, with the child's last words, as soon as the child has ended
        without it, or when `timeout_seconds` have passed.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if self._exit_code is not None and self._drained():
                    raise self.failure(f"ended before it {purpose}")
                if left <= 0:
                    raise self.failure(f"{purpose}: not within {timeout_seconds:g} seconds")
                self._changed.wait(left if poll_seconds is None else min(left, poll_seconds))

    def wait_for_words(self, words: bytes, *, timeout_seconds: float, purpose: str) -> None:
        """Wait until the child has printed `words` to its stderr; raises as `wait_until` does."""
        self.wait_until(
            lambda: words in self.stderr(), timeout_seconds=timeout_seconds, purpose=purpose
        )

    def wait_exit(self, *, timeout_seconds: float) -> int:
        """Wait for the end of the child and of its output; raises PeerFailed at the deadline."""
        self.wait_until(
            lambda: self._exit_code is not None and self._drained(),
            timeout_seconds=timeout_seconds,
            purpose="ended",
        )
        return self._exit_code if self._exit_code is not None else 0

    def _drained(self) -> bool:
        return all(pump is None or pump.ended for pump in (self._stdout, self._stderr))

    def failure(self, what: str) -> PeerFailed:
        """Make the error that says `what` happened, with exit code and last words."""
        code = self.exit_code
        state = "still running" if code is None else f"exit code {code}"
        words = last_words(self.stderr()) or last_words(self.stdout()) or "nothing"
        return PeerFailed(f"{self.path.name} {what} ({state}); it printed: {words}")

    def close(self) -> None:
        """End the whole process group, reap it, and remove the private directory."""
        try:
            if self._popen is not None and self.exit_code is None:
                self._signal_group(signal.SIGTERM)
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._exit_code is not None, timeout=self._stop_seconds
                    )
        finally:
            self._reap()
            self._private.cleanup()

    def _reap(self) -> None:
        popen = self._popen
        if popen is None:
            return
        if popen.returncode is None:
            self._signal_group(signal.SIGKILL)  # before reaping: see the module's docstring
            if self._waiter is not None:
                self._waiter.join(_KILL_SECONDS)
            if self.exit_code is None:  # stuck inside the kernel: waiting longer would hang us too
                raise self.failure("cannot be killed")
            popen.wait()
        for thread in (self._stdout, self._stderr, self._feeder):
            if thread is not None and thread.ident is not None:
                thread.join(self._stop_seconds)
        for pipe in (popen.stdin, popen.stdout, popen.stderr):
            if pipe is not None:
                pipe.close()

    def _signal_group(self, number: signal.Signals) -> None:
        if self._popen is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)


def run_to_completion(
    path: Path,
    arguments: Sequence[str],
    *,
    timeout_seconds: float,
    stdin: IO[bytes] | None = None,
    stdout_file: IO[bytes] | None = None,
    extra_environment: Mapping[str, str] | None = None,
    stdout_limit_bytes: int = _DEFAULT_OUTPUT_BYTES,
) -> Completed:
    """Run a program to its end.

    Raises PeerFailed if it does not end in time or prints more than `stdout_limit_bytes`, and
    PeerUnavailable if it cannot be executed. An exit code other than 0 is for the caller to judge.
    """
    with ChildProcess(
        path,
        arguments,
        stdin=stdin,
        stdout_file=stdout_file,
        extra_environment=extra_environment,
        stdout_limit_bytes=stdout_limit_bytes,
    ) as child:
        return completed(child, timeout_seconds=timeout_seconds)


def completed(child: ChildProcess, *, timeout_seconds: float) -> Completed:
    """Wait for a started `child` to end; raises as `run_to_completion` does."""
    child.wait_until(
        lambda: child.stdout_overflowed or child.exit_code is not None,
        timeout_seconds=timeout_seconds,
        purpose="ended",
    )
    if not child.stdout_overflowed:
        child.wait_exit(timeout_seconds=timeout_seconds)
    if child.stdout_overflowed:
        raise child.failure("printed more than was agreed")
    return Completed(
        exit_code=child.wait_exit(timeout_seconds=timeout_seconds),
        stdout=child.stdout(),
        stderr=child.stderr(),
    )


def listening_port(pid: int) -> int | None:
    """Find the IPv4 TCP port on which process `pid` listens, from Linux's /proc; None if none yet.

    This is how a server told to listen on port 0 is found without a race for a free port, and how
    its readiness is known without using up one of its connections.
    """
    sockets = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                sockets.add(str(descriptor.readlink()))
        table = Path(f"/proc/{pid}/net/tcp").read_text("ascii")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # it is just ending, or just being executed
    for row in table.splitlines()[1:]:
        _, local, _, state, *rest = row.split()
        if state == _TCP_LISTEN and f"socket:[{rest[5]}]" in sockets:
            return int(local.rpartition(":")[2], 16)
    return None


def wait_for_port(child: ChildProcess, *, timeout_seconds: float) -> int:
    """Wait until `child` listens; raises PeerFailed at once if it dies first."""
    child.wait_until(
        lambda: listening_port(child.pid) is not None,
        timeout_seconds=timeout_seconds,
        purpose="listened",
        poll_seconds=_PROC_POLL_SECONDS,
    )
    port = listening_port(child.pid)
    if port is None:
        raise child.failure("stopped listening")
    return port
