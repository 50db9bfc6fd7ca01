"""The passphrase KEK: where it is read from, what it costs, which root keys it opens."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from certs.errors import CertsError, CorruptEnvelope, KEKUnavailable, StoreError, WrongKEK
from certs.key_types import KeyType
from certs.keystore import KeyStore
from certs.keystore.kek import FileKEK, KEKProvider, PassphraseKEK, create_kek, open_kek

if TYPE_CHECKING:
    from pathlib import Path

ROOT_KEY = bytes(range(32))
PASSPHRASE = "correct horse battery staple"


def kek_of(passphrase: str) -> PassphraseKEK:
    return PassphraseKEK(lambda _new: passphrase.encode())


def secret_file(path: Path, content: str | bytes, mode: int = 0o600) -> str:
    path.touch(mode)
    path.chmod(mode)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return f"passphrase:?file={path}"


def test_a_root_key_unwraps_by_the_format_document_alone() -> None:
    wrapped = kek_of(PASSPHRASE).wrap(ROOT_KEY, b"place")
    assert len(wrapped) == 112
    assert wrapped[:8] == b"PFSK\x02\x01\x00\x2c"
    memory, passes, lanes = (int.from_bytes(wrapped[at : at + 4]) for at in (40, 44, 48))
    assert (memory, passes, lanes) == (65536, 3, 4)
    secret = Argon2id(
        salt=wrapped[24:40], length=32, iterations=passes, lanes=lanes, memory_cost=memory
    ).derive(PASSPHRASE.encode())
    assert wrapped[8:24] == HKDFExpand(hashes.SHA256(), 16, b"pfs kek 2 identifier").derive(secret)
    wrapper = HKDFExpand(hashes.SHA256(), 32, b"pfs kek 2 wrap").derive(secret)
    bound = (52).to_bytes(4) + wrapped[:52] + b"place"
    assert AESGCM(wrapper).decrypt(wrapped[52:64], wrapped[64:], bound) == ROOT_KEY


def test_another_passphrase_is_told_from_damage_and_from_another_place() -> None:
    wrapped = kek_of(PASSPHRASE).wrap(ROOT_KEY, b"place")
    with pytest.raises(WrongKEK, match="not the passphrase"):
        kek_of(PASSPHRASE + "!").unwrap(wrapped, b"place")
    with pytest.raises(CorruptEnvelope):
        kek_of(PASSPHRASE).unwrap(wrapped, b"another place")
    assert kek_of(PASSPHRASE).unwrap(wrapped, b"place") == ROOT_KEY


def test_a_keyboard_that_composes_accents_gives_the_same_key() -> None:
    wrapped = kek_of("Stra\u00dfencaf\u00e9 12").wrap(ROOT_KEY, b"place")
    assert kek_of("Stra\u00dfencafe\u0301 12").unwrap(wrapped, b"place") == ROOT_KEY
    with pytest.raises(WrongKEK):
        kek_of("Stra\u00dfencafe 12").unwrap(wrapped, b"place")


@pytest.mark.parametrize(
    ("offset", "value"),
    [(40, 65535), (40, 0), (40, 2097153), (40, 2**32 - 1), (44, 0), (44, 17), (48, 0), (48, 17)],
)
def test_costs_that_are_never_written_are_refused_before_anything_is_asked(
    offset: int, value: int
) -> None:
    wrapped = bytearray(kek_of(PASSPHRASE).wrap(ROOT_KEY, b"place"))
    wrapped[offset : offset + 4] = value.to_bytes(4)

    def never_asked(_new: object) -> bytes:
        pytest.fail("the passphrase was asked for")

    with pytest.raises(CorruptEnvelope, match="cost"):
        PassphraseKEK(never_asked).unwrap(bytes(wrapped), b"place")


def test_a_higher_cost_is_stored_and_used() -> None:
    dear = PassphraseKEK(lambda _new: PASSPHRASE.encode(), memory_kib=80 * 1024)
    wrapped = dear.wrap(ROOT_KEY, b"place")
    assert int.from_bytes(wrapped[40:44]) == 80 * 1024
    assert kek_of(PASSPHRASE).unwrap(wrapped, b"place") == ROOT_KEY
    with pytest.raises(ValueError, match="65536"):
        PassphraseKEK(lambda _new: b"", memory_kib=65535)


def test_every_flipped_byte_of_the_header_and_each_length_is_rejected() -> None:
    wrapped = kek_of(PASSPHRASE).wrap(ROOT_KEY, b"place")
    kek = kek_of(PASSPHRASE)
    for position in (*range(8), 8, 23, 24, 39, 52, 63, 64, 95, 96, 111):
        flipped = bytearray(wrapped)
        flipped[position] ^= 1
        with pytest.raises((CorruptEnvelope, WrongKEK)):
            kek.unwrap(bytes(flipped), b"place")
    for length in (*range(112), 113, 4096, 4097):
        with pytest.raises(CorruptEnvelope):
            kek.unwrap(wrapped.ljust(length, b"\0")[:length], b"place")
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY


def test_a_root_key_of_another_kind_of_kek_is_named_as_such(tmp_path: Path) -> None:
    file = FileKEK.create(tmp_path / "kek")
    with pytest.raises(CorruptEnvelope, match="another kind"):
        kek_of(PASSPHRASE).unwrap(file.wrap(ROOT_KEY, b"place"), b"place")
    with pytest.raises(CorruptEnvelope, match="81"):
        file.unwrap(kek_of(PASSPHRASE).wrap(ROOT_KEY, b"place"), b"place")


def test_a_new_passphrase_has_twelve_characters() -> None:
    with pytest.raises(KEKUnavailable, match="at least 12"):
        kek_of("\u00e9leven char").wrap(ROOT_KEY, b"place")
    kek_of("twelve chars").wrap(ROOT_KEY, b"place")


def test_a_store_is_made_and_opened_by_a_passphrase_file(tmp_path: Path) -> None:
    uri = secret_file(tmp_path / "passphrase", PASSPHRASE + "\n")
    with KeyStore.create(tmp_path / "store", uri) as store:
        store.create_key("name", KeyType.ED25519)
        made = store.public_key("name")
    with KeyStore.open(tmp_path / "store", uri) as store:
        assert store.public_key("name") == made
    wrong = secret_file(tmp_path / "wrong", PASSPHRASE.upper())
    with pytest.raises(WrongKEK):
        KeyStore.open(tmp_path / "store", wrong)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_one_newline_at_the_end_of_a_file_does_not_count(tmp_path: Path, end: str) -> None:
    wrapped = kek_of(PASSPHRASE).wrap(ROOT_KEY, b"place")
    uri = secret_file(tmp_path / "passphrase", PASSPHRASE + end)
    assert open_kek(uri).unwrap(wrapped, b"place") == ROOT_KEY


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two\nlines of text", b"k" * 1025, b"nul\0 and so on", b"\xff" * 16]
)
def test_a_file_that_holds_no_passphrase_is_refused(tmp_path: Path, content: bytes) -> None:
    uri = secret_file(tmp_path / "passphrase", content)
    with pytest.raises(KEKUnavailable, match=r"one line|UTF-8"):
        open_kek(uri).wrap(ROOT_KEY, b"place")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "passphrase"
    uri = secret_file(path, PASSPHRASE, mode)
    with pytest.raises(KEKUnavailable, match=f"mode {mode:04o}.*chmod 600"):
        open_kek(uri).wrap(ROOT_KEY, b"place")
    path.chmod(0o600)
    open_kek(uri).wrap(ROOT_KEY, b"place")


def test_a_passphrase_comes_through_an_inherited_descriptor() -> None:
    wrapped = kek_of(PASSPHRASE).wrap(ROOT_KEY, b"place")
    reading, writing = os.pipe()
    os.write(writing, PASSPHRASE.encode() + b"\n")
    os.close(writing)
    kek = open_kek(f"passphrase:?descriptor={reading}")
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY  # and is read once
    os.close(reading)
    with pytest.raises(KEKUnavailable, match="Bad file descriptor"):
        open_kek(f"passphrase:?descriptor={reading}").unwrap(wrapped, b"place")


@pytest.mark.parametrize(
    "uri",
    [
        "passphrase:hunter2hunter2",
        "passphrase://hunter2hunter2",
        "passphrase:?value=hunter2hunter2",
        "passphrase:?file=hunter2hunter2",
        "passphrase:?file=/a&file=/hunter2hunter2",
        "passphrase:?file=/hunter2hunter2&descriptor=3",
        "passphrase:?descriptor=hunter2hunter2",
        "passphrase:?descriptor=-1",
        "passphrase:?file",
        "passphrase:\n",
    ],
)
def test_a_passphrase_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    for use in (open_kek, create_kek):
        with pytest.raises(KEKUnavailable) as caught:
            use(uri)
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_nothing_secret_is_shown_and_a_closed_kek_has_forgotten() -> None:
    kek = kek_of(PASSPHRASE)
    assert isinstance(kek, KEKProvider)
    wrapped = kek.wrap(ROOT_KEY, b"place")
    assert PASSPHRASE not in repr(kek) + kek.uri()
    kek.close()
    assert PASSPHRASE.encode() not in repr(vars(kek)).encode()
    for use in (kek.wrap, kek.unwrap):
        with pytest.raises(StoreError, match="closed"):
            use(wrapped, b"place")


ON_A_TERMINAL = textwrap.dedent(
    """
    import sys
    from certs.errors import CertsError
    from certs.keystore import KeyStore
    try:
        with getattr(KeyStore, sys.argv[1])(sys.argv[2], "passphrase:") as store:
            print("opened", store.store_id)
    except CertsError as error:
        print(type(error).__name__, error)
    """
)


def on_a_terminal(method: str, store: Path, answers: list[str]) -> str:
    """Run the program with a terminal of its own; return what the terminal showed."""
    controller, terminal = os.openpty()
    program = subprocess.Popen(
        ["setsid", "--ctty", "--wait", sys.executable, "-c", ON_A_TERMINAL, method, str(store)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    with os.fdopen(controller, "rb+", buffering=0) as screen:
        while True:
            try:
                data = screen.read(4096)
            except OSError:  # how a terminal says that the last program has left
                break
            if not data:
                break
            shown += data
            if shown.endswith(b": ") and answers:
                screen.write(answers.pop(0).encode() + b"\n")
    assert program.wait(30) == 0
    return shown.decode()


def test_a_terminal_is_asked_twice_for_a_new_passphrase_and_once_for_a_known_one(
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    shown = on_a_terminal("create", store, [PASSPHRASE, PASSPHRASE])
    assert "New passphrase" in shown
    assert "The same again" in shown
    assert "opened" in shown
    assert "Passphrase of" not in shown  # the provider that made the store also opens it
    shown += on_a_terminal("open", store, [PASSPHRASE])
    assert shown.count("opened") == 2
    assert PASSPHRASE not in shown
    assert "WrongKEK" in on_a_terminal("open", store, ["something else"])


def test_two_answers_that_differ_make_no_store(tmp_path: Path) -> None:
    shown = on_a_terminal("create", tmp_path / "store", [PASSPHRASE, PASSPHRASE + "x"])
    assert "KEKUnavailable the two passphrases differ" in shown
    assert list(tmp_path.iterdir()) == []


def test_without_a_terminal_standard_input_is_not_read_instead(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL, "create", str(tmp_path / "store")],
        input=f"{PASSPHRASE}\n{PASSPHRASE}\n",
        capture_output=True,
        encoding="utf-8",
        start_new_session=True,
        check=False,
    )
    assert done.stdout.startswith("KEKUnavailable there is no terminal"), done.stderr
    assert issubclass(KEKUnavailable, CertsError)
    assert list(tmp_path.iterdir()) == []
