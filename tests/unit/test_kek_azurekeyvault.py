"""The Azure Key Vault KEK: Azure's own library over real TLS, to a service of our own.

There is no Key Vault here. The service below speaks the part of its REST interface that wraps keys,
with real RSA and AES keys, as Microsoft documents it; requests to the vault's real name are sent to
it by the transport that Azure's library lets its caller choose. So this tests which requests are
made, what is done with the answers and what is refused, not Azure.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar, NamedTuple
from urllib.parse import urlsplit

import pytest
import requests
import trustme
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.core.pipeline.transport import RequestsTransport
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from requests.adapters import HTTPAdapter

from certs.errors import CorruptEnvelope, KEKUnavailable, StoreError, WrongKEK
from certs.key_types import KeyType
from certs.keystore import KeyStore
from certs.keystore.kek import KEKProvider, create_kek, open_kek
from certs.keystore.kek.azurekeyvault import AzureKeyVaultKEK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOT_KEY = bytes(range(32))
VAULT = "https://pfs-test.vault.azure.net"
HSM = "https://pfs-test.managedhsm.azure.net"
TOKEN = "a-token-that-shows"
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


def encoded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Service(BaseHTTPRequestHandler):
    """A vault: keys by name and version, and every request that came with the right token."""

    protocol_version = "HTTP/1.1"
    keys: ClassVar[dict[str, dict[str, rsa.RSAPrivateKey | bytes]]] = {}
    seen: ClassVar[list[str]] = []
    forbidden: ClassVar[bool] = False

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's own name
        pass

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def answer(self, body: bytes) -> None:
        vault = f"https://{self.headers['Host']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            domain = vault.partition(".")[2]
            challenge = (
                f'Bearer authorization="https://login.microsoftonline.com/tenant", '
                f'resource="https://{domain}"'
            )
            self.reply(401, {}, {"WWW-Authenticate": challenge})
            return
        path = urlsplit(self.path).path
        match = re.fullmatch(r"/keys/([^/]+)/([0-9a-f]{32})?/?(\w*)", path)
        self.seen.append(f"{self.command} {path}")
        versions = self.keys.get(match[1], {}) if match else {}
        wanted = (match and match[2]) or next(reversed(versions), "")
        if self.forbidden:
            self.reply(403, {"error": {"code": "Forbidden", "message": "no"}})
        elif (
            match is None or not versions or (match[2] or next(reversed(versions))) not in versions
        ):
            self.reply(404, {"error": {"code": "KeyNotFound", "message": "none"}})
        else:
            identifier = f"{vault}/keys/{match[1]}/{wanted}"
            self.use(identifier, versions[wanted], match[3], body)

    def use(
        self, identifier: str, key: rsa.RSAPrivateKey | bytes, operation: str, body: bytes
    ) -> None:
        if not operation:
            self.reply(200, {"key": described(identifier, key), "attributes": {"enabled": True}})
            return
        asked = json.loads(body)
        try:
            result = used(key, operation, asked["alg"], decoded(asked["value"]))
        except ValueError:
            self.reply(400, {"error": {"code": "BadParameter", "message": "bad\nvalue"}})
        else:
            self.reply(200, {"kid": identifier, "value": encoded(result)})

    def reply(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def described(identifier: str, key: rsa.RSAPrivateKey | bytes) -> dict[str, object]:
    operations = ["wrapKey", "unwrapKey"]
    if isinstance(key, bytes):
        return {"kid": identifier, "kty": "oct-HSM", "key_ops": operations}
    numbers = key.public_key().public_numbers()
    modulus = encoded(numbers.n.to_bytes(key.key_size // 8))
    return {
        "kid": identifier,
        "kty": "RSA",
        "key_ops": operations,
        "n": modulus,
        "e": encoded(numbers.e.to_bytes(3)),
    }


def used(key: rsa.RSAPrivateKey | bytes, operation: str, algorithm: str, value: bytes) -> bytes:
    """Wrap or unwrap; ValueError for what the key does not do."""
    if isinstance(key, bytes) or algorithm != "RSA-OAEP-256":
        raise ValueError(algorithm)
    if operation == "wrapkey":
        return key.public_key().encrypt(value, OAEP)
    if operation == "unwrapkey":
        return key.decrypt(value, OAEP)
    raise ValueError(operation)


class ToLoopback(HTTPAdapter):
    """Sends what is meant for a vault to this machine; the certificate must be the vault's."""

    def __init__(self, port: int, host: str) -> None:
        self.port, self.host = port, host
        super().__init__()

    def init_poolmanager(self, *arguments: object, **options: object) -> None:
        super().init_poolmanager(
            *arguments, **options, server_hostname=self.host, assert_hostname=self.host
        )

    def send(self, request: requests.PreparedRequest, **options: object) -> requests.Response:
        assert request.url is not None
        parts = urlsplit(request.url)
        request.headers["Host"] = parts.netloc
        request.url = parts._replace(netloc=f"127.0.0.1:{self.port}").geturl()
        return super().send(request, **options)


class Credential:
    """Who we are, as far as Azure's library asks."""

    def __init__(self) -> None:
        self.scopes: list[str] = []
        self.known = True

    def get_token(self, *scopes: str, **_options: object) -> AccessToken:
        if not self.known:
            raise ClientAuthenticationError("first line\nsecond line")
        self.scopes += scopes
        return AccessToken(TOKEN, int(time.time()) + 3600)


class Azure(NamedTuple):
    """The service's port, its CA, and the credential that its clients use."""

    port: int
    ca_file: str
    credential: Credential

    def open(self, uri: str, *, port: int | None = None) -> AzureKeyVaultKEK:
        host = urlsplit(uri.removeprefix("azurekeyvault:")).netloc
        session = requests.Session()
        session.trust_env = False
        session.mount("https://", ToLoopback(port or self.port, host))
        transport = RequestsTransport(
            session=session,
            session_owner=True,
            connection_verify=self.ca_file,
            use_env_settings=False,
        )
        return AzureKeyVaultKEK(uri, credential=self.credential, transport=transport)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    root = trustme.CA()
    ca_file = tmp_path_factory.mktemp("azure") / "ca.pem"
    root.cert_pem.write_to_path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    root.issue_cert(urlsplit(VAULT).netloc, urlsplit(HSM).netloc).configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, str(ca_file)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def azure(served: tuple[int, str]) -> Iterator[Azure]:
    Service.keys.clear()
    Service.seen.clear()
    Service.forbidden = False
    Service.keys["kek"] = {secrets.token_hex(16): rsa.generate_private_key(65537, 2048)}
    Service.keys["other"] = {secrets.token_hex(16): rsa.generate_private_key(65537, 2048)}
    Service.keys["symmetric"] = {secrets.token_hex(16): secrets.token_bytes(32)}
    yield Azure(*served, Credential())
    Service.forbidden = False


def test_a_root_key_unwraps_by_the_format_document_and_the_key_alone(azure: Azure) -> None:
    kek = azure.open(f"azurekeyvault:{VAULT}/keys/kek")
    assert isinstance(kek, KEKProvider)
    wrapped = kek.wrap(ROOT_KEY, b"place")
    kek.close()
    ((version, key),) = Service.keys["kek"].items()
    assert isinstance(key, rsa.RSAPrivateKey)
    identifier = f"{VAULT}/keys/kek/{version}".encode()
    end = 9 + len(identifier)
    assert wrapped[:6] == b"PFSK\x02\x04"
    assert wrapped[6:8] == (1 + len(identifier)).to_bytes(2)
    assert wrapped[8:end] == b"\x01" + identifier
    assert wrapped[end : end + 2] == (256).to_bytes(2)
    fresh = key.decrypt(wrapped[end + 2 : end + 258], OAEP)
    sealed = wrapped[end + 258 :]
    bound = end.to_bytes(4) + wrapped[:end] + b"place"
    assert AESGCM(fresh).decrypt(sealed[:12], sealed[12:], bound) == ROOT_KEY


@pytest.mark.parametrize("vault", [VAULT, HSM])
def test_a_root_key_is_unwrapped_in_the_vault(azure: Azure, vault: str) -> None:
    kek = azure.open(f"azurekeyvault:{vault}/keys/kek")
    wrapped = kek.wrap(ROOT_KEY, b"place")
    Service.seen.clear()
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY
    version = next(iter(Service.keys["kek"]))
    assert Service.seen[-1] == f"POST /keys/kek/{version}/unwrapkey"
    assert azure.credential.scopes[0] == f"https://{vault.partition('.')[2]}/.default"
    kek.close()


def test_a_symmetric_key_is_refused(azure: Azure) -> None:
    """Azure's library would wrap under a random key of its own."""
    kek = azure.open(f"azurekeyvault:{HSM}/keys/symmetric")
    with pytest.raises(KEKUnavailable, match="no RSA key"):
        kek.wrap(ROOT_KEY, b"place")
    kek.close()


def test_the_version_that_wrapped_also_unwraps(azure: Azure) -> None:
    kek = azure.open(f"azurekeyvault:{VAULT}/keys/kek")
    wrapped = kek.wrap(ROOT_KEY, b"place")
    first = next(iter(Service.keys["kek"]))
    newer = secrets.token_hex(16)
    Service.keys["kek"][newer] = rsa.generate_private_key(65537, 2048)
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY
    assert newer.encode() in kek.wrap(ROOT_KEY, b"place")
    kek.close()
    pinned = azure.open(f"azurekeyvault:{VAULT}/keys/kek/{first}")
    assert pinned.unwrap(wrapped, b"place") == ROOT_KEY
    pinned.close()
    elsewhere = azure.open(f"azurekeyvault:{VAULT}/keys/kek/{newer}")
    with pytest.raises(WrongKEK, match=first):
        elsewhere.unwrap(wrapped, b"place")
    elsewhere.close()
    del Service.keys["kek"][first]
    again = azure.open(f"azurekeyvault:{VAULT}/keys/kek")
    with pytest.raises(KEKUnavailable, match="no such key or version"):
        again.unwrap(wrapped, b"place")
    again.close()


def test_another_key_and_damage_and_another_place_are_told_apart(azure: Azure) -> None:
    kek = azure.open(f"azurekeyvault:{VAULT}/keys/kek")
    wrapped = kek.wrap(ROOT_KEY, b"place")
    for uri in (f"{VAULT}/keys/other", f"{HSM}/keys/kek"):
        other = azure.open(f"azurekeyvault:{uri}")
        with pytest.raises(WrongKEK, match="is not the KEK of this store"):
            other.unwrap(wrapped, b"place")
        other.close()
    with pytest.raises(CorruptEnvelope, match="another store"):
        kek.unwrap(wrapped, b"another place")
    for position in (*range(12), 50, 80, 200, 300, 350, len(wrapped) - 1):
        flipped = bytearray(wrapped)
        flipped[position] ^= 1
        with pytest.raises((CorruptEnvelope, WrongKEK, KEKUnavailable)):
            kek.unwrap(bytes(flipped), b"place")
    for length in (0, 7, 8, 9, 100, len(wrapped) - 1, len(wrapped) + 1, 4097):
        with pytest.raises(CorruptEnvelope):
            kek.unwrap(wrapped.ljust(length, b"\0")[:length], b"place")
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY
    kek.close()


def test_a_store_lives_under_a_key_of_a_vault(azure: Azure, tmp_path: Path) -> None:
    kek = azure.open(f"azurekeyvault:{VAULT}/keys/kek")
    with KeyStore.create(tmp_path / "store", kek) as store:
        store.create_key("name", KeyType.ED25519)
        made = store.public_key("name")
    with KeyStore.open(tmp_path / "store", kek) as store:
        assert store.public_key("name") == made
    kek.close()
    other = azure.open(f"azurekeyvault:{VAULT}/keys/other")
    with pytest.raises(WrongKEK):
        KeyStore.open(tmp_path / "store", other)
    other.close()


def test_what_keeps_from_the_key_is_told_in_one_line(azure: Azure) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        unused = closed.getsockname()[1]
    nowhere = azure.open(f"azurekeyvault:{VAULT}/keys/kek", port=unused)
    missing = azure.open(f"azurekeyvault:{VAULT}/keys/missing")
    kek = azure.open(f"azurekeyvault:{VAULT}/keys/kek")
    wrapped = kek.wrap(ROOT_KEY, b"place")
    messages = []
    for provider, match in ((nowhere, "check the network"), (missing, "no such key")):
        with pytest.raises(KEKUnavailable, match=match) as caught:
            provider.wrap(ROOT_KEY, b"place")
        messages.append(str(caught.value))
        provider.close()
    Service.forbidden = True
    with pytest.raises(KEKUnavailable, match="status 403; allow this caller") as caught:
        kek.unwrap(wrapped, b"place")
    messages.append(str(caught.value))
    Service.forbidden = False
    kek.close()
    azure.credential.known = False
    stranger = azure.open(f"azurekeyvault:{VAULT}/keys/kek")
    with pytest.raises(KEKUnavailable, match="does not know who asks") as caught:
        stranger.unwrap(wrapped, b"place")
    messages.append(str(caught.value))
    stranger.close()
    assert not [text for text in messages if "\n" in text or TOKEN in text]


def test_a_vault_without_its_certificate_is_not_believed(azure: Azure, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    foreign = azure._replace(ca_file=str(tmp_path / "ca.pem"))
    kek = foreign.open(f"azurekeyvault:{VAULT}/keys/kek")
    with pytest.raises(KEKUnavailable, match="check the network"):
        kek.wrap(ROOT_KEY, b"place")
    kek.close()
    assert Service.seen == []


@pytest.mark.parametrize(
    "uri",
    [
        "azurekeyvault:",
        "azurekeyvault:http://pfs-test.vault.azure.net/keys/kek",
        "azurekeyvault:https://hunter2.example/keys/kek",
        "azurekeyvault:https://vault.azure.net.hunter2.example/keys/kek",
        "azurekeyvault:https://user:hunter2@pfs-test.vault.azure.net/keys/kek",
        "azurekeyvault:https://pfs-test.vault.azure.net/secrets/hunter2",
        "azurekeyvault:https://pfs-test.vault.azure.net/keys/kek/hunter2",
        "azurekeyvault:https://pfs-test.vault.azure.net/keys/kek?token=hunter2",
        "azurekeyvault:https://pfs-test.vault.azure.net/keys/kek?",
        "azurekeyvault:https://pfs-test.vault.azure.net/keys/kek/",
    ],
)
def test_a_uri_that_names_no_key_is_refused(uri: str) -> None:
    with pytest.raises(KEKUnavailable) as caught:
        open_kek(uri)
    assert "hunter2" not in str(caught.value)


def test_a_key_is_made_with_azures_own_tools_and_a_uri_opens_without_asking() -> None:
    uri = f"azurekeyvault:{VAULT}/keys/kek"
    with pytest.raises(KEKUnavailable, match="az keyvault key create"):
        create_kek(uri)
    opened = open_kek(uri)
    assert opened.uri() == uri
    opened.close()


def test_nothing_secret_is_shown_and_a_closed_kek_asks_no_more(azure: Azure) -> None:
    kek = azure.open(f"azurekeyvault:{VAULT}/keys/kek")
    wrapped = kek.wrap(ROOT_KEY, b"place")
    assert TOKEN not in repr(kek) + kek.uri()
    kek.close()
    kek.close()
    for use in (kek.wrap, kek.unwrap):
        with pytest.raises(StoreError, match="closed"):
            use(wrapped, b"place")
