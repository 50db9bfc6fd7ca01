"""Fingerprints in Parquet: whole or not there, counted exactly, pooled, and nothing else taken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interop.census import stored
from interop.census.conditions import Condition
from interop.census.stored import DISTINCT_COUNT, count_stored, write_fingerprints
from interop.census.tallies import MemoryTallies
from interop.census.values import FINGERPRINT_BYTES, Gathered, fingerprint
from interop.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def gathered(condition: Condition, count: int, **extra: bytes) -> Gathered:
    """Make fingerprints of `count` handshakes, at random."""
    prints = {
        kind: os.urandom(FINGERPRINT_BYTES * count) for kind in ("client_random", "server_random")
    }
    for kind, data in extra.items():
        prints[kind] = prints.get(kind, b"") + data
    return Gathered(condition, count, prints, {"TLS 1.3 x25519": count})


def write(folder: Path, *runs: Gathered, target: str | None = None) -> None:
    with write_fingerprints(folder, target=target) as writer:
        for run in runs:
            writer.add(run)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that happens with millions of rows happen with thousands."""
    monkeypatch.setattr(stored, "_ROWS_AT_A_TIME", 1000)
    monkeypatch.setattr(stored, "_LEAST_ROWS_TO_SLICE", 500)
    monkeypatch.setattr(stored, "_ROWS_A_RANGE", 300)


@pytest.mark.usefixtures("small")
def test_what_is_stored_counts_as_what_is_in_memory(tmp_path: Path) -> None:
    twice = os.urandom(FINGERPRINT_BYTES)
    runs = [
        gathered(Condition.ONE_CONTEXT, 1500, server_random=twice),
        gathered(Condition.THREADS, 700),
        gathered(Condition.FORKED, 900, server_random=twice * 2, psk=twice),
    ]
    tallies = MemoryTallies()
    for run in runs:
        tallies.add(run)
    expected = tallies.count()
    write(tmp_path, *runs)
    (file,) = files(tmp_path)
    assert pq.ParquetFile(file).num_row_groups > 16
    done: list[tuple[int, int]] = []
    counts, targets = count_stored([tmp_path], progress=lambda *step: done.append(step))
    assert done[-1] == (len(done), len(done))
    assert len(done) > 16
    assert targets == ()
    assert (counts.conditions, counts.negotiated) == (expected.conditions, expected.negotiated)
    sort = [(kind.kind, kind.count, kind.distinct, kind.most) for kind in expected.kinds]
    assert [(kind.kind, kind.count, kind.distinct, kind.most) for kind in counts.kinds] == sort
    by_kind = {kind.kind: set(kind.repeated_in) for kind in counts.kinds}
    assert by_kind == {
        "client_random": set(),
        "psk": set(),
        "server_random": {"one context", "forked workers"},
    }


@pytest.mark.usefixtures("small")
def test_the_statement_for_everything_at_once_says_the_same(tmp_path: Path) -> None:
    twice = os.urandom(FINGERPRINT_BYTES)
    write(tmp_path, gathered(Condition.ONE_CONTEXT, 2000, server_random=twice * 2))
    with duckdb.connect() as database:
        (file,) = files(tmp_path)
        database.read_parquet(str(file)).create_view("fingerprints")
        rows = sorted(database.execute(DISTINCT_COUNT).fetchall())
    assert rows == [("client_random", 2000, 2000, 1), ("server_random", 2002, 2001, 2)]


def test_runs_of_many_machines_are_pooled(tmp_path: Path) -> None:
    shared = fingerprint(b"the state of a cloned machine")
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        write(folder, gathered(Condition.ONE_CONTEXT, 50, server_random=shared))
        counts, _ = count_stored([folder])
        assert all(not kind.repeated for kind in counts.kinds)
    write(other, gathered(Condition.LIVE_TARGET, 20), target="example:443")
    counts, targets = count_stored([one, other])
    repeated = {kind.kind: kind.repeated for kind in counts.kinds}
    assert repeated == {"client_random": 0, "server_random": 1}
    assert counts.handshakes == 120
    assert targets == ("example:443",)


def test_a_file_is_not_counted_twice(tmp_path: Path) -> None:
    write(tmp_path / "one", gathered(Condition.ONE_CONTEXT, 10))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    for folders in ([tmp_path / "one"] * 2, [tmp_path / "one", tmp_path / "copy"], [tmp_path]):
        with pytest.raises(InputError, match="the same file as"):
            count_stored(folders)


def test_a_value_is_nowhere_in_the_file_and_its_fingerprint_is(tmp_path: Path) -> None:
    secret = os.urandom(32)
    run = Gathered(Condition.ONE_CONTEXT, 1, {"psk": fingerprint(secret)}, {"TLS 1.3 x25519": 1})
    write(tmp_path, run)
    (file,) = files(tmp_path)
    assert secret[:8] not in file.read_bytes()
    (row,) = pq.read_table(file).to_pylist()
    halves = [fingerprint(secret)[:8], fingerprint(secret)[8:]]
    assert [row["high"], row["low"]] == [
        int.from_bytes(half, "big", signed=True) for half in halves
    ]
    assert (row["kind"], row["condition"]) == ("psk", "one context")


def write_and_be_interrupted(folder: Path) -> None:
    with write_fingerprints(folder) as writer:
        writer.add(gathered(Condition.ONE_CONTEXT, 5))
        raise KeyboardInterrupt


def test_a_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    new, old = tmp_path / "new" / "folder", tmp_path / "old"
    write(old, gathered(Condition.ONE_CONTEXT, 5))
    before = sorted(old.rglob("*"))
    for folder in (new, old):
        with pytest.raises(KeyboardInterrupt):
            write_and_be_interrupted(folder)
    assert not new.exists()
    assert sorted(old.rglob("*")) == before


def test_a_run_under_way_is_not_counted(tmp_path: Path) -> None:
    write(tmp_path, gathered(Condition.ONE_CONTEXT, 5))
    with write_fingerprints(tmp_path) as writer:
        writer.add(gathered(Condition.ONE_CONTEXT, 7))
        assert count_stored([tmp_path])[0].handshakes == 5
    assert count_stored([tmp_path])[0].handshakes == 12


def test_names_with_patterns_in_them_are_names(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]*{c}?'d"
    write(folder, gathered(Condition.ONE_CONTEXT, 5))
    assert count_stored([folder])[0].handshakes == 5


def test_what_is_no_fingerprint_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        count_stored([tmp_path / "absent"])
    with pytest.raises(InputError, match="no fingerprints in it"):
        count_stored([tmp_path])
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        count_stored([tmp_path])
    pq.write_table(pa.table({"kind": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="not fingerprints of this format"):
        count_stored([tmp_path])
    write(tmp_path / "good", gathered(Condition.ONE_CONTEXT, 5))
    (file,) = files(tmp_path / "good")
    table = pq.read_table(file)
    for text in ("[]", '{"format": "pfs-fingerprints/1"}', "{", '{"format": "pfs-fingerprints/2"}'):
        pq.write_table(
            table.replace_schema_metadata({"pfs.fingerprints": text}), tmp_path / "x.parquet"
        )
        with pytest.raises(InputError, match=r"not fingerprints of this format|its footer"):
            count_stored([tmp_path])


@pytest.mark.usefixtures("small")
def test_a_file_that_is_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, gathered(Condition.ONE_CONTEXT, 3000))
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[4:2000] = b"\xff" * 1996
    file.write_bytes(content)
    with pytest.raises(InputError, match="cannot be counted"):
        count_stored([tmp_path])


@pytest.mark.parametrize("missing", ["pyarrow", "duckdb"])
def test_a_missing_library_is_named_with_what_to_type(missing: str, tmp_path: Path) -> None:
    write(tmp_path, gathered(Condition.ONE_CONTEXT, 5))
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['pfs', 'uniqueness', '--pool', "
        f"{str(tmp_path)!r}]; from interop.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert f"need {missing}, which is not installed" in done.stderr
    assert "pip install 'pfs-transport[census]'" in done.stderr
