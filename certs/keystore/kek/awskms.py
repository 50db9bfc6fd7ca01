"""``awskms:``, a KEK in AWS Key Management Service, which never hands it out.

``awskms:KEY?region=REGION&endpoint=URL``: KEY is an ARN of a key or an alias, a key id, or
``alias/NAME``; the region is the ARN's or that of the AWS configuration, and an endpoint is only
needed for a private one. Credentials come from where every AWS program takes them (environment,
configuration files, instance role), never from the URI. The caller needs ``kms:DescribeKey``,
``kms:Encrypt`` and ``kms:Decrypt`` on the key.

KMS itself binds the wrapped root key to its place: the associated data is the encryption context,
which the service requires to be the same when it decrypts, and which CloudTrail and key policies
see (`CONTEXT_NAME`, hexadecimal; it is not secret).

The key's ARN is stored. So another key is told from damage before anything is decrypted, and an
alias that was moved to another key says so. Replicas of a multi-Region key are one key.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import urlsplit

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

from certs.errors import KEKUnavailable, StoreError, StoreFault, WrongKEK
from certs.keystore.kek.options import split_uri
from certs.keystore.kek.wrapped import (
    ROOT_KEY_BYTES,
    ProviderNumber,
    WrappedKey,
    damaged,
    require_root_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["AWSKMSKEK", "CONTEXT_NAME"]

CONTEXT_NAME = "pfs-associated-data"
_CONNECT_SECONDS = 3
_READ_SECONDS = 5
_ATTEMPTS = 3
_MAX_ARN_BYTES = 2048
_MAX_BODY_BYTES = 1024  # KMS returns about 190 bytes for a key of 32
_KEY = re.compile(
    r"(arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:)?(key/)?"
    r"(alias/[A-Za-z0-9/_-]{1,250}|[A-Za-z0-9-]{1,128})"
)
_ARN = re.compile(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/(?P<id>[A-Za-z0-9-]{1,128})")
_MULTI_REGION = "mrk-"
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_NEXT_STEPS = {
    "AccessDeniedException": "allow this caller kms:DescribeKey, kms:Encrypt and kms:Decrypt",
    "DisabledException": "enable the key, or restore it",
    "ExpiredTokenException": "renew the AWS credentials",
    "InvalidClientTokenId": "give valid AWS credentials",
    "InvalidSignatureException": "give valid AWS credentials, and set the clock",
    "KMSInvalidStateException": "enable the key, or cancel its deletion",
    "NotFoundException": "name a key or an alias of this account and region",
    "ThrottlingException": "try again later",
    "UnrecognizedClientException": "give valid AWS credentials",
}


class _Client(Protocol):
    """The part of boto3's KMS client that is used here; boto3 has no types."""

    def describe_key(self, *, KeyId: str) -> Mapping[str, object]: ...  # noqa: N803 - AWS's name
    def encrypt(self, **parameters: object) -> Mapping[str, object]: ...
    def decrypt(self, **parameters: object) -> Mapping[str, object]: ...
    def close(self) -> None: ...


class AWSKMSKEK:
    """The KEK that one key of AWS KMS is. AWS is first asked by `wrap` or `unwrap`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._key, region, endpoint = _parse(uri)
        with _told("use AWS"):
            self._client: _Client | None = cast(
                "_Client",
                boto3.session.Session().client(
                    "kms",
                    region_name=region,
                    endpoint_url=endpoint,
                    config=Config(
                        connect_timeout=_CONNECT_SECONDS,
                        read_timeout=_READ_SECONDS,
                        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
                    ),
                ),
            )

    def __repr__(self) -> str:
        return f"<AWSKMSKEK {self._uri}>"

    @classmethod
    def from_uri(cls, uri: str) -> AWSKMSKEK:
        """Return the provider of an ``awskms:`` URI; raise `KEKUnavailable` if it is malformed."""
        return cls(uri)

    def uri(self) -> str:
        """Return the URI."""
        return self._uri

    def wrap(self, key: bytes, associated_data: bytes) -> bytes:
        """Return a root key (32 bytes) as KMS wraps it; raise `KEKUnavailable` if it does not."""
        client = self._open_client()
        require_root_key(key)
        arn = self._usable_arn(client)
        with _told("wrap with the key in AWS KMS"):
            body = client.encrypt(
                KeyId=arn, Plaintext=key, EncryptionContext=_context(associated_data)
            )["CiphertextBlob"]
        if not isinstance(body, bytes) or not 1 <= len(body) <= _MAX_BODY_BYTES:
            raise KEKUnavailable("AWS KMS answered with no wrapped key; check the endpoint")
        return WrappedKey(ProviderNumber.AWS_KMS, arn.encode(), body).encode()

    def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
        """Return the root key.

        Raises `WrongKEK` if another key wrapped it, `CorruptEnvelope` if it was altered or belongs
        elsewhere, `KEKUnavailable` if KMS cannot be asked or refuses.
        """
        client = self._open_client()
        parts = WrappedKey.parse(wrapped, ProviderNumber.AWS_KMS)
        stored = _stored_arn(parts)
        if not 1 <= len(parts.body) <= _MAX_BODY_BYTES:
            raise damaged("its body has another length")
        arn = self._usable_arn(client)
        if not _same_key(arn, stored):
            raise WrongKEK(f"{arn} is not the KEK of this store, which is {stored}; name that key")
        try:
            with _told("unwrap with the key in AWS KMS"):
                key = client.decrypt(
                    KeyId=arn,
                    CiphertextBlob=parts.body,
                    EncryptionContext=_context(associated_data),
                )["Plaintext"]
        except _Refused as refused:
            if refused.code == "IncorrectKeyException":
                raise WrongKEK(
                    f"{arn} did not wrap this store's root key; name the key that did"
                ) from None
            raise damaged("it was altered, or comes from another store") from None
        if not isinstance(key, bytes) or len(key) != ROOT_KEY_BYTES:
            raise damaged("what it holds is no root key")
        return key

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _usable_arn(self, client: _Client) -> str:
        """Return the ARN of the key behind the URI, if it can wrap."""
        with _told("find the key in AWS KMS"):
            metadata = client.describe_key(KeyId=self._key).get("KeyMetadata")
        described = metadata if isinstance(metadata, dict) else {}
        arn, state = described.get("Arn"), described.get("KeyState")
        if not isinstance(arn, str) or not _ARN.fullmatch(arn):
            raise KEKUnavailable("AWS KMS does not say which key it is; check the endpoint")
        if described.get("KeySpec") != "SYMMETRIC_DEFAULT":
            raise KEKUnavailable(f"{arn} is no symmetric key for encryption; name one, or make one")
        if state != "Enabled":
            raise KEKUnavailable(f"{arn} is {state}; enable it, or cancel its deletion")
        return arn

    def _open_client(self) -> _Client:
        if self._client is None:
            raise StoreError("the KEK was closed; open it again", fault=StoreFault.CLOSED)
        return self._client


class _Refused(Exception):
    """KMS says that a ciphertext is not what the key and the context gave."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _parse(uri: str) -> tuple[str, str | None, str | None]:
    """Return the key, the region and the endpoint, the last two None where the URI has none."""
    key, options = split_uri(uri, "awskms", ("endpoint", "region"))
    match = _KEY.fullmatch(key)
    if match is None or key.startswith("key/"):
        raise KEKUnavailable(
            "the KEK URI names no key; write awskms: and the key's ARN, its id or alias/NAME"
        )
    of_arn: str | None = match["region"]
    region = options.get("region", of_arn)
    if region is not None and not _REGION.fullmatch(region):
        raise KEKUnavailable("the KEK URI needs a region's name; write ?region=eu-west-1")
    return key, region, _endpoint(options.get("endpoint"))


def _endpoint(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    try:
        parts = urlsplit(endpoint)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable, parts = False, urlsplit("")
    secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not usable or not secure or parts.username is not None or parts.query:
        raise KEKUnavailable("an endpoint of AWS KMS is https://HOST, or http:// on this machine")
    return endpoint


def _stored_arn(parts: WrappedKey) -> str:
    text = parts.parameters.decode("ascii", "replace")
    if len(text) > _MAX_ARN_BYTES or not _ARN.fullmatch(text):
        raise damaged("it names no key of AWS KMS")
    return text


def _same_key(one: str, other: str) -> bool:
    """Whether two ARNs name one key: a multi-Region key has one id and an ARN for each Region."""
    if one == other:
        return True
    found, stored = _ARN.fullmatch(one), _ARN.fullmatch(other)
    if found is None or stored is None:
        return False
    return found["id"] == stored["id"] and found["id"].startswith(_MULTI_REGION)


def _context(associated_data: bytes) -> dict[str, str]:
    return {CONTEXT_NAME: associated_data.hex()}


@contextmanager
def _told(doing: str) -> Iterator[None]:
    """Turn what boto3 reports into one line that says what to do."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in {"IncorrectKeyException", "InvalidCiphertextException"}:
            raise _Refused(code) from None
        step = _NEXT_STEPS.get(code, "see CloudTrail for the request")
        raise KEKUnavailable(f"cannot {doing}: {_name(code)}; {step}") from None
    except NoCredentialsError:
        raise KEKUnavailable(
            f"cannot {doing}: there are no AWS credentials; set them up as for the AWS command line"
        ) from None
    except NoRegionError:
        raise KEKUnavailable(
            f"cannot {doing}: no region is set; write awskms:KEY?region=eu-west-1"
        ) from None
    except (BotoCoreError, ValueError) as error:
        raise KEKUnavailable(
            f"cannot {doing}: {type(error).__name__}; check the network, the region, the endpoint "
            "and the AWS configuration"
        ) from None


def _name(code: str) -> str:
    return code if re.fullmatch(r"[A-Za-z0-9.]{1,64}", code) else "an unknown error"
