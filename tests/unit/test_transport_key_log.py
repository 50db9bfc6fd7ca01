"""Key logs: private from their first moment, whole lines, and never on by accident."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from transport import APIMisuse, KeyLogBuffer, KeyLogFile

if TYPE_CHECKING:
    from pathlib import Path

LINE = b"CLIENT_RANDOM " + b"ab" * 32 + b" " + b"cd" * 48


def test_the_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "keys.log"
    before = os.umask(0)
    try:
        with KeyLogFile(path) as log:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            log.write_line(LINE)
    finally:
        os.umask(before)
    assert path.read_bytes() == LINE + b"\n"


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "keys.log"
    for _ in range(2):
        with KeyLogFile(path) as log:
            log.write_line(LINE)
    assert path.read_bytes() == (LINE + b"\n") * 2


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys.log"
    path.touch()
    path.chmod(mode)
    with pytest.raises(APIMisuse, match="open to others"):
        KeyLogFile(path)
    assert path.read_bytes() == b""


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").touch(mode=0o600)
    (tmp_path / "keys.log").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic link"):
        KeyLogFile(tmp_path / "keys.log")


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys.log", 0o600)
    with pytest.raises(OSError, match=r"regular file|No such device"):
        KeyLogFile(tmp_path / "keys.log")


def test_threads_do_not_mix_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys.log"
    lines = [bytes([65 + number]) * 400 for number in range(8)]
    with KeyLogFile(path) as log:

        def write(line: bytes) -> None:
            for _ in range(200):
                log.write_line(line)

        threads = [threading.Thread(target=write, args=(line,)) for line in lines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    written = path.read_bytes().splitlines()
    assert sorted(written) == sorted(lines * 200)


def test_a_full_disk_is_reported_when_the_log_is_closed() -> None:
    log = KeyLogFile.__new__(KeyLogFile)  # /dev/full is no regular file, and is what is wanted here
    log._lock = threading.Lock()
    log._path = "/dev/full"
    log._failure = None
    log._descriptor = os.open("/dev/full", os.O_WRONLY)
    log.write_line(LINE)
    with pytest.raises(OSError, match="No space left"):
        log.close()
    log.close()


def test_writing_after_close_does_nothing(tmp_path: Path) -> None:
    log = KeyLogFile(tmp_path / "keys.log")
    log.close()
    log.write_line(LINE)
    assert (tmp_path / "keys.log").read_bytes() == b""


def test_neither_form_shows_its_secrets(tmp_path: Path) -> None:
    buffer = KeyLogBuffer()
    buffer.write_line(LINE)
    with KeyLogFile(tmp_path / "keys.log") as log:
        log.write_line(LINE)
        assert "cdcd" not in repr(log)
    assert "cdcd" not in repr(buffer)
    assert buffer.getvalue() == LINE + b"\n"
