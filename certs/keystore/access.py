"""Who may do what: principals, roles, and the part of the store that a role is granted for.

Nothing is permitted that no grant permits. A grant gives a principal a role within a *scope*: one
name and what is below it (``web`` covers ``web`` and ``web/a``, not ``webmail``), or ``*``, the
whole store. An operation on the store as a whole (``list``, ``rekey``, …) has no name, and takes a
grant for ``*``.

What a role permits is the table `PERMITTED`. No role includes another: someone who makes keys and
also uses them holds two.

What this cannot do: whoever holds the KEK and the file can open every record without this code, so
roles bind the users of a program that keeps the KEK to itself, not the program's administrator.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from cryptography import x509

from certs.errors import AccessDenied, CorruptEnvelope, InvalidInput
from certs.keystore.names import is_name, is_under

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "EVERYTHING",
    "OWNER",
    "OWNERS_GRANTS",
    "PERMITTED",
    "Grant",
    "Role",
    "encode_grants",
    "is_permitted",
    "parse_grants",
    "principal_of",
    "require_principal",
    "require_role",
    "require_scope",
]

OWNER = "owner"
EVERYTHING = "*"
MAX_GRANTS = 256

_PRINCIPAL = re.compile(r"owner|(?:uri|dns|user):[\x21-\x7e]{1,251}", re.ASCII)


class Role(StrEnum):
    """A part that someone plays; `PERMITTED` says what it may do."""

    CRYPTO_OFFICER = "crypto-officer"
    CRYPTO_USER = "crypto-user"
    CERTIFICATE_OFFICER = "certificate-officer"
    PURGE_OFFICER = "purge-officer"
    AUDITOR = "auditor"
    READER = "reader"


_READING = frozenset({"list", "show", "versions", "public-key", "verify"})

PERMITTED: Mapping[Role, frozenset[str]] = {
    # keeps keys, and says who may use them; uses none
    Role.CRYPTO_OFFICER: _READING
    | {"create", "import", "rotate", "disable", "enable", "secret-set", "delete", "recover"}
    | {"rotate-store", "rewrap", "rekey", "snapshot", "backup", "grant", "revoke", "grants"},
    Role.CRYPTO_USER: _READING
    | {"sign", "wrap", "unwrap", "generate-data-key", "secret-get", "export"},
    # what certs.authority does: keys for certificates, the signatures on them, revoking them
    Role.CERTIFICATE_OFFICER: _READING
    | {"create", "rotate", "sign", "export", "revoke-certificate", "number-crl"},
    Role.PURGE_OFFICER: _READING | {"purge"},
    Role.AUDITOR: _READING | {"grants", "audit-read", "audit-verify"},
    Role.READER: _READING,
}


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """A role, and the scope that it is granted for: a name and what is below it, or ``*``."""

    role: Role
    scope: str

    def covers(self, operation: str, name: str) -> bool:
        """Return whether this grant permits the operation on a name (empty: the whole store)."""
        if operation not in PERMITTED[self.role]:
            return False
        return self.scope == EVERYTHING or is_under(name, self.scope)


OWNERS_GRANTS = frozenset(Grant(role, EVERYTHING) for role in Role)


def is_permitted(grants: Iterable[Grant], operation: str, name: str) -> bool:
    """Return whether any of the grants permits the operation; without one nothing is."""
    return any(grant.covers(operation, name) for grant in grants)


def require_principal(text: str) -> str:
    """Return `text` if it names a principal: ``owner``, or ``uri:…``, ``dns:…`` or ``user:…``."""
    if _PRINCIPAL.fullmatch(text) is None:
        raise InvalidInput(
            "a principal is owner, or uri:, dns: or user: and up to 251 printable ASCII characters"
        )
    return text


def require_role(text: str) -> Role:
    """Return the role of that name; raise `InvalidInput`."""
    try:
        return Role(text)
    except ValueError:
        raise InvalidInput(f"a role is one of {', '.join(Role)}") from None


def require_scope(text: str) -> str:
    """Return `text` if it is a scope: a name, or ``*`` for everything; raise `InvalidInput`."""
    if text != EVERYTHING and not is_name(text):
        raise InvalidInput("a scope is the name of a key or of what is above keys, or * for all")
    return text


def principal_of(certificate: x509.Certificate) -> str:
    """Return whom a client certificate stands for: its one URI, else its one DNS name.

    Call it for a certificate that a handshake has verified, and for no other: the name is read, not
    checked. `AccessDenied` if the certificate names none, or several and so nobody in particular.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        hosts = names.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        uris, hosts = [], []
    found = [f"uri:{uri}" for uri in uris] or [f"dns:{host.lower()}" for host in hosts]
    if len(found) == 1 and "*" not in found[0] and _PRINCIPAL.fullmatch(found[0]):
        return found[0]
    raise AccessDenied(
        "the client's certificate does not say who it is: it needs exactly one URI, or no URI and "
        "one DNS name without a wildcard, as its subject alternative name"
    )


def encode_grants(grants: Iterable[Grant]) -> bytes:
    """Return the plaintext of a principal's sealed grants; raise `InvalidInput` for too many."""
    pairs = [[grant.role.value, grant.scope] for grant in sorted(grants)]
    if len(pairs) > MAX_GRANTS:
        raise InvalidInput(f"a principal has at most {MAX_GRANTS} grants; grant what is above them")
    return json.dumps(pairs, separators=(",", ":")).encode()


def parse_grants(plaintext: bytes) -> frozenset[Grant]:
    """Read what `encode_grants` wrote; raise `CorruptEnvelope` for anything else."""
    try:
        pairs = json.loads(plaintext)
        return frozenset(Grant(Role(role), require_scope(scope)) for role, scope in pairs)
    except (ValueError, TypeError, InvalidInput):
        raise CorruptEnvelope(
            "the grants of a principal are of a form not known to this version of the program; "
            "upgrade it"
        ) from None
