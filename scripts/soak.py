"""Honest and abusive clients against our server, many thousands of them, and a look for leaks.

The server is `transport.server` with worker processes, in a process of its own, serving the page of
``pfs serve http``. Clients are drawn from a seeded mix (`KINDS`), so that a run can be repeated:
honest ones on TLS 1.3 and 1.2 with one request or several, and abusive ones that reset, stall, send
garbage, plain HTTP, oversized and empty records or KeyUpdates, or leave without a word. Each knows
what it has to get: an honest one that is not answered, or an abusive one that is, counts as wrong.

Three things must hold at the end. Nobody got anything wrong. The workers hold as many descriptors
as they did before, once deadlines have ended what clients left behind. And their anonymous memory,
after a warm-up of a fifth of all connections, does not climb with the number of connections: the
slope of a straight line through the samples stays below what one forgotten small object each would
make, or all of the growth below what an allocator's fragments make anyway.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from contenders import make_identity, one_line_errors

import transport
from certs.credential import TrustAnchors
from interop.peers.hostile import HostileClient, reset
from interop.peers.processes import ChildProcess
from transport.applications import serve_page, serve_page_blocking
from transport.server import (
    CredentialFiles,
    Engine,
    JSONLinesLog,
    Limits,
    ServedCredential,
    Server,
    ServerSettings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from contenders import Identity

START_SECONDS = 30.0
DEADLINE_SECONDS = 30.0  # for what takes milliseconds
HANDSHAKE_SECONDS = 3.0  # the server's deadline: how long those that stall stay
SETTLE_SECONDS = 2 * HANDSHAKE_SECONDS  # without one descriptor less, before it is a leak
BATCH = 200
WARM_UP_SHARE = 0.2
MOST_BYTES_EACH = 48.0  # by which memory may grow with each connection
MOST_GROWTH_BYTES = 2 << 20  # of a worker in all, which is no leak whatever the slope
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POLICIES = {
    version: transport.DEFAULT_POLICY.narrowed(versions=[f"TLS {version}"])
    for version in ("1.2", "1.3")
}


# The server


def serve(chain: str, key: str, engine: str, workers: str, leak: str) -> None:
    """Serve until SIGTERM; with `leak`, keep what each connection should have given back."""
    chosen = Engine(engine)
    limits = Limits(handshake_timeout_seconds=HANDSHAKE_SECONDS, drain_seconds=2)
    make = serve_page if chosen is Engine.ASYNCIO else serve_page_blocking
    handler: Any = make(limits.header_timeout_seconds)
    if leak != "none":
        handler = leaking(handler, leak)
    settings = ServerSettings(
        handler=handler,
        credentials=(ServedCredential(CredentialFiles(Path(chain), Path(key))),),
        engine=chosen,
        workers=int(workers),
        limits=limits,
        log=JSONLinesLog(),
        reload_check_seconds=None,
    )
    Server(settings, [("127.0.0.1", 0)]).run()


def leaking(handler: Any, leak: str) -> Any:
    """Wrap a handler so that it loses memory or descriptors: the control of this experiment."""
    kept: list[object] = []

    def handle(stream: Any, client: Any) -> Any:
        kept.append(bytearray(4096) if leak == "memory" else os.dup(0))
        return handler(stream, client)

    return handle


class Watched:
    """The running server: where it is, and what its workers hold."""

    def __init__(self, child: ChildProcess) -> None:
        def events(name: str) -> list[dict[str, Any]]:
            whole = child.stderr().rpartition(b"\n")[0].splitlines()
            return [event for event in map(json.loads, whole) if event["event"] == name]

        child.wait_until(
            lambda: bool(events("listening")), timeout_seconds=START_SECONDS, purpose="listens"
        )
        self._child = child
        self.address = ("127.0.0.1", int(events("listening")[0]["port"]))
        self.pids = [int(event["child_pid"]) for event in events("started")]

    def descriptors(self) -> int:
        """Count the descriptors of all workers."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)  # noqa: PTH208 - fast

    def memory_bytes(self) -> int:
        """Return the anonymous memory of all workers: what they allocated and hold."""
        texts = [Path(f"/proc/{pid}/status").read_text("ascii") for pid in self.pids]
        return sum(int(re.findall(r"RssAnon:\s+(\d+) kB", text)[0]) << 10 for text in texts)

    def settle(self, descriptors: int) -> int:
        """Wait until no more than so many descriptors are held, or none is given back any more."""
        least, deadline = self.descriptors(), time.monotonic() + SETTLE_SECONDS
        while (held := self.descriptors()) > descriptors and time.monotonic() < deadline:
            if held < least:
                least, deadline = held, time.monotonic() + SETTLE_SECONDS
            time.sleep(0.1)
        return held


# The clients. Each returns when it got what it should, and raises OSError or Wrong otherwise.


class Wrong(Exception):
    """A client got something that it should not have."""


class Visitor:
    """One client process: where the server is, whom to trust, and what it leaves open."""

    def __init__(
        self, address: tuple[str, int], anchors: TrustAnchors, dice: random.Random
    ) -> None:
        self.address = address
        self.anchors = anchors
        self.dice = dice
        self.left_open: list[socket.socket] = []

    def plain(self) -> socket.socket:
        """Connect without TLS."""
        return socket.create_connection(self.address, DEADLINE_SECONDS)

    def dial(self, version: str) -> transport.TLSSocket:
        """Connect and shake hands."""
        client = transport.connect(
            self.address,
            trust_anchors=self.anchors,
            server_hostname="localhost",
            policy=POLICIES[version],
            timeout_seconds=DEADLINE_SECONDS,
        )
        client.settimeout(DEADLINE_SECONDS)
        return client

    def hello(self) -> bytes:
        """Make a ClientHello."""
        endpoint = transport.context.shared_client_context(self.anchors, POLICIES["1.3"])
        core = transport.connection.TLSCore(endpoint, None, server_hostname="localhost")
        core.handshake()
        return core.data_to_send()

    def hostile(self, records: Callable[[HostileClient], bytes]) -> None:
        """Shake hands, send records that are not allowed, and be refused."""
        with HostileClient(self.address, self.anchors, timeout_seconds=DEADLINE_SECONDS) as client:
            with suppress(ConnectionError):  # refused before all of it was sent
                client.send(records(client))
            try:
                answer = client.receive()
            except TimeoutError as error:
                raise Wrong("it was not refused") from error
            except OSError:
                return
            raise Wrong(f"it was answered: {answer[:20]!r}")


def fetch(client: transport.TLSSocket) -> None:
    """Ask once and read the whole answer."""
    client.sendall(REQUEST)
    answer = b""
    while True:
        head, blank, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if blank and length is not None and len(body) >= int(length[1]):
            break
        data = client.recv(65536)
        if not data:
            raise Wrong("the answer is not whole")
        answer += data
    if not answer.startswith(b"HTTP/1.1 200") or b"\ngroup " not in answer:
        raise Wrong(f"an answer of {answer[:20]!r}")


def honest(visitor: Visitor) -> None:
    """Ask once, or a few times, and end properly."""
    with visitor.dial(visitor.dice.choice(("1.3", "1.3", "1.2"))) as client:
        for _ in range(visitor.dice.choice((1, 1, 1, 4))):
            fetch(client)


def byte_by_byte(visitor: Visitor) -> None:
    """Ask, a byte in each segment."""

    def send(raw: socket.socket, data: bytes) -> None:
        for position in range(len(data)):
            raw.sendall(data[position : position + 1])

    with HostileClient(visitor.address, visitor.anchors, send=send) as client:
        send(client.socket, client.seal.record(REQUEST))
        if not client.receive().startswith(b"HTTP/1.1 200"):
            raise Wrong("not answered")


def leaves_without_a_word(visitor: Visitor) -> None:
    """Ask, and go by an end of TCP without close_notify."""
    with HostileClient(visitor.address, visitor.anchors) as client:
        client.send(client.seal.record(REQUEST[: visitor.dice.randrange(len(REQUEST))]))


def resets(visitor: Visitor) -> None:
    """Reset the connection, at once or within the handshake."""
    client = visitor.plain()
    client.sendall(visitor.hello()[: visitor.dice.choice((0, 0, 3, 100, 10_000))])
    reset(client)


def resets_in_session(visitor: Visitor) -> None:
    """Reset the connection with a request under way."""
    client = HostileClient(visitor.address, visitor.anchors)
    client.send(client.seal.record(REQUEST))
    reset(client.socket)


def stalls(visitor: Visitor) -> None:
    """Send a part of a ClientHello and nothing more, until the server's deadline."""
    client = visitor.plain()
    client.sendall(visitor.hello()[: visitor.dice.randrange(200)])
    visitor.left_open.append(client)


def speaks_http(visitor: Visitor) -> None:
    """Speak HTTP without TLS, and be told so."""
    with visitor.plain() as client:
        client.sendall(REQUEST)
        if not client.recv(1000).startswith(b"HTTP/1.1 400"):
            raise Wrong("not told that this is a TLS port")


def sends_garbage(visitor: Visitor) -> None:
    """Send what is no TLS."""
    with visitor.plain() as client, suppress(ConnectionError):
        client.sendall(visitor.dice.randbytes(visitor.dice.randrange(6, 2000)))
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass


def offers_nothing_shared(visitor: Visitor) -> None:
    """Offer what the policy does not admit: a ClientHello of TLS 1.1."""
    hello = bytearray(visitor.hello())
    hello[9:11] = b"\x03\x02"
    hello = hello.replace(b"\x00\x2b\x00\x03\x02\x03\x04", b"\x0f\x2b\x00\x03\x02\x03\x04")
    with visitor.plain() as client, suppress(ConnectionError):
        client.sendall(hello)
        if client.recv(1000)[:1] != b"\x15":
            raise Wrong("no alert")


KINDS: dict[str, tuple[int, Callable[[Visitor], None]]] = {  # name: weight, what it does
    "honest": (60, honest),
    "byte by byte": (1, byte_by_byte),
    "leaves without a word": (3, leaves_without_a_word),
    "resets": (10, resets),
    "resets in session": (3, resets_in_session),
    "stalls": (3, stalls),
    "plain HTTP": (5, speaks_http),
    "garbage": (5, sends_garbage),
    "nothing shared": (3, offers_nothing_shared),
    "oversized record": (
        1,
        lambda visitor: visitor.hostile(lambda client: client.seal.record(bytes((1 << 14) + 1))),
    ),
    "empty records": (
        2,
        lambda visitor: visitor.hostile(
            lambda client: b"".join(client.seal.record(b"") for _ in range(40))
        ),
    ),
    "KeyUpdates": (
        2,
        lambda visitor: visitor.hostile(
            lambda client: b"".join(client.seal.key_update(request_update=True) for _ in range(40))
        ),
    ),
    "garbage in session": (
        2,
        lambda visitor: visitor.hostile(lambda _: b"\x17\x03\x03\x00\x40" + bytes(64)),
    ),
}


class Batch(NamedTuple):
    """What became of some clients: how many of each kind, and what went wrong."""

    kinds: Counter[str]
    wrong: list[str]


def run_batch(address: tuple[str, int], ca_file: Path, seed: str, count: int) -> Batch:
    """Be `count` clients, one after the other."""
    anchors = TrustAnchors.from_pem(ca_file.read_bytes())
    visitor = Visitor(address, anchors, random.Random(seed))  # noqa: S311 - to be repeated
    names, weights = list(KINDS), [weight for weight, _ in KINDS.values()]
    result = Batch(Counter(), [])
    with ExitStack() as stack:
        for name in visitor.dice.choices(names, weights, k=count):
            result.kinds[name] += 1
            try:
                KINDS[name][1](visitor)
            except (OSError, Wrong) as error:
                result.wrong.append(f"{name}: {error}")
        for client in visitor.left_open:
            stack.enter_context(client)
    return result


def ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# The verdict


class Sample(NamedTuple):
    """What all workers held after so many connections."""

    connections: int
    memory_bytes: int


def slope(samples: Sequence[Sample]) -> float:
    """Return by how many bytes memory grew with each connection: least squares."""
    if len({sample.connections for sample in samples}) < 2:  # noqa: PLR2004 - a line needs two
        return 0.0
    line = statistics.linear_regression(*zip(*samples, strict=True))
    return float(line.slope)


def growth(samples: Sequence[Sample]) -> int:
    """Return how far the least of the last third lies above the least of the first."""
    if not samples:
        return 0
    third = max(len(samples) // 3, 1)
    first, last = samples[:third], samples[-third:]
    return min(one.memory_bytes for one in last) - min(one.memory_bytes for one in first)


def memory_problem(samples: Sequence[Sample], workers: int) -> str | None:
    """Say that memory leaks, if it does."""
    if not samples:
        return None
    each, grown = slope(samples), growth(samples)
    if each <= MOST_BYTES_EACH or grown <= MOST_GROWTH_BYTES * workers:
        return None
    return (
        f"memory leaks: {each:.0f} bytes with each connection, "
        f"{grown / (1 << 20):.1f} MiB in {samples[-1].connections - samples[0].connections:,}"
    )


# The run


class Soak:
    """One run: batches to client processes, samples from the server, and what came of it."""

    def __init__(self, chosen: argparse.Namespace, server: Watched, ca_file: Path) -> None:
        self._chosen = chosen
        self._server = server
        self._ca_file = ca_file
        self._started = time.monotonic()
        self._said = 0.0
        self.kinds: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.samples: list[Sample] = []
        self.descriptors_before = self.descriptors_after = 0

    @property
    def done(self) -> int:
        """How many connections there were."""
        return self.kinds.total()

    def run(self) -> None:
        """Drive all connections."""
        with ProcessPoolExecutor(self._chosen.clients, initializer=ignore_interrupt) as pool:
            # What a server makes once (threads, an epoll descriptor) is made by these few.
            few = run_batch(self._server.address, self._ca_file, "first", 40)
            self.wrong += few.wrong
            time.sleep(HANDSHAKE_SECONDS)  # those of them that stall meet their deadline
            self.descriptors_before = self._server.descriptors()
            self._drive(pool)
        self.descriptors_after = self._server.settle(self.descriptors_before)
        self._sample()

    def _drive(self, pool: ProcessPoolExecutor) -> None:
        waiting: set[Future[Batch]] = set()
        given, number = 0, 0
        size = max(1, min(BATCH, self._chosen.connections // (4 * self._chosen.clients)))
        while given < self._chosen.connections or waiting:
            while given < self._chosen.connections and len(waiting) < 2 * self._chosen.clients:
                count = min(size, self._chosen.connections - given)
                seed = f"{self._chosen.seed}/{number}"
                waiting.add(
                    pool.submit(run_batch, self._server.address, self._ca_file, seed, count)
                )
                given, number = given + count, number + 1
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for batch in ended:
                self.kinds += batch.result().kinds
                self.wrong += batch.result().wrong
            self._sample()
            self._say_progress()

    def _sample(self) -> None:
        if self.done >= WARM_UP_SHARE * self._chosen.connections:
            self.samples.append(Sample(self.done, self._server.memory_bytes()))

    def _say_progress(self) -> None:
        now = time.monotonic()
        if self._chosen.json or (now - self._said < self._chosen.progress_seconds):
            return
        self._said = now
        print(
            f"{self.done:,} of {self._chosen.connections:,} connections, "
            f"{self.done / (now - self._started):,.0f} a second, {len(self.wrong)} wrong; "
            f"workers hold {self._server.memory_bytes() / (1 << 20):.1f} MiB and "
            f"{self._server.descriptors()} descriptors",
            file=sys.stderr,
            flush=True,
        )

    def problems(self) -> list[str]:
        """Return what does not hold, a line each."""
        found = []
        if self.wrong:
            found.append(f"{len(self.wrong)} clients got something wrong, first {self.wrong[0]}")
        if self.descriptors_after > self.descriptors_before:
            lost = self.descriptors_after - self.descriptors_before
            found.append(f"descriptors leak: {lost} more than before {self.done:,} connections")
        memory = memory_problem(self.samples, self._chosen.workers)
        if memory is not None:
            found.append(memory)
        alive = [pid for pid in self._server.pids if Path(f"/proc/{pid}").exists()]
        if len(alive) < len(self._server.pids):
            found.append("a worker died")
        return found

    def report(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "engine": self._chosen.engine,
            "workers": self._chosen.workers,
            "seed": self._chosen.seed,
            "connections": self.done,
            "seconds": round(time.monotonic() - self._started, 1),
            "kinds": dict(sorted(self.kinds.items())),
            "wrong": len(self.wrong),
            "descriptors_before": self.descriptors_before,
            "descriptors_after": self.descriptors_after,
            "memory_bytes_after_warm_up": self.samples[0].memory_bytes if self.samples else None,
            "memory_bytes_at_end": self.samples[-1].memory_bytes if self.samples else None,
            "bytes_each_connection": round(slope(self.samples), 2),
            "problems": self.problems(),
        }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Drive many honest and abusive clients against our server, and look for leaks.",
        epilog="Exit status: 0 all holds; 1 something leaked, or somebody got something wrong, "
        "with a line for each; 2 bad input. 100,000 connections take some minutes of two cores.",
    )

    def positive(text: str) -> int:
        number = int(text)
        if number < 1:
            raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
        return number

    parser.add_argument("--connections", type=positive, default=100_000, metavar="N")
    parser.add_argument("--engine", choices=[str(one) for one in Engine], default="asyncio")
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="of the server")
    parser.add_argument("--clients", type=positive, default=4, metavar="N", help="processes")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="another mix of clients")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--progress-seconds", type=float, default=10.0, metavar="S")
    parser.add_argument(
        "--leak",
        choices=["none", "memory", "descriptors"],
        default="none",
        help="let the server leak on purpose, to see this fail",
    )
    return parser.parse_args(arguments)


def soak(chosen: argparse.Namespace, identity: Identity) -> int:
    """Run, print, and return the exit status."""
    files = identity.credential
    options = [str(files.certificate_chain), str(files.private_key), chosen.engine]
    options += [str(chosen.workers), chosen.leak]
    with ChildProcess(Path(sys.executable), [__file__, "serve", *options]) as child:
        run = Soak(chosen, Watched(child), identity.ca_file)
        run.run()
        report = run.report()
    if chosen.json:
        print(json.dumps(report, indent=2))
    else:
        for name, count in report["kinds"].items():
            print(f"  {count:9,} {name}")
        print(
            f"{report['connections']:,} connections in {report['seconds']} s, "
            f"{report['wrong']} wrong; descriptors {report['descriptors_before']} before, "
            f"{report['descriptors_after']} after; memory "
            f"{report['memory_bytes_after_warm_up'] / (1 << 20):.1f} MiB after the warm-up, "
            f"{report['memory_bytes_at_end'] / (1 << 20):.1f} at the end, "
            f"{report['bytes_each_connection']} bytes a connection"
        )
    for problem in report["problems"]:
        print(problem, file=sys.stderr)
    return 1 if report["problems"] else 0


def main() -> None:
    """Serve if told to, else soak."""
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
        return
    chosen = parse(sys.argv[1:])
    with one_line_errors(), make_identity() as identity:
        sys.exit(soak(chosen, identity))


if __name__ == "__main__":
    main()
