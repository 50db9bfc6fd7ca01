"""Revocation and other stacks: they accept what we build, and our processes refuse and staple."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import urllib.request
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from served import DEADLINE_SECONDS, Served, serve

import transport
from certs import profiles
from certs.authority import CertificateAuthority
from certs.credential import Credential
from certs.keystore import KeyStore
from certs.keystore.kek import FileKEK
from certs.ocsp import CertificateStatus, build_ocsp_response
from certs.revocation import RevokedCertificate, build_crl
from transport.errors import AlertDescription, AlertReceived, CertificateRejected
from transport.policy import ProtocolVersion
from transport.revocation import StaplePolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOW = datetime.now(UTC).replace(microsecond=0)
WEEK = timedelta(days=7)
YEAR = timedelta(days=365)
VERSIONS = [ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3]
OCSP_RESPONDER = profiles.CertificateProfile(
    name="ocsp-responder",
    lifetime=timedelta(days=30),
    key_usage=frozenset({"digital_signature"}),
    extended_key_usage=(ExtendedKeyUsageOID.OCSP_SIGNING,),
)


class World(NamedTuple):
    """A root and an issuing CA in a store, and what they issued; `folder` has it as files."""

    folder: Path
    root: CertificateAuthority
    issuing: CertificateAuthority
    server: Credential
    client: Credential
    revoked: Credential
    responder: Credential
    bad: dict[str, Credential]

    def crl(self, authority: CertificateAuthority, *revoked: Credential) -> bytes:
        return build_crl(
            authority.certificate,
            authority.store.signing_key(authority.name, authority.key_version),
            [RevokedCertificate(one.leaf.serial_number, NOW) for one in revoked],
            number=1,
            now=NOW - timedelta(hours=1),
            next_update=NOW + WEEK,
        ).public_bytes(Encoding.PEM)

    def staple(self, credential: Credential, **options: object) -> bytes:
        signing_key = self.issuing.store.signing_key(self.issuing.name, self.issuing.key_version)
        settings: dict[str, object] = {
            "signing_key": signing_key,
            "now": NOW - timedelta(hours=1),
            "next_update": NOW + WEEK,
            **options,
        }
        return build_ocsp_response(credential.leaf, self.issuing.certificate, **settings)  # type: ignore[arg-type] # varied

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(content)
        os.replace(fresh, path)  # noqa: PTH105 - the system call that matters here
        return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("store")
    with KeyStore.create(folder / "store.db", FileKEK.create(folder / "kek")) as store:
        root = CertificateAuthority.create_root(store, "root", "Root", NOW - YEAR)
        issuing = root.issue_subordinate("issuing", "Issuing", NOW - YEAR)

        def client(name: str, now: datetime = NOW) -> Credential:
            return issuing.issue_client(key_name=name, dns_names=[f"{name}.example"], now=now)

        def server(name: str, profile: profiles.CertificateProfile) -> Credential:
            return issuing.issue_server(
                key_name=name, dns_names=["localhost"], now=NOW - WEEK, profile=profile
            )

        revoked = client("revoked")
        foreign = trustme.CA().issue_cert("foreign.example", key_type=trustme.KeyType.ECDSA)
        yield World(
            folder,
            root,
            issuing,
            server("server", profiles.TLS_SERVER),
            client("client"),
            revoked,
            server("responder", OCSP_RESPONDER),
            {
                "has expired": client("expired", NOW - timedelta(days=200)),
                "not yet valid": client("early", NOW + timedelta(days=2)),
                "is revoked": revoked,
                "purpose": server("wrong-use", profiles.TLS_SERVER),
                "issuer": Credential.from_pem(
                    b"".join(blob.bytes() for blob in foreign.cert_chain_pems),
                    foreign.private_key_pem.bytes(),
                ),
            },
        )


@pytest.fixture
def openssl(require_program: Callable[[str], object]) -> Callable[..., str]:
    """Run the program and return everything it prints."""
    require_program("openssl")

    def run(*arguments: str | Path, text: str = "") -> str:
        done = subprocess.run(
            ["openssl", *arguments],
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        return done.stdout + done.stderr

    return run


def anchors_file(world: World) -> Path:
    return world.write("root.pem", world.root.trust_anchors.pem())


def chain_file(world: World) -> Path:
    return world.write("chain.pem", world.issuing.certificate.public_bytes(Encoding.PEM))


# What we build


def test_openssl_verifies_our_lists_and_refuses_by_them(
    world: World, openssl: Callable[..., str]
) -> None:
    both = world.folder / "chain-and-root.pem"
    both.write_bytes(
        world.issuing.certificate.public_bytes(Encoding.PEM) + world.root.trust_anchors.pem()
    )
    path = world.write("verified.crl", world.crl(world.issuing, world.revoked))
    shown = openssl("crl", "-in", path, "-noout", "-text", "-verify", "-CAfile", both)
    assert "verify OK" in shown
    assert f"{world.revoked.leaf.serial_number:X}" in shown.replace(":", "")
    lists = world.write(
        "lists.crl", world.crl(world.issuing, world.revoked) + world.crl(world.root)
    )
    for credential, expected in ((world.client, ": OK"), (world.revoked, "certificate revoked")):
        leaf = world.write("leaf.pem", credential.certificates_pem())
        verified = openssl(
            "verify", "-crl_check_all", "-CRLfile", lists, "-CAfile", anchors_file(world),
            "-untrusted", chain_file(world), leaf,
        )  # fmt: skip
        assert expected in verified


def test_openssl_verifies_our_ocsp_responses(world: World, openssl: Callable[..., str]) -> None:
    leaf = world.write("status.pem", world.server.certificates_pem())
    delegated = {"signing_key": world.responder.private_key, "responder": world.responder.leaf}
    revoked = {"status": CertificateStatus.REVOKED, "revoked_at": NOW}
    for options, expected in (({}, ": good"), (delegated, ": good"), (revoked, ": revoked")):
        response = world.write("status.der", world.staple(world.server, **options))
        shown = openssl(
            "ocsp", "-respin", response, "-issuer", chain_file(world), "-cert", leaf,
            "-CAfile", anchors_file(world), "-verify_other", chain_file(world), "-no_nonce",
        )  # fmt: skip
        assert "Response verify OK" in shown
        assert expected in shown


# Our client, and another's server


@pytest.mark.parametrize("version", VERSIONS)
def test_our_client_holds_openssls_server_to_its_staple(
    world: World, version: ProtocolVersion, require_program: Callable[[str], object], tmp_path: Path
) -> None:
    require_program("openssl")
    policy = transport.DEFAULT_POLICY.narrowed(versions=[version])

    def connect(staples: StaplePolicy) -> None:
        transport.connect(
            address,
            trust_anchors=world.root.trust_anchors,
            server_hostname="localhost",
            policy=policy,
            staples=staples,
        ).close()

    for name, staple, words in (
        ("good", world.staple(world.server), None),
        ("other", world.staple(world.client), "another certificate"),
        ("unsuccessful", bytes.fromhex("30030a0103"), "try_later"),
    ):
        path = tmp_path / name
        path.write_bytes(staple)
        with s_server(world, tmp_path, "-status_file", path) as address:
            if words is None:
                connect(StaplePolicy.REQUIRE)
                continue
            with pytest.raises(CertificateRejected, match=words) as caught:
                connect(StaplePolicy.CHECK)
            assert caught.value.alert_sent is AlertDescription.bad_certificate_status_response
            connect(StaplePolicy.IGNORE)
        assert "bad certificate status response" in (tmp_path / "s_server.log").read_text()
    with s_server(world, tmp_path) as address:
        connect(StaplePolicy.CHECK)
        with pytest.raises(CertificateRejected, match="one is required"):
            connect(StaplePolicy.REQUIRE)


@contextmanager
def s_server(world: World, folder: Path, *options: str | Path) -> Iterator[tuple[str, int]]:
    certificate = world.write("s_server.pem", world.server.certificates_pem())
    key = world.write("s_server.key", world.server.private_key_pem())
    log = folder / "s_server.log"
    with log.open("w") as output, subprocess.Popen(
        ["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", certificate, "-key", key,
         "-cert_chain", chain_file(world), *options],
        stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while (found := re.search(r"ACCEPT 127.0.0.1:(\d+)", log.read_text())) is None:
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.01)
            yield "127.0.0.1", int(found[1])
        finally:
            process.terminate()


# Our server as processes


def serving(world: World, *arguments: str | Path) -> AbstractContextManager[Served]:
    files = (
        *("--cert", world.write("served.pem", world.server.certificates_pem())),
        *("--key", world.write("served.key", world.server.private_key_pem())),
    )
    return serve("echo", *files, "--reload-check", "0.1", *arguments)


def visit(world: World, server: Served, credential: Credential, version: ProtocolVersion) -> bytes:
    with transport.connect(
        server.address,
        trust_anchors=world.root.trust_anchors,
        server_hostname="localhost",
        credential=credential,
        policy=transport.DEFAULT_POLICY.narrowed(versions=[version]),
    ) as connection:
        connection.settimeout(DEADLINE_SECONDS)
        connection.sendall(b"x")
        return connection.recv(1)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("engine", ["asyncio", "blocking"])
def test_bad_clients_are_refused_and_counted_while_another_is_served(
    world: World, engine: str, version: ProtocolVersion, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        metrics = f"127.0.0.1:{probe.getsockname()[1]}"
    lists = tmp_path / "lists.crl"
    lists.write_bytes(world.crl(world.root) + world.crl(world.issuing, world.revoked))
    with serving(world, "--engine", engine, "--client-ca", anchors_file(world),
        "--client-crl", lists, "--metrics", metrics,
    ) as server:  # fmt: skip
        for count, (words, credential) in enumerate(world.bad.items(), 1):
            with pytest.raises(AlertReceived):
                visit(world, server, credential, version)
            *_, line = server.wait_for("handshake_failed", count)
            assert line["kind"] == "CertificateRejected"
            assert words in str(line["reason"])
            assert visit(world, server, world.client, version) == b"x"
        assert len(server.wait_for("handshake_failed")) == len(world.bad)
        with urllib.request.urlopen(f"http://{metrics}/metrics") as answer:
            counted = answer.read().decode()
        failures = 'pfs_handshake_failures_total{reason="CertificateRejected"}'
        assert f"{failures} {float(len(world.bad))}" in counted
    assert server.child.exit_code == 0


@pytest.mark.parametrize("engine", ["asyncio", "blocking"])
def test_a_new_list_revokes_and_a_broken_one_changes_nothing(
    world: World, engine: str, tmp_path: Path
) -> None:
    root, lists = tmp_path / "root.crl", tmp_path / "lists.crl"
    root.write_bytes(world.crl(world.root))
    lists.write_bytes(world.crl(world.issuing))
    version = ProtocolVersion.TLS_1_3

    def replace(content: bytes) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_bytes(content)
        os.replace(fresh, lists)  # noqa: PTH105 - the system call that matters here

    with serving(world, "--engine", engine, "--client-ca", anchors_file(world),
        "--client-crl", root, "--client-crl", lists,
    ) as server:  # fmt: skip
        assert visit(world, server, world.client, version) == b"x"
        replace(world.crl(world.issuing, world.client))
        server.wait_for("credential_loaded", 2)
        with pytest.raises(AlertReceived) as refused:
            visit(world, server, world.client, version)
        assert refused.value.alert_received is AlertDescription.certificate_revoked
        replace(b"no list")
        (kept,) = server.wait_for("credential_kept")
        assert "CRL" in str(kept["reason"])
        with pytest.raises(AlertReceived):
            visit(world, server, world.client, version)
        replace(world.crl(world.issuing))
        server.wait_for("credential_loaded", 3)
        assert visit(world, server, world.client, version) == b"x"


@pytest.mark.parametrize("engine", ["asyncio", "blocking"])
@pytest.mark.parametrize("option", ["-tls1_2", "-tls1_3"])
def test_openssls_client_sees_our_staple(
    world: World, engine: str, option: str, openssl: Callable[..., str], tmp_path: Path
) -> None:
    staple = tmp_path / "staple.der"
    staple.write_bytes(world.staple(world.server))
    with serving(world, "--engine", engine, "--ocsp-staple", staple) as server:
        shown = openssl(
            "s_client", "-connect", server.name, "-servername", "localhost",
            "-status", option, "-CAfile", anchors_file(world), "-verify_return_error",
        )  # fmt: skip
        assert "OCSP Response Status: successful" in shown
        assert "Cert Status: good" in shown
        unasked = openssl("s_client", "-connect", server.name, option)
        assert "OCSP Response Status" not in unasked
        fresh = tmp_path / "fresh"
        fresh.write_bytes(b"no response")
        os.replace(fresh, staple)  # noqa: PTH105 - the system call that matters here
        (failed,) = server.wait_for("staple_failed")
        assert "OCSP response" in str(failed["reason"])
        again = openssl("s_client", "-connect", server.name, "-status", option)
        assert "Cert Status: good" in again


def test_pfs_connect_refuses_by_list_and_by_staple(
    world: World, tmp_path: Path, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    good, bad = tmp_path / "good.crl", tmp_path / "bad.crl"
    good.write_bytes(world.crl(world.root) + world.crl(world.issuing))
    bad.write_bytes(world.crl(world.root) + world.crl(world.issuing, world.server))
    staple = tmp_path / "staple.der"
    staple.write_bytes(world.staple(world.server))
    asking = ("--ca", anchors_file(world), "--server-name", "localhost")
    with serving(world) as server:
        assert pfs("connect", server.name, *asking, "--crl", good).returncode == 0
        refused = pfs("connect", server.name, *asking, "--crl", bad)
        assert refused.returncode == 2
        assert "is revoked" in refused.stderr
        refused = pfs("connect", server.name, *asking, "--require-ocsp")
        assert refused.returncode == 2
        assert "stapled no OCSP response" in refused.stderr
    with serving(world, "--ocsp-staple", staple) as server:
        assert pfs("connect", server.name, *asking, "--require-ocsp").returncode == 0


def test_a_credential_of_another_name_has_a_staple_of_its_own(
    world: World, openssl: Callable[..., str], tmp_path: Path
) -> None:
    other = world.write("other.pem", world.server.certificates_pem())
    key = world.write("other.key", world.server.private_key_pem())
    staple = tmp_path / "staple.der"
    staple.write_bytes(world.staple(world.server))
    with serving(world, "--sni", f"other.example={other},{key},{staple}") as server:

        def shown(name: str) -> str:
            return openssl("s_client", "-connect", server.name, "-servername", name, "-status")

        assert "Cert Status: good" in shown("other.example")
        assert "OCSP Response Status" not in shown("localhost")


@pytest.mark.parametrize("text", ["a", "a=b", "a=,k", "a=c,", "=c,k", "a=c,k,", "a=c,k,s,t"])
def test_an_incomplete_name_is_said(
    text: str, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = pfs("serve", "echo", "--sni", text)
    assert done.returncode == 2
    assert "NAME=CERT,KEY[,STAPLE]" in done.stderr
