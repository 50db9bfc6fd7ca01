"""``pfs uniqueness``."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from interop.census.conditions import require_handshakes
from interop.census.ends import TransportRecipe
from interop.census.report import CensusReport, Origin, judge
from interop.census.stored import count_stored, write_fingerprints
from interop.census.tallies import MOST_HANDSHAKES_IN_MEMORY, MemoryTallies
from interop.census.target import Target, survey
from interop.census.terminal import print_census
from interop.census.workers import take_census
from interop.commands.output import console, print_json
from interop.commands.target import HANDSHAKES, HANDSHAKES_AT_A_TARGET, read_target
from interop.errors import InputError
from interop.identity import SERVER_NAME, issue_identity
from interop.interruption import run_aside
from interop.progress import ConsoleProgress, SilentProgress
from interop.proof.directory import shown_path
from interop.versions import library_versions
from transport.commands.trust import read_anchors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from interop.census.tallies import Counts
    from interop.census.workers import Sink

__all__ = ["run"]

_WORKERS_AT_A_TARGET = 4
_SECONDS_AT_A_TARGET = 600.0
_MOST_HANDSHAKES = 1_000_000_000


def run(
    *,
    handshakes: int | None,
    workers: int | None,
    target: str | None,
    server_name: str | None,
    ca: Path | None,
    seconds: float | None,
    fingerprints: Path | None,
    pool: Sequence[Path],
    as_json: bool,
) -> int:
    """Take or pool a census, print its report, and return 0 if every value is unique, else 1."""
    of_a_target = (server_name, ca, seconds)
    of_a_census = (handshakes, workers, target, fingerprints, *of_a_target)
    if pool and any(given is not None for given in of_a_census):
        raise InputError("--pool counts what is stored: it goes with no option but --json")
    if target is None and any(given is not None for given in of_a_target):
        raise InputError("--server-name, --ca and --seconds are of a --target: name one")
    if handshakes is not None:
        _require_countable(handshakes, fingerprints, at_a_target=target is not None)
    started = time.monotonic()
    with SilentProgress() if as_json else ConsoleProgress() as progress:
        if pool:
            counts, origin = run_aside(lambda: _pooled(pool, progress))
        else:
            source: _Memory | _Live
            if target is None:
                source = _Memory(handshakes or HANDSHAKES, workers)
            else:
                source = _Live(
                    handshakes or HANDSHAKES_AT_A_TARGET,
                    workers or _WORKERS_AT_A_TARGET,
                    Target(
                        *read_target(target, server_name),
                        trust_anchors=None if ca is None else read_anchors(ca),
                    ),
                    seconds or _SECONDS_AT_A_TARGET,
                )
            counts, origin = run_aside(lambda: _taken(source, fingerprints, progress))
    report = judge(
        counts,
        origin,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        versions=library_versions("duckdb", "pyarrow"),
    )
    _show(report, fingerprints, as_json=as_json)
    return 0 if report.verdict == "unique" else 1


def _require_countable(handshakes: int, fingerprints: Path | None, *, at_a_target: bool) -> None:
    require_handshakes(handshakes, most=_MOST_HANDSHAKES, at_a_target=at_a_target)
    if handshakes > MOST_HANDSHAKES_IN_MEMORY and fingerprints is None:
        raise InputError(
            f"more than {MOST_HANDSHAKES_IN_MEMORY:,} handshakes are counted on disk; "
            "add --fingerprints DIR"
        )


class _Memory:
    """Handshakes between our own endpoints, in memory."""

    target: str | None = None

    def __init__(self, handshakes: int, workers: int | None) -> None:
        self._handshakes, self._workers = handshakes, workers

    def take(self, sink: Sink, progress: SilentProgress) -> Origin:
        """Make the handshakes."""
        progress.stage("census of session keys", total=self._handshakes)
        take_census(
            self._handshakes,
            TransportRecipe.of(issue_identity().credential, SERVER_NAME),
            sink,
            workers=self._workers,
            progress=progress.advance,
        )
        return Origin("memory")


class _Live:
    """Handshakes with somebody's server."""

    def __init__(self, handshakes: int, workers: int, target: Target, seconds: float) -> None:
        self._handshakes, self._workers = handshakes, workers
        self._target, self._seconds = target, seconds
        self.target: str | None = "{}:{}".format(*target.address)

    def take(self, sink: Sink, progress: SilentProgress) -> Origin:
        """Make the handshakes."""
        progress.stage(f"census of {self.target}", total=self._handshakes)
        run = survey(
            self._handshakes,
            self._target,
            sink,
            workers=self._workers,
            seconds=self._seconds,
            progress=progress.advance,
        )
        return Origin(
            "target",
            self.target,
            certificate_checked=self._target.trust_anchors is not None,
            not_tested=run.refused,
            notes=() if run.shortfall is None else (run.shortfall,),
        )


def _taken(
    source: _Memory | _Live, fingerprints: Path | None, progress: SilentProgress
) -> tuple[Counts, Origin]:
    if fingerprints is None:
        tallies = MemoryTallies()
        origin = source.take(tallies, progress)
        progress.stage("counting")
        return tallies.count(), origin
    with write_fingerprints(fingerprints, target=source.target) as written:
        origin = source.take(written, progress)
        written.close()
        return _counted((written.folder,), progress)[0], origin


def _pooled(pool: Sequence[Path], progress: SilentProgress) -> tuple[Counts, Origin]:
    counts, targets = _counted(pool, progress)
    notes = [f"pooled from {', '.join(map(shown_path, pool))}"]
    if targets:
        notes.append(f"handshakes with {', '.join(targets)} are among them")
    return counts, Origin("stored", ", ".join(targets) or None, notes=tuple(notes))


def _counted(folders: Sequence[Path], progress: SilentProgress) -> tuple[Counts, tuple[str, ...]]:
    progress.stage("counting fingerprints")
    return count_stored(folders, progress=lambda done, _of: progress.advance(done))


def _show(report: CensusReport, fingerprints: Path | None, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    terminal = console()
    print_census(terminal, report)
    if fingerprints is not None:
        terminal.print(f"stored in   {shown_path(fingerprints)}", soft_wrap=True, markup=False)
