"""What all commands have in common: how they end, what they say of files and addresses."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Proof

    Pfs = Callable[..., subprocess.CompletedProcess[str]]

PFS = Path(sys.executable).with_name("pfs")
NOT_UTF8 = os.fsdecode(b"non\xffutf8")


def test_the_version_is_the_one_that_is_installed(pfs: Pfs) -> None:
    done = pfs("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"pfs {metadata.version('pfs-transport')}\n"


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "arguments", [("verify", "DIR", "--no-tshark"), ("policy", "list"), ("replay", "--list")]
)
def test_a_reader_that_goes_away_is_no_refutation(
    proof: Proof, arguments: tuple[str, ...], *, as_json: bool
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [PFS, *(str(proof.directory) if one == "DIR" else one for one in arguments)]
            + ["--json"] * as_json,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_an_interrupt_says_no_more_than_is_so() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        subprocess.Popen(
            [PFS, "connect", f"127.0.0.1:{listener.getsockname()[1]}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        listener.settimeout(20)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1)  # of its ClientHello: it waits for an answer now
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (130, b"", b"pfs: interrupted\n")


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf"])
def test_a_time_limit_is_a_positive_number(pfs: Pfs, seconds: str) -> None:
    done = pfs("connect", "127.0.0.1:1", "--timeout", seconds)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pfs: Invalid value for '--timeout'")
    assert done.stderr.count("\n") == 1
    if seconds != "inf":  # a server may have no limit
        done = pfs("serve", "http", "--handshake-timeout", seconds)
        assert done.returncode == 2
        assert done.stderr.startswith("pfs: Invalid value for '--handshake-timeout'")


def test_captures_and_evidence_may_have_names_of_any_bytes(
    proof: Proof, pfs: Pfs, tmp_path: Path
) -> None:
    capture = tmp_path / NOT_UTF8
    shutil.copyfile(proof.directory / "captures/tls13-x25519.pcapng", capture)
    (tmp_path / f"{NOT_UTF8}.keylog").write_text("# no line yet\n")
    for more in ((), ("--json",)):
        done = pfs("attack", capture, "--key-log", tmp_path / f"{NOT_UTF8}.keylog", *more)
        assert done.returncode == 0, done.stderr
        assert "non\\" in done.stdout
        assert "xffutf8" in done.stdout
        assert "Traceback" not in done.stderr
    copy = Path(shutil.copytree(proof.directory, tmp_path / "copy"))
    (copy / NOT_UTF8).touch()
    for more in ((), ("--json",)):
        done = pfs("verify", copy, "--no-tshark", *more)
        assert done.returncode == 1, done.stderr
        assert "added since it was signed" in done.stdout


def test_evidence_goes_to_a_path_in_utf8(pfs: Pfs, tmp_path: Path) -> None:
    done = pfs("prove", "--out", tmp_path / NOT_UTF8)
    assert (done.returncode, done.stdout) == (2, "")
    assert "not UTF-8" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_of_a_file_or_an_address_names_it(pfs: Pfs, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    credential = ("--cert", garbage, "--key", garbage)
    not_pem = "is not readable PEM; give blocks that begin with -----BEGIN CERTIFICATE-----"
    anchors = f"{garbage}: the trust anchors file {not_pem}"
    chain = f"{garbage} with {garbage}: the certificate chain {not_pem}"
    for arguments, said in (
        (("connect", "127.0.0.1:1"), "127.0.0.1:1: Connection refused"),
        (("connect", "nonsense:"), "'nonsense:' is not an address"),
        (("connect", "no-such-host.invalid"), "no-such-host.invalid:443: "),
        (("connect", "127.0.0.1:1", "--ca", garbage), anchors),
        (("connect", "127.0.0.1:1", *credential), chain),
        (("serve", "http", *credential), chain),
        (("serve", "http", "--client-ca", garbage), anchors),
        (("serve", "http", "--allow", "dns:x"), "give --client-ca FILE too"),
        (("serve", "http", "--client-crl", garbage), "give --client-ca FILE too"),
        (("uniqueness", "--target", "localhost:1", "--ca", garbage), f"{garbage}: the trust"),
        (("verify", garbage), f"{garbage}: not a directory"),
    ):
        done = pfs(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("pfs: ")
        assert said in done.stderr
        assert "all of IPv4" not in done.stderr
