"""Rules of the house that no linter knows, checked on the source itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("certs", "transport", "interop")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MOST_LINES = 550


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_explains_itself_and_names_what_it_offers(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), "a module's top says why it exists"
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
    assert "__all__" in assigned or not defines


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_assert_guards_running_code(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_stay_small(path: Path) -> None:
    lines = path.read_text("utf-8").count("\n")
    assert lines <= MOST_LINES, f"{lines} lines: split it along a seam that has a name"


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def test_only_these_modules_reach_below_pyopenssl() -> None:
    below = re.compile(r"OpenSSL\._|cryptography\.hazmat\.bindings")
    reaching = {name_of(path) for path in SOURCES if any(map(below.match, imported_names(path)))}
    endpoints = {"transport/openssl.py", "transport/openssl_peers.py"}
    # Controls that take 0-RTT data and tell sessions: transport has no use for either.
    assert reaching <= endpoints | {
        "interop/peers/early_data.py",
        "interop/peers/stored_sessions.py",
    }


def test_only_one_module_builds_contexts_of_the_endpoints() -> None:
    building = {
        name_of(path)
        for path in SOURCES
        if re.search(r"\bSSL\.Context\(|\bSSLContext\(|\bCheckedContext\(", path.read_text("utf-8"))
    }
    # Python's own contexts, for code that insists on them, are built beside their theory.
    python_own = "transport/adapters/standard_library.py"
    weak = {"interop/peers/weak.py", "interop/peers/early_data.py"}
    # A client that measures foreign servers, and stands under no policy.
    observer = "interop/peers/observer.py"
    assert building == {"transport/context.py", *weak, observer, python_own}


def test_transport_cannot_reach_the_weak_endpoints() -> None:
    for path in SOURCES:
        if name_of(path).startswith(("transport/", "certs/")):
            assert not any(name.startswith("interop") for name in imported_names(path))


def test_private_keys_are_never_committed() -> None:
    marker = "PRIVATE" + " KEY-----"
    tracked = [path for path in ROOT.rglob("*") if path.is_file() and not ignored(path)]
    assert len(tracked) > len(SOURCES)
    for path in tracked:
        content = path.read_bytes()
        for line in content.splitlines():
            # A literal in source that speaks of such a file is no key.
            assert not line.strip().startswith(b"-----BEGIN") or marker.encode() not in line, path


def ignored(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return any(part.startswith(".") and part != ".ci" for part in parts) or parts[0] in {
        "evidence",
        "build",
        "dist",
    }
