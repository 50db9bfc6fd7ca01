"""A flood of failing handshakes against `pfs serve`: few lines in the log, all in the metrics."""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Authority

PFS = Path(sys.executable).with_name("pfs")
DEADLINE_SECONDS = 20.0
FLOOD = 1500
GARBAGE = b"\x16\x03\x01\x00\x04junk"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def failures(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    found = re.findall(r"^pfs_handshake_failures_total\{.*\} (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, found)))


@pytest.mark.parametrize("engine", ["asyncio", "blocking"])
def test_a_flood_of_failures_does_not_fill_the_log(
    engine: str, authority: Authority, tmp_path: Path
) -> None:
    log, metrics_port = tmp_path / "log", free_port()
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [
                *(PFS, "serve", "echo", "--listen", "127.0.0.1:0", "--engine", engine),
                *("--cert", authority.ec.certificate_chain, "--key", authority.ec.private_key),
                *("--metrics", f"127.0.0.1:{metrics_port}"),
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
        ) as process,
    ):
        try:
            assert process.stdout is not None
            listening = re.match(r"listening on (\S+):(\d+);", process.stdout.readline())
            assert listening is not None, log.read_text()
            for _ in range(FLOOD):
                with socket.create_connection((listening[1], int(listening[2]))) as connection:
                    connection.sendall(GARBAGE)
                    connection.settimeout(DEADLINE_SECONDS)
                    assert connection.recv(100)  # the alert: it has been handled
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            deadline = time.monotonic() + DEADLINE_SECONDS
            while failures(metrics_port) < FLOOD and time.monotonic() < deadline:
                pass  # the last ones are counted after their alert was sent
            assert failures(metrics_port) == FLOOD
        finally:
            process.terminate()
            process.wait(DEADLINE_SECONDS)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    about = [line for line in lines if line["event"] == "handshake_failed"]
    written = [line for line in about if "peer" in line]
    summed_up = sum(line["more_like_it"] for line in about if "more_like_it" in line)
    assert len(written) + summed_up == FLOOD
    assert len(about) < FLOOD / 10
    assert all(line["reason"] for line in written)
