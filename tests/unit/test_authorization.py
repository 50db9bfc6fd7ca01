"""Rules about peers: what each admits, and what it must never admit."""

from __future__ import annotations

import base64
import hashlib
import pickle
import subprocess
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from transport.authorization import (
    Authorization,
    DNSRule,
    IssuerRule,
    PeerNotAuthorized,
    SPKIRule,
    URIRule,
    spki_pin,
)
from transport.errors import APIMisuse

if TYPE_CHECKING:
    from pathlib import Path

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
SEGMENT = st.from_regex(r"[A-Za-z0-9_-]{1,9}", fullmatch=True)
OTHER_PIN = base64.b64encode(bytes(32)).decode("ascii")


@pytest.fixture(scope="module")
def certificate() -> x509.Certificate:
    issued = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert(
        "web.example.com", key_type=trustme.KeyType.ECDSA
    )
    return x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())


@pytest.mark.parametrize(
    ("pattern", "name", "admitted"),
    [
        ("web.example.com", "WEB.Example.com", True),
        ("*.example.com", "web.example.com", True),
        ("*.example.com", "a.web.example.com", False),
        ("*.example.com", "web.example.org", False),
        ("web.example.com", "web.example.org", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "*.example.com", False),
        ("web.example.com", "web.example.com.", False),
        ("web.example.com", "web.example.com\0.evil.test", False),
    ],
)
def test_dns(pattern: str, name: str, admitted: bool) -> None:  # noqa: FBT001 - a table's column
    assert DNSRule(pattern).matches_name(name) is admitted


@pytest.mark.parametrize("pattern", ["", "*", "*.com", "w*.example.com", "a.*.com", "a..b", "ü.de"])
def test_dns_patterns_that_are_no_patterns(pattern: str) -> None:
    with pytest.raises(APIMisuse):
        DNSRule(pattern)


@pytest.mark.parametrize(
    ("pattern", "name", "admitted"),
    [
        ("spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/prod/sa/web", True),
        ("spiffe://example.org/ns/*/sa/web", "SPIFFE://Example.org/ns/prod/sa/web", True),
        ("spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/prod/sa/WEB", False),
        ("spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/a/b/sa/web", False),
        ("spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns//sa/web", False),
        ("spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/../sa/web", False),
        ("spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/a%2Fb/sa/web", False),
        ("spiffe://example.org/*", "spiffe://example.org/a?b", False),
        ("spiffe://example.org/*", "spiffe://example.org/a#b", False),
        ("spiffe://example.org/*", "spiffe://example.org/", False),
        ("spiffe://example.org/*", "spiffe://example.org", False),
        ("spiffe://example.org/*", "spiffe://example.org.evil/a", False),
        ("spiffe://example.org", "spiffe://example.org/a", False),
        ("https://example.org/a?b", "https://example.org/a?b", True),
        ("urn:uuid:1", "urn:uuid:1", True),
    ],
)
def test_uri(pattern: str, name: str, admitted: bool) -> None:  # noqa: FBT001 - a table's column
    assert URIRule(pattern).matches_name(name) is admitted


@pytest.mark.parametrize(
    "pattern", ["", "*", "spiffe://*/a", "spiffe://x/a*", "spiffe://x/**", "spiffe://x/*/../a"]
)
def test_uri_patterns_that_are_no_patterns(pattern: str) -> None:
    with pytest.raises(APIMisuse):
        URIRule(pattern)


@given(below=st.lists(LABEL, min_size=2, max_size=4), above=st.lists(LABEL, max_size=3))
def test_a_dns_wildcard_is_exactly_one_label(below: list[str], above: list[str]) -> None:
    matched = DNSRule(".".join(["*", *below])).matches_name(".".join([*above, *below]))
    assert matched is (len(above) == 1)


@given(
    before=st.lists(SEGMENT, max_size=3),
    between=st.lists(SEGMENT, max_size=3),
    after=st.lists(SEGMENT, max_size=3),
)
def test_a_uri_wildcard_is_exactly_one_segment(
    before: list[str], between: list[str], after: list[str]
) -> None:
    rule = URIRule("spiffe://x/" + "/".join([*before, "*", *after]))
    offered = "/".join(["spiffe://x", *before, *between, *after])
    assert rule.matches_name(offered) is (len(between) == 1)


@given(text=st.text(max_size=20))
def test_a_wildcard_crosses_nothing_whatever_is_offered(text: str) -> None:
    if DNSRule("*.example.com").matches_name(f"{text}.example.com"):
        assert "." not in text
    if URIRule("spiffe://x/*/web").matches_name(f"spiffe://x/{text}/web"):
        assert not set(text) & set("/?#%*\\")


def test_the_proof_names_the_peer_and_what_matched(certificate: x509.Certificate) -> None:
    wanted, other = DNSRule("*.example.com"), DNSRule("db.example.com")
    peer = Authorization(any_of=(other, wanted)).authorize(certificate)
    assert peer.dns_names == ("web.example.com",)
    assert peer.rules == (wanted,)
    assert peer.certificate == certificate
    assert peer.spki_pin == spki_pin(certificate)


def test_a_refusal_names_the_rule_and_the_offer(certificate: x509.Certificate) -> None:
    with pytest.raises(PeerNotAuthorized) as refused:
        Authorization(any_of=(DNSRule("db.example.com"),)).authorize(certificate)
    text = str(refused.value)
    assert "DNS db.example.com" in text
    assert "'web.example.com'" in text
    copied = pickle.loads(pickle.dumps(refused.value))  # noqa: S301 - made on this line
    assert (type(copied), str(copied)) == (PeerNotAuthorized, text)


@pytest.mark.parametrize("wrong", ["issuer", "pin"])
def test_issuer_and_pin_admit_their_own_and_nobody_else(
    certificate: x509.Certificate, wrong: str
) -> None:
    both = (IssuerRule(certificate.issuer), SPKIRule(spki_pin(certificate)))
    assert Authorization(all_of=both).authorize(certificate).rules == both
    bad = IssuerRule(certificate.subject) if wrong == "issuer" else SPKIRule(OTHER_PIN)
    with pytest.raises(PeerNotAuthorized):
        Authorization(all_of=(*both, bad)).authorize(certificate)


def test_both_lists_must_hold(certificate: x509.Certificate) -> None:
    pin, name = SPKIRule(spki_pin(certificate)), DNSRule("db.example.com")
    with pytest.raises(PeerNotAuthorized):
        Authorization(any_of=(name,), all_of=(pin,)).authorize(certificate)


def test_openssl_computes_the_same_pin(certificate: x509.Certificate, tmp_path: Path) -> None:
    path = tmp_path / "leaf.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    key = subprocess.run(
        ["openssl", "x509", "-in", path, "-noout", "-pubkey"], check=True, capture_output=True
    ).stdout
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"], input=key, check=True, capture_output=True
    ).stdout
    assert base64.b64encode(hashlib.sha256(der).digest()).decode("ascii") == spki_pin(certificate)


@pytest.mark.parametrize("pin", ["", "AAAA", "=" * 44, "A" * 42 + "B=", "ü" * 44])
def test_pins_that_are_no_pins(pin: str) -> None:
    with pytest.raises(APIMisuse):
        SPKIRule(pin)


def test_an_authorization_without_rules_would_admit_everyone() -> None:
    with pytest.raises(APIMisuse):
        Authorization()
