"""Which software a KEK's scheme needs: none until it is used, and a missing one is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("pkcs11", "boto3", "botocore", "azure")

NOTHING_HEAVY = f"""
import sys
import certs.keystore
from certs.errors import KEKUnavailable
from certs.keystore.kek import open_kek
for use in ("file:/nowhere", "passphrase:?file=/nowhere"):
    try:
        open_kek(use).unwrap(b"", b"")
    except Exception:
        pass
print([name for name in {HEAVY!r} if name in sys.modules])
"""

WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None  # as if it were not installed
from certs.errors import KEKUnavailable
from certs.keystore.kek import open_kek
try:
    open_kek(sys.argv[2])
except KEKUnavailable as error:
    print(error)
"""

PKCS11 = "pkcs11:object=kek?module-path=/nowhere.so&pin-source=file:/nowhere"
AWS = "awskms:alias/kek?region=eu-west-1"
AZURE = "azurekeyvault:https://pfs-test.vault.azure.net/keys/kek"


def python(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    return done.stdout


def test_a_store_loads_no_software_of_tokens_or_clouds() -> None:
    assert python(NOTHING_HEAVY) == "[]\n"
    loaded = f"import sys, certs.keystore.kek.awskms; print('boto3' in sys.modules, {HEAVY!r}[1])"
    assert python(loaded) == "True boto3\n"


@pytest.mark.parametrize(
    ("package", "uri", "extra"),
    [
        ("pkcs11", PKCS11, "pkcs11"),
        ("boto3", AWS, "awskms"),
        ("azure.identity", AZURE, "azurekeyvault"),
    ],
)
def test_missing_software_is_named_with_its_extra(package: str, uri: str, extra: str) -> None:
    said = python(WITHOUT, package, uri)
    assert f"needs the package {package}" in said
    assert f"pip install 'pfs-transport[{extra}]'" in said
    assert "needs the package" not in python(WITHOUT, "a_package_that_nobody_needs", uri)
