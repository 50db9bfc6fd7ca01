"""Each check of `pfs verify` is needed: there is a tampering that it alone finds.

Each row names a check, something that a forger does to evidence, and how the check is taken out.
With the check the tampering is noticed, for the reason named; without it, it is not.
"""

from __future__ import annotations

import ast
import base64
import inspect
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mutation import fixed_part, in_force

from interop.proof import manifest, second_opinion, verification
from interop.proof.circumstances import not_tested
from interop.proof.envelope import Envelope, seal_envelope
from interop.proof.manifest import MANIFEST_NAME, key_fingerprint, sign_manifest
from interop.proof.model import Report, read_report
from interop.proof.opinions import Opinion, SecondOpinion
from interop.proof.report.html import render_html
from interop.proof.statement import PAYLOAD_TYPE
from interop.proof.verification import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Evidence

    from interop.proof.verification import Verification


def sign(directory: Path, report: Report) -> None:
    """Sign anew, as a forger would who cannot be asked for a fingerprint."""
    sign_manifest(directory, Ed25519PrivateKey.generate(), report)


def stated(directory: Path) -> Report:
    return read_report((directory / "report.json").read_bytes())


def state(directory: Path, report: Report) -> None:
    """Let all of the evidence say what a report does, and sign it anew."""
    (directory / "report.json").write_bytes(report.to_json())
    (directory / "report.html").write_text(render_html(report), "utf-8")
    sign(directory, report)


def forging(**changes: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change what the report states, by name."""

    def forge(directory: Path) -> None:
        report = stated(directory)
        changed = {name: change(getattr(report, name)) for name, change in changes.items()}
        state(directory, msgspec.structs.replace(report, **changed))

    return forge


def first(**changes: Any) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Change the first of some entries."""
    return lambda entries: (msgspec.structs.replace(entries[0], **changes), *entries[1:])


def then_sign(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Change a file, and sign what is there then."""

    def touch(directory: Path) -> None:
        change(directory)
        sign(directory, stated(directory))

    return touch


def append(path: str, content: bytes) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        with (directory / path).open("ab") as file:
            file.write(content)

    return change


def change_the_last_octet(directory: Path) -> None:
    path = directory / "stolen/server.key.pem"
    path.write_bytes(path.read_bytes()[:-1] + b" ")


def replace_by_a_link(directory: Path) -> None:
    path = directory / "stolen/server.key.pem"
    shutil.move(path, directory.parent / "elsewhere")
    path.symlink_to(directory.parent / "elsewhere")


def reseal(directory: Path, change: Callable[[dict[str, Any]], None], key_id: str = "") -> None:
    """Sign another statement, perhaps in the name of another key."""
    key = Ed25519PrivateKey.generate()
    sign_manifest(directory, key, stated(directory))
    statement = json.loads(Envelope.decode((directory / MANIFEST_NAME).read_bytes()).payload)
    change(statement)
    envelope = seal_envelope(
        PAYLOAD_TYPE,
        json.dumps(statement).encode(),
        key,
        key_id=key_id or key_fingerprint(key.public_key()),
    )
    (directory / MANIFEST_NAME).write_bytes(envelope.encode())


def put_in_without_signing(directory: Path) -> None:
    """Give the manifest of a changed file, under the signature of the genuine one."""
    path = directory / MANIFEST_NAME
    genuine = Envelope.decode(path.read_bytes())
    append("stolen/server.key.pem", b"\n")(directory)
    sign_manifest(directory, Ed25519PrivateKey.generate(), stated(directory))
    forged = json.loads(Envelope.decode(path.read_bytes()).payload)
    forged["predicate"] = json.loads(genuine.payload)["predicate"]
    payload = json.dumps(forged).encode()
    path.write_bytes(msgspec.structs.replace(genuine, payload=payload).encode())


def name_a_file_twice(statement: dict[str, Any]) -> None:
    statement["subject"].append(statement["subject"][-1])


def state_more_handshakes(statement: dict[str, Any]) -> None:
    statement["predicate"]["samples"]["handshakes"] = 10**6


def hide_a_replay_that_executed(directory: Path) -> None:
    for kind, suffix in (("captures", "pcapng"), ("stolen", "keylog")):
        shutil.copyfile(
            directory / kind / f"genuine-tls13-x25519.{suffix}",
            directory / kind / f"replay-tls13-x25519-1.{suffix}",
        )


def add_a_recording(directory: Path) -> None:
    """Leave a recording, signed like the others, that the report speaks of nowhere."""
    captures = directory / "captures"
    shutil.copyfile(captures / "control-static-rsa.pcapng", captures / "tls13-other.pcapng")


def repeat_a_value(directory: Path) -> None:
    """State, truly, that a value of the census came twice, and that all is proved."""
    path = directory / "census/server_random.fingerprints"
    content = path.read_bytes()
    path.write_bytes(content[:16] + content[:16] + content[32:])
    report = stated(directory)
    counted = report.tallies["server_random"]
    tally = msgspec.structs.replace(counted, distinct=counted.count - 1)
    state(
        directory, msgspec.structs.replace(report, census=report.census | {"server_random": tally})
    )


_OPENED_ELSEWHERE = SecondOpinion(
    program="tshark",
    version="4.0.0",
    opinions=(
        Opinion(
            session="tls13-x25519",
            stolen="server-key",
            observed="opened",
            recovered_bytes=1,
        ),
    ),
)


class EqualToAll:
    """What every comparison finds to be the same."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def nothing(_original: Any) -> Any:
    return lambda *_arguments, **_named: ()


def believing(name: str) -> Callable[[Any], Any]:
    """Believe what the report states instead of looking into the directory."""
    return lambda _original: lambda directory, *_rest, **_named: getattr(stated(directory), name)


def believe_sessions(_original: Any) -> Any:
    return lambda directory, name, **_named: next(
        session for session in stated(directory).sessions if session.name == name
    )


def believe_matrix(_original: Any) -> Any:
    def evaluate(directory: Path, *_rest: Any, **_named: Any) -> Any:
        report = stated(directory)
        return report.thefts, report.cells

    return evaluate


def believe_replays(_original: Any) -> Any:
    return lambda _directory, replay, _attempts: replay


def trust_any_signature(original: Any) -> Any:
    class Trusted:
        def __init__(self, raw: bytes) -> None:
            self._key = original(raw)

        def public_bytes(self, *arguments: Any) -> bytes:
            return self._key.public_bytes(*arguments)

        def verify(self, *_arguments: Any) -> None:
            pass

    return Trusted


def any_key_id(original: Any) -> Any:
    def read(path: Path) -> Any:
        envelope = original(path)
        statement = manifest._read_statement(envelope)
        raw = base64.b64decode(statement.predicate.public_key)
        key = manifest.Ed25519PublicKey.from_public_bytes(raw)
        return msgspec.structs.replace(envelope, key_id=key_fingerprint(key))

    return read


def each_once(original: Any) -> Any:
    def read(envelope: Any) -> Any:
        statement = original(envelope)
        by_name = {subject.name: subject for subject in statement.subject}
        return msgspec.structs.replace(statement, subject=tuple(by_name.values()))

    return read


def but_extra(original: Any) -> Any:
    return lambda directory: [path for path in original(directory) if "extra" not in path]


def any_signer(original: Any) -> Any:
    return lambda directory, **_named: original(directory)


@dataclass(frozen=True)
class Check:
    """`touch` is noticed and `said`; with `without` at `place`, it is not noticed."""

    name: str
    touch: Callable[[Path], object]
    said: str
    place: str
    without: Callable[[Any], Any]

    def __repr__(self) -> str:
        return self.name


FILES = "interop.proof.manifest:_compare"
RECOMPUTED = "interop.proof.verification"
OF_SESSIONS, OF_MATRIX = f"{RECOMPUTED}:observe_session", f"{RECOMPUTED}:evaluate"
OF_REPLAYS = f"{RECOMPUTED}:_recount"
CHECKS = (
    Check("a file that is longer", append("stolen/server.key.pem", b"\n"), "bytes instead of",
        FILES, nothing),
    Check("a file that is other", change_the_last_octet, "changed", FILES, nothing),
    Check("a file that is missing", lambda directory: (directory / "report.html").unlink(),
        "missing", FILES, nothing),
    Check("a file that is a link", replace_by_a_link, "no longer a regular file", FILES, nothing),
    Check("a file that was added", append("stolen/extra", b""), "added since it was signed",
        "interop.proof.manifest:_files", but_extra),
    Check("the signature", put_in_without_signing, "the signature does not match",
        "interop.proof.manifest:Ed25519PublicKey.from_public_bytes", trust_any_signature),
    Check("the fingerprint", lambda directory: sign(directory, stated(directory)),
        "signed by another key", f"{RECOMPUTED}:check_manifest", any_signer),
    Check("the name of the key", lambda directory: reseal(directory, lambda _: None, "SHA256:00"),
        "its keyid is not that of the key that signed", "interop.proof.manifest:_read_envelope",
        any_key_id),
    Check("each file once", lambda directory: reseal(directory, name_a_file_twice),
        "it names a file twice", "interop.proof.manifest:_read_statement", each_once),
    Check("the sessions", forging(sessions=first(suite="TLS_FORGED")), "the recorded sessions",
        OF_SESSIONS, believe_sessions),
    Check("the thefts", forging(thefts=first(title="Forged")), "what was stolen", OF_MATRIX,
        believe_matrix),
    Check("the cells", forging(cells=first(reason="forged")), "the matrix", OF_MATRIX,
        believe_matrix),
    Check("a key log of another session", then_sign(lambda directory: shutil.copyfile(
        directory / "stolen/tls12-ecdhe.keylog", directory / "stolen/tls13-x25519.keylog")),
        "the matrix", OF_MATRIX, believe_matrix),
    Check("the census", forging(census=lambda census: census | {
        "psk": msgspec.structs.replace(census["psk"], count=9, distinct=9)}), "the census",
        f"{RECOMPUTED}:_tallies", believing("tallies")),
    Check("the fingerprints", then_sign(append("census/psk.fingerprints", bytes(16))),
        "the census", f"{RECOMPUTED}:_tallies", believing("tallies")),
    Check("how many handshakes", forging(census=lambda census: census | {"handshakes": 10**6}),
        "the failures", f"{RECOMPUTED}:failures", nothing),
    Check("the replays", then_sign(hide_a_replay_that_executed), "the replays", OF_REPLAYS,
        believe_replays),
    Check("the replay control", then_sign(lambda directory: (
        directory / "stolen/genuine-tls13-x25519.keylog").write_bytes(b"")), "the replay control",
        OF_REPLAYS, believe_replays),
    Check("captures that nobody speaks of", then_sign(add_a_recording), "which captures there are",
        f"{RECOMPUTED}:_present", lambda _original: lambda directory: verification._named(
            stated(directory))),
    Check("the failures", repeat_a_value, "the failures", f"{RECOMPUTED}:failures", nothing),
    Check("the verdict", forging(verdict=lambda _: "refuted"), "the verdict",
        f"{RECOMPUTED}:verdict_of", lambda _original: lambda _found: "refuted"),
    Check("the second opinion", forging(
        second_opinion=lambda _: _OPENED_ELSEWHERE, not_tested=lambda limits: tuple(
            limit for limit in limits if "second opinion" not in limit.what)),
        "the failures", f"{RECOMPUTED}:contradictions", nothing),
    Check("the predicate", lambda directory: reseal(directory, state_more_handshakes),
        "the manifest's predicate is not what the report yields", f"{RECOMPUTED}:predicate_of",
        lambda _original: lambda *_rest, **_named: EqualToAll()),
    Check("the page", then_sign(append("report.html", b"<p>forged")),
        "does not show what the report states", f"{RECOMPUTED}:render_html",
        lambda original: lambda report: original(report) + "<p>forged"),
    Check("the limits", forging(not_tested=lambda limits: limits[1:]),
        "the report does not state all that was not tested", f"{RECOMPUTED}:not_tested",
        lambda original: lambda *given: original(*given)[1:]),
)  # fmt: skip


def verified(evidence: Evidence, directory: Path, check: Check) -> Verification:
    """Verify offline; the fingerprint is known to nobody but to the check for it."""
    fingerprint = evidence.fingerprint if check.name == "the fingerprint" else None
    return verify(directory, fingerprint=fingerprint, ask_again=False)


def test_untouched_evidence_holds(evidence: Evidence) -> None:
    assert verify(evidence.directory, fingerprint=evidence.fingerprint, ask_again=False).holds


@pytest.mark.usefixtures("matrix_once")
@pytest.mark.parametrize("check", CHECKS, ids=repr)
def test_each_check_finds_what_no_other_does(evidence: Evidence, copy: Path, check: Check) -> None:
    check.touch(copy)
    found = verified(evidence, copy, check)
    assert not found.intact
    said = [*(change.problem for change in found.changes), *found.disagreements]
    assert any(check.said in text for text in said), said
    with in_force(check.place, check.without):
        blind = verified(evidence, copy, check)
    assert blind.intact, [blind.changes, blind.disagreements]


def drop_the_last(opinion: SecondOpinion) -> SecondOpinion:
    return msgspec.structs.replace(opinion, opinions=opinion.opinions[:-1])


def recover_less(opinion: SecondOpinion) -> SecondOpinion:
    """State that the other program, too, recovered less than it did."""
    return msgspec.structs.replace(
        opinion,
        opinions=tuple(
            msgspec.structs.replace(each, recovered_bytes=1) if each.whole else each
            for each in opinion.opinions
        ),
    )


OPINIONS = (
    (drop_the_last, "the second opinion is not on the cells of the matrix"),
    (recover_less, "stolen: not as stated"),
)


@pytest.mark.peers
@pytest.mark.long
def test_an_opinion_that_is_not_the_other_programs_is_found_by_asking_again(
    copy: Path,
    require_program: Callable[[str], object],
) -> None:
    require_program("tshark")
    report = stated(copy)
    given = second_opinion.ask(
        copy,
        report.sessions,
        report.thefts,
        report.cells,
        payload_bytes=report.payload_bytes,
        payload_sha256=report.payload_sha256,
    )

    def state_opinion(opinion: SecondOpinion) -> None:
        limits = not_tested(((s.name, s.reason) for s in report.skipped), opinion)
        state(copy, msgspec.structs.replace(report, second_opinion=opinion, not_tested=limits))

    state_opinion(given)
    assert verify(copy).holds
    for change, said in OPINIONS:
        state_opinion(change(given))
        found = verify(copy)
        assert any(said in text for text in found.disagreements), found.disagreements
        assert verify(copy, ask_again=False).intact


# What is said of evidence that cannot even be read has its tests in test_evidence.py.
UNREADABLE = {"it holds no Ed25519 key", "cannot be read:"}


def statements() -> set[str]:
    """Return what the two modules can say of evidence that was touched."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(manifest))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Change":
            found.add(fixed_part(node.args[1]))
    for node in ast.walk(ast.parse(inspect.getsource(verification))):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="disagreements" | "unlike"), attr="append")
            ):
                found.add(fixed_part(node.args[0]))
            case ast.AnnAssign(target=ast.Name(id="compared"), value=ast.List(elts=entries)):
                found |= {fixed_part(entry.elts[0]) for entry in entries}  # type: ignore[attr-defined]
    return found - {""}


def test_every_check_is_in_the_table() -> None:
    said = {check.said for check in CHECKS} | {said for _, said in OPINIONS}
    assert len(statements()) > 15
    missing = {
        text
        for text in statements()
        if not any(each in text or text in each for each in said)
        and not any(text.startswith(each) for each in UNREADABLE)
    }
    assert missing == set()
