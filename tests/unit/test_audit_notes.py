"""Signed notes and checkpoints: another implementation's note, and everything that is none."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from certs.errors import BadSignature, InvalidInput
from certs.keystore.notes import Checkpoint, NoteKey

# tests/vectors/SOURCES.md says where these are from.
KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
LINE = (
    "\N{EM DASH} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKv"
    "qfqdngotpRZb6KE6RyyBwJnAM=\n"
)
NOTE = f"{TEXT}\n{LINE}".encode()
OTHER_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(32))
MINE = NoteKey("log", PRIVATE.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
CHECKPOINT = Checkpoint("log", 7, bytes(range(32)))


def signed(text: str) -> bytes:
    return MINE.note(text, PRIVATE.sign(text.encode()))


def test_a_note_of_another_implementation_is_read() -> None:
    assert NoteKey.parse(KEY).open(NOTE) == TEXT


@pytest.mark.parametrize("text", [KEY, OTHER_KEY])
def test_verifier_keys_of_others_are_read_and_written_the_same(text: str) -> None:
    assert str(NoteKey.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", KEY[:-4], KEY.replace("c74f20a3", "c74f20a4"), f"{KEY}\n", KEY.replace("+AR", "+BR")],
)
def test_what_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        NoteKey.parse(text)


def test_a_note_counts_under_the_key_named_and_no_other() -> None:
    with pytest.raises(BadSignature):
        NoteKey.parse(OTHER_KEY).open(NOTE)
    both = NOTE + signed(TEXT).split(b"\n\n")[1]
    assert MINE.open(both) == NoteKey.parse(KEY).open(both) == TEXT


def test_no_changed_byte_of_a_note_is_read_as_the_note() -> None:
    for position in range(len(NOTE)):
        changed = bytearray(NOTE)
        changed[position] ^= 1
        with pytest.raises((BadSignature, InvalidInput)):
            NoteKey.parse(KEY).open(bytes(changed))


@pytest.mark.parametrize(
    "note",
    [
        b"",
        TEXT.encode(),
        f"{TEXT}\n".encode(),
        NOTE[:-1],
        NOTE.replace(b"\n\n", b"\n"),
        NOTE.replace(b"you", b"y\tu", 1),
        NOTE.replace("\N{EM DASH}".encode(), b"-"),
        NOTE + b"\xff\n",
        NOTE + LINE.encode() * 200,
        bytes(70_000),
    ],
)
def test_what_is_no_note_is_refused(note: bytes) -> None:
    with pytest.raises(InvalidInput):
        NoteKey.parse(KEY).open(note)


def test_a_checkpoint_is_read_as_written() -> None:
    note = signed(CHECKPOINT.text)
    assert Checkpoint.open(note, MINE) == CHECKPOINT
    root = base64.b64encode(CHECKPOINT.root).decode()
    assert note.decode().startswith(f"log\n7\n{root}\n\n\N{EM DASH} log ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("log\n", "other\n"),
        ("\n7\n", "\n07\n"),
        ("\n7\n", "\n-7\n"),
        ("\n7\n", "\n9999999999999999999\n"),
        ("AAEC", "AAE"),
        ("Hh8=\n", ""),
    ],
)
def test_a_signed_text_that_is_no_checkpoint_is_refused(old: str, new: str) -> None:
    assert old in CHECKPOINT.text
    with pytest.raises(InvalidInput):
        Checkpoint.open(signed(CHECKPOINT.text.replace(old, new, 1)), MINE)


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_typed_error(content: bytes) -> None:
    for note in (content, NOTE[:40] + content, content + NOTE):
        with pytest.raises((BadSignature, InvalidInput)):
            Checkpoint.open(note, MINE)
