"""Public names exist, are spelled in `__all__`, and nothing public is left out of it."""

from __future__ import annotations

import importlib
import pkgutil
from types import FunctionType, ModuleType

import pytest

import certs
import interop
import transport

MODULES = sorted(
    module.name
    for package in (certs, transport, interop)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith(("__main__", "migrations.env"))  # not for importing
)


@pytest.mark.parametrize("name", MODULES)
def test_all_names_exist_and_are_sorted_out(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert len(set(exported)) == len(exported)
    for attribute in exported:
        assert hasattr(module, attribute), f"{name}.{attribute} is promised and missing"
    assert public_definitions(module) <= set(exported)


def public_definitions(module: ModuleType) -> set[str]:
    """Return the public functions and classes that a module defines itself."""
    return {
        attribute
        for attribute, value in vars(module).items()
        if isinstance(value, FunctionType | type)
        and value.__module__ == module.__name__
        and not attribute.startswith("_")
    }
