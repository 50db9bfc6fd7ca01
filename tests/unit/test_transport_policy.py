"""Policies: what they admit is frozen, what they can never admit is refused by name."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport import (
    DEFAULT_POLICY,
    PolicyError,
    ProtocolVersion,
    SecurityPolicy,
    get_policy,
    policy_names,
)
from transport.policy import GROUPS, SIGNATURE_SCHEMES, SUITES

SNAPSHOTS = Path(__file__).parent.parent / "snapshots" / "policies"


def build(**changes: object) -> SecurityPolicy:
    return dataclasses.replace(DEFAULT_POLICY, name="test", **changes)  # type: ignore[arg-type] # varied on purpose


@pytest.mark.parametrize("name", policy_names())
def test_a_dated_policy_means_what_it_meant(name: str) -> None:
    assert get_policy(name).describe() == (SNAPSHOTS / f"{name}.txt").read_text()


def test_every_snapshot_has_its_policy() -> None:
    assert sorted(path.stem for path in SNAPSHOTS.glob("*.txt")) == sorted(policy_names())


def test_the_golden_text_tells_policies_apart() -> None:
    fewer = dataclasses.replace(DEFAULT_POLICY, groups=DEFAULT_POLICY.groups[:-1])
    assert fewer.describe() != DEFAULT_POLICY.describe()


def test_the_default_is_a_dated_policy() -> None:
    assert get_policy("default") is DEFAULT_POLICY
    assert DEFAULT_POLICY.name in policy_names()


def test_an_unknown_policy_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(PolicyError, match="2026-11"):
        get_policy("2019-01")


def test_the_default_admits_exactly_the_four_groups() -> None:
    assert DEFAULT_POLICY.groups == ("X25519MLKEM768", "x25519", "secp256r1", "secp384r1")


@pytest.mark.parametrize("suite", SUITES)
def test_every_admissible_suite_is_ephemeral_and_aead(suite: str) -> None:
    assert suite.startswith(("TLS_AES_", "TLS_CHACHA20_", "TLS_ECDHE_"))
    assert "GCM" in suite or "CHACHA20_POLY1305" in suite


@pytest.mark.parametrize(
    ("suite", "reason"),
    [
        ("TLS_RSA_WITH_AES_128_GCM_SHA256", "no forward secrecy"),
        ("TLS_ECDH_ECDSA_WITH_AES_128_GCM_SHA256", "no forward secrecy"),
        ("TLS_DHE_RSA_WITH_AES_128_GCM_SHA256", "finite-field"),
        ("TLS_PSK_WITH_AES_128_GCM_SHA256", "no forward secrecy"),
        ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "not authenticated"),
        ("TLS_ECDHE_RSA_WITH_NULL_SHA", "does not encrypt"),
        ("ECDHE-RSA-AES128-GCM-SHA256", "unknown suite"),
        ("nonsense", "unknown suite"),
    ],
)
def test_a_suite_without_forward_secrecy_or_aead_cannot_be_named(suite: str, reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        build(suites=(*DEFAULT_POLICY.suites, suite))


@pytest.mark.parametrize("group", ["ffdhe2048", "secp521r1", "sect163k1", "X25519", ""])
def test_a_group_outside_the_table_cannot_be_named(group: str) -> None:
    with pytest.raises(PolicyError, match="cannot be part of a policy"):
        build(groups=(*DEFAULT_POLICY.groups, group))


@pytest.mark.parametrize(
    "changes",
    [
        {"versions": ("TLS 1.1", "TLS 1.2")},
        {"versions": ()},
        {"suites": ()},
        {"groups": ()},
        {"signature_schemes": ()},
        {"signature_schemes": ("rsa_pkcs1_sha1",)},
        {"groups": ("x25519", "x25519")},
        {"resumption": "tickets"},
        {"minimum_rsa_key_bits": 1024},
        {"groups": ("X25519MLKEM768",)},  # leaves TLS 1.2 without a group
        {"suites": ("TLS_AES_128_GCM_SHA256",)},  # leaves TLS 1.2 without a suite
        {"versions": ("TLS 1.3",)},  # names suites that nothing can negotiate
    ],
)
def test_what_cannot_work_cannot_be_constructed(changes: dict[str, object]) -> None:
    with pytest.raises(PolicyError):
        build(**changes)


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT_POLICY.groups = ("ffdhe2048",)  # type: ignore[misc] # the point of the test


def test_plain_strings_become_versions() -> None:
    assert build(versions=("TLS 1.3", "TLS 1.2")).versions == (
        ProtocolVersion.TLS_1_3,
        ProtocolVersion.TLS_1_2,
    )


def test_a_policy_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(DEFAULT_POLICY)) == DEFAULT_POLICY  # noqa: S301 - our own bytes


def test_narrowing_to_a_version_drops_what_it_cannot_negotiate() -> None:
    old = DEFAULT_POLICY.narrowed(versions=["TLS 1.2"])
    assert old.groups == ("x25519", "secp256r1", "secp384r1")
    assert {SUITES[suite].version for suite in old.suites} == {ProtocolVersion.TLS_1_2}
    new = DEFAULT_POLICY.narrowed(versions=[ProtocolVersion.TLS_1_3])
    assert new.groups == DEFAULT_POLICY.groups
    assert {SUITES[suite].version for suite in new.suites} == {ProtocolVersion.TLS_1_3}
    assert new.name != DEFAULT_POLICY.name


@given(
    versions=st.none() | st.sets(st.sampled_from(list(ProtocolVersion))),
    suites=st.none() | st.sets(st.sampled_from(list(SUITES))),
    groups=st.none() | st.sets(st.sampled_from(list(GROUPS))),
)
def test_narrowing_only_ever_removes(
    versions: set[str] | None, suites: set[str] | None, groups: set[str] | None
) -> None:
    try:
        narrowed = DEFAULT_POLICY.narrowed(versions=versions, suites=suites, groups=groups)
    except PolicyError:
        return
    for field in ("versions", "suites", "groups", "signature_schemes"):
        have = getattr(DEFAULT_POLICY, field)
        kept = getattr(narrowed, field)
        assert kept == tuple(name for name in have if name in kept)
    assert narrowed.require_extended_main_secret
    assert narrowed.minimum_rsa_key_bits == DEFAULT_POLICY.minimum_rsa_key_bits


@pytest.mark.parametrize(
    "narrowing",
    [
        {"groups": ["SecP384r1MLKEM1024"]},  # admissible, but not in this policy
        {"groups": ["ffdhe2048"]},
        {"suites": ["TLS_RSA_WITH_AES_128_GCM_SHA256"]},
        {"versions": ["TLS 1.1"]},
        {"versions": "TLS 1.3"},  # a string is not a list of names
        {"groups": ["X25519MLKEM768"]},  # TLS 1.2 would have none
    ],
)
def test_narrowing_to_what_a_policy_lacks_is_refused(narrowing: dict[str, list[str]]) -> None:
    with pytest.raises(PolicyError):
        DEFAULT_POLICY.narrowed(**narrowing)


def test_code_points_are_distinct() -> None:
    for table in (
        [suite.code_point for suite in SUITES.values()],
        [group.code_point for group in GROUPS.values()],
        list(SIGNATURE_SCHEMES.values()),
    ):
        assert len(set(table)) == len(table)
