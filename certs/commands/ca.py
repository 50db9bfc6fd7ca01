"""``pfs ca …``: one function a command; each opens the store, does one thing, prints it.

A local CA of a name (``ca``) is two authorities, ``ca/root`` and ``ca/issuing``, and keys below
``ca/server`` and ``ca/client``: a grant for ``ca`` covers all of it.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import CertificateAuthority
from certs.commands.arguments import open_store, require_absent, write_secret
from certs.commands.output import print_json, say
from certs.errors import InvalidInput, IssuanceError
from certs.keystore.files import publish_file
from certs.keystore.kinds import require_key_type
from certs.keystore.names import MAX_NAME_LENGTH
from certs.keystore.store import utc_now
from certs.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from certs.keystore import KeyStore
    from certs.ledger import IssuedCertificate

__all__ = [
    "run_certificates",
    "run_crl",
    "run_init",
    "run_issue",
    "run_list",
    "run_renew",
    "run_revoke",
    "run_show",
]

_STANDARD = Path("-")
_SERIAL = re.compile(r"[0-9a-f]{1,40}", re.ASCII)
_CRL = b"-----BEGIN X509 CRL-----"


def run_init(
    *, store: str | None, kek: str | None, ca: str, common_name: str, as_json: bool
) -> int:
    """Make a root and an issuing authority below it, or what is missing of the two; return 0."""
    root_name, issuing_name = f"{ca}/root", f"{ca}/issuing"
    now = utc_now()
    with open_store(store, kek) as keys:
        ledger = Ledger(keys.database)
        if ledger.authority(root_name) is not None and ledger.authority(issuing_name) is None:
            root = CertificateAuthority.load(keys, root_name)  # of an attempt that broke off
        else:
            root = CertificateAuthority.create_root(keys, root_name, f"{common_name} Root CA", now)
        issuing = root.issue_subordinate(issuing_name, f"{common_name} Issuing CA", now)
    facts = {
        "root": root_name,
        "issuing": issuing_name,
        "not_after": issuing.certificate.not_valid_after_utc.isoformat(),
        "anchors": root.trust_anchors.pem().decode(),
    }
    option = "" if ca == "ca" else f" --ca {ca}"
    text = (
        f"made {root_name} and {issuing_name}; what others are to trust is written by: "
        f"pfs ca anchors{option} --out ca.pem"
    )
    say(facts, text, as_json=as_json)
    return 0


def run_issue(
    *,
    store: str | None,
    kek: str | None,
    ca: str,
    kind: str,
    names: Sequence[str],
    out_cert: Path,
    out_key: Path,
    days: int | None,
    key_type: str,
    key_name: str | None,
    as_json: bool,
) -> int:
    """Issue a certificate with a new key; write both to new files; return 0."""
    _require_new_files(out_cert, out_key)  # before there is a certificate for nothing
    dns_names, ip_addresses, uris = _told_apart(names)
    if uris and kind == "server":
        raise IssuanceError(f"{uris[0][:80]!a} is a URI; a server has DNS names and IP addresses")
    with open_store(store, kek) as keys:
        issuing = CertificateAuthority.load(keys, f"{ca}/issuing")
        name = key_name or _key_name(f"{ca}/{kind}", names[0])
        lifetime = None if days is None else timedelta(days=days)
        wanted, now = require_key_type(key_type), utc_now()
        if kind == "server":
            made = issuing.issue_server(
                key_name=name,
                dns_names=dns_names,
                ip_addresses=ip_addresses,
                key_type=wanted,
                now=now,
                lifetime=lifetime,
            )
        else:
            made = issuing.issue_client(
                key_name=name,
                dns_names=dns_names,
                ip_addresses=ip_addresses,
                uris=uris,
                key_type=wanted,
                now=now,
                lifetime=lifetime,
            )
        facts = _facts(issuing.find(made.leaf.serial_number))
    write_secret(out_key, made.private_key_pem())
    _publish(out_cert, made.certificates_pem())
    text = (
        f"issued {facts['serial']} for {', '.join(names)} until "
        f"{_minute(made.leaf.not_valid_after_utc)}: {out_cert}, {out_key}"
    )
    say({**facts, "out_cert": str(out_cert), "out_key": str(out_key)}, text, as_json=as_json)
    return 0


def run_list(*, store: str | None, kek: str | None, ca: str, as_json: bool) -> int:
    """Print every certificate of a CA, a line or a JSON object each; return 0."""
    with open_store(store, kek) as keys:
        if as_json:
            print_json([_facts(one) for one in _issued(keys, ca)])
        else:
            for one in _issued(keys, ca):
                sys.stdout.write(_line(one))
    return 0


def run_show(*, store: str | None, kek: str | None, serial: str, as_json: bool) -> int:
    """Print a certificate, and what is known of it; return 0."""
    with open_store(store, kek) as keys:
        number = _serial(serial)
        found = CertificateAuthority.load_issuer(keys, number).find(number)
    facts = _facts(found)
    pem = ""
    if found.certificate is not None:
        facts["sha256"] = found.certificate.fingerprint(hashes.SHA256()).hex()
        pem = found.certificate.public_bytes(Encoding.PEM).decode()
    if as_json:
        print_json({**facts, "pem": pem or None})
        return 0
    for fact, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        if shown not in (None, ""):
            sys.stdout.write(f"{fact}: {ascii(str(shown))[1:-1]}\n")
    sys.stdout.write(pem)
    return 0


def run_revoke(
    *, store: str | None, kek: str | None, serial: str, reason: str, as_json: bool
) -> int:
    """Revoke a certificate for good; return 0."""
    why = x509.ReasonFlags[reason.replace("-", "_")]
    with open_store(store, kek) as keys:
        number = _serial(serial)
        issuer = CertificateAuthority.load_issuer(keys, number)
        said = None if why is x509.ReasonFlags.unspecified else why
        revoked = issuer.revoke(number, said, utc_now())
    text = f"revoked {number:x} of {issuer.name} ({reason}); a new list says so: pfs ca crl"
    say(_facts(revoked), text, as_json=as_json)
    return 0


def run_crl(
    *, store: str | None, kek: str | None, ca: str, days: int, out: Path, as_json: bool
) -> int:
    """Sign the lists of a CA and of what is above it; write them to one file; return 0."""
    if out != _STANDARD:
        _require_list(out)
    now = utc_now()
    with open_store(store, kek) as keys:
        lists = [
            one
            for authority in _upwards(CertificateAuthority.load(keys, f"{ca}/issuing"))
            for one in authority.crls(now, timedelta(days=days))
        ]
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in lists)
    until = (now + timedelta(days=days)).replace(microsecond=0)
    facts: dict[str, object] = {
        "lists": [
            {
                "issuer": one.issuer.rfc4514_string(),
                "number": one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number,
                "revoked": len(one),
            }
            for one in lists
        ],
        "next_update": until.isoformat(),
    }
    revoked = sum(len(one) for one in lists)
    text = f"lists: {len(lists)}, entries: {revoked}, good until {_minute(until)}, in {out}"
    return _give(out, pem, facts, text, as_json=as_json, replace=True)


def run_certificates(
    *, store: str | None, kek: str | None, ca: str, anchors: bool, out: Path, as_json: bool
) -> int:
    """Write what others trust, or what a server sends after its own certificate; return 0."""
    with open_store(store, kek) as keys:
        issuing = CertificateAuthority.load(keys, f"{ca}/issuing")
    found = issuing.trust_anchors.certificates if anchors else issuing.chain
    facts: dict[str, object] = {"sha256": [one.fingerprint(hashes.SHA256()).hex() for one in found]}
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in found)
    return _give(out, pem, facts, f"certificates: {len(found)}, in {out}", as_json=as_json)


def run_renew(*, store: str | None, kek: str | None, ca: str, as_json: bool) -> int:
    """Give the issuing authority a new version of its key and a new certificate; return 0."""
    with open_store(store, kek) as keys:
        issuing = CertificateAuthority.load(keys, f"{ca}/issuing").renew(utc_now())
        facts = _facts(_above(issuing).find(issuing.certificate.serial_number))
    text = (
        f"{issuing.name} issues with version {issuing.key_version} of its key until "
        f"{_minute(issuing.certificate.not_valid_after_utc)}; what it issued before stays valid, "
        "and new lists are needed: pfs ca crl"
    )
    say(facts, text, as_json=as_json)
    return 0


def _above(authority: CertificateAuthority) -> CertificateAuthority:
    return authority if authority.parent is None else authority.parent


def _upwards(authority: CertificateAuthority) -> Iterator[CertificateAuthority]:
    yield authority
    if authority.parent is not None:
        yield from _upwards(authority.parent)


def _issued(keys: KeyStore, ca: str) -> Iterator[IssuedCertificate]:
    """Yield what a CA issued, the root's first."""
    for authority in reversed(list(_upwards(CertificateAuthority.load(keys, f"{ca}/issuing")))):
        yield from authority.issued()


def _told_apart(names: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the DNS names, IP addresses and URIs among some names."""
    dns_names: list[str] = []
    ip_addresses: list[str] = []
    uris: list[str] = []
    for name in names:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            (uris if ":" in name else dns_names).append(name)
        else:
            ip_addresses.append(name)
    return dns_names, ip_addresses, uris


def _key_name(under: str, name: str) -> str:
    """Return what to call the key of a certificate: its first name, as far as names go."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "_", name.lower()).strip("._-") or "key"
    return f"{under}/{words}"[:MAX_NAME_LENGTH]


def _serial(text: str) -> int:
    digits = text.lower().replace(":", "").removeprefix("0x")
    if _SERIAL.fullmatch(digits) is None:
        raise InvalidInput(f"{text[:60]!a} is no serial number: up to 40 hexadecimal digits")
    return int(digits, 16)


def _require_new_files(*files: Path) -> None:
    if _STANDARD in files or len(set(files)) != len(files):
        raise InvalidInput("give two new files, for the certificate and for its key")
    require_absent(*files)
    for file in files:
        if not file.absolute().parent.is_dir():
            raise InvalidInput(f"there is no folder {file.absolute().parent}; make it first")


def _require_list(file: Path) -> None:
    """Raise `InvalidInput` if something else than a list stands there; it would be lost."""
    if file.exists():
        with file.open("rb") as opened:
            if opened.read(len(_CRL)) == _CRL:
                return
        raise InvalidInput(f"{file} exists, is no list of revoked certificates, and stays as it is")


def _publish(destination: Path, content: bytes, *, replace: bool = False) -> None:
    try:
        publish_file(destination.absolute(), content, replace=replace)
    except FileExistsError:
        raise InvalidInput(f"{destination} exists and is not overwritten") from None


def _give(
    out: Path,
    pem: bytes,
    facts: dict[str, object],
    text: str,
    *,
    as_json: bool,
    replace: bool = False,
) -> int:
    """Hand PEM over: in a file, on standard output, or within JSON."""
    if out != _STANDARD:
        _publish(out, pem, replace=replace)
        say({**facts, "out": str(out)}, text, as_json=as_json)
    elif as_json:
        print_json({**facts, "pem": pem.decode()})
    else:
        sys.stdout.write(pem.decode())
    return 0


def _facts(one: IssuedCertificate) -> dict[str, object]:
    certificate, revocation = one.certificate, one.revocation
    return {
        "serial": f"{one.serial:x}",
        "profile": one.planned.profile,
        "names": list(one.names),
        "issuer": one.planned.signer[0],
        "key_name": one.planned.subject[0],
        "key_version": one.planned.subject[1],
        "state": "unfinished" if certificate is None else "issued",
        "not_before": None if certificate is None else certificate.not_valid_before_utc.isoformat(),
        "not_after": None if certificate is None else certificate.not_valid_after_utc.isoformat(),
        "revoked_at": None if revocation is None else revocation.revoked_at.isoformat(),
        "reason": None if revocation is None else _reason(revocation.reason),
    }


def _reason(stored: str) -> str:
    try:
        return x509.ReasonFlags(stored).name.replace("_", "-")
    except ValueError:
        return ascii(stored)


def _line(one: IssuedCertificate) -> str:
    key, version = one.planned.subject
    until = "not completed"
    if one.certificate is not None:
        until = f"until {_minute(one.certificate.not_valid_after_utc)}"
    words = [f"{one.serial:x}", one.planned.profile, ", ".join(one.names)]
    words += [f"{key} version {version}", until]
    if one.revocation is not None:
        when = _minute(one.revocation.revoked_at)
        words.append(f"revoked {when} ({_reason(one.revocation.reason)})")
    return "  ".join(ascii(word)[1:-1] for word in words if word) + "\n"


def _minute(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
