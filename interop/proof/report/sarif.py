"""Claims as SARIF 2.1.0, as code scanners exchange results.

Every claim is a result, those that hold too: `kind` tells which (``pass``, ``fail``,
``notApplicable``), and who shows results shows those that fail. A fingerprint of rule and name lets
one run's results be matched with the next one's.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec

from interop.proof.report.claims import Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interop.proof.report.claims import Claim

__all__ = ["SCHEMA", "render_sarif"]

SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_BASE: Final = "EVIDENCE"
_KINDS: Final = {"holds": "pass", "fails": "fail", "not tested": "notApplicable"}


def render_sarif(claims: Sequence[Claim], *, version: str) -> bytes:
    """Return the claims as a SARIF log; `version` is the toolkit's."""
    rules = list(Rule)
    driver = {
        "name": "pfs",
        "fullName": "pfs, the forward-secrecy toolkit",
        "version": version,
        "rules": [
            {
                "id": rule.identifier,
                "name": rule.title,
                "shortDescription": {"text": rule.sentence},
                "defaultConfiguration": {"level": "error"},
            }
            for rule in rules
        ],
    }
    run = {
        "tool": {"driver": driver},
        "originalUriBaseIds": {
            _BASE: {
                "description": {"text": "The evidence directory, as `pfs prove --out` names it"}
            }
        },
        "columnKind": "unicodeCodePoints",
        "results": [_result(claim, rules.index(claim.rule)) for claim in claims],
    }
    log: dict[str, Any] = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return msgspec.json.format(msgspec.json.encode(log), indent=1) + b"\n"


def _result(claim: Claim, rule_index: int) -> dict[str, Any]:
    identity = f"{claim.rule.identifier}\0{claim.name}"
    if claim.name == "evidence":
        identity += f"\0{claim.detail}"  # there may be several of these
    return {
        "ruleId": claim.rule.identifier,
        "ruleIndex": rule_index,
        "kind": _KINDS[claim.outcome],
        "level": "error" if claim.outcome == "fails" else "none",
        "message": {"text": f"{claim.name}: {claim.detail}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(claim.file), "uriBaseId": _BASE}
                }
            }
        ],
        "partialFingerprints": {
            "claim/v1": hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()
        },
    }
