"""Each client driver against each server driver: exit code, and the bytes that arrived."""

from __future__ import annotations

import contextlib
import random
import socket
import stat
from functools import partial
from http.server import SimpleHTTPRequestHandler
from typing import TYPE_CHECKING, NamedTuple

import pytest
from plain_http import serving

from interop.errors import InputError, PeerUnavailable
from interop.peers.curl import fetch_with_curl, send_with_curl
from interop.peers.endpoints import (
    MAXIMUM_PAYLOAD_BYTES,
    ClientResult,
    CredentialFiles,
    Negotiated,
    RunningServer,
    ServerOptions,
)
from interop.peers.gnutls import run_gnutls_echo, run_gnutls_http
from interop.peers.go import run_go_http
from interop.peers.haproxy import run_haproxy
from interop.peers.names import STATIC_RSA_SUITE, SUITES, TLSVersion, supports_group
from interop.peers.nginx import run_nginx
from interop.peers.openssl import (
    exchange_with_s_client,
    fetch_with_s_client,
    run_s_server_answering,
    run_s_server_files,
    send_with_s_client,
)
from interop.peers.processes import PeerFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from interop.peers.programs import Program

SECONDS = 60.0
# Bytes that would end or renegotiate a session if s_client took letters for commands.
COMMANDS = b"Q\nR\nk\nK\n\x00\r\nB\n"
PAYLOAD = COMMANDS + random.Random(1).randbytes(700_001)
OLDER_RSA_SUITES = [name for name in SUITES if name.startswith(("TLS_ECDHE_RSA", "TLS_RSA"))]
NOWHERE = ("127.0.0.1", 1)


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and does not log."""

    def log_message(self, *_arguments: object) -> None:
        return


class Client(NamedTuple):
    """A client driver that already knows whom to trust."""

    program: Program
    send: Callable[..., ClientResult]
    fetch: Callable[..., ClientResult]


DRIVERS = {
    "openssl": (send_with_s_client, fetch_with_s_client),
    "curl": (send_with_curl, fetch_with_curl),
}


@pytest.fixture(params=list(DRIVERS))
def client(
    request: pytest.FixtureRequest, require_program: Callable[[str], Program], ca_file: Path
) -> Client:
    options = {"ca_file": ca_file, "server_name": "localhost", "timeout_seconds": SECONDS}
    send, fetch = DRIVERS[request.param]
    return Client(
        require_program(request.param), partial(send, **options), partial(fetch, **options)
    )


@pytest.fixture(params=["1.2", "1.3"])
def version(request: pytest.FixtureRequest) -> TLSVersion:
    chosen: TLSVersion = request.param
    return chosen


@pytest.fixture(params=["ec", "rsa"])
def credential(
    request: pytest.FixtureRequest, ec_credential: CredentialFiles, rsa_credential: CredentialFiles
) -> CredentialFiles:
    return ec_credential if request.param == "ec" else rsa_credential


@pytest.fixture
def options(credential: CredentialFiles, version: TLSVersion) -> ServerOptions:
    return ServerOptions(credential=credential, versions=(version,))


@pytest.fixture(params=["openssl", "nginx", "gnutls-serv", "haproxy", "go"])
def serve(
    request: pytest.FixtureRequest, require_program: Callable[[str], Program], tmp_path: Path
) -> Callable[[ServerOptions], AbstractContextManager[RunningServer]]:
    """Start each server, which answers GET /payload with `PAYLOAD`."""
    kind: str = request.param
    require_program(kind)
    (tmp_path / "payload").write_bytes(PAYLOAD)

    @contextlib.contextmanager
    def haproxy(options: ServerOptions) -> Iterator[RunningServer]:
        handler = partial(QuietHandler, directory=str(tmp_path))
        with serving(handler) as backend, run_haproxy(options, backend) as server:
            yield server

    @contextlib.contextmanager
    def go(options: ServerOptions) -> Iterator[RunningServer]:
        try:
            with run_go_http(options, tmp_path) as server:
                yield server
        except PeerUnavailable as error:
            pytest.skip(f"unsupported: {error}")

    def start(options: ServerOptions) -> AbstractContextManager[RunningServer]:
        if kind == "gnutls-serv":
            return run_gnutls_http(options, PAYLOAD)
        if kind == "haproxy":
            return haproxy(options)
        if kind == "go":
            return go(options)
        return (run_nginx if kind == "nginx" else run_s_server_files)(options, tmp_path)

    return start


@pytest.fixture
def nginx(require_program: Callable[[str], Program]) -> None:
    require_program("nginx")


@pytest.fixture
def openssl(require_program: Callable[[str], Program]) -> Client:
    require_program("openssl")
    return Client(require_program("openssl"), send_with_s_client, fetch_with_s_client)


def succeeded(result: ClientResult, version: TLSVersion | None = None) -> None:
    assert result.exit_code == 0, result.stderr_tail
    assert result.negotiated is not None
    if version is not None:
        assert result.negotiated.version == version


def test_get(
    client: Client,
    serve: Callable[[ServerOptions], AbstractContextManager[RunningServer]],
    options: ServerOptions,
    version: TLSVersion,
) -> None:
    with serve(options) as server:
        for _ in range(2):  # these servers take any number of sessions
            result = client.fetch(server.address, "/payload")
            succeeded(result, version)
            assert result.http().status == 200
            assert result.http().body == PAYLOAD


@pytest.mark.usefixtures("openssl")
def test_put_to_s_server(client: Client, options: ServerOptions, version: TLSVersion) -> None:
    with run_s_server_answering(options, b"thank you") as server:
        result = client.send(server.address, PAYLOAD)
        request = server.wait_request(timeout_seconds=SECONDS)
    succeeded(result, version)
    assert (request.method, request.target) == ("PUT", "/upload")
    assert request.body == PAYLOAD
    assert (result.http().status, result.http().body) == (200, b"thank you")


@pytest.mark.usefixtures("nginx")
def test_put_to_nginx(client: Client, options: ServerOptions, version: TLSVersion) -> None:
    with run_nginx(options) as server:
        sent = client.send(server.address, PAYLOAD, target="/new/stored")
        succeeded(sent, version)
        assert sent.http().status == 201
        assert (server.folder / "new" / "stored").read_bytes() == PAYLOAD
        assert client.fetch(server.address, "/new/stored").http().body == PAYLOAD


@pytest.mark.usefixtures("nginx")
def test_put_to_nginx_that_discards(client: Client, options: ServerOptions) -> None:
    with run_nginx(options, store_uploads=False) as server:
        sent = client.send(server.address, PAYLOAD)
        assert not (server.folder / "upload").exists()
    succeeded(sent)
    assert (sent.http().status, sent.http().body) == (200, b"received\n")


@pytest.mark.usefixtures("openssl")
def test_echo_from_gnutls(
    require_program: Callable[[str], Program], ca_file: Path, options: ServerOptions
) -> None:
    require_program("gnutls-serv")
    text = b"".join(b"line %d\n" % number for number in range(30_000))
    with run_gnutls_echo(options) as server:
        result = exchange_with_s_client(
            server.address,
            text,
            response_bytes=len(text),
            ca_file=ca_file,
            server_name="localhost",
            timeout_seconds=SECONDS,
        )
    succeeded(result)
    assert result.response == text


def test_static_rsa_can_be_forced(
    client: Client,
    serve: Callable[[ServerOptions], AbstractContextManager[RunningServer]],
    rsa_credential: CredentialFiles,
) -> None:
    options = ServerOptions(
        credential=rsa_credential, versions=("1.2",), suites=(STATIC_RSA_SUITE,)
    )
    ecdhe = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
    with serve(options) as server:
        taken = client.fetch(server.address, "/payload")
        refused = client.fetch(server.address, "/payload", version="1.2", suites=ecdhe)
    succeeded(taken)
    assert taken.negotiated == Negotiated(version="1.2", suite=STATIC_RSA_SUITE)
    assert taken.http().body == PAYLOAD
    assert refused.exit_code != 0
    assert refused.negotiated is None


@pytest.mark.parametrize("group", ["x25519", "secp256r1", "secp384r1"])
def test_server_selects_group(
    client: Client,
    serve: Callable[[ServerOptions], AbstractContextManager[RunningServer]],
    rsa_credential: CredentialFiles,
    group: str,
) -> None:
    options = ServerOptions(credential=rsa_credential, versions=("1.3",), groups=(group,))
    with serve(options) as server:
        taken = client.fetch(server.address, "/payload")
        refused = client.fetch(server.address, "/payload", groups=["secp521r1"])
    succeeded(taken)
    assert taken.negotiated is not None
    assert taken.negotiated.group in {group, ""}  # curl says it since 8.8
    assert refused.exit_code != 0


@pytest.mark.usefixtures("openssl")
def test_s_client_says_the_group(
    serve: Callable[[ServerOptions], AbstractContextManager[RunningServer]],
    ca_file: Path,
    rsa_credential: CredentialFiles,
    version: TLSVersion,
) -> None:
    options = ServerOptions(credential=rsa_credential, versions=(version,))
    for group in ("x25519", "secp256r1", "secp384r1"):
        with serve(options) as server:
            result = fetch_with_s_client(
                server.address,
                "/payload",
                ca_file=ca_file,
                server_name="localhost",
                timeout_seconds=SECONDS,
                groups=[group],
            )
        succeeded(result)
        assert result.negotiated is not None
        assert result.negotiated.group == group


TLS13_SUITES = tuple(name for name, suite in SUITES.items() if suite.is_tls13)


@pytest.mark.usefixtures("nginx")
@pytest.mark.parametrize("suite", TLS13_SUITES)
def test_client_chooses_tls13_suite(
    client: Client, ec_credential: CredentialFiles, suite: str
) -> None:
    # Named, since OpenSSL leaves CCM out of those that it has by itself.
    with run_nginx(ServerOptions(credential=ec_credential, suites=TLS13_SUITES)) as server:
        result = client.send(server.address, b"x", suites=[suite])
    succeeded(result)
    assert result.negotiated is not None
    assert result.negotiated.suite == suite


@pytest.mark.parametrize("suite", OLDER_RSA_SUITES)
def test_server_selects_tls12_suite(
    client: Client,
    serve: Callable[[ServerOptions], AbstractContextManager[RunningServer]],
    rsa_credential: CredentialFiles,
    suite: str,
) -> None:
    options = ServerOptions(credential=rsa_credential, suites=(suite,), versions=("1.2",))
    with serve(options) as server:
        result = client.fetch(server.address, "/payload", suites=[suite])
    succeeded(result)
    assert result.negotiated is not None
    assert result.negotiated.suite == suite


@pytest.mark.usefixtures("nginx")
@pytest.mark.parametrize("old", ["1.0", "1.1"])
def test_old_version_can_be_recorded(
    client: Client, rsa_credential: CredentialFiles, old: TLSVersion
) -> None:
    with run_nginx(ServerOptions(credential=rsa_credential, versions=(old,))) as server:
        result = client.send(server.address, b"x", version=old)
        refused = client.send(server.address, b"x", version="1.2")
    succeeded(result, old)
    assert refused.exit_code != 0


def test_wrong_ca_or_name_is_refused(
    client: Client,
    serve: Callable[[ServerOptions], AbstractContextManager[RunningServer]],
    options: ServerOptions,
    foreign_ca_file: Path,
) -> None:
    with serve(options) as server:
        fetch = partial(client.fetch, server.address, "/payload")
        assert fetch().exit_code == 0
        assert fetch(server_name="127.0.0.1").exit_code == 0
        for result in (
            fetch(ca_file=foreign_ca_file),
            fetch(server_name="other.example"),
            fetch(server_name="127.0.0.2"),
        ):
            assert result.exit_code != 0
            assert result.response == b""


def test_server_takes_only_clients_it_trusts(
    client: Client,
    serve: Callable[[ServerOptions], AbstractContextManager[RunningServer]],
    authority: tuple[Path, CredentialFiles, CredentialFiles, CredentialFiles],
    foreign_client_credential: CredentialFiles,
    version: TLSVersion,
) -> None:
    ca_file, server_credential, _, known = authority
    options = ServerOptions(
        credential=server_credential, versions=(version,), client_ca_file=ca_file
    )
    with serve(options) as server:
        taken = client.fetch(server.address, "/payload", credential=known)
        foreign = client.fetch(server.address, "/payload", credential=foreign_client_credential)
        nobody = client.fetch(server.address, "/payload")
    succeeded(taken)
    assert taken.http().body == PAYLOAD
    for refused in (foreign, nobody):
        assert PAYLOAD not in refused.response


@pytest.mark.usefixtures("nginx")
def test_largest_payload(client: Client, ec_credential: CredentialFiles, tmp_path: Path) -> None:
    payload = tmp_path / "largest"
    payload.write_bytes(random.Random(2).randbytes(1 << 20) * (MAXIMUM_PAYLOAD_BYTES >> 20))
    with run_nginx(ServerOptions(credential=ec_credential)) as server:
        succeeded(client.send(server.address, payload))
        assert (server.folder / "upload").read_bytes() == payload.read_bytes()
    with payload.open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="more than"):
        client.send(NOWHERE, payload)


def test_key_logs_are_written_and_private(
    client: Client,
    require_program: Callable[[str], Program],
    ec_credential: CredentialFiles,
    tmp_path: Path,
) -> None:
    require_program("gnutls-serv")
    ours, theirs = tmp_path / "client.log", tmp_path / "server.log"
    with run_gnutls_http(ServerOptions(credential=ec_credential, key_log=theirs), b"x") as server:
        assert server.key_log == theirs
        succeeded(client.fetch(server.address, "/", key_log=ours))
    secrets = [
        {line.split()[2] for line in path.read_text("ascii").splitlines() if "_SECRET" in line}
        for path in (ours, theirs)
    ]
    assert len(secrets[0] & secrets[1]) >= 4
    assert [stat.S_IMODE(path.stat().st_mode) for path in (ours, theirs)] == [0o600, 0o600]


@pytest.mark.usefixtures("openssl")
def test_s_server_writes_a_key_log(
    client: Client, ec_credential: CredentialFiles, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    options = ServerOptions(credential=ec_credential, key_log=log)
    with run_s_server_answering(options) as server:
        client.send(server.address, b"x")
        server.wait_request(timeout_seconds=SECONDS)
    assert "SERVER_TRAFFIC_SECRET_0" in log.read_text("ascii")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_go_writes_a_key_log(
    client: Client,
    require_program: Callable[[str], Program],
    ec_credential: CredentialFiles,
    tmp_path: Path,
) -> None:
    require_program("go")
    log = tmp_path / "server.log"
    with run_go_http(ServerOptions(credential=ec_credential, key_log=log), tmp_path) as server:
        succeeded(client.send(server.address, b"x"))
        assert "SERVER_TRAFFIC_SECRET_0" in log.read_text("ascii")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_what_go_cannot_be_asked_for_is_an_input_error(
    require_program: Callable[[str], Program], ec_credential: CredentialFiles, tmp_path: Path
) -> None:
    require_program("go")
    for wrong in ({"groups": ("ffdhe2048",)}, {"suites": ("TLS_AES_128_CCM_SHA256",)}):
        options = ServerOptions(credential=ec_credential, **wrong)
        with pytest.raises(InputError, match="Go"), run_go_http(options, tmp_path):
            pass


@pytest.mark.usefixtures("nginx")
def test_nginx_has_no_key_log(ec_credential: CredentialFiles, tmp_path: Path) -> None:
    options = ServerOptions(credential=ec_credential, key_log=tmp_path / "log")
    with pytest.raises(PeerUnavailable, match="take it from the client"), run_nginx(options):
        pass


def test_group_beyond_the_library_is_unavailable(client: Client) -> None:
    if supports_group(client.program, "X25519MLKEM768"):
        pytest.skip(f"unsupported: {client.program.name} here is new enough to negotiate it")
    with pytest.raises(PeerUnavailable, match=r"X25519MLKEM768: that needs OpenSSL 3\.5"):
        client.send(NOWHERE, b"x", groups=["X25519MLKEM768"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"groups": ["curve9"]},
        {"suites": ["TLS_NULL"]},
        {"server_name": "a b"},
        {"server_name": "-x"},
    ],
    ids=str,
)
def test_unknown_names_are_input_errors(client: Client, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        client.send(NOWHERE, b"x", **wrong)


def test_missing_files_are_input_errors(client: Client, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    for wrong in ({"ca_file": absent}, {"key_log": absent / "log"}):
        with pytest.raises(InputError, match="absent"):
            client.send(NOWHERE, b"x", **wrong)
    with pytest.raises(InputError, match="absent"):
        client.send(NOWHERE, absent)


def test_refused_connection_is_a_result(client: Client) -> None:
    result = client.send(NOWHERE, b"x")
    assert result.exit_code != 0
    assert result.stderr_tail
    assert result.negotiated is None


def test_silent_server_meets_the_deadline(client: Client) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(PeerFailed, match=r"not within 0\.5 seconds"),
    ):
        client.send(silent.getsockname(), b"x", timeout_seconds=0.5)


def test_dead_server_gives_its_words_at_once(
    serve: Callable[[ServerOptions], AbstractContextManager[RunningServer]],
    rsa_credential: CredentialFiles,
    foreign_rsa_credential: CredentialFiles,
) -> None:
    mismatched = CredentialFiles(
        certificate_chain=rsa_credential.certificate_chain,
        private_key=foreign_rsa_credential.private_key,
    )
    options = ServerOptions(credential=mismatched, start_seconds=3600)
    words = (
        r"(?i)ended before it (listened|started a worker|said its address)"
        r".*(mismatch|do(es)? not match|inconsistencies)"
    )
    with pytest.raises(PeerFailed, match=words), serve(options):
        pass
