"""Operations a second of a key store, from one caller and from eight, with full durability.

Each operation is recorded in the audit log, on the disk, before it returns. In the same run: the
bare operation of cryptography, and how often the disk writes 4 KiB durably, one write after the
other, which bounds what a single caller can have. Then a large store: how long it takes to open,
and how much memory that and a use of it take, beside a store of one key.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from certs.errors import CertsError
from certs.keystore import KeyStore, KeyType
from certs.keystore.kek import FileKEK
from interop.errors import InteropError
from interop.peers.postgresql import run_postgresql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CALLERS = (1, 8)

OPENING = """
import resource, sys, time
from certs.keystore import KeyStore
address, kek, name = sys.argv[1:]
started = time.perf_counter()
with KeyStore.open(address, "file:" + kek) as store:
    opened = time.perf_counter() - started
    store.sign(name, b"m")
print(opened, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def rate(work: Callable[[], object], callers: int, seconds: float) -> float:
    """Return how often a second several threads did something, all together."""
    counts = [0] * callers
    end = time.perf_counter() + seconds

    def call(number: int) -> None:
        while time.perf_counter() < end:
            work()
            counts[number] += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def durable_writes(folder: Path, seconds: float) -> float:
    """Return how many durable writes of 4 KiB a second the disk does, one after the other."""
    descriptor = os.open(folder / "written", os.O_CREAT | os.O_WRONLY)
    try:
        offsets = itertools.count(0, 4096)

        def write() -> None:
            os.pwrite(descriptor, b"x" * 4096, next(offsets))
            os.fdatasync(descriptor)

        return rate(write, 1, seconds)
    finally:
        os.close(descriptor)


def bare_operations() -> dict[str, Callable[[], object]]:
    """Return what cryptography does for each operation, in memory."""
    key, aead, nonce = ed25519.Ed25519PrivateKey.generate(), AESGCM(bytes(32)), bytes(12)
    wrapped = aead.encrypt(nonce, bytes(32), None)
    return {
        "sign": lambda: key.sign(b"message"),
        "unwrap": lambda: aead.decrypt(nonce, wrapped, None),
        "create": ed25519.Ed25519PrivateKey.generate,
    }


def store_operations(store: KeyStore) -> dict[str, Callable[[], object]]:
    """Return the same operations of a store that has been set up for them."""
    store.create_key("signs", KeyType.ED25519)
    store.create_key("wraps", KeyType.AES_256)
    wrapped = store.generate_data_key("wraps").wrapped
    numbers = itertools.count()
    return {
        "sign": lambda: store.sign("signs", b"message"),
        "unwrap": lambda: store.unwrap("wraps", wrapped),
        "create": lambda: store.create_key(f"new/{next(numbers)}", KeyType.ED25519),
    }


def measure_operations(
    name: str, store: KeyStore, bare: dict[str, float], seconds: float, rounds: int
) -> None:
    """Print the rates of each operation."""
    for operation, work in store_operations(store).items():
        rate(work, 1, min(0.5, seconds))
        one, eight = (
            statistics.median(rate(work, callers, seconds) for _ in range(rounds))
            for callers in CALLERS
        )
        print(
            f"  {name:<10} {operation:<6} {one:7.0f} a second from one caller, {eight:7.0f} from "
            f"eight: {eight / one:.2f} times; the bare operation {bare[operation]:.0f}"
        )


def opened(address: str, kek: Path, name: str) -> tuple[float, int]:
    """Open a store in a fresh process and sign once; return seconds, and the peak in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", OPENING, address, str(kek), name],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak)


def measure_opening(name: str, address: str, kek: FileKEK, path: Path, keys: int) -> None:
    """Fill a store with keys and print what opening it takes, before and after."""
    with KeyStore.create(address, kek) as store:
        store.create_key("first", KeyType.ED25519)
        small = opened(address, path, "first")
        numbers = itertools.count()

        def fill() -> None:
            while (number := next(numbers)) < keys:
                store.create_key(f"k{number:07}", KeyType.ED25519)

        threads = [threading.Thread(target=fill) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    large = opened(address, path, f"k{keys // 2:07}")
    print(
        f"  {name:<10} {keys} keys open in {large[0]:.3f} s and {large[1] / 1024:.1f} MiB, "
        f"one key in {small[0]:.3f} s and {small[1] / 1024:.1f} MiB"
    )


@contextmanager
def places(databases: list[str], folder: Path) -> Iterator[dict[str, Callable[[str], str]]]:
    """Yield, for each kind of database, what names a place for a new store."""
    with ExitStack() as stack:
        found: dict[str, Callable[[str], str]] = {}
        if "sqlite" in databases:
            found["sqlite"] = lambda name: str(folder / name)
        if "postgresql" in databases:
            server = stack.enter_context(run_postgresql())
            found["postgresql"] = lambda _: server.new_database()
        yield found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keys", type=int, default=100_000, help="in the large store")
    parser.add_argument("--databases", default="sqlite,postgresql", metavar="A,B")
    chosen = parser.parse_args()
    print(
        f"{chosen.rounds} rounds of {chosen.seconds:g} s; peak memory of this process "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )
    with tempfile.TemporaryDirectory(prefix="pfs-bench-") as name:
        folder = Path(name)
        kek = FileKEK.create(folder / "kek")
        bare = {key: rate(work, 1, 1) for key, work in bare_operations().items()}
        with places(chosen.databases.split(","), folder) as found:
            print(f"  the disk: {durable_writes(folder, 1):.0f} durable writes a second")
            for database, place in found.items():
                with KeyStore.create(place("operations"), kek) as store:
                    measure_operations(database, store, bare, chosen.seconds, chosen.rounds)
            for database, place in found.items():
                measure_opening(database, place("large"), kek, folder / "kek", chosen.keys)


if __name__ == "__main__":
    try:
        main()
    except (CertsError, InteropError) as error:
        sys.exit(f"keystore: {error}")
