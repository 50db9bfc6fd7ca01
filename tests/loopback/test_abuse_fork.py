"""A process that forks in the middle: nothing secret is made twice, and nobody is disturbed.

Each program here runs as a process of its own, since a fork of a test process would fork its
threads and fixtures too. The child ends as an interpreter does, with all its clean-up, which is
where an object could do harm to a connection that is its parent's.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMMON = """
    import asyncio, gc, os, socket, sys, threading, time
    import trustme
    import transport
    from certs.credential import Credential, TrustAnchors
    from transport.connection import TLSCore
    from transport.context import client_context, server_context

    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    issued = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    credential = Credential.from_pem(chain, issued.private_key_pem.bytes())
    anchors = TrustAnchors.from_pem(authority.cert_pem.bytes())
    POLICY = transport.DEFAULT_POLICY

    def wait_for(pid):
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
"""

# The contexts and a connection under way are made before the fork, and used on both sides of it.
RANDOMS = """
    log = transport.KeyLogBuffer()
    client_side = client_context(anchors, POLICY, key_log=log)
    server_side = server_context(credential, POLICY)

    def flights(client, server):
        client.handshake()
        hello = client.data_to_send()
        server.receive_data(hello)
        server.handshake()
        answer = server.data_to_send()
        client.receive_data(answer)
        client.handshake()
        return hello, answer

    def pair():
        return TLSCore(client_side, None, server_hostname="localhost"), TLSCore(server_side, None)

    flights(*pair())  # the generator and both contexts have been used
    half_made = pair()
    reading, writing = os.pipe()
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            break
    found = []
    for client, server in (half_made, *(pair() for _ in range(20))):
        hello, answer = flights(client, server)
        # The random follows record header, message header and version; then what is after it.
        found += [hello[11:43].hex(), answer[11:43].hex()]
        found += [hello[-32:].hex()]  # of the key share, which OpenSSL puts last
    found += [line.split()[2].decode() for line in log.getvalue().splitlines()[5:]]
    with os.fdopen(os.dup(writing), "w") as out:
        out.write("".join(value + "\\n" for value in found))  # less than a pipe takes at once
    if pid == 0:
        sys.exit()
    os.close(writing)
    with os.fdopen(reading) as lines:
        print(lines.read(), end="")
    for _ in range(2):
        os.wait()
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMMON) + textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_three_processes_of_one_fork_make_no_value_twice() -> None:
    done = run(RANDOMS)
    assert (done.returncode, done.stderr) == (0, "")
    values = done.stdout.split()
    handshakes = 3 * 21
    assert len(values) >= handshakes * (3 + 4)
    assert len(set(values)) == len(values)


BLOCKING = """
    listener = transport.wrap_listener(
        socket.create_server(("127.0.0.1", 0)), credential=credential
    )
    raw = socket.create_connection(listener.getsockname())
    client = transport.wrap_socket(raw, trust_anchors=anchors, server_hostname="localhost")
    server, _ = listener.accept()
    shaking = threading.Thread(target=server.do_handshake)
    shaking.start()
    client.do_handshake()
    shaking.join()

    def exchange(text):
        for one, other in ((client, server), (server, client)):
            one.sendall(text)
            assert other.recv(100) == text

    exchange(b"before")
    server.sendall(b"unread")  # so that the child's copy of the client has something pending
    pid = os.fork()
    if pid == 0:
        END
    wait_for(pid)
    assert client.recv(100) == b"unread"
    exchange(b"after")
    client.close()
    assert server.recv(100) == b""
    print("undisturbed")
"""

ASYNCIO = """
    async def handle(stream):
        while data := await stream.read(100):
            await stream.send_all(data)

    async def main():
        server = await transport.start_server(handle, "127.0.0.1", 0, credential=credential)
        async with server:
            address = server.sockets[0].getsockname()
            client = await transport.open_connection(
                *address, trust_anchors=anchors, server_hostname="localhost"
            )
            async with client:
                await client.send_all(b"before")
                assert await client.readexactly(6) == b"before"
                pid = os.fork()
                if pid == 0:
                    END
                wait_for(pid)
                await client.send_all(b"after")
                assert await client.readexactly(5) == b"after"
                client.write_eof()
                assert await client.read() == b""

    asyncio.run(main())
    print("undisturbed")
"""

# What the child does with what it inherited; it must not come to the lines after END.
ENDS = {
    "at once": "os._exit(0)",
    "having dropped everything": "client = server = listener = None; gc.collect(); os._exit(0)",
}
ENGINES = pytest.mark.parametrize("program", [BLOCKING, ASYNCIO], ids=["blocking", "asyncio"])


def assert_undisturbed(program: str) -> None:
    done = run(program)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "undisturbed\n")


@ENGINES
@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_child_does_not_disturb_its_parents_connections(
    program: str, end: str
) -> None:
    assert_undisturbed(program.replace("END", ENDS[end]))


def test_a_child_that_ends_as_interpreters_do_disturbs_nobody() -> None:
    assert_undisturbed(BLOCKING.replace("END", "sys.exit()"))


USES = """
        for use in (lambda: client.recv(1), lambda: client.sendall(b"x"), lambda: server.recv(1)):
            try:
                use()
            except transport.APIMisuse as refused:
                assert "belongs to the process" in str(refused)
            else:
                os._exit(1)
        client.close()
        server.close()
        os._exit(0)
"""


def test_a_child_cannot_use_its_parents_connection_and_may_close_it() -> None:
    # Otherwise its record and its parent's next one had the same key and nonce.
    assert_undisturbed(BLOCKING.replace("        END\n", USES.lstrip("\n")))


def test_a_child_leaves_its_parents_streams_alone_when_it_unwinds() -> None:
    use = "client.abort(); assert client.is_closing(); await client.wait_closed(); os._exit(0)"
    assert_undisturbed(ASYNCIO.replace("END", use))


FORKING_SERVER = """
    import socketserver

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"%d %s" % (os.getpid(), self.rfile.readline()))

    class Server(socketserver.ForkingTCPServer):
        def server_activate(self):
            super().server_activate()
            self.socket = transport.wrap_listener(self.socket, credential=credential)

    listening = Server(("127.0.0.1", 0), Handler)
    pid = os.fork()
    if pid == 0:
        pids = set()
        for _ in range(3):
            with transport.connect(
                listening.server_address, trust_anchors=anchors, server_hostname="localhost"
            ) as client:
                client.sendall(b"hello\\n")
                pid, text = client.makefile("rb").read().split()
            assert text == b"hello"
            pids.add(int(pid))
        os._exit(len(pids) != 3 or os.getppid() in pids)
    for _ in range(3):
        listening.handle_request()
    wait_for(pid)
    print("undisturbed")
"""


def test_a_server_that_forks_for_each_connection_works() -> None:
    assert_undisturbed(FORKING_SERVER)


LISTENERS = """
    listening = transport.wrap_listener(
        socket.create_server(("127.0.0.1", 0)), credential=credential
    )

    def accept():
        try:
            listening.accept()
        except OSError:
            return
        raise AssertionError("somebody connected")

    def begin_to_accept():
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        time.sleep(0.3)  # a thread that does not wait yet only makes it easier
        return accepting

    def close_wakes(accepting):
        listening.close()
        accepting.join(10)
        assert not accepting.is_alive()

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        CHILD
        os._exit(0)
    os.close(reading)
    PARENT
    print("undisturbed")
"""


def test_closing_a_listener_wakes_its_thread_though_a_child_lives_on() -> None:
    child = "os.read(reading, 1)  # keeps its copies of all descriptors until told"
    parent = "close_wakes(begin_to_accept()); os.close(writing); wait_for(pid)"
    assert_undisturbed(LISTENERS.replace("CHILD", child).replace("PARENT", parent))


def test_closing_a_listener_in_a_child_wakes_the_childs_thread_and_no_other() -> None:
    child = "close_wakes(begin_to_accept())"
    parent = (
        "accepting = begin_to_accept(); wait_for(pid); assert accepting.is_alive(); "
        "close_wakes(accepting)"
    )
    assert_undisturbed(LISTENERS.replace("CHILD", child).replace("PARENT", parent))


def test_a_child_that_closes_its_copy_of_a_listener_leaves_its_parents_thread_waiting() -> None:
    child = "os.read(reading, 1); listening.close()"
    parent = (
        "accepting = begin_to_accept(); os.close(writing); wait_for(pid); "
        "assert accepting.is_alive(); close_wakes(accepting)"
    )
    assert_undisturbed(LISTENERS.replace("CHILD", child).replace("PARENT", parent))
