"""Children end with their block, die loudly, and see nothing of our environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from interop.errors import PeerUnavailable
from interop.peers.processes import (
    ChildProcess,
    PeerFailed,
    clean_environment,
    last_words,
    listening_port,
    run_to_completion,
    wait_for_port,
)

PYTHON = Path(sys.executable)
SECONDS = 30.0


def script(text: str) -> list[str]:
    return ["-I", "-c", textwrap.dedent(text)]


# Prints its group, starts a child of its own, and refuses to end when asked to.
STUBBORN = script(
    """
    import os, signal, subprocess, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-I", "-c", "import signal; signal.pause()"])
    print("ready", flush=True)
    signal.pause()
    """
)


def living(group: int) -> list[int]:
    """List the processes of a group; a zombie that init has yet to reap does not count."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state not in "ZX":
            found.append(int(folder.name))
    return found


def group_is_gone(group: int) -> bool:
    deadline = time.monotonic() + SECONDS  # a kill takes the kernel a moment
    while living(group) and time.monotonic() < deadline:
        os.sched_yield()
    return not living(group)


def wait_ready(child: ChildProcess) -> None:
    child.wait_until(
        lambda: b"ready" in child.stdout(), timeout_seconds=SECONDS, purpose="was ready"
    )


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_exception_in_the_block_leaves_nothing(raised: type[BaseException]) -> None:
    child = ChildProcess(PYTHON, STUBBORN, stop_seconds=0.2)

    def fail_while_it_runs() -> None:
        with child:
            wait_ready(child)
            assert os.getpgid(child.pid) == child.pid != os.getpgrp()
            assert len(living(child.pid)) == 2
            raise raised

    with pytest.raises(raised):
        fail_while_it_runs()
    assert group_is_gone(child.pid)
    assert not child.directory.exists()
    assert child.exit_code == -signal.SIGKILL


def test_ctrl_c_of_the_whole_program_leaves_nothing() -> None:
    program = textwrap.dedent(
        f"""
        import sys
        sys.path[:] = {sys.path!r}
        from pathlib import Path
        from interop.peers.processes import ChildProcess
        with ChildProcess(Path(sys.executable), {STUBBORN!r}, stop_seconds=0.2) as child:
            child.wait_until(lambda: b"ready" in child.stdout(), timeout_seconds=30, purpose="x")
            print(child.pid, flush=True)
            child.wait_exit(timeout_seconds=600)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ours:
        assert ours.stdout is not None
        group = int(ours.stdout.readline())
        assert len(living(group)) == 2
        ours.send_signal(signal.SIGINT)
        _, stderr = ours.communicate(timeout=SECONDS)
    assert "KeyboardInterrupt" in stderr
    assert group_is_gone(group)


def test_workers_do_not_outlive_their_master() -> None:
    orphaning = script(
        """
        import subprocess, sys
        subprocess.Popen([sys.executable, "-I", "-c", "import signal; signal.pause()"])
        """
    )
    with ChildProcess(PYTHON, orphaning) as child:
        # The orphan holds our pipes: this would last for ever if it were left alone.
        assert child.wait_exit(timeout_seconds=SECONDS) == 0
    assert group_is_gone(child.pid)


def test_polite_child_is_asked_to_end() -> None:
    polite = script("import signal; print('ready', flush=True); signal.pause()")
    with ChildProcess(PYTHON, polite) as child:
        wait_ready(child)
    assert child.exit_code == -signal.SIGTERM


def test_death_at_start_is_reported_at_once() -> None:
    dying = script("import sys; sys.exit('no such \\x1b[31mcertificate')")
    began = time.monotonic()
    with (
        pytest.raises(
            PeerFailed, match=r"ended before it listened \(exit code 1\).*no such .*certificate"
        ) as caught,
        ChildProcess(PYTHON, dying) as child,
    ):
        wait_for_port(child, timeout_seconds=3600)
    assert time.monotonic() - began < SECONDS
    assert "\x1b" not in str(caught.value)


def test_deadline_is_kept() -> None:
    with pytest.raises(PeerFailed, match=r"not within 0\.2 seconds \(still running\)"):
        run_to_completion(PYTHON, script("import signal; signal.pause()"), timeout_seconds=0.2)


def test_too_much_output_is_refused() -> None:
    endless = script("import sys\nwhile True: sys.stdout.write('y' * 65536)")
    with pytest.raises(PeerFailed, match="printed more than was agreed"):
        run_to_completion(PYTHON, endless, timeout_seconds=SECONDS, stdout_limit_bytes=1 << 20)


def test_endless_complaints_are_bounded_to_the_newest() -> None:
    verbose = script("import sys; sys.stderr.write('x' * 5_000_000 + 'the end')")
    done = run_to_completion(PYTHON, verbose, timeout_seconds=SECONDS)
    assert len(done.stderr) == 1 << 20
    assert done.stderr.endswith(b"the end")


def test_input_and_output_larger_than_pipes(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    source = tmp_path / "source"
    source.write_bytes(data)
    copy = script("import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)")
    with source.open("rb") as stdin:
        done = run_to_completion(
            PYTHON, copy, timeout_seconds=SECONDS, stdin=stdin, stdout_limit_bytes=len(data)
        )
    assert (done.exit_code, done.stdout) == (0, data)

    with ChildProcess(PYTHON, copy, stdin="pipe", stdout_limit_bytes=len(data)) as child:
        child.feed(data, then_close=True)
        assert child.wait_exit(timeout_seconds=SECONDS) == 0
        assert child.stdout() == data
        assert child.stdout_tail(10) == data[-10:]


def test_missing_program_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable, match="cannot be run"):
        run_to_completion(tmp_path / "absent", [], timeout_seconds=SECONDS)


def test_environment_of_a_child_is_its_own() -> None:
    show = script("import os; print(dict(os.environ), os.getcwd())")
    dangerous = {"SSLKEYLOGFILE": "x", "CURL_HOME": "x", "https_proxy": "x", "OPENSSL_CONF": "x"}
    ours = subprocess.run(  # the same in a process whose environment is full of traps
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                f"""
                import sys
                sys.path[:] = {sys.path!r}
                from pathlib import Path
                from interop.peers.processes import run_to_completion
                done = run_to_completion(Path(sys.executable), {show!r}, timeout_seconds=30)
                print(done.stdout.decode())
                """
            ),
        ],
        env=os.environ | dangerous | {"HOME": "/trap"},
        capture_output=True,
        text=True,
        check=True,
    )
    for trap in ("SSLKEYLOGFILE", "CURL_HOME", "https_proxy", "/trap", "'OPENSSL_CONF': 'x'"):
        assert trap not in ours.stdout
    assert "'HOME': '" in ours.stdout


def test_extra_environment_is_added(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path, {"SSLKEYLOGFILE": "/log"})
    assert environment["SSLKEYLOGFILE"] == "/log"
    assert environment["HOME"] == str(tmp_path)


def test_listening_port_is_that_of_the_process() -> None:
    listening = script(
        """
        import signal, socket
        server = socket.create_server(("127.0.0.1", 0))
        print("ready", server.getsockname()[1], flush=True)
        signal.pause()
        """
    )
    with ChildProcess(PYTHON, listening) as child:
        port = wait_for_port(child, timeout_seconds=SECONDS)
        child.wait_until(
            lambda: child.stdout().endswith(b"\n"), timeout_seconds=SECONDS, purpose="spoke"
        )
        assert child.stdout() == b"ready %d\n" % port
    assert listening_port(child.pid) is None


def test_last_words_are_one_printable_line() -> None:
    assert last_words(b"first\r\n\x1b[31mred\x00\n\n  last \n") == "first / [31mred / last"
    assert len(last_words(b"x" * 10_000)) == 600
