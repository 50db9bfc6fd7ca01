"""`pfs attack` with key files of every kind: as stacks and thieves write them, right and wrong."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, x448, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from tlslite_peers import TLS12_ONLY, TLS13_ONLY, LiteToOpenSSL, TLSLitePair
from wire_peers import (
    CLIENT,
    SERVER,
    Options,
    Pair,
    Recording,
    pre_shared_key_of,
    write_capture,
)

import transport
from interop.errors import InputError
from interop.proof.stolen import StolenFiles, load_stolen
from interop.wire.groups import FiniteFieldPrivateKey, ffdhe_prime
from interop.wire.registry import NamedGroup
from transport.context import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Identities, Proof

    Pfs = Callable[..., subprocess.CompletedProcess[str]]


def attack(pfs: Pfs, capture: Path, *stolen: object) -> list[dict[str, Any]]:
    done = pfs("attack", "--json", capture, *stolen)
    assert done.returncode == 0, done.stderr
    sessions: list[dict[str, Any]] = json.loads(done.stdout)["sessions"]
    return sessions


def pem(key: Any, password: bytes | None = None) -> bytes:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    encoded: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return encoded


def sizes(recording: Recording) -> tuple[int, int]:
    return len(recording.sent[CLIENT]), len(recording.sent[SERVER])


def recovered(session: dict[str, Any]) -> tuple[int, int]:
    return session["client_bytes"], session["server_bytes"]


def test_a_hybrid_opens_by_a_file_with_both_halves_or_by_two_files(
    pfs: Pfs, tmp_path: Path
) -> None:
    settings = TLS13_ONLY | {"eccCurves": ["x25519mlkem768"], "keyShares": ["x25519mlkem768"]}
    pair = LiteToOpenSSL(settings, Options(groups=b"X25519MLKEM768"))
    recording = pair.talk()
    capture = write_capture(tmp_path / "capture.pcapng", recording)
    names = "kem", "classical", "both"
    kem, classical, both = (tmp_path / f"{name}.pem" for name in names)
    kem.write_bytes(pem(pair.client_ephemeral_keys[0]))
    classical.write_bytes(pem(pair.client_ephemeral_keys[1]))
    both.write_bytes(b"from a heap dump\n" + kem.read_bytes() + b"\n" + classical.read_bytes())
    for files in ((both,), (kem, classical)):
        stolen = [word for file in files for word in ("--ephemeral-key", file)]
        (session,) = attack(pfs, capture, *stolen)
        assert session["opened_by"] == "ephemeral key"
        assert recovered(session) == sizes(recording)
    for file, said in ((kem, "the ML-KEM-768 half is known"), (classical, "the classical half is")):
        (session,) = attack(pfs, capture, "--ephemeral-key", file)
        assert not session["opened"]
        assert recovered(session) == (0, 0)
        assert said in session["reason"]


@pytest.mark.parametrize("form", ["bytes", "hexadecimal", "base64"])
def test_a_ticket_key_as_bytes_and_as_text(form: str, pfs: Pfs, tmp_path: Path) -> None:
    key = random.Random(form).randbytes(32)
    settings = TLS12_ONLY | {"ticketKeys": [bytearray(key)]}
    first = TLSLitePair(settings)
    first.talk(300)
    second = TLSLitePair(settings, resume=first)
    second.talk(300)
    capture = write_capture(tmp_path / "capture.pcapng", first.recording, second.recording)
    older = os.urandom(48)
    path = tmp_path / "ticket.key"
    written = {
        "bytes": key,
        "hexadecimal": f"{older.hex()}\n{key.hex()}\n".encode(),
        "base64": base64.b64encode(older) + b"\n" + base64.b64encode(key) + b"\n",
    }
    path.write_bytes(written[form])
    sessions = attack(pfs, capture, "--ticket-key", path)
    assert [session["opened_by"] for session in sessions] == ["ticket key"] * 2
    assert [session["resumed"] for session in sessions] == [False, True]
    assert list(map(recovered, sessions)) == [sizes(first.recording), sizes(second.recording)]
    path.write_bytes(os.urandom(32))
    for session in attack(pfs, capture, "--ticket-key", path):
        assert not session["opened"]
        assert recovered(session) == (0, 0)


def test_a_pre_shared_key_in_hexadecimal(pfs: Pfs, tmp_path: Path) -> None:
    secret = os.urandom(32)
    pair = TLSLitePair(TLS13_ONLY | {"pskConfigs": [(b"n", secret)], "psk_modes": ["psk_ke"]})
    recording = pair.talk(300)
    capture = write_capture(tmp_path / "capture.pcapng", recording)
    path = tmp_path / "psk.txt"
    for text in (f"# stolen\n\nsomebody:{secret.hex()}\n", secret.hex().upper()):
        path.write_text(text)
        (session,) = attack(pfs, capture, "--psk", path)
        assert session["opened_by"] == "pre-shared key"
        assert recovered(session) == sizes(recording)
    path.write_text(os.urandom(32).hex())
    (session,) = attack(pfs, capture, "--psk", path)
    assert not session["opened"]


def test_sessions_of_our_own_stay_closed_to_every_such_theft(
    proof: Proof, pfs: Pfs, tmp_path: Path
) -> None:
    """The strangers' keys open nothing; that they open what they are of is tested above."""
    capture = proof.directory / "captures/tls13-x25519.pcapng"
    ephemeral, ticket, psk = (tmp_path / name for name in ("ephemeral", "ticket", "psk"))
    ephemeral.write_bytes(pem(x25519.X25519PrivateKey.generate()))
    ticket.write_bytes(os.urandom(80))
    psk.write_text(os.urandom(32).hex())
    stolen = ("--ephemeral-key", ephemeral, "--ticket-key", ticket, "--psk", psk)
    (session,) = attack(pfs, capture, *stolen)
    assert not session["opened"]
    assert session["reason"] == (
        "ECDHE with x25519: no ephemeral x25519 key of this session is at hand; and no ticket "
        "that holds its secret opens under the ticket keys given"
    )


def test_a_resumed_session_of_our_own_stays_closed_to_its_pre_shared_key(
    identities: Identities, pfs: Pfs, tmp_path: Path
) -> None:
    """The policy that resumes wants a fresh key exchange each time (psk_dhe_ke)."""
    policy = transport.get_policy("2026-11-tls13-resumption")
    server = server_context(identities.ec, policy).context
    key_log = tmp_path / "keys.log"
    log = transport.KeyLogBuffer()
    client = client_context(identities.anchors, policy, key_log=log).context
    pair = Pair(client, server)
    pair.handshake()
    pair.send(SERVER, b"hello")
    stored = pair.peers[CLIENT].get_session()
    assert stored is not None
    pair.close()
    again = Pair(client, server)
    again.peers[CLIENT].set_session(stored)
    again.handshake()
    again.send(CLIENT, b"a secret")
    again.close()
    capture = write_capture(tmp_path / "capture.pcapng", again.recording)
    psk = tmp_path / "psk"
    psk.write_text(pre_shared_key_of(stored).hex())
    (session,) = attack(pfs, capture, "--psk", psk)
    assert session["resumed"] is True
    assert session["forward_secret"] is True
    assert (session["opened"], recovered(session)) == (False, (0, 0))
    assert "the pre-shared key is known, but" in session["reason"]  # so it is the right one
    key_log.write_bytes(log.getvalue())
    (session,) = attack(pfs, capture, "--key-log", key_log)
    assert recovered(session) == (len(b"a secret"), 0)


# Reading


def test_ephemeral_keys_of_all_kinds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    keys = [
        x25519.X25519PrivateKey.generate(),
        x448.X448PrivateKey.generate(),
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.BrainpoolP256R1()),
        mlkem.MLKEM768PrivateKey.generate(),
        mlkem.MLKEM1024PrivateKey.generate(),
    ]
    path.write_bytes(b"".join(map(pem, keys)))
    loaded, problems = load_stolen(StolenFiles(ephemeral_keys=[path]))
    assert [type(key) for key in loaded.ephemeral_private_keys] == [type(key) for key in keys]
    assert problems == []


def test_a_key_behind_its_parameters_is_read(tmp_path: Path) -> None:
    """As `openssl ecparam -genkey` writes it, in SEC 1."""
    key = ec.generate_private_key(ec.SECP256R1())
    sec1 = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    path = tmp_path / "ec.pem"
    path.write_bytes(BAD["ephemeral"]["parameters.pem"][0] + sec1)
    loaded, _ = load_stolen(StolenFiles(ephemeral_keys=[path]))
    (read,) = loaded.ephemeral_private_keys
    assert isinstance(read, ec.EllipticCurvePrivateKey)
    assert read.private_numbers() == key.private_numbers()


@pytest.mark.parametrize("kind", ["DH", "DHX"])
@pytest.mark.parametrize("group", ["ffdhe2048", "ffdhe8192"])
def test_finite_field_keys_are_read_as_openssl_writes_them(
    kind: str, group: str, tmp_path: Path
) -> None:
    path = tmp_path / "dh.pem"
    arguments = ["openssl", "genpkey", "-algorithm", kind, "-pkeyopt", f"group:{group}"]
    try:
        subprocess.run([*arguments, "-out", path], capture_output=True, timeout=60, check=True)
    except FileNotFoundError:
        pytest.skip("unsupported: openssl is not installed")
    loaded, _ = load_stolen(StolenFiles(ephemeral_keys=[path]))
    (key,) = loaded.ephemeral_private_keys
    assert isinstance(key, FiniteFieldPrivateKey)
    assert key.prime == ffdhe_prime(NamedGroup[group.upper()])
    text = subprocess.run(
        ["openssl", "pkey", "-in", path, "-text", "-noout"],
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout.decode()
    public = re.search(r"public-key:\s+((?:[0-9a-f]{2}:?\s*)+)", text)
    assert public is not None
    assert key.public == int(re.sub(r"[:\s]", "", public[1]), 16)


def session_pem(der: str) -> bytes:
    label = b"SSL SESSION PARAMETERS-----"
    text = base64.encodebytes(bytes.fromhex(der))
    return b"-----BEGIN " + label + b"\n" + text + b"-----END " + label + b"\n"


BAD = {
    "ephemeral": {
        "nothing.pem": (b"", "not a private key in PEM"),
        "text.pem": (b"hello\n" * 5, "not a private key in PEM"),
        "ed25519.pem": (pem(ed25519.Ed25519PrivateKey.generate()), "not a key of a key exchange"),
        "locked.pem": (pem(x25519.X25519PrivateKey.generate(), b"made up"), "openssl pkey -in"),
        "cut.pem": (
            b"-----BEGIN PRIVATE KEY-----\nAAAA=A\n-----END PRIVATE KEY-----\n",
            "damaged PEM",
        ),
        "der.pem": (
            b"-----BEGIN PRIVATE KEY-----\nMAMCAQE=\n-----END PRIVATE KEY-----\n",
            "not a private key in PEM",
        ),
        "parameters.pem": (
            b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n",
            "not a private key in PEM",
        ),
    },
    "ticket": {
        "nothing.key": (b"", "not a ticket key: 16, 32, 48, 80 bytes"),
        "odd.key": (bytes(33), "not a ticket key"),
        "words.key": (b"this is no key\n", "not a ticket key"),
        "half.key": (b"00" * 48 + b"\n" + b"00" * 47, "not a ticket key"),
    },
    "psk": {
        "nothing.txt": (b"\n# only a comment\n", "no pre-shared key is in it"),
        "words.txt": (b"somebody:not hex\n", "line 1: no pre-shared key in hexadecimal"),
        "empty.txt": (b"00\nsomebody:\n", "line 2: a pre-shared key of 0 bytes"),
        "session.pem": (session_pem("3003020101"), "not a stored session of OpenSSL"),
        "tls12.pem": (session_pem("30110201010202030304021301040004020000"), "not of TLS 1.3"),
    },
}
OPTIONS = {"ephemeral": "--ephemeral-key", "ticket": "--ticket-key", "psk": "--psk"}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in BAD for name in BAD[kind]])
def test_what_is_no_such_key_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    content, said = BAD[kind][name]
    path = tmp_path / name
    path.write_bytes(content)
    fields = {"ephemeral": "ephemeral_keys", "ticket": "ticket_keys", "psk": "pre_shared_keys"}
    with pytest.raises(InputError, match=name) as refused:
        load_stolen(StolenFiles(**{fields[kind]: [path]}))
    assert said in str(refused.value)


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_command_says_so_in_one_line(kind: str, pfs: Pfs, proof: Proof, tmp_path: Path) -> None:
    name, (content, said) = next(iter(BAD[kind].items()))
    (tmp_path / name).write_bytes(content)
    capture = proof.directory / "captures/tls13-x25519.pcapng"
    for path, words in ((tmp_path / name, said), (tmp_path / "missing", "No such file")):
        done = pfs("attack", capture, OPTIONS[kind], path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert words in done.stderr
        assert "Traceback" not in done.stderr
