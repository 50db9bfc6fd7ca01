"""How much memory `pfs attack` takes for a capture of 4 GB, as one session and as many.

The capture is made while it is read, through a pipe: all of it is read, and none of it needs a
disk. Of many sessions a few thousand are real and come again and again, each time as a connection
of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from captures import Pair, long_session, repeated, short_sessions, write_capture
from measured import measure

import transport

if TYPE_CHECKING:
    from collections.abc import Iterable

    from captures import Turn

MEGABYTE = 1_000_000


def attack(folder: Path, name: str, sessions: Iterable[Iterable[Turn]], segment_bytes: int) -> None:
    """Let the attacker read the sessions from a pipe; print what it took."""
    pipe = folder / name
    os.mkfifo(pipe)
    command = [Path(sys.executable).with_name("pfs"), "attack", "--json", pipe]
    written: list[int] = []

    def write() -> None:
        with pipe.open("wb", buffering=1 << 20) as file:
            written.append(write_capture(file, sessions, segment_bytes=segment_bytes))

    writer = threading.Thread(target=write, daemon=True)
    with (folder / f"{name}.json").open("w+b") as output:
        writer.start()
        measures = measure([*command, "--key-log", folder / "keys.log"], output)
        writer.join()
        output.seek(0)
        opened = sum(line == b'   "opened": true,\n' for line in output)
    print(
        f"{name}: {written[0] / MEGABYTE:.0f} MB, {opened} sessions opened, "
        f"peak {measures.peak_mebibytes:.0f} MiB "
        f"({measures.wall_seconds:.0f} s with the making, {measures.cpu_seconds:.0f} s of CPU)",
        flush=True,
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=4000)
    parser.add_argument("--sessions", type=int, default=200_000, help="in the capture of many")
    parser.add_argument("--distinct", type=int, default=2000, help="of them real")
    parser.add_argument("--segment-bytes", type=int, default=1460, help="TCP payload a packet")
    chosen = parser.parse_args()
    size_bytes = chosen.megabytes * MEGABYTE
    with tempfile.TemporaryDirectory(prefix="pfs-bench-") as name:
        folder = Path(name)
        with transport.KeyLogFile(folder / "keys.log") as log:
            pair = Pair(log)
            # The secrets of a session are in the log once it has shaken hands: before it is sent.
            whole = long_session(pair, size_bytes)
            start = [next(whole) for _ in range(4)]
            distinct = list(short_sessions(pair, chosen.distinct, size_bytes // chosen.sessions))
            attack(folder, "one", [chain(start, whole)], chosen.segment_bytes)
            many = repeated(distinct, chosen.sessions)
            attack(folder, "many", many, chosen.segment_bytes)


if __name__ == "__main__":
    main()
