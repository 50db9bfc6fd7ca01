"""Breaking the harness on purpose, to see that it notices.

A mutant is one small change to one named place. `in_force` puts it in that place for a while. A
place that is not there any more, and a mutant that never ran, are failures of the test itself: a
change that nobody met shows nothing.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType


@dataclass(frozen=True)
class Mutant:
    """`change` makes of what is at `place` ("module:name.name") what is there instead.

    `said` is a part of what the harness must say then.
    """

    name: str
    place: str
    change: Callable[[Any], Any]
    said: str

    def __repr__(self) -> str:
        return self.name


@contextmanager
def in_force(place: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """Put a change in its place; fails if it was not reached until the context is left."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    if name not in vars(owner):
        pytest.fail(f"there is no {place} any more; let the mutant change what is there instead")
    original = vars(owner)[name]
    reached: list[None] = []
    setattr(owner, name, _noticed(original, getattr(owner, name), change, reached))
    try:
        yield
    finally:
        setattr(owner, name, original)
    if not reached:
        pytest.fail(f"{place} was never reached, so the mutant there shows nothing")


def _noticed(original: Any, found: Any, change: Callable[[Any], Any], reached: list[None]) -> Any:
    """Return the changed thing, which notes in `reached` that it ran."""

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            reached.append(None)
            return function(*arguments, **named)

        return run

    if isinstance(original, property):
        return property(noting(change(original.fget)))
    if isinstance(original, functools.cached_property):
        cached = functools.cached_property(noting(change(original.func)))
        cached.__set_name__(object, original.attrname)
        return cached
    if isinstance(original, classmethod | staticmethod):
        return staticmethod(noting(change(found)))
    return noting(change(original))


def sentences_of(module: ModuleType, *suffixes: str) -> set[str]:
    """Return what functions can say whose names end so, of each sentence its longest fixed part.

    Those are the strings of more than one word in what they yield or return, or make for that.
    """
    found = set()
    for function in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(function, ast.FunctionDef) and function.name.endswith(suffixes):
            # all but the docstring
            for statement in function.body[bool(ast.get_docstring(function)) :]:
                found |= {fixed_part(node) for node in _whole_strings(statement)}
    return {text for text in found if " " in text}


def _whole_strings(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the strings below a node, and no parts of f-strings."""
    if isinstance(node, ast.JoinedStr | ast.Constant):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from _whole_strings(child)


def fixed_part(node: ast.expr) -> str:
    """Return the longest part of a string or f-string that is always the same; else nothing."""
    parts: Iterable[ast.expr] = node.values if isinstance(node, ast.JoinedStr) else (node,)
    fixed = [
        part.value.strip()
        for part in parts
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    return max(fixed, key=len, default="")
