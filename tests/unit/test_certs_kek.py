"""The file KEK: how its file is made, which files it refuses, which root keys it unwraps."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from certs.errors import CorruptEnvelope, KEKUnavailable, StoreError, WrongKEK
from certs.keystore.kek import FileKEK, KEKProvider, create_kek, open_kek

if TYPE_CHECKING:
    from pathlib import Path

ROOT_KEY = bytes(range(32))


def test_a_key_file_is_made_with_mode_0600_under_any_umask(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    before = os.umask(0)
    try:
        FileKEK.create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_file_is_random(tmp_path: Path) -> None:
    contents = set()
    for number in range(20):
        FileKEK.create(tmp_path / str(number))
        contents.add((tmp_path / str(number)).read_bytes())
    assert len(contents) == 20


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_key_file_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "kek"
    if kind == "file":
        path.write_bytes(b"precious")
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(KEKUnavailable, match="never overwritten"):
        FileKEK.create(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.is_symlink() or path.read_bytes() == b"precious"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610, 0o601, 0o777])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "kek"
    FileKEK.create(path)
    path.chmod(mode)
    with pytest.raises(KEKUnavailable, match=f"mode {mode:04o}.*chmod 600"):
        FileKEK.open(path)
    path.chmod(0o400)
    FileKEK.open(path)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64, 1_000_000])
def test_a_file_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "kek"
    path.touch(0o600)
    path.write_bytes(b"k" * length)
    with pytest.raises(KEKUnavailable, match="exactly 32 bytes"):
        FileKEK.open(path)


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", "."):
        with pytest.raises(KEKUnavailable, match=r"not a regular file|Is a directory"):
            FileKEK.open(tmp_path / name)


def test_a_missing_file_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(KEKUnavailable, match="No such file"):
        FileKEK.open(tmp_path / "none")
    with pytest.raises(KEKUnavailable, match="No such file"):
        FileKEK.create(tmp_path / "none" / "kek")


def test_a_link_to_a_key_file_is_followed(tmp_path: Path) -> None:
    kek = FileKEK.create(tmp_path / "kek")
    (tmp_path / "link").symlink_to(tmp_path / "kek")
    wrapped = kek.wrap(ROOT_KEY, b"place")
    assert FileKEK.open(tmp_path / "link").unwrap(wrapped, b"place") == ROOT_KEY


def test_a_provider_is_chosen_by_uri(tmp_path: Path) -> None:
    path = tmp_path / "with space #1 % ?.kek"
    made = FileKEK.create(path)
    assert made.uri() == open_kek(made.uri()).uri()
    assert isinstance(made, KEKProvider)
    wrapped = made.wrap(ROOT_KEY, b"place")
    for uri in (made.uri(), made.uri().replace("file:", "file://"), "FILE:" + made.uri()[5:]):
        assert open_kek(uri).unwrap(wrapped, b"place") == ROOT_KEY
    assert create_kek(f"file:{tmp_path}/new").unwrap is not None
    assert (tmp_path / "new").is_file()


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "kek",
        "/etc/kek",
        "vault:/kek",
        "file:",
        "file:relative",
        "file://elsewhere/kek",
        "file:/kek?mode=1",
        "file:/kek#part",
        "file:/kek%00",
        "file://[/kek",
    ],
)
def test_a_uri_that_names_no_key_is_refused(uri: str) -> None:
    with pytest.raises(KEKUnavailable, match="KEK URI"):
        open_kek(uri)
    with pytest.raises(KEKUnavailable, match="KEK URI"):
        create_kek(uri)


def test_a_root_key_unwraps_by_the_format_document_alone(tmp_path: Path) -> None:
    wrapped = FileKEK.create(tmp_path / "kek").wrap(ROOT_KEY, b"place")
    secret = (tmp_path / "kek").read_bytes()
    assert len(wrapped) == 81
    assert wrapped[:5] == b"PFSK\x01"
    assert wrapped[5:21] == HKDFExpand(hashes.SHA256(), 16, b"pfs kek 1 identifier").derive(secret)
    wrapper = HKDFExpand(hashes.SHA256(), 32, b"pfs kek 1 wrap").derive(secret)
    assert AESGCM(wrapper).decrypt(wrapped[21:33], wrapped[33:], b"place") == ROOT_KEY


def test_another_key_file_is_told_from_damage(tmp_path: Path) -> None:
    right, wrong = FileKEK.create(tmp_path / "right"), FileKEK.create(tmp_path / "wrong")
    wrapped = right.wrap(ROOT_KEY, b"place")
    with pytest.raises(WrongKEK, match="wrong"):
        wrong.unwrap(wrapped, b"place")
    with pytest.raises(CorruptEnvelope):
        right.unwrap(wrapped, b"another place")
    assert right.unwrap(wrapped, b"place") == ROOT_KEY


def test_every_flipped_bit_of_a_wrapped_root_key_is_rejected(tmp_path: Path) -> None:
    kek = FileKEK.create(tmp_path / "kek")
    wrapped = kek.wrap(ROOT_KEY, b"place")
    for position in range(len(wrapped) * 8):
        flipped = bytearray(wrapped)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises((CorruptEnvelope, WrongKEK)):
            kek.unwrap(bytes(flipped), b"place")
    for length in (*range(len(wrapped)), 82, 4096):
        with pytest.raises(CorruptEnvelope):
            kek.unwrap(wrapped.ljust(length, b"\0")[:length], b"place")


def test_a_closed_provider_has_forgotten_its_key(tmp_path: Path) -> None:
    kek = FileKEK.create(tmp_path / "kek")
    wrapped = kek.wrap(ROOT_KEY, b"place")
    kek.close()
    with pytest.raises(StoreError, match="closed"):
        kek.unwrap(wrapped, b"place")
    with pytest.raises(StoreError, match="closed"):
        kek.wrap(ROOT_KEY, b"place")
