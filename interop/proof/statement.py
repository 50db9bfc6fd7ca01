"""What the manifest states: an in-toto Statement v1 with a predicate of our own type.

The subjects are the files of the evidence. The predicate says how the evidence came to be and how
far it reaches; all of it but the signing key follows from the report, so `pfs verify` makes it anew
and compares. docs/formats.md ("Manifest") specifies each field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from interop.proof.circumstances import Machine, NotTested  # noqa: TC001 - msgspec reads them

if TYPE_CHECKING:
    from interop.proof.model import Report

__all__ = [
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "Digest",
    "Length",
    "Predicate",
    "Samples",
    "Statement",
    "Subject",
    "Tool",
    "predicate_of",
]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE: Literal["https://in-toto.io/Statement/v1"] = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Literal["urn:pfs-transport:evidence:v1"] = "urn:pfs-transport:evidence:v1"
TOOL_NAME = "pfs-transport"


class Digest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The digest of a subject, in lower-case hex."""

    sha256: str


class Length(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What a subject says beside its digest."""

    length_bytes: int


class Subject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file: its path below the directory, with ``/`` between its parts."""

    name: str
    digest: Digest
    annotations: Length


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """What made the evidence."""

    name: str
    version: str


class Samples(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How much the evidence rests on."""

    sessions: int
    thefts: int
    cells: int
    payload_bytes: int
    handshakes: int
    values: int
    replays: int
    genuine_sessions: int
    second_opinions: int


class Predicate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How the evidence came to be. `public_key` is the signing key's 32 octets in base64."""

    tool: Tool
    machine: Machine
    versions: dict[str, str]
    started_on: str
    finished_on: str
    verdict: str
    samples: Samples
    not_tested: tuple[NotTested, ...]
    public_key: str


class Statement(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The payload of the manifest's envelope."""

    type_: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(
        name="_type", default=STATEMENT_TYPE
    )
    subject: tuple[Subject, ...]
    predicate_type: Literal["urn:pfs-transport:evidence:v1"] = PREDICATE_TYPE
    predicate: Predicate


def predicate_of(report: Report, *, public_key: str) -> Predicate:
    """Return the predicate of the evidence whose report is `report`."""
    return Predicate(
        tool=Tool(name=TOOL_NAME, version=report.versions.get(TOOL_NAME, "")),
        machine=report.machine,
        versions={name: value for name, value in report.versions.items() if name != TOOL_NAME}
        | (
            {report.second_opinion.program: version}
            if (version := report.second_opinion.version)
            else {}
        ),
        started_on=_in_utc(report.started),
        finished_on=_in_utc(report.created),
        verdict=report.verdict,
        samples=_samples(report),
        not_tested=report.not_tested,
        public_key=public_key,
    )


def _in_utc(time: str) -> str:
    """Spell a time in UTC as in-toto's Timestamp has to be: with a Z."""
    return f"{time.removesuffix('+00:00')}Z" if time.endswith("+00:00") else time


def _samples(report: Report) -> Samples:
    return Samples(
        sessions=len(report.sessions),
        thefts=len(report.thefts),
        cells=len(report.cells),
        payload_bytes=report.payload_bytes,
        handshakes=report.handshakes,
        values=sum(tally.count for tally in report.tallies.values()),
        replays=sum(replay.attempts for replay in report.replays),
        genuine_sessions=report.replay_control.attempts,
        second_opinions=sum(
            opinion.observed is not None for opinion in report.second_opinion.opinions
        ),
    )
