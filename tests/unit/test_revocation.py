"""CRLs and OCSP responses: what is written reads back; what proves nothing is refused, and why."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs import profiles
from certs.authority import CertificateAuthority
from certs.errors import (
    IssuanceError,
    NotKnownGood,
    RevocationFault,
    UnusableCRL,
    UnusableOCSPResponse,
)
from certs.key_types import KeyType
from certs.keystore import KeyStore
from certs.keystore.kek import FileKEK
from certs.ocsp import (
    CertificateStatus,
    build_ocsp_response,
    read_own_staple,
    requires_staple,
    verify_ocsp_response,
)
from certs.revocation import RevocationLists, RevokedCertificate, build_crl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from certs.credential import Credential
    from certs.key_types import PrivateKey

# The library stamps producedAt of OCSP responses with the system's time, so this is it.
# Ahead of the clock: cryptography stamps producedAt with the system's time, and a response must not
# have been produced after the moment that it is judged at, however late in a run a test's turn is.
NOW = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
WEEK = timedelta(days=7)
OCSP_RESPONDER = profiles.CertificateProfile(
    name="ocsp-responder",
    lifetime=timedelta(days=30),
    key_usage=frozenset({"digital_signature"}),
    extended_key_usage=(ExtendedKeyUsageOID.OCSP_SIGNING,),
)


class World(NamedTuple):
    """A root, an issuing CA below it, and what they issued."""

    root: CertificateAuthority
    issuing: CertificateAuthority
    server: Credential
    other: Credential
    responder: Credential

    def key(self, authority: CertificateAuthority) -> PrivateKey:
        return authority.store.signing_key(authority.name, authority.key_version)

    @property
    def path(self) -> tuple[x509.Certificate, ...]:
        return (*self.server.chain, self.root.certificate)

    def crl(self, authority: CertificateAuthority, *serials: int, **options: object) -> bytes:
        return self.build(authority, *serials, **options).public_bytes(Encoding.PEM)

    def build(
        self, authority: CertificateAuthority, *serials: int, start: datetime = NOW
    ) -> x509.CertificateRevocationList:
        return build_crl(
            authority.certificate,
            self.key(authority),
            [
                RevokedCertificate(serial, NOW, x509.ReasonFlags.key_compromise)
                for serial in serials
            ],
            number=7,
            now=start,
            next_update=start + WEEK,
        )

    def response(self, **options: object) -> bytes:
        settings: dict[str, object] = {"now": NOW, "next_update": NOW + WEEK, **options}
        key = settings.pop("signing_key", None) or self.key(self.issuing)
        return build_ocsp_response(
            self.server.leaf,
            self.issuing.certificate,
            key,  # type: ignore[arg-type] # a test's shorthand
            **settings,  # type: ignore[arg-type] # the same
        )


@pytest.fixture(scope="module", params=[KeyType.EC_P256, KeyType.ED25519, KeyType.RSA_2048])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("store")
    with KeyStore.create(folder / "store.db", FileKEK.create(folder / "kek")) as store:
        root = CertificateAuthority.create_root(store, "root", "Root", NOW)
        issuing = root.issue_subordinate("issuing", "Issuing", NOW, key_type=request.param)
        server, other = (
            issuing.issue_server(key_name=name, dns_names=["localhost"], now=NOW)
            for name in ("server", "other")
        )
        responder = issuing.issue_server(
            key_name="responder", dns_names=["ocsp.example"], now=NOW, profile=OCSP_RESPONDER
        )
        yield World(root, issuing, server, other, responder)


def fault_of(lists: RevocationLists, world: World, now: datetime = NOW) -> RevocationFault:
    with pytest.raises(NotKnownGood) as caught:
        lists.require_good(world.path, now)
    return caught.value.fault


# CRLs


def test_a_list_says_what_rfc_5280_asks_for(world: World) -> None:
    crl = world.build(world.issuing, 5, 6)
    assert crl.is_signature_valid(world.issuing.certificate.public_key())  # type: ignore[arg-type] # of a CA
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7
    identifier = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = world.issuing.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert identifier.key_identifier == own.value.digest
    assert (crl.last_update_utc, crl.next_update_utc) == (NOW, NOW + WEEK)
    entry = crl.get_revoked_certificate_by_serial_number(5)
    assert entry is not None
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.key_compromise


def test_a_path_is_good_with_a_current_list_of_each_issuer_and_not_without(world: World) -> None:
    both = world.crl(world.root) + world.crl(world.issuing)
    RevocationLists(both).require_good(world.path, NOW)
    RevocationLists(
        world.build(world.root).public_bytes(Encoding.DER), world.crl(world.issuing)
    ).require_good(world.path, NOW)
    assert fault_of(RevocationLists(world.crl(world.root)), world) is RevocationFault.NO_LIST
    assert fault_of(RevocationLists(world.crl(world.issuing)), world) is RevocationFault.NO_LIST


def test_the_leaf_and_the_authority_above_it_can_be_revoked(world: World) -> None:
    leaf, authority = (one.serial_number for one in world.path[:2])
    good = world.crl(world.root), world.crl(world.issuing, 1, 2, 3)
    RevocationLists(*good).require_good(world.path, NOW)
    for bad in (
        (world.crl(world.root), world.crl(world.issuing, 1, leaf, 3)),
        (world.crl(world.root, authority), world.crl(world.issuing)),
    ):
        assert fault_of(RevocationLists(*bad), world) is RevocationFault.REVOKED


def test_a_list_counts_in_its_time_and_revokes_even_after(world: World) -> None:
    root = world.crl(world.root, start=NOW)
    lists = RevocationLists(root, world.crl(world.issuing, start=NOW))
    lists.require_good(world.path, NOW + WEEK - timedelta(seconds=1))
    assert fault_of(lists, world, NOW + WEEK) is RevocationFault.EXPIRED
    assert fault_of(lists, world, NOW - timedelta(minutes=6)) is RevocationFault.NOT_YET_VALID
    leaf = world.server.leaf.serial_number
    old, new = world.crl(world.issuing, leaf, start=NOW - 2 * WEEK), world.crl(world.issuing)
    assert fault_of(RevocationLists(root, old, new), world) is RevocationFault.REVOKED


def test_a_list_that_another_signed_does_not_count(world: World) -> None:
    genuine = world.crl(world.issuing)
    forged = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(world.issuing.certificate.subject)
        .last_update(NOW)
        .next_update(NOW + WEEK)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    root = world.crl(world.root)
    assert fault_of(RevocationLists(root, forged), world) is RevocationFault.BAD_SIGNATURE
    RevocationLists(root, forged, genuine).require_good(world.path, NOW)


def test_a_resumed_session_is_held_to_lists_whose_issuers_were_met(world: World) -> None:
    lists = RevocationLists(world.crl(world.root), world.crl(world.issuing))
    with pytest.raises(NotKnownGood, match="verified since the session"):
        lists.require_still_good(world.path[:2], NOW)
    lists.require_good(world.path, NOW)
    lists.require_still_good(world.path[:2], NOW)
    newer = RevocationLists(
        world.crl(world.root), world.crl(world.issuing, world.server.leaf.serial_number)
    )
    newer.prepare(lists.known_issuers)
    with pytest.raises(NotKnownGood, match="is revoked"):
        newer.require_still_good(world.path[:2], NOW)


@pytest.mark.parametrize(
    ("extension", "words"),
    [
        (x509.DeltaCRLIndicator(1), "delta"),
        (
            x509.IssuingDistributionPoint(
                None,
                None,
                only_contains_user_certs=False,
                only_contains_ca_certs=False,
                only_some_reasons=None,
                indirect_crl=True,
                only_contains_attribute_certs=False,
            ),
            "indirect",
        ),
        (
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
            "1.2.3.4",
        ),
    ],
)
def test_a_list_that_cannot_be_processed_in_full_is_refused(
    world: World, extension: x509.ExtensionType, words: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(world.issuing.certificate.subject)
        .last_update(NOW)
        .next_update(NOW + WEEK)
    )
    RevocationLists(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
    limited = builder.add_extension(extension, critical=True).sign(key, hashes.SHA256())
    with pytest.raises(UnusableCRL, match=words):
        RevocationLists(limited.public_bytes(Encoding.DER))


@pytest.mark.parametrize("world", [KeyType.EC_P256], indirect=True)
def test_a_list_for_authorities_only_says_nothing_about_a_server(world: World) -> None:
    scoped = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(world.issuing.certificate.subject)
        .last_update(NOW)
        .next_update(NOW + WEEK)
        .add_extension(
            x509.IssuingDistributionPoint(
                None,
                None,
                only_contains_user_certs=False,
                only_contains_ca_certs=True,
                only_some_reasons=None,
                indirect_crl=False,
                only_contains_attribute_certs=False,
            ),
            critical=True,
        )
        .sign(world.key(world.issuing), hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    lists = RevocationLists(world.crl(world.root), scoped)
    assert fault_of(lists, world) is RevocationFault.NO_LIST


@pytest.mark.parametrize(
    "content",
    [b"", b"nothing", b"\x30\x03\x02\x01\x05", b"-----BEGIN X509 CRL-----\nAAAA\n"],
)
def test_what_is_no_list_is_refused(content: bytes) -> None:
    with pytest.raises(UnusableCRL):
        RevocationLists(content)


def test_blocks_without_an_end_take_no_time_to_refuse() -> None:
    begins = b"-----BEGIN X509 CRL-----\n" * 100_000  # minutes, if each looked for an end
    with pytest.raises(UnusableCRL, match="cut off"):
        RevocationLists(begins)


def test_a_critical_extension_of_an_entry_is_not_passed_over(world: World) -> None:
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    for critical in (False, True):
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(7)
            .revocation_date(NOW)
            .add_extension(extension, critical=critical)
            .build()
        )
        data = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(world.issuing.certificate.subject)
            .last_update(NOW)
            .next_update(NOW + WEEK)
            .add_revoked_certificate(entry)
            .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
            .public_bytes(Encoding.DER)
        )
        if critical:
            with pytest.raises(UnusableCRL, match=r"1\.2\.3\.4"):
                RevocationLists(data)
        else:
            RevocationLists(data)


@pytest.mark.parametrize("serial_number", [-5, 0, 1 << 159, 1 << 200])
def test_no_entry_has_a_serial_number_that_no_certificate_has(serial_number: int) -> None:
    RevokedCertificate((1 << 159) - 1, NOW)
    with pytest.raises(IssuanceError, match="20 octets"):
        RevokedCertificate(serial_number, NOW)


def test_no_entry_is_of_a_time_that_cannot_be_written() -> None:
    with pytest.raises(IssuanceError, match="1950"):
        RevokedCertificate(1, datetime(1949, 12, 31, tzinfo=UTC))


def test_a_file_that_is_cut_off_is_refused(world: World) -> None:
    both = world.crl(world.root) + world.crl(world.issuing)
    RevocationLists(both)
    with pytest.raises(UnusableCRL, match="cut off"):
        RevocationLists(both[:-20])


def test_no_list_is_signed_that_should_not_be(world: World) -> None:
    key = world.key(world.issuing)
    with pytest.raises(IssuanceError, match="does not belong"):
        build_crl(world.root.certificate, key, [], number=1, now=NOW, next_update=NOW + WEEK)
    with pytest.raises(IssuanceError, match="keyUsage"):
        build_crl(
            world.server.leaf,
            world.server.private_key,
            [],
            number=1,
            now=NOW,
            next_update=NOW + WEEK,
        )
    with pytest.raises(IssuanceError, match="before this one"):
        world.crl(world.issuing) and build_crl(
            world.issuing.certificate, key, [], number=1, now=NOW, next_update=NOW
        )
    with pytest.raises(IssuanceError, match="twice"):
        world.crl(world.issuing, 5, 5)


@pytest.mark.parametrize("world", [KeyType.EC_P256], indirect=True)
def test_a_hundred_thousand_entries_are_read_fast_and_looked_up_at_once(world: World) -> None:
    leaf = world.server.leaf.serial_number
    content = world.crl(world.issuing, *range(1, 100_000), leaf)
    started = time.process_time()
    lists = RevocationLists(world.crl(world.root), content)
    lists.prepare([world.root.certificate, world.issuing.certificate])
    read_seconds = time.process_time() - started
    assert fault_of(lists, world) is RevocationFault.REVOKED
    lists.require_good((world.other.leaf, *world.path[1:]), NOW)
    started = time.process_time()
    for _ in range(1000):
        lists.require_good((world.other.leaf, *world.path[1:]), NOW)
    check_seconds = (time.process_time() - started) / 1000
    # Measured: 0.2 s and 3 microseconds; the library's own check took 3.5 ms.
    assert read_seconds < 5
    assert check_seconds < 0.0005


# OCSP


@pytest.mark.parametrize("identifier", [hashes.SHA1, hashes.SHA256])
def test_a_response_proves_what_it_says(
    world: World, identifier: type[hashes.HashAlgorithm]
) -> None:
    issuer = world.issuing.certificate
    good = world.response(identifier_hash=identifier())
    proof = verify_ocsp_response(good, world.server.leaf, issuer, NOW)
    assert proof.status is CertificateStatus.GOOD
    assert (proof.this_update, proof.next_update) == (NOW, NOW + WEEK)
    revoked = world.response(
        identifier_hash=identifier(),
        status=CertificateStatus.REVOKED,
        revoked_at=NOW,
        reason=x509.ReasonFlags.key_compromise,
    )
    proof = verify_ocsp_response(revoked, world.server.leaf, issuer, NOW)
    assert proof.status is CertificateStatus.REVOKED
    assert (proof.revoked_at, proof.reason) == (NOW, x509.ReasonFlags.key_compromise)
    unknown = world.response(identifier_hash=identifier(), status=CertificateStatus.UNKNOWN)
    proof = verify_ocsp_response(unknown, world.server.leaf, issuer, NOW)
    assert proof.status is CertificateStatus.UNKNOWN


def test_a_delegated_responder_may_sign_and_another_certificate_may_not(world: World) -> None:
    issuer, leaf = world.issuing.certificate, world.server.leaf
    delegated = world.response(
        signing_key=world.responder.private_key, responder=world.responder.leaf
    )
    assert verify_ocsp_response(delegated, leaf, issuer, NOW).status is CertificateStatus.GOOD
    with pytest.raises(IssuanceError, match="OCSPSigning"):
        world.response(signing_key=world.other.private_key, responder=world.other.leaf)
    with pytest.raises(UnusableOCSPResponse, match="delegated"):
        verify_ocsp_response(sign_as(world, world.other), leaf, issuer, NOW)
    late = NOW + timedelta(days=40)  # the responder's certificate has ended by then
    lasting = world.response(
        signing_key=world.responder.private_key,
        responder=world.responder.leaf,
        next_update=late + WEEK,
    )
    assert verify_ocsp_response(lasting, leaf, issuer, NOW).status is CertificateStatus.GOOD
    with pytest.raises(UnusableOCSPResponse, match="delegated"):
        verify_ocsp_response(lasting, leaf, issuer, late)


def sign_as(world: World, signer: Credential) -> bytes:
    """Sign a response as the builder of this package never would."""
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            world.server.leaf,
            world.issuing.certificate,
            hashes.SHA256(),
            ocsp.OCSPCertStatus.GOOD,
            NOW,
            NOW + WEEK,
            None,
            None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.NAME, signer.leaf)
        .certificates([signer.leaf])
    )
    response = builder.sign(signer.private_key, hashes.SHA256())
    return response.public_bytes(Encoding.DER)


def test_a_signature_that_does_not_verify_proves_nothing(world: World) -> None:
    issuer, leaf = world.issuing.certificate, world.server.leaf
    good = sign_as(world, world.responder)
    assert verify_ocsp_response(good, leaf, issuer, NOW).status is CertificateStatus.GOOD
    signature = ocsp.load_der_ocsp_response(good).signature
    forged = good.replace(signature, signature[:-1] + bytes([signature[-1] ^ 1]))
    with pytest.raises(UnusableOCSPResponse, match="signature"):
        verify_ocsp_response(forged, leaf, issuer, NOW)


def test_a_response_is_for_one_certificate_of_one_issuer(world: World) -> None:
    response = world.response()
    with pytest.raises(UnusableOCSPResponse, match="another certificate"):
        verify_ocsp_response(response, world.other.leaf, world.issuing.certificate, NOW)
    with pytest.raises(UnusableOCSPResponse, match="another certificate"):
        verify_ocsp_response(response, world.server.leaf, world.root.certificate, NOW)


def test_a_response_counts_in_its_time(world: World) -> None:
    response, leaf = world.response(), world.server.leaf
    for when, words in (
        (NOW - timedelta(minutes=6), "future"),
        (NOW + WEEK + timedelta(minutes=6), "ended"),
    ):
        with pytest.raises(UnusableOCSPResponse, match=words):
            verify_ocsp_response(response, leaf, world.issuing.certificate, when)
    # A clock that differs by four minutes does no harm.
    for when in (NOW - timedelta(minutes=4), NOW + WEEK + timedelta(minutes=4)):
        verify_ocsp_response(response, leaf, world.issuing.certificate, when)


def test_a_response_without_an_end_or_without_success_proves_nothing(world: World) -> None:
    failed = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    for der, words in (
        (failed.public_bytes(Encoding.DER), "try_later"),
        (b"", "parsed"),
        (world.response()[:-1], "parsed"),
        (bytes(70_000), "exceeds"),
    ):
        with pytest.raises(UnusableOCSPResponse, match=words):
            verify_ocsp_response(der, world.server.leaf, world.issuing.certificate, NOW)


def test_a_servers_own_staple_needs_no_issuer_in_its_chain(world: World) -> None:
    response = world.response()
    assert read_own_staple(response, world.server.chain, NOW).status is CertificateStatus.GOOD
    alone = world.server.chain[:1]
    assert read_own_staple(response, alone, NOW).status is CertificateStatus.GOOD
    with pytest.raises(UnusableOCSPResponse, match="another certificate"):
        read_own_staple(response, world.other.chain[:1], NOW)


def test_must_staple_is_read_from_the_certificate() -> None:
    authority = trustme.CA()
    plain = x509.load_pem_x509_certificate(
        authority.issue_cert("localhost").cert_chain_pems[0].bytes()
    )
    assert not requires_staple(plain)
    key = ec.generate_private_key(ec.SECP256R1())
    for feature, expected in (
        (x509.TLSFeatureType.status_request, True),
        (x509.TLSFeatureType.status_request_v2, False),
    ):
        certificate = (
            x509.CertificateBuilder(plain.issuer, plain.subject, key.public_key(), 5, NOW, NOW)
            .add_extension(x509.TLSFeature([feature]), critical=False)
            .sign(key, hashes.SHA256())
        )
        assert requires_staple(certificate) is expected
