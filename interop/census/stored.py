"""Fingerprints in Parquet files, and the distinct count over them.

A census of more handshakes than fit in memory, or on more machines than one, leaves its
fingerprints in a folder, a run a subfolder, and they are counted together later. Writing needs
pyarrow, counting DuckDB (`pip install 'pfs-transport[census]'`).

**Layout.** A row is one value: `kind`, `condition`, and its fingerprint as two signed 64-bit
integers, `high` and `low`, big-endian halves. Integers of fixed size group several times as fast as
blobs, and every reader of Parquet has them. Rows are collected a million at a time, sorted by
`high`, and written as 16 row groups, of a sixteenth of all possible values each.

**Counting out of core.** The values are counted range by range of `high`, a few million rows at a
time, so memory is bounded by the size of a range and not by the number of rows; what DuckDB cannot
hold even so it spills. Parquet keeps the least and greatest `high` of each row group, so of a file
that was written here a range reads a sixteenth, and each row once or twice in all. Files with
another arrangement are counted as well, only more slowly. `DISTINCT_COUNT` is the same query for
everything at once, as Spark runs it.

**Whole or not at all.** A run is written to a hidden folder that gets its name at the end. The
footer of each file says the format, the function, a number of the run drawn at random, and the
handshakes behind it. A file that is given twice, even as a copy, is refused: all of its values
would be repetitions.
"""

from __future__ import annotations

import glob
import json
import os
import secrets
import shutil
import sys
import tempfile
from array import array
from bisect import bisect_left
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from interop.census.tallies import Counts, KindCount
from interop.census.values import FINGERPRINT_BYTES
from interop.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from interop.census.values import Gathered

__all__ = ["DISTINCT_COUNT", "FingerprintWriter", "count_stored", "write_fingerprints"]

_FORMAT: Final = "pfs-fingerprints/1"
_FUNCTION: Final = "SHA-256, its first 16 octets"
_ROWS_AT_A_TIME: Final = 1_000_000
_SLICES: Final = 16
_LEAST_ROWS_TO_SLICE: Final = 1 << 17
_ROWS_A_RANGE: Final = 4_000_000
_MOST_RANGES: Final = 1 << 16
_MEMORY_LIMIT: Final = "1GB"
_MOST_FILES: Final = 100_000
_MOST_METADATA_BYTES: Final = 1 << 20
_MOST_REPETITIONS_LOCATED: Final = 1000
_LEAST_INT64: Final = -(2**63)

_COLUMNS: Final = {"kind": "string", "condition": "string", "high": "int64", "low": "int64"}

# Of all files at once. Counted here a range at a time.
DISTINCT_COUNT: Final = """\
SELECT kind, SUM(n) AS count, COUNT(*) AS distinct_count, MAX(n) AS most
FROM (SELECT kind, high, low, COUNT(*) AS n FROM fingerprints GROUP BY kind, high, low)
GROUP BY kind
"""
_RANGE: Final = "(SELECT * FROM read_parquet($files) WHERE high BETWEEN $least AND $greatest)"
_REPETITIONS: Final = f"""\
SELECT DISTINCT f.kind, f.condition
FROM {_RANGE} AS f JOIN (
  SELECT kind, high, low FROM {_RANGE} GROUP BY kind, high, low HAVING COUNT(*) > 1
  LIMIT {_MOST_REPETITIONS_LOCATED}
) AS r ON f.kind = r.kind AND f.high = r.high AND f.low = r.low
"""  # noqa: S608 - made of constants


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"stored fingerprints need {name.partition('.')[0]}, which is not installed; type: "
            "pip install 'pfs-transport[census]'"
        ) from error


class FingerprintWriter:
    """Writes what is gathered to one Parquet file; `close` completes it."""

    def __init__(self, path: Path, *, target: str | None = None) -> None:
        self.folder = path.parent
        self._open = True
        self._arrow = pa = _library("pyarrow")
        names = pa.dictionary(pa.int32(), pa.string())
        self._schema = pa.schema(
            [
                pa.field(name, names if kind == "string" else pa.int64(), nullable=False)
                for name, kind in _COLUMNS.items()
            ]
        )
        self._writer = _library("pyarrow.parquet").ParquetWriter(
            path, self._schema, compression="none", use_dictionary=["kind", "condition"]
        )
        self._names: dict[str, list[str]] = {"kind": [], "condition": []}
        self._rows = self._start_rows()
        self._target = target
        self._conditions: Counter[str] = Counter()
        self._negotiated: Counter[str] = Counter()

    @staticmethod
    def _start_rows() -> dict[str, Any]:
        return {"kind": array("i"), "condition": array("i"), "halves": array("q")}

    def add(self, gathered: Gathered) -> None:
        """Take what some handshakes brought."""
        self._conditions[gathered.condition] += gathered.handshakes
        self._negotiated.update(gathered.negotiated)
        for kind, fingerprints in gathered.fingerprints.items():
            count = len(fingerprints) // FINGERPRINT_BYTES
            for column, name in (("kind", kind), ("condition", gathered.condition)):
                self._rows[column].extend(array("i", [self._place(column, name)]) * count)
            self._rows["halves"].frombytes(fingerprints)
        if len(self._rows["kind"]) >= _ROWS_AT_A_TIME:
            self._flush()

    def _place(self, column: str, name: str) -> int:
        names = self._names[column]
        if name not in names:
            names.append(name)
        return names.index(name)

    def _flush(self) -> None:
        rows, self._rows = self._rows, self._start_rows()
        count = len(rows["kind"])
        if not count:
            return
        pa, halves = self._arrow, rows["halves"]
        if sys.byteorder == "little":
            halves.byteswap()
        columns = [
            pa.DictionaryArray.from_arrays(
                _column(pa.int32(), rows[name]), pa.array(self._names[name])
            )
            for name in ("kind", "condition")
        ]
        columns += [_column(pa.int64(), halves[half::2]) for half in (0, 1)]
        table = pa.table(columns, schema=self._schema).sort_by("high").combine_chunks()
        high = table.column("high")
        slices = _SLICES if count >= _LEAST_ROWS_TO_SLICE else 1
        start = 0
        for greatest in _ends_of_ranges(slices):
            end = bisect_left(range(count), greatest + 1, key=lambda row: high[row].as_py())
            if end > start:
                self._writer.write_table(table.slice(start, end - start), row_group_size=count)
            start = end

    def close(self) -> None:
        """Write what is left, and the footer; later calls do nothing."""
        if not self._open:
            return
        self._flush()
        about = {
            "format": _FORMAT,
            "function": _FUNCTION,
            "file": secrets.token_hex(16),
            "target": self._target,
            "conditions": self._conditions,
            "negotiated": self._negotiated,
        }
        self._writer.add_key_value_metadata({"pfs.fingerprints": json.dumps(about)})
        self._open = False
        self._writer.close()

    def abandon(self) -> None:
        """Close the file without completing it."""
        self._open = False
        self._writer.close()


def _column(kind: Any, values: array[int]) -> Any:
    pa = _library("pyarrow")
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _ends_of_ranges(count: int) -> Iterator[int]:
    """Yield the greatest `high` of each of `count` ranges of equal size."""
    for number in range(1, count + 1):
        yield _LEAST_INT64 + (number << 64) // count - 1


@contextmanager
def write_fingerprints(folder: Path, *, target: str | None = None) -> Iterator[FingerprintWriter]:
    """Yield a writer of one run, which becomes a new subfolder of `folder` when the block ends.

    The block may `close` it and count what it wrote, in its `folder` so far. If the block ends with
    an exception nothing is left. `folder` is made if it is not there, and
    what it holds stays. Raises `InputError` where it cannot be written.
    """
    _library("pyarrow")
    token = secrets.token_hex(8)
    staging = folder / f".{token}.partial"
    existed = folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging.mkdir(mode=0o700)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        writer = FingerprintWriter(staging / "part-0.parquet", target=target)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()
        staging.rename(folder / f"run-{token}")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def count_stored(
    folders: Sequence[Path], *, progress: Callable[[int, int], None] = lambda _done, _of: None
) -> tuple[Counts, tuple[str, ...]]:
    """Count the distinct fingerprints of all runs in `folders`; return the targets of them too.

    `progress` is called with the ranges done, and their number. Raises `InputError` where there is
    nothing to count, for a file that is not of this format, and for one that is there twice.
    """
    duckdb = _library("duckdb")
    files = _find(folders)
    conditions, negotiated, targets, rows = _read_footers(files)
    ranges = min(max(1, -(-rows // _ROWS_A_RANGE)), _MOST_RANGES)
    totals: dict[str, _Total] = {}
    with tempfile.TemporaryDirectory(prefix="pfs-census-") as spill:
        configuration = {
            "memory_limit": _MEMORY_LIMIT,
            "temp_directory": spill,
            "threads": len(os.sched_getaffinity(0)),
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,  # nothing is fetched from anywhere
            "autoload_known_extensions": False,
        }
        try:
            with duckdb.connect(config=configuration) as database:
                for done in _count_ranges(database, files, ranges, totals):
                    progress(done, ranges)
        except duckdb.Error as error:
            raise InputError(f"the fingerprints cannot be counted: {error}") from error
    kinds = tuple(
        KindCount(kind, total.count, total.distinct, total.most, tuple(sorted(total.repeated_in)))
        for kind, total in sorted(totals.items())
    )
    return Counts(dict(conditions), dict(negotiated), kinds), targets


@dataclass(slots=True)
class _Total:
    """What the ranges so far amount to, for one kind."""

    count: int = 0
    distinct: int = 0
    most: int = 0
    repeated_in: set[str] = field(default_factory=set)


def _count_ranges(
    database: Any, files: Sequence[Path], ranges: int, totals: dict[str, _Total]
) -> Iterator[int]:
    """Add each range to `totals`; yield how many are done."""
    query = DISTINCT_COUNT.replace("fingerprints", _RANGE)
    # Names are patterns to DuckDB.
    parameters: dict[str, Any] = {"files": [glob.escape(str(file)) for file in files]}
    parameters["least"] = _LEAST_INT64
    for done, greatest in enumerate(_ends_of_ranges(ranges), start=1):
        parameters["greatest"] = greatest
        repeated = False
        for kind, *numbers in database.execute(query, parameters).fetchall():
            count, distinct, most = map(int, numbers)
            total = totals.setdefault(kind, _Total())
            total.count += count
            total.distinct += distinct
            total.most = max(total.most, most)
            repeated |= count != distinct
        if repeated:
            for kind, condition in database.execute(_REPETITIONS, parameters).fetchall():
                totals[kind].repeated_in.add(condition)
        parameters["least"] = greatest + 1
        yield done


def _find(folders: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: not a folder of fingerprints")
        before = len(files)
        for path in sorted(folder.rglob("*.parquet")):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                files.append(path)
            if len(files) > _MOST_FILES:
                raise InputError(f"{folder}: more than {_MOST_FILES:,} files of fingerprints")
        if len(files) == before:
            raise InputError(f"{folder}: no fingerprints in it (*.parquet)")
    return files


def _read_footers(
    files: Sequence[Path],
) -> tuple[Counter[str], Counter[str], tuple[str, ...], int]:
    """Return the handshakes by condition and by what they negotiated, the targets, and the rows."""
    parquet = _library("pyarrow.parquet")
    arrow_errors = _library("pyarrow").ArrowException
    conditions: Counter[str] = Counter()
    negotiated: Counter[str] = Counter()
    targets: set[str] = set()
    seen: dict[str, Path] = {}
    rows = 0
    for file in files:
        try:
            with parquet.ParquetFile(file) as opened:
                metadata, schema = opened.metadata, opened.schema_arrow
        except (OSError, arrow_errors) as error:
            raise InputError(f"{file}: cannot be read as Parquet: {error}") from error
        about = _read_about(file, metadata.metadata or {}, schema.names)
        if (first := seen.setdefault(about["file"], file)) is not file:
            raise InputError(f"{file}: the same file as {first}; give each run once")
        conditions.update(about["conditions"])
        negotiated.update(about["negotiated"])
        if about["target"]:
            targets.add(about["target"])
        rows += metadata.num_rows
    return conditions, negotiated, tuple(sorted(targets)), rows


def _read_about(file: Path, footer: dict[bytes, bytes], names: list[str]) -> dict[str, Any]:
    encoded = footer.get(b"pfs.fingerprints", b"")
    try:
        about = json.loads(encoded) if len(encoded) <= _MOST_METADATA_BYTES else None
    except ValueError:
        about = None
    if not isinstance(about, dict) or about.get("format") != _FORMAT or names != [*_COLUMNS]:
        raise InputError(f"{file}: not fingerprints of this format ({_FORMAT})")
    counters = [about.get("conditions"), about.get("negotiated")]
    if (
        about.get("function") != _FUNCTION
        or not isinstance(about.get("file"), str)
        or not isinstance(about.get("target"), str | None)
        or not all(_is_counter(counter) for counter in counters)
    ):
        raise InputError(f"{file}: its footer does not say what the fingerprints are of")
    return about


def _is_counter(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(number, int) and 0 <= number < 1 << 53 for number in value.values()
    )
