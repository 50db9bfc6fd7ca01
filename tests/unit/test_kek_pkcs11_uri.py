"""PKCS #11 URIs (RFC 7512): what one finds, and what is refused rather than ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.errors import KEKUnavailable
from certs.keystore.kek.pkcs11_uri import PKCS11URI, parse_pkcs11_uri

MODULE = "module-path=/usr/lib/module.so"


def test_every_attribute_is_read() -> None:
    uri = (
        "pkcs11:token=The%20Software%20Token;manufacturer=Snake%20Oil,%20Inc.;serial=0123;"
        "model=1.0;library-manufacturer=Oil;library-description=Soft;library-version=3.2;"
        "slot-manufacturer=Oil;slot-description=Slot&;slot-id=327;"
        "object=my-kek;type=secret-key;id=%69%95%3E%5C%F4"
        "?pin-source=file:/etc/token/pin&module-path=/usr/lib/p11%20mod.so"
    )
    assert parse_pkcs11_uri(uri) == PKCS11URI(
        token={
            "token": "The Software Token",
            "manufacturer": "Snake Oil, Inc.",
            "serial": "0123",
            "model": "1.0",
            "library-manufacturer": "Oil",
            "library-description": "Soft",
            "library-version": "3.2",
            "slot-manufacturer": "Oil",
            "slot-description": "Slot&",
            "slot-id": "327",
        },
        label="my-kek",
        identifier=bytes.fromhex("69953e5cf4"),
        module_path="/usr/lib/p11 mod.so",
        pin_file="/etc/token/pin",
    )


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("file:/etc/pin", "/etc/pin"),
        ("file:///etc/pin", "/etc/pin"),
        ("/etc/pin", "/etc/pin"),
        ("file:/etc/my%20pin", "/etc/my pin"),
    ],
)
def test_a_pin_comes_from_a_file(source: str, path: str) -> None:
    assert parse_pkcs11_uri(f"pkcs11:object=k?pin-source={source}&{MODULE}").pin_file == path


def test_the_scheme_is_read_in_any_case_and_names_only_as_they_are() -> None:
    assert parse_pkcs11_uri(f"PKCS11:object=k?{MODULE}").label == "k"
    with pytest.raises(KEKUnavailable):
        parse_pkcs11_uri(f"pkcs11:OBJECT=k?{MODULE}")


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        (f"pkcs11:object=k?{MODULE}&pin-value=1234S", "PIN never stands"),
        (f"pkcs11:object=k;pin-value=1234S?{MODULE}", "NAME=VALUE"),
        (f"pkcs11:object=k?{MODULE}&pin-source=|cat%20/1234S", "not from a command"),
        (f"pkcs11:object=k?{MODULE}&pin-source=%7Ccat", "not from a command"),
        (f"pkcs11:object=k?{MODULE}&pin-source=file:1234S", "absolute"),
        (f"pkcs11:object=k?{MODULE}&pin-source=file://host/1234S", "absolute"),
        ("pkcs11:object=k", "module-path"),
        ("pkcs11:object=k?module-name=softhsm", "module-path"),
        (f"pkcs11:object=k?{MODULE}&module-name=x", "module-path"),
        ("pkcs11:object=k?module-path=module.so", "absolute"),
        (f"pkcs11:token=t?{MODULE}", "names the key"),
        (f"pkcs11:object=?{MODULE}", "names the key"),
        (f"pkcs11:?{MODULE}", "names the key"),
        (f"pkcs11:object=k;type=private?{MODULE}", "secret-key"),
        (f"pkcs11:object=k;object=l?{MODULE}", "twice"),
        (f"pkcs11:object=k?{MODULE}&{MODULE}", "twice"),
        (f"pkcs11:object=k;x-vendor=1?{MODULE}", "NAME=VALUE"),
        (f"pkcs11:object=k;?{MODULE}", "NAME=VALUE"),
        (f"pkcs11:object?{MODULE}", "NAME=VALUE"),
        (f"pkcs11:object=a b?{MODULE}", "percent-encoded"),
        (f"pkcs11:object=a%2?{MODULE}", "percent-encoded"),
        (f"pkcs11:object=a%zz?{MODULE}", "percent-encoded"),
        (f"pkcs11:object=a/b?{MODULE}", "percent-encoded"),
        (f"pkcs11:object=\u00e9?{MODULE}", "percent-encoded"),
        (f"pkcs11:object=%FF?{MODULE}", "UTF-8"),
        (f"pkcs11:object=a%0Ab?{MODULE}", "no name has"),
        (f"pkcs11:object=k;slot-id=one?{MODULE}", "slot-id"),
        (f"pkcs11:object=k;library-version=1.2.3?{MODULE}", "library-version"),
        (f"pkcs11:object={'k' * 4096}?{MODULE}", "4,096"),
        ("file:/kek", "pkcs11:"),
    ],
)
def test_what_is_unknown_or_unsafe_is_refused(uri: str, match: str) -> None:
    with pytest.raises(KEKUnavailable, match=match) as caught:
        parse_pkcs11_uri(uri)
    assert "1234S" not in str(caught.value)
    assert "\n" not in str(caught.value)


ATTRIBUTES = ["object", "id", "token", "type", "slot-id", "pin-value", "pin-source", "module-path"]
VALUES = st.text(alphabet="ab/%:;?&=|\n 0F\u00e9", max_size=8)


@given(
    st.lists(st.tuples(st.sampled_from(ATTRIBUTES), VALUES), max_size=6),
    st.text(alphabet=";&?=", min_size=6, max_size=6),
)
def test_any_text_is_a_uri_or_refused(parts: list[tuple[str, str]], joints: str) -> None:
    uri = "pkcs11:" + "".join(
        f"{name}={value}{joint}" for (name, value), joint in zip(parts, joints, strict=False)
    )
    try:
        parsed = parse_pkcs11_uri(uri)
    except KEKUnavailable:
        return
    assert parsed.label or parsed.identifier
    assert parsed.module_path.startswith("/")
