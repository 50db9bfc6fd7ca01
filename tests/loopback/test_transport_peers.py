"""The clients of OpenSSL and GnuTLS against both engines: what they get, what they are refused."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from transport import (
    AlertDescription,
    NegotiatedSession,
    PeerIncompatible,
    PolicyViolation,
    TransportError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.peers
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
needs_gnutls = pytest.mark.skipif(shutil.which("gnutls-cli") is None, reason="no gnutls-cli")


def s_client(
    address: tuple[str, int], anchors: Path, *options: str, text: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"{address[0]}:{address[1]}"),
            *("-CAfile", str(anchors), "-verify_return_error", "-servername", "localhost"),
            *options,
        ],
        input=text,
        capture_output=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def anchors(identities: Any, tmp_path: Path) -> Path:
    path = tmp_path / "anchors.pem"
    path.write_bytes(identities.anchors.pem())
    return path


@needs_openssl
@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize(
    ("group", "ours"), [("X25519", "x25519"), ("P-256", "secp256r1"), ("P-384", "secp384r1")]
)
def test_each_version_and_group_with_s_client(
    echo: Callable[..., Any], identities: Any, anchors: Path, version: str, group: str, ours: str
) -> None:
    with echo(identities.rsa) as server:
        done = s_client(
            server.address, anchors, f"-tls{version.replace('.', '_')}", "-groups", group, "-brief"
        )
        session = server.outcome()
    assert done.returncode == 0, done.stderr
    assert isinstance(session, NegotiatedSession)
    assert (session.version, session.group) == (f"TLS {version}", ours)
    assert f"Protocol version: TLSv{version}".encode() in done.stderr
    assert session.server_name == "localhost"


@needs_openssl
@pytest.mark.parametrize(
    ("options", "kind", "alert"),
    [
        (
            ["-tls1_2", "-cipher", "AES128-GCM-SHA256"],
            PeerIncompatible,
            AlertDescription.handshake_failure,
        ),
        (
            ["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256"],
            PeerIncompatible,
            AlertDescription.handshake_failure,
        ),
        (
            ["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA"],
            PeerIncompatible,
            AlertDescription.handshake_failure,
        ),
        (
            ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
            PeerIncompatible,
            AlertDescription.protocol_version,
        ),
        (
            ["-tls1_3", "-groups", "ffdhe2048"],
            PeerIncompatible,
            AlertDescription.handshake_failure,
        ),
        (
            ["-tls1_3", "-groups", "P-521"],
            PeerIncompatible,
            AlertDescription.handshake_failure,
        ),
    ],
    ids=["static RSA", "DHE", "CBC", "TLS 1.1", "ffdhe2048", "P-521"],
)
def test_what_s_client_is_refused(
    echo: Callable[..., Any],
    identities: Any,
    anchors: Path,
    options: list[str],
    kind: type[TransportError],
    alert: AlertDescription,
) -> None:
    with echo(identities.rsa) as server:
        done = s_client(server.address, anchors, *options, "-ign_eof", text=b"no one reads this")
        refused = server.outcome()
    assert type(refused) is kind
    assert refused.alert_sent is alert
    assert f"alert number {alert.value}".encode() in done.stderr
    assert done.returncode != 0
    assert b"no one reads this" not in done.stdout


@needs_openssl
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_reconnecting_never_resumes(
    echo: Callable[..., Any], identities: Any, anchors: Path, version: str
) -> None:
    with echo(identities.rsa) as server:
        done = s_client(server.address, anchors, version, "-reconnect")
        # Of each connection its session and its end, which may come after the next one's session;
        # how it ended is s_client's affair.
        outcomes = [server.outcome() for _ in range(12)]
    sessions = [outcome for outcome in outcomes if isinstance(outcome, NegotiatedSession)]
    assert len(sessions) == 6
    assert done.stdout.count(b"New, ") == 6, done.stderr
    assert b"Reused, " not in done.stdout
    assert not any(session.resumed for session in sessions)


@needs_gnutls
@pytest.mark.parametrize("extended", [True, False], ids=["with", "without"])
def test_gnutls_with_and_without_extended_main_secret(
    echo: Callable[..., Any],
    identities: Any,
    anchors: Path,
    extended: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    priority = "NORMAL:-VERS-ALL:+VERS-TLS1.2" + ("" if extended else ":%NO_SESSION_HASH")
    with echo(identities.rsa) as server:
        done = subprocess.run(
            [
                *("gnutls-cli", "--x509cafile", str(anchors), "--priority", priority),
                *("--logfile", "/dev/null", "-p", str(server.address[1]), "localhost"),
            ],
            input=b"hello",
            capture_output=True,
            timeout=30,
            check=False,
        )
        outcome = server.outcome()
    if extended:
        assert done.stdout == b"hello"
        assert isinstance(outcome, NegotiatedSession)
    else:
        assert b"hello" not in done.stdout
        assert isinstance(outcome, PolicyViolation)
        assert outcome.alert_sent is AlertDescription.protocol_version
