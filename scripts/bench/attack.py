"""How fast the attacker decrypts, beside tshark, on the same capture in the same run.

Makes a capture of real TLS 1.3 sessions that carry 200 MB together, one or many of them, and one
of a session of a kilobyte. Then `pfs attack` and tshark read each in turn, as whole processes, with
the same key log; both decrypt everything and write nothing of it. The small capture's time is what
a program takes to start: MB/s are given with it and without, the latter the decryptor's own.

CPU seconds, all threads and processes of a program together, are given beside those of the clock:
they stand still, more or less, while others use the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from captures import Pair, long_session, short_sessions, write_capture
from measured import Measures, measure

import transport
from interop.errors import PeerUnavailable
from interop.peers.programs import find_program

if TYPE_CHECKING:
    from collections.abc import Iterable

    from captures import Turn

MEGABYTE = 1_000_000
CAPTURE, KEY_LOG = "capture.pcapng", "keys.log"


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
        self.whole: list[Measures] = []
        self.start: list[Measures] = []

    def run(self, large: Path, small: Path) -> bytes:
        """Read the small capture, then the large one; return what was printed of the latter."""
        self.start.append(self._measure(small)[0])
        measures, output = self._measure(large)
        self.whole.append(measures)
        return output

    def _measure(self, capture: Path) -> tuple[Measures, bytes]:
        command = [capture if part == "CAPTURE" else part for part in self._command]
        with tempfile.TemporaryFile() as output:
            measures = measure(command, output)
            output.seek(0)
            return measures, output.read()

    def seconds(self) -> list[float]:
        """Give the seconds of each run by the clock."""
        return [run.wall_seconds for run in self.whole]

    def cpu_seconds(self) -> list[float]:
        """Give the CPU seconds of each run."""
        return [run.cpu_seconds for run in self.whole]

    def net_seconds(self) -> list[float]:
        """Give the seconds of each run without starting, by the clock."""
        pairs = zip(self.whole, self.start, strict=True)
        return [whole.wall_seconds - start.wall_seconds for whole, start in pairs]

    def net_cpu_seconds(self) -> list[float]:
        """Give the CPU seconds of each run without starting."""
        pairs = zip(self.whole, self.start, strict=True)
        return [whole.cpu_seconds - start.cpu_seconds for whole, start in pairs]

    def print(self, megabytes: int) -> None:
        """Print medians of speed, and the most memory held."""
        median = statistics.median
        print(
            f"{self.name:<11} {megabytes / median(self.seconds()):5.0f} MB/s as a process, "
            f"{megabytes / median(self.net_seconds()):5.0f} without its start; "
            f"CPU {median(self.cpu_seconds()):.2f} s, its start "
            f"{median(run.cpu_seconds for run in self.start):.2f}; "
            f"peak {max(run.peak_mebibytes for run in self.whole):.0f} MiB"
        )


def print_ratio(what: str, ours: list[float], theirs: list[float]) -> None:
    """Print how many times faster ours was, run by run."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    print(
        f"{what:<48} {statistics.median(ratios):5.2f} times tshark "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
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
            found = json.loads(ours.run(large / CAPTURE, small / CAPTURE))["sessions"]
            recovered = sum(each["client_bytes"] + each["server_bytes"] for each in found)
            if recovered != sent:
                sys.exit(f"pfs attack recovered {recovered} of {sent} bytes")
            theirs.run(large / CAPTURE, small / CAPTURE)
        for contender in (ours, theirs):
            contender.print(chosen.megabytes)
        print_ratio("whole processes, by the clock:", ours.seconds(), theirs.seconds())
        print_ratio("whole processes, CPU time:", ours.cpu_seconds(), theirs.cpu_seconds())
        print_ratio("without their start, by the clock:", ours.net_seconds(), theirs.net_seconds())
        print_ratio("without, CPU time:", ours.net_cpu_seconds(), theirs.net_cpu_seconds())


if __name__ == "__main__":
    main()
