"""A server's credentials while it runs: where they come from, and replacing them without a pause.

An `SSL.Context` is immutable after its first use, so a new credential means new contexts. What the
engine asks for at each connection is `LiveIdentity.endpoint`, one attribute; `load` builds
everything anew and only then replaces it. Connections that exist keep the context that they began
with, so nothing is dropped, and the old key is freed with the last of them.

**A bad new credential keeps the old one.** `load` raises before anything is replaced: a key that
does not belong to its certificate, a chain out of order, a policy that cannot use it. That is also
what a half-done renewal looks like, when the certificate's file is new and the key's still old.

**Noticing changes.** Files are looked at by modification time, size and inode, which a rename
changes too. They are noted *before* the files are read: whatever changes after that is seen at
the next look, so a read that fell between two writes is repeated, and a bad file is complained
about once, not at every look.

**Revocation.** Files of CRLs are loaded with the credentials and by the same rule: bad new ones
keep everything as it is, and the old lists refuse by themselves once they end. New contexts hold no
sessions, so nobody who was revoked resumes one. A staple is no part of a load: it has a thread of
its own (`transport.stapling`), which outlives a reload that does not change its certificate.

**Server names.** Each credential is served for the names in its certificate, or for those given.
The first is the default: for clients that name no server, and for unknown names unless those are to
be refused. The choice is made inside the handshake, see `transport.server_names`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from certs.credential import (
    MAX_ANCHORS_PEM_BYTES,
    MAX_CHAIN_PEM_BYTES,
    MAX_KEY_PEM_BYTES,
    Credential,
    TrustAnchors,
)
from certs.revocation import RevocationLists
from transport import openssl
from transport.context import EndpointContext
from transport.errors import APIMisuse
from transport.openssl_peers import set_staple
from transport.revocation import Fingerprint, PeerRevocation, fingerprint, read_crl_files
from transport.server_names import NameTable, normalize_name
from transport.stapling import Stapler, StapleSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from OpenSSL import SSL

__all__ = [
    "ContextBuilder",
    "CredentialFiles",
    "CredentialSource",
    "LiveIdentity",
    "ServedCredential",
    "UnknownName",
    "describe_credential",
]

_MAX_DESCRIBED_NAMES: Final = 10


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """PEM files of a certificate chain, leaf first, and of its unencrypted private key."""

    certificates: Path
    private_key: Path

    def load(self) -> Credential:
        """Read both files. Raises `CredentialError` and `OSError`."""
        return Credential.from_pem(
            _read_bounded(self.certificates, MAX_CHAIN_PEM_BYTES),
            _read_bounded(self.private_key, MAX_KEY_PEM_BYTES),
        )


CredentialSource = Credential | CredentialFiles | Callable[[], Credential]
ContextBuilder = Callable[[Credential, TrustAnchors | None], EndpointContext]


class UnknownName(StrEnum):
    """What a client gets that asks for a server name of no credential."""

    DEFAULT = "default"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class ServedCredential:
    """A credential, or where to get it, and the names it is served for.

    Without names it is served for the DNS names in its certificate. A callable is called at every
    load, in the worker process, perhaps on another thread. `ocsp_staple` is what is stapled to it
    (see `transport.stapling`), fetched and looked after in the worker process.
    """

    source: CredentialSource
    names: tuple[str, ...] = ()
    ocsp_staple: StapleSource | None = None

    def load(self) -> Credential:
        """Get the credential from its source; raises what the source raises."""
        if isinstance(self.source, Credential):
            return self.source
        return self.source.load() if isinstance(self.source, CredentialFiles) else self.source()


class LiveIdentity:
    """The credentials that a server shows, and whom it trusts, replaceable while it serves.

    `build` makes the context of one credential, the same way for each. `client_anchors` may be a
    PEM file, which is watched like those of credentials, and so are the files of `client_crls`.
    `report_staple` is told what goes wrong with staples. Nothing is read before `load`.
    """

    def __init__(
        self,
        served: Sequence[ServedCredential],
        build: ContextBuilder,
        *,
        client_anchors: TrustAnchors | Path | None = None,
        client_crls: RevocationLists | Sequence[Path] = (),
        unknown_name: UnknownName = UnknownName.DEFAULT,
        report_staple: Callable[[Exception], None] | None = None,
    ) -> None:
        self._served = _require_some(served)
        self._build = build
        self._client_anchors = client_anchors
        self._client_crls = client_crls
        self._lists: RevocationLists | None = None
        self._staplers: tuple[Stapler, ...] = ()
        self._report_staple = report_staple
        self._unknown_name = unknown_name
        self._endpoint: EndpointContext | None = None
        self._seen: dict[Path, Fingerprint] = {}

    def __repr__(self) -> str:
        state = "loaded" if self._endpoint is not None else "not loaded"
        return f"<LiveIdentity of {len(self._served)} credentials, {state}>"

    @property
    def endpoint(self) -> EndpointContext:
        """What new connections use. Raises `APIMisuse` before the first `load`."""
        if self._endpoint is None:
            raise APIMisuse("no credential is loaded yet", advice="call load() first")
        return self._endpoint

    def load(self, served: Sequence[ServedCredential] | None = None) -> tuple[Credential, ...]:
        """Get all credentials anew, from `served` from now on if given, and use them.

        Returns them, the default first. Raises `CertsError`, `TransportError` or `OSError`, or what
        a callable source raises; then everything stays as it was.
        """
        wanted = self._served if served is None else _require_some(served)
        seen = self._look(wanted)
        if served is None:
            self._seen = seen  # before reading, and whatever comes of it: see the module's top
        anchors = self._client_anchors
        if isinstance(anchors, Path):
            anchors = TrustAnchors.from_pem(_read_bounded(anchors, MAX_ANCHORS_PEM_BYTES))
        credentials = tuple(one.load() for one in wanted)
        lists = self._read_lists(anchors)
        endpoints = [self._build(credential, anchors) for credential in credentials]
        if lists is not None:
            endpoints = [endpoint.checking(PeerRevocation(lists)) for endpoint in endpoints]
        default = endpoints[0]
        staplers = self._staple(wanted, credentials, endpoints)
        refuse = self._unknown_name is UnknownName.REFUSE
        if len(endpoints) > 1 or refuse:
            table = _name_table(wanted, credentials, endpoints)
            openssl.set_server_name_selection(default.context, table.get, refuse_unknown=refuse)
        self._served, self._seen, self._endpoint = wanted, seen, default
        self._lists, self._staplers = lists, staplers
        return credentials

    def _read_lists(self, anchors: TrustAnchors | None) -> RevocationLists | None:
        if isinstance(self._client_crls, RevocationLists):
            return self._client_crls
        if not self._client_crls:
            return None
        lists = read_crl_files(self._client_crls)
        # Signatures of long lists take a while to check: here, rather than in a handshake.
        lists.prepare(() if anchors is None else anchors.certificates)
        lists.prepare(() if self._lists is None else self._lists.known_issuers)
        return lists

    def _staple(
        self,
        served: Sequence[ServedCredential],
        credentials: Sequence[Credential],
        endpoints: Sequence[EndpointContext],
    ) -> tuple[Stapler, ...]:
        """Give each context its stapler: the one there is, if neither source nor chain changed."""
        staplers = []
        for one, credential, endpoint in zip(served, credentials, endpoints, strict=True):
            source = one.ocsp_staple
            if source is None:
                continue
            kept = (old for old in self._staplers if old.serves(source, credential))
            stapler = next(kept, None) or Stapler(source, credential, report=self._report_staple)
            set_staple(endpoint.context, stapler.current)
            staplers.append(stapler)
        return tuple(staplers)

    def has_changed(self) -> bool:
        """Whether a file differs from when it was last loaded, successfully or not."""
        return self._look(self._served) != self._seen

    def _look(self, served: Sequence[ServedCredential]) -> dict[Path, Fingerprint]:
        paths = [
            path
            for one in served
            if isinstance(one.source, CredentialFiles)
            for path in (one.source.certificates, one.source.private_key)
        ]
        if isinstance(self._client_anchors, Path):
            paths.append(self._client_anchors)
        if not isinstance(self._client_crls, RevocationLists):
            paths += self._client_crls
        return {path: fingerprint(path) for path in paths}


def _require_some(served: Sequence[ServedCredential]) -> tuple[ServedCredential, ...]:
    if not served:
        raise APIMisuse("a server needs a credential", advice="give at least one")
    return tuple(served)


def _name_table(
    served: Sequence[ServedCredential],
    credentials: Sequence[Credential],
    endpoints: Sequence[EndpointContext],
) -> NameTable[SSL.Context]:
    return NameTable(
        (name, endpoint.context)
        for one, credential, endpoint in zip(served, credentials, endpoints, strict=True)
        for name in one.names or _usable_names(credential)
    )


def _usable_names(credential: Credential) -> list[str]:
    """Return the certificate's names but those that no client could ask for."""
    usable = []
    for name in _dns_names(credential):
        with suppress(APIMisuse):
            usable.append(normalize_name(name))
    return usable


def _dns_names(credential: Credential) -> list[str]:
    try:
        names = credential.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.DNSName)


def describe_credential(credential: Credential) -> dict[str, object]:
    """Return what a log may say of a credential: nothing but what every client is shown."""
    leaf = credential.leaf
    return {
        "names": _dns_names(credential)[:_MAX_DESCRIBED_NAMES],
        "serial": f"{leaf.serial_number:x}",
        "not_after": leaf.not_valid_after_utc.isoformat(),
        "sha256": leaf.fingerprint(SHA256()).hex(),
    }


def _read_bounded(path: Path, limit_bytes: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit_bytes + 1)  # the byte too many is for the parser to complain about
