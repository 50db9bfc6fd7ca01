"""``pfs policy list``, ``show`` and ``diff``."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys

from transport.policy import DEFAULT_POLICY, SecurityPolicy, get_policy, policy_names

__all__ = ["run_diff", "run_list", "run_show"]


def run_list(*, as_json: bool) -> int:
    """Print each policy's name and purpose; return 0."""
    policies = [get_policy(name) for name in policy_names()]
    if as_json:
        _print_json([_facts(policy) for policy in policies])
        return 0
    width = max(len(policy.name) for policy in policies)
    for policy in policies:
        mark = " (default)" if policy is DEFAULT_POLICY else ""
        sys.stdout.write(f"{policy.name:<{width}}  {policy.purpose}{mark}\n")
    return 0


def run_show(*, name: str, as_json: bool) -> int:
    """Print what a policy admits; return 0."""
    policy = get_policy(name)
    if as_json:
        _print_json(_facts(policy))
    else:
        sys.stdout.write(policy.describe())
    return 0


def run_diff(*, one: str, other: str, as_json: bool) -> int:
    """Print the lines that two policies do not share; return 0 if there are none, else 1."""
    # Name and purpose are not what a policy admits.
    before, after = (_admitted(get_policy(name)) for name in (one, other))
    if as_json:
        _print_json(
            {
                "removed": [line for line in before if line not in after],
                "added": [line for line in after if line not in before],
            }
        )
    else:
        for line in difflib.unified_diff(before, after, one, other, lineterm="", n=0):
            if not line.startswith("@@"):
                sys.stdout.write(f"{line}\n")
    return 0 if before == after else 1


def _facts(policy: SecurityPolicy) -> dict[str, object]:
    return {"default": policy is DEFAULT_POLICY, **dataclasses.asdict(policy)}


def _admitted(policy: SecurityPolicy) -> list[str]:
    """Return the golden text without name and purpose, each line saying what it is part of."""
    lines: list[str] = []
    version = ""
    for line in policy.describe().splitlines():
        if line.startswith(("policy ", "purpose ")):
            continue
        if line.startswith("version "):
            version = line.removeprefix("version ")
        lines.append(f"{version}:{line.strip()}" if line.startswith("  ") else line)
    return lines


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
