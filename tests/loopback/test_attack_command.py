"""`pfs attack` through the command: what it says, what it writes, and what it refuses."""

from __future__ import annotations

import json
import socket
import stat
import threading
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, mldsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from wire_peers import CLIENT, SERVER, Options, converse, write_capture

from interop.capture.files import embed_secrets
from interop.capture.recorder import RecordingRelay
from interop.proof.application import payload_in

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Proof

    Pfs = Callable[..., subprocess.CompletedProcess[str]]


def sessions_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    sessions: list[dict[str, Any]] = json.loads(done.stdout)["sessions"]
    return sessions


def test_each_session_is_described(proof: Proof, pfs: Pfs) -> None:
    captures = proof.directory / "captures"
    (hybrid,) = sessions_of(
        pfs(
            "attack",
            "--json",
            captures / "tls13-x25519mlkem768.pcapng",
            "--server-key",
            proof.directory / "stolen/server.key.pem",
        )
    )
    assert hybrid["version"] == "TLS 1.3"
    assert hybrid["suite"] == "TLS_AES_128_GCM_SHA256"
    assert hybrid["group"] == "X25519MLKEM768"
    assert hybrid["forward_secret"] is True
    assert hybrid["server_name"] == "localhost"
    assert (hybrid["opened"], hybrid["opened_by"]) == (False, None)
    assert (hybrid["client_bytes"], hybrid["server_bytes"]) == (0, 0)
    assert hybrid["encrypted_bytes"] > len(proof.payload)
    assert "the server key only signs" in hybrid["reason"]


def test_the_static_rsa_session_opens_with_its_key_alone(proof: Proof, pfs: Pfs) -> None:
    capture = proof.directory / "captures/control-static-rsa.pcapng"
    stolen = proof.directory / "stolen"
    (opened,) = sessions_of(
        pfs("attack", "--json", capture, "--server-key", stolen / "control.key.pem")
    )
    assert opened["forward_secret"] is False
    assert opened["opened_by"] == "server RSA key"
    assert opened["client_bytes"] > len(proof.payload)
    (closed,) = sessions_of(
        pfs("attack", "--json", capture, "--server-key", stolen / "server.key.pem")
    )
    assert not closed["opened"]
    assert closed["reason"]


@pytest.mark.parametrize(
    "key",
    [mldsa.MLDSA65PrivateKey.generate(), dsa.generate_private_key(2048)],
    ids=["ML-DSA-65", "DSA"],
)
def test_a_stolen_key_of_any_kind_that_servers_sign_with_opens_nothing(
    key: Any, proof: Proof, pfs: Pfs, tmp_path: Path
) -> None:
    stolen = tmp_path / "server.key"
    stolen.write_bytes(pem(key))
    capture = proof.directory / "captures/tls13-x25519mlkem768.pcapng"
    (session,) = sessions_of(pfs("attack", "--json", capture, "--server-key", stolen))
    assert not session["opened"]
    assert "the server key only signs" in session["reason"]


@pytest.mark.parametrize("content", ["", "# SSL/TLS secrets log file\n\n"])
def test_a_key_log_that_nobody_has_written_to_yet_is_none_given(
    content: str, proof: Proof, pfs: Pfs, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.keylog"
    empty.write_text(content)
    capture = proof.directory / "captures/tls13-x25519.pcapng"
    (session,) = sessions_of(pfs("attack", "--json", capture, "--key-log", empty))
    assert session["reason"].endswith("no keys were given")


def test_plaintext_is_written_privately_and_whole(proof: Proof, pfs: Pfs, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    done = pfs(
        "attack",
        proof.directory / "captures/tls13-x25519.pcapng",
        "--key-log",
        proof.directory / "stolen/tls13-x25519.keylog",
        "--plaintext",
        folder,
    )
    assert done.returncode == 0
    assert "opened by key log" in done.stdout
    client = folder / "tls13-x25519.pcapng-0-client.bin"
    server = folder / "tls13-x25519.pcapng-0-server.bin"
    assert sorted(folder.iterdir()) == [client, server]
    assert payload_in(client.read_bytes()) == proof.payload
    assert server.read_bytes().startswith(b"HTTP/1.1 201 ")
    assert stat.S_IMODE(client.stat().st_mode) == 0o600


def test_secrets_blocks_are_used_unless_told_otherwise(
    proof: Proof, pfs: Pfs, tmp_path: Path
) -> None:
    capture = tmp_path / "with-secrets.pcapng"
    key_log = (proof.directory / "stolen/tls13-x25519.keylog").read_bytes()
    embed_secrets(proof.directory / "captures/tls13-x25519.pcapng", capture, key_log)
    (used,) = sessions_of(pfs("attack", "--json", capture))
    assert used["opened"]
    (ignored,) = sessions_of(pfs("attack", "--json", capture, "--ignore-secrets-blocks"))
    assert not ignored["opened"]


def test_a_key_log_as_programs_and_people_leave_them(
    proof: Proof, pfs: Pfs, tmp_path: Path
) -> None:
    lines = (proof.directory / "stolen/tls13-x25519.keylog").read_text("ascii").splitlines()
    odd = tmp_path / "odd.keylog"
    labels_random_secret = [line.split() for line in lines]
    odd.write_text(
        "\r\n".join(
            [
                "# a comment",
                "",
                "FUTURE_LABEL 00 11",
                "CLIENT_RANDOM 0123 not-hex",
                *(
                    f"{label} {random.upper()} {secret.title()}"
                    for label, random, secret in labels_random_secret
                ),
                "SERVER_TRAFFIC_SECRET_0 " + "ab" * 32,
            ]
        ),
        newline="",
    )
    done = pfs(
        "attack",
        "--json",
        proof.directory / "captures/tls13-x25519.pcapng",
        "--key-log",
        odd,
    )
    (session,) = sessions_of(done)
    assert session["opened"]
    problems = json.loads(done.stdout)["problems"]
    assert [problem["message"].split(":")[0] for problem in problems] == [
        "line 3",
        "line 4",
        f"line {5 + len(lines)}",
    ]
    assert f"{odd}: line 4: " in done.stderr


def test_a_capture_cut_off_says_so_and_is_used(proof: Proof, pfs: Pfs, tmp_path: Path) -> None:
    whole = (proof.directory / "captures/tls13-x25519.pcapng").read_bytes()
    cut = tmp_path / "cut.pcapng"
    cut.write_bytes(whole[: len(whole) // 2])
    done = pfs(
        "attack",
        "--json",
        cut,
        "--key-log",
        proof.directory / "stolen/tls13-x25519.keylog",
    )
    (session,) = sessions_of(done)
    assert session["version"] == "TLS 1.3"
    assert str(cut) in done.stderr


def test_traffic_without_tls_is_no_session(pfs: Pfs, tmp_path: Path) -> None:
    capture = tmp_path / "plain.pcapng"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(peer.recv(100).upper())

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            RecordingRelay(listener.getsockname(), capture) as relay,
            socket.create_connection(relay.address) as client,
        ):
            client.sendall(b"hello, this is no TLS")
            assert client.recv(100) == b"HELLO, THIS IS NO TLS"
        thread.join()
    done = pfs("attack", capture)
    assert done.returncode == 0
    assert "0 TLS sessions" in done.stdout


@pytest.mark.parametrize(
    ("client_says", "server_says"),
    [
        ((b"EHLO us\r\n", b"STARTTLS\r\n"), (b"220 mail\r\n", b"250 STARTTLS\r\n", b"220 go\r\n")),
        ((b"\0\0\0\x08\x04\xd2\x16\x2f",), (b"", b"S")),  # PostgreSQL
        ((b"CONNECT us:443 HTTP/1.1\r\n\r\n",), (b"", b"HTTP/1.1 200 OK\r\n\r\n")),
        ((b"PROXY TCP4 10.0.0.1 10.0.0.2 5 443\r\n",), ()),
    ],
    ids=["SMTP", "PostgreSQL", "CONNECT", "PROXY"],
)
def test_tls_that_begins_behind_something_else_is_found(
    client_says: tuple[bytes, ...], server_says: tuple[bytes, ...], pfs: Pfs, tmp_path: Path
) -> None:
    recording, keys = converse(Options()), tmp_path / "keys"
    keys.write_bytes(b"\n".join(recording.lines))
    spoken = zip_longest(server_says, client_says)
    recording.wire[:0] = [
        (way, said)
        for both in spoken
        for way, said in zip((SERVER, CLIENT), both, strict=True)
        if said
    ]
    capture = write_capture(tmp_path / "capture.pcapng", recording)
    (session,) = sessions_of(pfs("attack", "--json", capture, "--key-log", keys))
    assert session["reason"] == ""
    assert session["client_bytes"] == len(recording.sent[CLIENT])
    assert session["server_bytes"] == len(recording.sent[SERVER])


def pem(key: Any, password: bytes | None = None) -> bytes:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    encoded: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return encoded


@pytest.fixture
def bad_inputs(proof: Proof, tmp_path: Path) -> Path:
    """Give a folder with one file of each kind that the command must refuse."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    files = {
        "empty": b"",
        "text": b"this is no capture, and no key either\n" * 10,
        "capture": (proof.directory / "captures/tls13-x25519.pcapng").read_bytes(),
        "encrypted.pem": pem(key, b"made up"),
        "public.pem": public,
        "x25519.pem": pem(x25519.X25519PrivateKey.generate()),
        "unknown.keylog": b"# a comment\n\nPMS_CLIENT_RANDOM 00 11\n",
        "short.pem": pem(key)[:80],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "No such file"),
        (["folder"], "directory"),
        (["empty"], "empty"),
        (["text"], "not a capture"),
        (["capture", "text"], "not a capture"),
        (["capture", "--server-key", "missing"], "No such file"),
        (["capture", "--server-key", "folder"], "directory"),
        (["capture", "--server-key", "text"], "not a private key"),
        (["capture", "--server-key", "empty"], "not a private key"),
        (["capture", "--server-key", "short.pem"], "not a private key"),
        (["capture", "--server-key", "public.pem"], "not a private key"),
        (["capture", "--server-key", "encrypted.pem"], "openssl pkey -in encrypted.pem"),
        (["capture", "--server-key", "x25519.pem"], "not a server's key"),
        (["capture", "--key-log", "missing"], "No such file"),
        (["capture", "--key-log", "folder"], "directory"),
        (["capture", "--key-log", "short.pem"], "not a key log"),
        (["capture", "--key-log", "capture"], "not a key log"),
        (["capture", "--key-log", "unknown.keylog"], "label PMS_CLIENT_RANDOM is not known"),
        (["capture", "--plaintext", "text"], "in the way"),
        (["capture", "--plaintext", "full"], "in the way"),
        (["capture", "--plaintext", "text/below"], "cannot be"),
        ([], "Missing argument"),
        (["capture", "--frobnicate"], "No such option"),
    ],
)
def test_bad_input_is_one_clear_line(
    bad_inputs: Path, pfs: Pfs, arguments: list[str], said: str
) -> None:
    in_folder = [
        argument if argument.startswith("--") else str(bad_inputs / argument)
        for argument in arguments
    ]
    done = pfs("attack", *in_folder)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(complaints(done)) == 1


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines on stderr that are not progress."""
    return [line for line in done.stderr.splitlines() if not line.endswith(" ...")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prove", "--payload", "missing"], "No such file"),
        (["prove", "--payload", "folder"], "directory"),
        (["prove", "--payload", "empty"], "at least one byte"),
        (["prove", "--handshakes", "0"], "handshakes"),
        (["prove", "--handshakes", "59"], "a census takes 60 to 1,000,000 handshakes, not 59"),
        (["prove", "--handshakes", "1000001"], "handshakes"),
        (["prove", "--handshakes", "many"], "a valid integer"),
        (["prove", "--out", "text"], "in the way"),
        (["prove", "--out", "text/below"], "cannot be"),
        (["verify", "missing"], "no such directory"),
        (["verify", "text"], "not a directory"),
        (["verify", "folder"], "not an evidence directory"),
        (["verify"], "Missing argument"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_to_the_other_commands(
    bad_inputs: Path, pfs: Pfs, arguments: list[str], said: str
) -> None:
    known = {path.name for path in bad_inputs.iterdir()} | {"missing", "text/below"}
    done = pfs(*(str(bad_inputs / part) if part in known else part for part in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in bad_inputs.iterdir()) == sorted(
        known - {"missing", "text/below"}
    )


def test_help_teaches(pfs: Pfs) -> None:
    for command in ((), ("prove",), ("verify",), ("attack",)):
        done = pfs(*command, "--help")
        assert done.returncode == 0
        assert "Usage" in done.stdout
    assert "Exit status" in pfs("attack", "-h").stdout
