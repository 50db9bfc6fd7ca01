"""`pfs prove --target`: the proof of somebody's own server, good ones and ones that it refutes."""

from __future__ import annotations

import dataclasses
import shutil
import socket
from contextlib import ExitStack
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from plain_http import serving

from certs import profiles
from certs.authority import CertificateAuthority
from certs.credential import TrustAnchors
from certs.key_types import KeyType
from certs.keystore import KeyStore
from certs.keystore.kek import FileKEK
from interop.errors import PeerUnavailable
from interop.identity import issue_identity
from interop.peers.endpoints import CredentialFiles, ServerOptions
from interop.peers.gnutls import run_gnutls_http
from interop.peers.go import run_go_http
from interop.peers.haproxy import run_haproxy
from interop.peers.nginx import run_nginx
from interop.peers.telltale_server import TelltaleServer
from interop.peers.weak import WeakConnection, WeakServer
from interop.proof import layout
from interop.proof.application import Application
from interop.proof.model import TARGET_KEY, Report, read_report
from interop.proof.recording import SessionRefused
from interop.proof.scenarios import TARGET_SCENARIOS
from interop.proof.target import OwnServer, _Recorder
from transport import KeyLogBuffer

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from certs.credential import Credential

    Run = Callable[..., subprocess.CompletedProcess[str]]


class Files(NamedTuple):
    """A server's credential, as files, and its authority."""

    credential: Credential
    chain: Path
    key: Path
    ca: Path

    @property
    def options(self) -> ServerOptions:
        return ServerOptions(
            credential=CredentialFiles(certificate_chain=self.chain, private_key=self.key)
        )


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Files]]:
    folder = tmp_path_factory.mktemp("issued")
    with KeyStore.create(folder / "store", FileKEK.create(folder / "kek")) as store:
        now = datetime.now(UTC)
        root = CertificateAuthority.create_root(store, "root", "target root", now)
        issuing = root.issue_subordinate("issuing", "target CA", now)
        found = {}
        for name, key_type, profile in (
            ("ec", KeyType.EC_P256, profiles.TLS_SERVER),
            ("rsa", KeyType.RSA_3072, profiles.TLS_SERVER_KEY_TRANSPORT),
        ):
            credential = issuing.issue_server(
                key_name=name,
                key_type=key_type,
                dns_names=("localhost",),
                now=now,
                profile=profile,
            )
            chain, key, ca = (folder / f"{name}.{kind}" for kind in ("chain", "key", "ca"))
            chain.write_bytes(credential.certificates_pem())
            key.touch(0o600)
            key.write_bytes(credential.private_key_pem())
            ca.write_bytes(root.trust_anchors.pem())
            found[name] = Files(credential, chain, key, ca)
        yield found


def prove(
    pfs: Run, out: Path, files: Files, address: tuple[str, int], *more: str
) -> tuple[int, Report, subprocess.CompletedProcess[str]]:
    done = pfs(
        *("prove", "--out", out, "--target", f"localhost:{address[1]}"),
        *("--server-key", files.key, "--ca", files.ca, "--handshakes", "40", *more),
    )
    assert (out / "report.json").exists(), done.stderr
    return done.returncode, read_report((out / "report.json").read_bytes()), done


def seen(report: Report) -> dict[str, str]:
    return {one.name: one.key_exchange for one in report.sessions if one.target}


def test_nginx_is_proved_and_its_key_stays_where_it_is(
    issued: dict[str, Files],
    tmp_path: Path,
    pfs: Run,
    require_program: Callable[[str], object],
) -> None:
    require_program("nginx")
    files, out = issued["ec"], tmp_path / "evidence"
    with run_nginx(files.options, store_uploads=False) as server:
        status, report, done = prove(pfs, out, files, server.address)
    assert report.failures == ()
    assert status == 0
    names = seen(report)
    assert {"target-tls12-ecdhe", "target-tls13-x25519", "target-told-secp256r1"} <= names.keys()
    assert set(names.values()) == {"(EC)DHE"}
    refused = {one.name: one.reason for one in report.skipped if one.refused}
    assert {"target-static-rsa", "target-tls13-psk_ke"} <= refused.keys()
    assert all(reason.startswith("refused, as it should be: ") for reason in refused.values())
    assert not any(name in one.what for name in refused for one in report.not_tested)
    page = " ".join((out / "report.html").read_text("utf-8").split())
    assert f"40 handshakes with {report.target}, each value" in page
    assert f"What {report.target} refused" in page
    assert f"No flight was replayed at {report.target}" in page
    replayed = f"The client flights of {len(report.replays)} of the {len(report.sessions)} sessions"
    assert replayed in page
    assert report.target in done.stdout
    (theft,) = (one for one in report.thefts if one.name == TARGET_KEY)
    assert theft.shown
    assert report.handshakes == 40
    assert report.tallies["client_random"].count == 40

    private = load_pem_private_key(files.key.read_bytes(), None)
    forms = [
        private.private_bytes(encoding, PrivateFormat.PKCS8, NoEncryption())
        for encoding in (Encoding.DER, Encoding.PEM)
    ]
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(form in content or form.strip() in content for form in forms), path

    same = ("--server-key", files.key)
    assert pfs("verify", out, *same).returncode == 0
    assert pfs("verify", out, "--no-tshark", *same, *same).returncode == 0
    for arguments, words in (
        ((), "give --server-key"),
        (("--server-key", issued["rsa"].key), "not a key that"),
        (("--server-key", files.key, "--server-key", issued["rsa"].key), "not a key that"),
    ):
        refused = pfs("verify", out, *arguments)
        assert refused.returncode == 2
        assert words in refused.stderr
    tampered = tmp_path / "tampered"
    shutil.copytree(out, tampered)
    text = (tampered / "report.json").read_text()
    (tampered / "report.json").write_text(text.replace(report.target_keys_sha256[0], "0" * 64))
    changed = pfs("verify", tampered, "--server-key", files.key)
    assert changed.returncode != 0


def test_nginx_with_an_rsa_key_takes_static_rsa_as_it_comes_and_is_refuted(
    issued: dict[str, Files], tmp_path: Path, pfs: Run, require_program: Callable[[str], object]
) -> None:
    require_program("nginx")
    files = issued["rsa"]
    with run_nginx(files.options, store_uploads=False) as server:
        status, report, _ = prove(pfs, tmp_path / "evidence", files, server.address, "--no-tshark")
    assert status == 1
    assert seen(report)["target-tls13-x25519"] == "(EC)DHE"
    assert [failure.partition(":")[0] for failure in report.failures] == ["target-static-rsa"]
    opened = {cell.session for cell in report.cells if cell.stolen == TARGET_KEY and cell.whole}
    assert opened == {"target-static-rsa"}


def test_a_server_with_two_certificates_has_two_keys_to_steal(
    issued: dict[str, Files], tmp_path: Path, pfs: Run, require_program: Callable[[str], object]
) -> None:
    require_program("nginx")
    ec, rsa, out = issued["ec"], issued["rsa"], tmp_path / "evidence"
    second = ("--server-key", rsa.key)
    with run_nginx(
        ec.options, store_uploads=False, second_credential=rsa.options.credential
    ) as server:
        status, report, _ = prove(pfs, out, ec, server.address, "--no-tshark", *second)
        _, of_one, _ = prove(pfs, tmp_path / "of-one", ec, server.address, "--no-tshark")
    assert status == 1
    assert [failure.partition(":")[0] for failure in report.failures] == ["target-static-rsa"]
    opened = {cell.session for cell in report.cells if cell.stolen == TARGET_KEY and cell.whole}
    assert opened == {"target-static-rsa"}
    assert len(report.target_keys_sha256) == 2
    # With one key of the two the theft is no theft of what the server used, and says nothing.
    assert any("target-key" in failure for failure in of_one.failures), of_one.failures

    verified = pfs("verify", out, "--no-tshark", *second, "--server-key", ec.key)
    assert "refuted" in verified.stdout
    assert verified.returncode == 1
    missing = pfs("verify", out, "--no-tshark", "--server-key", ec.key)
    assert missing.returncode == 2
    assert "had 2 keys in this evidence; give each" in missing.stderr


class Backend(BaseHTTPRequestHandler):
    """Takes uploads in the clear, as what stands behind a proxy."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        return


@pytest.mark.parametrize("tickets", [False, True])
@pytest.mark.parametrize("kind", ["haproxy", "go"])
def test_a_target_is_proved_unless_its_tickets_hold_main_secrets(
    issued: dict[str, Files],
    tmp_path: Path,
    pfs: Run,
    require_program: Callable[[str], object],
    kind: str,
    *,
    tickets: bool,
) -> None:
    require_program(kind)
    files = issued["ec"]
    options = dataclasses.replace(files.options, tickets=tickets)
    with ExitStack() as stack:
        if kind == "go":
            server = stack.enter_context(run_go_http(options, tmp_path))
        else:
            server = stack.enter_context(
                run_haproxy(options, stack.enter_context(serving(Backend)))
            )
        status, report, _ = prove(pfs, tmp_path / "evidence", files, server.address, "--no-tshark")
    refuted = {failure.partition(":")[0] for failure in report.failures}
    assert refuted == ({"target-tls12-ticket", "target-s_client-tls12"} if tickets else set())
    assert status == bool(tickets)
    assert seen(report)["target-tls13-x25519"] == "(EC)DHE"


def test_gnutls_is_seen_to_give_out_tickets_that_hold_main_secrets(
    issued: dict[str, Files], tmp_path: Path, pfs: Run, require_program: Callable[[str], object]
) -> None:
    require_program("gnutls-serv")
    files = issued["ec"]
    with run_gnutls_http(files.options, b"answer") as server:
        status, report, _ = prove(pfs, tmp_path / "evidence", files, server.address, "--no-tshark")
    names = seen(report)
    assert "target-tls13-x25519" in names
    assert names.get("target-tls13-psk_dhe_ke", "psk_dhe_ke") == "psk_dhe_ke"
    weak = [one.name for one in report.sessions if one.target and not one.forward_secret]
    assert status == (1 if weak else 0)
    assert all(any(name in failure for failure in report.failures) for name in weak)


def test_a_server_that_resumes_without_a_key_exchange_is_refuted(
    issued: dict[str, Files], tmp_path: Path, pfs: Run
) -> None:
    files, log = issued["ec"], KeyLogBuffer()
    with TelltaleServer(
        files.credential.certificates_pem(),
        files.credential.private_key_pem(),
        Application().serve,
        key_log=log.write_line,
    ) as server:
        status, report, _ = prove(pfs, tmp_path / "evidence", files, server.address, "--no-tshark")
    assert status == 1
    names = seen(report)
    assert names["target-tls13-psk_dhe_ke"] == "psk_dhe_ke"
    for name, words in (
        ("target-tls13-psk_ke", "TLS 1.3 without forward secrecy: psk_ke"),
        ("target-tls13-0rtt", "TLS 1.3 without forward secrecy: 0-RTT"),
        ("target-tls12-ticket", "TLS 1.2 without forward secrecy: gives out a ticket"),
    ):
        assert any(
            failure.startswith(f"{name}: ") and words in failure for failure in report.failures
        ), report.failures


def test_a_server_that_takes_static_rsa_is_refuted_and_opened_by_its_key(
    issued: dict[str, Files], tmp_path: Path, pfs: Run
) -> None:
    files, out = issued["rsa"], tmp_path / "evidence"
    with WeakServer(files.chain, files.key, Application().serve) as server:
        status, report, _ = prove(pfs, out, files, server.address, "--no-tshark")
    assert status == 1
    names = seen(report)
    assert "target-static-rsa" in names
    assert set(names.values()) == {"static RSA"}
    opened = {cell.session for cell in report.cells if cell.stolen == TARGET_KEY and cell.whole}
    assert opened == names.keys()
    said = "\n".join(report.failures)
    assert "target-static-rsa: " in said
    assert "no forward-secret session with localhost" in said
    assert "census: server_key_share: 0 seen" in said
    assert pfs("verify", "--no-tshark", out, "--server-key", files.key).returncode == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--server-key", "KEY"), "go with --target"),
        (("--target", "localhost:1"), "needs --server-key"),
        (("--target", "localhost:1", "--server-key", "KEY"), "and --ca"),
        (("--target", "nonsense:", "--server-key", "KEY", "--ca", "CA"), "is not an address"),
        (("--target", "localhost:1", "--server-key", "CA", "--ca", "CA"), "not a private key"),
        (("--target", "localhost:1", "--server-key", "KEY", "--ca", "KEY"), "not readable PEM"),
        (("--target", "localhost:1", "--server-key", "KEY", "--ca", "missing"), "No such file"),
        (
            ("--target", "localhost:1", "--server-key", "KEY", "--ca", "CA"),
            "localhost:1 cannot be reached: Connection refused",
        ),
        (
            ("--target", "no-such-host.invalid", "--server-key", "KEY", "--ca", "CA"),
            "no-such-host.invalid:443 cannot be reached: ",
        ),
        (
            (
                *("--target", "localhost:1", "--server-key", "KEY", "--ca", "CA"),
                *("--server-name", "<b>x</b>"),
            ),
            "'<b>x</b>' is not a host name",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    issued: dict[str, Files], tmp_path: Path, pfs: Run, options: tuple[str, ...], words: str
) -> None:
    paths = {"KEY": str(issued["ec"].key), "CA": str(issued["ec"].ca)}
    out = tmp_path / "evidence"
    done = pfs("prove", "--out", out, *(paths.get(one, one) for one in options))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_target_that_is_not_who_it_should_be_is_bad_input_and_not_refuted(
    issued: dict[str, Files], tmp_path: Path, pfs: Run
) -> None:
    files, log, out = issued["ec"], KeyLogBuffer(), tmp_path / "evidence"
    (tmp_path / "foreign.pem").write_bytes(issue_identity().trust_anchors.pem())
    with TelltaleServer(
        files.credential.certificates_pem(),
        files.credential.private_key_pem(),
        Application().serve,
        key_log=log.write_line,
    ) as server:
        address = f"localhost:{server.address[1]}"
        other = issued["rsa"].key
        for key, ca, more, words in (
            (other, files.ca, (), f"{other}: not the key of any certificate that {address} showed"),
            (files.key, tmp_path / "foreign.pem", (), f"{address}: the peer's certificate was"),
            (files.key, files.ca, ("--server-name", "else.example"), f"{address}: the peer's"),
        ):
            done = pfs(
                *("prove", "--out", out, "--target", address, "--server-key", key, "--ca", ca),
                *more,
            )
            assert (done.returncode, done.stdout) == (2, "")
            assert words in done.stderr
            assert not out.exists()


def test_a_target_that_begins_what_it_should_refuse_has_not_refused_it(
    issued: dict[str, Files], tmp_path: Path
) -> None:
    files = issued["rsa"]
    (tmp_path / "captures").mkdir()
    (scenario,) = (one for one in TARGET_SCENARIOS if one.name == "target-static-rsa")

    def break_off(connection: WeakConnection) -> None:
        connection._socket.shutdown(socket.SHUT_RDWR)

    with WeakServer(files.chain, files.key, break_off) as server:
        own = OwnServer(
            address=server.address,
            server_name="localhost",
            trust_anchors=TrustAnchors.from_pem(files.ca.read_bytes()),
            private_keys=(files.key,),
        )
        recorder = _Recorder(tmp_path, own, b"payload", files.ca, KeyLogBuffer(), shown=set())
        capture = tmp_path / layout.capture_of(scenario.name)
        with pytest.raises(PeerUnavailable, match="the target began it, and it broke") as raised:
            recorder.record(scenario, server_address=server.address, capture=capture)
    assert not isinstance(raised.value, SessionRefused)
