"""Claims as JUnit XML, a test suite a rule and a test case a claim, as CI systems read it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from interop.proof.report.claims import Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interop.proof.report.claims import Claim

__all__ = ["render_junit"]

# What XML 1.0 has no way to spell; a forged report may hold any of it.
_UNSPEAKABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(claims: Sequence[Claim]) -> bytes:
    """Return the claims as a JUnit XML document in UTF-8."""
    root = ET.Element("testsuites", {"name": "pfs", **_counts(claims)})
    for rule in Rule:
        of_rule = [claim for claim in claims if claim.rule is rule]
        if not of_rule:
            continue
        suite = ET.SubElement(
            root, "testsuite", {"name": f"{rule.identifier} {rule.title}", **_counts(of_rule)}
        )
        for claim in of_rule:
            case = ET.SubElement(
                suite,
                "testcase",
                classname=f"pfs.{rule.title}",
                name=_clean(claim.name),
                time="0",
            )
            if claim.outcome == "fails":
                failure = ET.SubElement(
                    case, "failure", message=_clean(claim.detail), type=rule.identifier
                )
                failure.text = _clean(f"{rule.sentence}\n{claim.detail}\nsee {claim.file}")
            elif claim.outcome == "not tested":
                ET.SubElement(case, "skipped", message=_clean(claim.detail))
            else:
                ET.SubElement(case, "system-out").text = _clean(claim.detail)
    ET.indent(root, " ")
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _counts(claims: Sequence[Claim]) -> dict[str, str]:
    return {
        "tests": str(len(claims)),
        "failures": str(sum(claim.outcome == "fails" for claim in claims)),
        "errors": "0",
        "skipped": str(sum(claim.outcome == "not tested" for claim in claims)),
        "time": "0",
    }


def _clean(text: str) -> str:
    return _UNSPEAKABLE.sub("\ufffd", text)
