"""``azurekeyvault:``, a KEK in Azure Key Vault or Managed HSM, which never hands it out.

``azurekeyvault:https://VAULT.vault.azure.net/keys/NAME/VERSION``, the key's identifier as Azure
shows it; without a version the newest one wraps, and whichever wrapped unwraps. Credentials are
found by azure-identity's ``DefaultAzureCredential`` (environment, workload or managed identity,
``az login``), never in the URI. The caller needs the permissions get, wrapKey and unwrapKey.

The key is an RSA key, which wraps by RSA-OAEP with SHA-256. What is wrapped is the fresh key that
seals the root key (`wrapped`), since RSA-OAEP takes no associated data. Wrapping needs the public
key only: it keeps the root key secret, but it does not say who wrapped it. Whoever has the public
key and can write the store can put a root key of his own into it, under which none of the store's
records open.

Symmetric keys of a Managed HSM are refused. Given one without its key material, which is how a
vault answers, azure-keyvault-keys 4.11 wraps on this machine under a random key that it then
forgets, and nothing opens what it wrapped.

Only the hosts of Azure's own clouds are asked: the request carries a token.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import DefaultAzureCredential
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import KeyWrapAlgorithm

from certs.errors import CorruptEnvelope, KEKUnavailable, StoreError, StoreFault, WrongKEK
from certs.keystore.kek.options import split_uri
from certs.keystore.kek.wrapped import (
    ProviderNumber,
    WrappedKey,
    damaged,
    open_root_key,
    seal_root_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure.core.credentials import TokenCredential
    from azure.core.pipeline.transport import HttpTransport
    from azure.core.rest import HttpRequest, HttpResponse

__all__ = ["AzureKeyVaultKEK"]

_CONNECT_SECONDS = 3
_READ_SECONDS = 5
_RETRIES = 2
_MAX_BACKOFF_SECONDS = 2
_MAX_OUTER_BYTES = 1024
_CLOUDS = r"(?:azure\.net|azure\.cn|usgovcloudapi\.net)"
_IDENTIFIER = re.compile(
    rf"(?P<vault>https://[a-z][a-z0-9-]{{1,22}}[a-z0-9]\.(?:vault|managedhsm)\.{_CLOUDS})"
    r"/keys/(?P<name>[A-Za-z0-9-]{1,127})(?:/(?P<version>[0-9a-f]{32}))?"
)
_BAD_REQUEST = 400
_ALGORITHMS = {1: KeyWrapAlgorithm.rsa_oaep_256}
_BY_KEY_TYPE = {"RSA": 1, "RSA-HSM": 1}


class _KeyName(NamedTuple):
    """A key identifier in its parts; no version stands for the newest."""

    vault: str
    name: str
    version: str | None


class AzureKeyVaultKEK:
    """The KEK that one key of a vault is. Azure is first asked by `wrap` or `unwrap`.

    `credential` and `transport` are Azure's own: who we are, and how requests are sent.
    """

    def __init__(
        self,
        uri: str,
        *,
        credential: TokenCredential | None = None,
        transport: HttpTransport[HttpRequest, HttpResponse] | None = None,
    ) -> None:
        self._uri = uri
        self._key = _parse(uri)
        self._own_credential: DefaultAzureCredential | None = None
        if credential is None:
            credential = self._own_credential = DefaultAzureCredential()
        self._client: KeyClient | None = KeyClient(
            self._key.vault,
            credential,
            retry_total=_RETRIES,
            retry_backoff_max=_MAX_BACKOFF_SECONDS,
            connection_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            **({} if transport is None else {"transport": transport}),
        )

    def __repr__(self) -> str:
        return f"<AzureKeyVaultKEK {self._uri}>"

    @classmethod
    def from_uri(cls, uri: str) -> AzureKeyVaultKEK:
        """Return the provider of such a URI; raise `KEKUnavailable` if it is malformed."""
        return cls(uri)

    def uri(self) -> str:
        """Return the URI."""
        return self._uri

    def wrap(self, key: bytes, associated_data: bytes) -> bytes:
        """Return a root key (32 bytes) wrapped; raise `KEKUnavailable` if the vault does not."""
        client = self._open_client()
        with _told("find the key in Azure Key Vault"):
            found = client.get_key(self._key.name, self._key.version)
        number = _BY_KEY_TYPE.get(str(getattr(found.key_type, "value", found.key_type)))
        match = _IDENTIFIER.fullmatch(found.id or "")
        if number is None:
            raise KEKUnavailable("the key in Azure Key Vault is no RSA key; name one, or make one")
        if match is None or match["version"] is None or not self._is(match):
            raise KEKUnavailable("Azure Key Vault answered with another key; check the KEK URI")
        if not found.properties.enabled:
            raise KEKUnavailable(f"{found.id} is disabled; enable it, or name another version")
        version = match["version"]

        def outer(fresh: bytes) -> bytes:
            with _told("wrap with the key in Azure Key Vault"):
                crypto = client.get_cryptography_client(self._key.name, key_version=version)
                return crypto.wrap_key(_ALGORITHMS[number], fresh).encrypted_key

        return seal_root_key(
            ProviderNumber.AZURE_KEY_VAULT,
            bytes([number]) + match[0].encode(),
            key,
            associated_data,
            outer,
        )

    def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
        """Return the root key.

        Raises `WrongKEK` if another key wrapped it, `CorruptEnvelope` if it was altered or belongs
        elsewhere, `KEKUnavailable` if the vault cannot be asked or refuses.
        """
        client = self._open_client()
        parts = WrappedKey.parse(wrapped, ProviderNumber.AZURE_KEY_VAULT)
        algorithm = _ALGORITHMS.get(parts.parameters[0]) if parts.parameters else None
        match = _IDENTIFIER.fullmatch(parts.parameters[1:].decode("ascii", "replace"))
        if algorithm is None or match is None or match["version"] is None:
            raise damaged("its parameters name no key of Azure Key Vault")
        version = match["version"]
        if not self._is(match):
            raise WrongKEK(
                f"{self._uri} is not the KEK of this store, which is {match[0]}; name that key"
            )

        def inner(outer: bytes) -> bytes:
            if not 1 <= len(outer) <= _MAX_OUTER_BYTES:
                raise damaged("its outer part has another length")
            with _told("unwrap with the key in Azure Key Vault"):
                crypto = client.get_cryptography_client(self._key.name, key_version=version)
                return crypto.unwrap_key(algorithm, outer).key

        return open_root_key(parts, associated_data, inner)

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
            if self._own_credential is not None:
                self._own_credential.close()

    def _is(self, match: re.Match[str]) -> bool:
        """Whether a key identifier with a version is of the key that the URI names."""
        key = self._key
        return (match["vault"], match["name"]) == (key.vault, key.name) and (
            key.version in {None, match["version"]}
        )

    def _open_client(self) -> KeyClient:
        if self._client is None:
            raise StoreError("the KEK was closed; open it again", fault=StoreFault.CLOSED)
        return self._client


def _parse(uri: str) -> _KeyName:
    path, _ = split_uri(uri, "azurekeyvault", ())
    match = _IDENTIFIER.fullmatch(path)
    if match is None or "?" in uri:
        raise KEKUnavailable(
            "the KEK URI names no key; write azurekeyvault: and the key's identifier, "
            "https://VAULT.vault.azure.net/keys/NAME or with its version"
        )
    return _KeyName(match["vault"], match["name"], match["version"])


@contextmanager
def _told(doing: str) -> Iterator[None]:
    """Turn what Azure's library reports into one line that says what to do."""
    try:
        yield
    except ResourceNotFoundError:
        raise KEKUnavailable(
            f"cannot {doing}: there is no such key or version; name one, or recover it"
        ) from None
    except ClientAuthenticationError:
        raise KEKUnavailable(
            f"cannot {doing}: Azure does not know who asks; log in (az login), or give this "
            "machine an identity"
        ) from None
    except (ServiceRequestError, ServiceResponseError) as error:
        raise KEKUnavailable(
            f"cannot {doing}: {type(error).__name__}; check the network and the vault's name"
        ) from None
    except HttpResponseError as error:
        if error.status_code == _BAD_REQUEST:
            raise _refused(doing) from None
        raise KEKUnavailable(
            f"cannot {doing}: status {error.status_code}; allow this caller get, wrapKey and "
            "unwrapKey, and look whether the key is enabled"
        ) from None
    except (AzureError, ValueError) as error:
        raise KEKUnavailable(
            f"cannot {doing}: {type(error).__name__}; check the key's validity and the vault's name"
        ) from None


def _refused(doing: str) -> CorruptEnvelope | KEKUnavailable:
    """Return the error for a request that the vault calls bad: it is the key's own ciphertext."""
    if doing.startswith("unwrap"):
        return damaged("the vault's key did not make it")
    return KEKUnavailable(f"cannot {doing}: the vault refuses the request; check the key's type")
