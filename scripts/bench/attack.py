"""How fast the attacker decrypts, beside tshark, on the same capture in the same run.

Makes a capture of real TLS 1.3 sessions that carry 200 MB together, one or many of them, and one
of a session of a kilobyte. Then `pfs attack` and tshark read each in turn, as whole processes, with
the same key log; both decrypt everything and write nothing of it. The small capture's time is what
a program takes to start: MB/s are given with it and without, the latter the decryptor's own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from captures import Pair, long_session, short_sessions, write_capture

import transport
from interop.errors import PeerUnavailable
from interop.peers.programs import find_program

if TYPE_CHECKING:
    from collections.abc import Iterable

    from captures import Turn

MEGABYTE = 1_000_000
CAPTURE, KEY_LOG = "capture.pcapng", "keys.log"


class Run(NamedTuple):
    """One run of a whole process."""

    wall_seconds: float
    peak_mebibytes: float
    output: bytes


def measure(*command: str | Path) -> Run:
    """Run a command to its end; its time, and the most memory it held."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        if process.returncode:
            sys.exit(f"{command[0]} failed with status {process.returncode}")
        return Run(elapsed, usage.ru_maxrss / 1024, output.read())


def record(folder: Path, megabytes: int, sessions: int, segment_bytes: int) -> int:
    """Record sessions that carry so much in all, a kilobyte if nothing; return the bytes."""
    folder.mkdir()
    size_bytes = max(megabytes * MEGABYTE // sessions, 1000)
    with transport.KeyLogFile(folder / KEY_LOG) as log, (folder / CAPTURE).open("wb") as file:
        pair = Pair(log)
        recorded: Iterable[Iterable[Turn]] = [long_session(pair, size_bytes)]
        if sessions > 1:
            recorded = short_sessions(pair, sessions, size_bytes)
        write_capture(file, recorded, segment_bytes=segment_bytes)
    return size_bytes * sessions


class Contender:
    """A program in the race: how it is called, and what came of it."""

    def __init__(self, name: str, *command: str | Path) -> None:
        self.name = name
        self._command = command
        self.whole: list[float] = []
        self.start: list[float] = []
        self.peak_mebibytes = 0.0

    def run(self, large: Path, small: Path) -> Run:
        """Read the small capture, then the large one; return what came of the latter."""
        self.start.append(self._measure(small).wall_seconds)
        run = self._measure(large)
        self.whole.append(run.wall_seconds)
        self.peak_mebibytes = max(self.peak_mebibytes, run.peak_mebibytes)
        return run

    def _measure(self, capture: Path) -> Run:
        return measure(*(capture if part == "CAPTURE" else part for part in self._command))

    @property
    def net(self) -> list[float]:
        """Seconds of each run without starting."""
        return [whole - start for whole, start in zip(self.whole, self.start, strict=True)]

    def print(self, megabytes: int) -> None:
        """Print medians of speed, and the most memory held."""
        whole, net = (megabytes / statistics.median(times) for times in (self.whole, self.net))
        print(
            f"{self.name:<11} {whole:7.0f} MB/s as a process, {net:7.0f} MB/s without its start of "
            f"{statistics.median(self.start):.2f} s, peak {self.peak_mebibytes:.0f} MiB"
        )


def print_ratio(what: str, ours: list[float], theirs: list[float]) -> None:
    """Print how many times faster ours was, run by run."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    print(
        f"{what:<40} {statistics.median(ratios):.1f} times tshark "
        f"({min(ratios):.1f} to {max(ratios):.1f})"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--sessions", type=int, default=1, help="how many carry it")
    parser.add_argument("--segment-bytes", type=int, default=1460, help="TCP payload a packet")
    parser.add_argument("--runs", type=int, default=5)
    chosen = parser.parse_args()
    try:
        tshark = find_program("tshark")
    except PeerUnavailable as error:
        sys.exit(str(error))
    with tempfile.TemporaryDirectory(prefix="pfs-bench-") as name:
        large, small = Path(name, "large"), Path(name, "small")
        sent = record(large, chosen.megabytes, chosen.sessions, chosen.segment_bytes)
        record(small, 0, 1, chosen.segment_bytes)
        key_log = Path(name, "keys.log")
        key_log.write_bytes((large / KEY_LOG).read_bytes() + (small / KEY_LOG).read_bytes())
        ours = Contender(
            "pfs attack",
            *(Path(sys.executable).with_name("pfs"), "attack", "--json", "CAPTURE"),
            *("--key-log", key_log),
        )
        # The statistics read a field that exists only in decrypted records, so it must decrypt.
        theirs = Contender(
            "tshark",
            *(tshark.path, "-r", "CAPTURE", "-q", "-o", f"tls.keylog_file:{key_log}"),
            *("-z", "io,stat,0,tls.app_data"),
        )
        size = (large / CAPTURE).stat().st_size / MEGABYTE
        print(
            f"{size:.0f} MB capture, TLS 1.3 sessions: {chosen.sessions}, "
            f"{chosen.segment_bytes}-byte segments, medians of {chosen.runs} runs"
        )
        for _ in range(chosen.runs):
            found = json.loads(ours.run(large / CAPTURE, small / CAPTURE).output)["sessions"]
            recovered = sum(each["client_bytes"] + each["server_bytes"] for each in found)
            if recovered != sent:
                sys.exit(f"pfs attack recovered {recovered} of {sent} bytes")
            theirs.run(large / CAPTURE, small / CAPTURE)
        for contender in (ours, theirs):
            contender.print(chosen.megabytes)
        print_ratio("whole processes:", ours.whole, theirs.whole)
        print_ratio("decryptors (processes without start):", ours.net, theirs.net)


if __name__ == "__main__":
    main()
