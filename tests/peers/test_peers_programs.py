"""Programs are found with their versions, and a missing one says what to install."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from interop.errors import InputError, PeerUnavailable
from interop.peers.names import (
    GROUPS,
    SUITES,
    gnutls_priority,
    group_from_openssl,
    openssl_suites,
    suite_from_openssl,
    supported_groups,
)
from interop.peers.programs import distribution, find_program, packages, survey
from interop.peers.registry import PEERS, Peer, package_for, peer_named

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from interop.peers.programs import Program

peers = pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)


@peers
def test_found_program_has_a_version(peer: Peer, require_program: Callable[[str], Program]) -> None:
    program = require_program(peer.name)
    assert program.path.is_absolute()
    assert len(program.version) >= 2
    assert bool(program.openssl_version) == (bool(peer.openssl_pattern))


@peers
def test_missing_program_names_its_package(peer: Peer) -> None:
    package = package_for(peer, distribution())
    with pytest.raises(PeerUnavailable, match=f"apt-get install {package}$"):
        find_program(peer.name, search_path="")


def fake(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    return str(folder)


def test_old_program_is_unavailable(tmp_path: Path) -> None:
    where = fake(tmp_path, "openssl", "OpenSSL 1.1.1w  11 Sep 2023")
    with pytest.raises(PeerUnavailable, match=r"openssl 1\.1\.1 is older than 3\.0"):
        find_program("openssl", search_path=where)


def test_version_is_read_with_its_library(tmp_path: Path) -> None:
    program = find_program("openssl", search_path=fake(tmp_path, "openssl", "OpenSSL 3.5.4 x"))
    assert (program.version, program.openssl_version) == ((3, 5, 4), (3, 5, 4))
    assert "X25519MLKEM768" in supported_groups(program)
    nginx = "nginx version: nginx/1.29.0\nbuilt with OpenSSL 3.0\n(running with OpenSSL 3.6.1)"
    program = find_program("nginx", search_path=fake(tmp_path, "nginx", nginx))
    assert program.openssl_version == (3, 6, 1)


def test_stranger_under_the_name_is_unavailable(tmp_path: Path) -> None:
    where = fake(tmp_path, "openssl", "LibreSSL 3.9")
    with pytest.raises(PeerUnavailable, match="does not say its version"):
        find_program("openssl", search_path=where)


def test_survey_has_a_row_for_every_peer() -> None:
    assert [status.peer for status in survey(search_path="")] == list(PEERS)
    assert all(status.program is None and status.problem for status in survey(search_path=""))


def test_packages_of_debian_and_ubuntu() -> None:
    assert packages("debian") == sorted(
        [
            "chromium",
            "chromium-driver",
            "curl",
            "faketime",
            "gnutls-bin",
            "golang-go",
            "haproxy",
            "nginx",
            "openssl",
            "postgresql",
            "postgresql-client",
            "softhsm2",
            "tcpdump",
            "tshark",
        ]
    )
    assert "chromium-chromedriver" in packages("ubuntu")


def test_distribution_is_read(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text('NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n')
    assert distribution(release) == "ubuntu"
    assert distribution(tmp_path / "absent") == ""


def run_listing(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "interop.peers", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_listing_says_what_is_missing(tmp_path: Path) -> None:
    lines = run_listing("--path", str(tmp_path))
    assert len(lines) == len(PEERS)
    for peer, line in zip(PEERS, lines, strict=True):
        package = package_for(peer, distribution())
        assert line.split(maxsplit=1) == [peer.name, f"missing: apt-get install {package}"]


def test_listing_says_what_is_here(require_program: Callable[[str], Program]) -> None:
    require_program("openssl")
    line = next(line for line in run_listing() if line.startswith("openssl "))
    assert "client, server" in line
    assert "x25519" in line
    assert "missing" not in line


def test_listing_of_packages() -> None:
    assert run_listing("--debian-packages") == packages()


def test_listing_of_missing_packages(tmp_path: Path) -> None:
    assert run_listing("--missing-packages", "--path", str(tmp_path)) == packages()


def test_openssl_on_this_machine_knows_every_spelling(
    require_program: Callable[[str], Program],
) -> None:
    program = require_program("openssl")
    newer = ":".join(suite.openssl for suite in SUITES.values() if suite.is_tls13)
    options = ["-stdname", "-s", "-psk", "-ciphersuites", newer]
    done = subprocess.run(
        [program.path, "ciphers", *options, "ALL:@SECLEVEL=0"],
        capture_output=True,
        text=True,
        check=True,
    )
    spoken = {line.split()[0]: line.split()[2] for line in done.stdout.splitlines()}
    for suite in SUITES.values():
        assert spoken[suite.name] == suite.openssl
        assert suite_from_openssl(suite.openssl) == suite.name


def test_gnutls_on_this_machine_knows_every_spelling(
    require_program: Callable[[str], Program],
) -> None:
    program = require_program("gnutls-serv")
    listed = subprocess.run(
        [program.path, "--list"], capture_output=True, text=True, check=True
    ).stdout
    listed_suites = re.findall(r"Key exchange: (\S+)\n\tCipher: (\S+)\n\tMAC: (\S+)", listed)
    for suite in SUITES.values():
        parts = (suite.gnutls_key_exchange or "(null)", suite.gnutls_cipher, suite.gnutls_mac)
        assert parts in listed_suites
    older = [group for group in GROUPS.values() if group.first_openssl < (3, 5)]
    for group in older:
        assert re.search(rf"^Groups: .*\b{group.gnutls}\b", listed, re.MULTILINE)


def test_groups_as_openssl_prints_them() -> None:
    assert group_from_openssl("prime256v1") == "secp256r1"
    assert group_from_openssl("X25519") == "x25519"
    assert group_from_openssl("new-one") == "new-one"


def test_openssl_suites_are_split_by_version() -> None:
    names = ["TLS_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
    assert openssl_suites(names) == ("ECDHE-RSA-AES128-GCM-SHA256", "TLS_AES_128_GCM_SHA256")
    assert openssl_suites([], ["1.1"]) == ("DEFAULT:@SECLEVEL=0", "")
    with pytest.raises(InputError, match="ECDHE-RSA-AES128-GCM-SHA256"):
        openssl_suites(["ECDHE-RSA-AES128-GCM-SHA256"])


def test_gnutls_priority_allows_nothing_unasked() -> None:
    names = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_256_GCM_SHA384"]
    with pytest.raises(InputError, match="without TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"):
        gnutls_priority(["1.2"], suites=names)
    with pytest.raises(InputError, match="without TLS_AES_128_GCM_SHA256"):
        gnutls_priority(["1.2", "1.3"], suites=names[:1])
    assert "+RSA" not in gnutls_priority(["1.2"], suites=names[:1]).split(":")


def test_unknown_peer_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        peer_named("telnet")
