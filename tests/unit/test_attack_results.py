"""Results of an attack, kept on disk: their order, and that they come out as they went in."""

from __future__ import annotations

import random
import tracemalloc
from typing import TYPE_CHECKING

import msgspec
import pytest

from interop.commands.output import print_json, print_json_lists
from interop.proof.attack import AttackedSession
from interop.proof.results import ResultFile

if TYPE_CHECKING:
    from pathlib import Path


def result(capture: str, stream: int, *, opened: bool = True, reason: str = "") -> AttackedSession:
    return AttackedSession(
        capture=capture,
        stream=stream,
        client="192.0.2.1:5000",
        server="192.0.2.2:443",
        server_name="ü.example",
        version="TLS 1.3",
        suite="TLS_AES_128_GCM_SHA256",
        group=None,
        forward_secret=True,
        resumed=None,
        client_random="00" * 32,
        opened=opened,
        opened_by="key log" if opened else None,
        client_bytes=1,
        server_bytes=2,
        encrypted_bytes=3,
        reason=reason,
    )


def test_results_come_back_by_capture_and_stream_whatever_order_they_came_in() -> None:
    expected = [result(name, stream, opened=stream > 3) for name in "ba" for stream in range(50)]
    given = list(enumerate(expected))
    random.Random(1).shuffle(given)
    results = ResultFile(AttackedSession)
    for index, each in given:
        results.add(index // 50, each)
    assert list(results) == list(results) == expected
    assert (len(results), results.opened) == (100, 92)
    assert expected[7] in results
    assert result("c", 1) not in results


def test_more_results_than_memory_should_hold_are_on_disk() -> None:
    results = ResultFile(AttackedSession)
    tracemalloc.start()
    for stream in range(20_000):
        results.add(1, result("capture", stream, reason="x" * 2000))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 << 20  # of 50 MB
    assert [each.stream for each in results] == list(range(20_000))


class _Report(msgspec.Struct):
    sessions: list[AttackedSession]
    problems: list[str]


@pytest.mark.parametrize("sessions", [0, 1, 3])
@pytest.mark.parametrize("problems", [[], ['a "quoted"\nproblem', ""]])
def test_json_a_piece_at_a_time_is_json_as_a_whole(
    sessions: int, problems: list[str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    results = ResultFile(AttackedSession)
    for stream in range(sessions):
        results.add(1, result("capture", stream, reason="two\nlines"))
    print_json(_Report(list(results), problems))
    whole = capfdbinary.readouterr().out
    encoded = map(msgspec.json.encode, problems)
    print_json_lists({"sessions": results.encoded(), "problems": encoded})
    assert capfdbinary.readouterr().out == whole


def test_results_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    results = ResultFile(AttackedSession)
    for stream in range(3000):
        results.add(1, result("capture", stream, reason="x" * 2000))
    del results
    assert list(tmp_path.iterdir()) == []
