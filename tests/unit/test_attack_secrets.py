"""Secrets that a capture brings along itself: when they are in time, and what thousands cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interop.proof.attacker import Attacker
from interop.wire.key_log import MAX_PROBLEMS, KeyLog
from interop.wire.session import KeyMaterial

if TYPE_CHECKING:
    from collections.abc import Iterator


def log(number: int, secret: bytes = b"\2" * 32) -> KeyLog:
    random = number.to_bytes(32, "big")
    return KeyLog({random: {"CLIENT_TRAFFIC_SECRET_0": secret}})


def test_what_is_added_is_there_and_what_was_there_counts() -> None:
    first, other = log(1), log(1, b"\3" * 32)
    grown = first.copy()
    grown.add(other)
    grown.add(log(2))
    grown.add(KeyLog({(1).to_bytes(32, "big"): {"EXPORTER_SECRET": b"\4" * 32}}))
    assert grown == {
        (1).to_bytes(32, "big"): {
            "CLIENT_TRAFFIC_SECRET_0": b"\2" * 32,
            "EXPORTER_SECRET": b"\4" * 32,
        },
        (2).to_bytes(32, "big"): {"CLIENT_TRAFFIC_SECRET_0": b"\2" * 32},
    }
    assert first == log(1)
    assert other == log(1, b"\3" * 32)


def test_problems_of_ever_more_logs_are_counted_and_a_thousand_kept() -> None:
    grown = KeyLog()
    for _ in range(3):
        grown.add(KeyLog.parse(b"CLIENT_RANDOM nothing\n" * 600))
    assert grown.problem_count == 1800
    assert len(grown.problems) == MAX_PROBLEMS


def test_an_attacker_leaves_the_stolen_log_alone() -> None:
    keys = KeyMaterial(key_log=log(1))
    Attacker(keys).add_key_log(log(2))
    assert keys.key_log == log(1)


class Watched(KeyLog):
    """A key log that counts how often it is gone through."""

    passes = 0

    def __iter__(self) -> Iterator[bytes]:
        self.passes += 1
        return super().__iter__()


def test_a_log_that_grows_a_session_at_a_time_is_not_gone_through_each_time() -> None:
    """Or else 20,000 sessions with a block of secrets each take minutes."""
    watched = Watched({bytes(32): {}})
    attacker = Attacker(KeyMaterial(key_log=watched))
    for number in range(1, 10):
        attacker.add_key_log(log(number))
    assert watched.passes == 0
    assert dict(watched) == {bytes(32): {}}
    assert watched.passes == 1
