"""The AWS KMS KEK, through boto3 and HTTP, against moto's server in a process of its own.

moto keeps keys, states and encryption contexts as AWS documents them. What only AWS does (IAM, real
regions, throttling) is not tested here.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

import boto3
import pytest

from certs.errors import CorruptEnvelope, KEKUnavailable, StoreError, WrongKEK
from certs.key_types import KeyType
from certs.keystore import KeyStore
from certs.keystore.kek import KEKProvider, create_kek, open_kek

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOT_KEY = bytes(range(32))
SECRET = "an-access-key-that-shows"

pytestmark = pytest.mark.skipif(find_spec("moto") is None, reason="unsupported: pip install moto")

SERVER = """
import sys
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
server = make_server(
    "127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True
)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as errors:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=errors, encoding="ascii"
        )
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    assert port, log.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(10)
    server.stdout.close()


class Account:
    """What an administrator does with keys, by boto3."""

    def __init__(self, endpoint: str, region: str = "eu-west-1") -> None:
        self.options = f"?region={region}&endpoint={endpoint}"
        self.kms = boto3.client("kms", region_name=region, endpoint_url=endpoint)

    def create(self, **parameters: object) -> str:
        return str(self.kms.create_key(**parameters)["KeyMetadata"]["Arn"])

    def uri(self, key: str) -> str:
        return f"awskms:{key}{self.options}"


@pytest.fixture
def account(endpoint: str) -> Iterator[Account]:
    made = Account(endpoint)
    yield made
    made.kms.close()


@pytest.fixture
def arn(account: Account) -> str:
    return account.create()


@pytest.fixture
def kek(account: Account, arn: str) -> Iterator[KEKProvider]:
    opened = open_kek(account.uri(arn))
    yield opened
    opened.close()


def test_a_root_key_unwraps_by_the_format_document_and_aws_alone(
    account: Account, kek: KEKProvider, arn: str
) -> None:
    assert isinstance(kek, KEKProvider)
    wrapped = kek.wrap(ROOT_KEY, b"place")
    assert wrapped[:6] == b"PFSK\x02\x03"
    assert wrapped[8 : 8 + len(arn)] == arn.encode()
    assert int.from_bytes(wrapped[6:8]) == len(arn)
    answer = account.kms.decrypt(
        KeyId=arn,
        CiphertextBlob=wrapped[8 + len(arn) :],
        EncryptionContext={"pfs-associated-data": b"place".hex()},
    )
    assert answer["Plaintext"] == ROOT_KEY
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY


def test_another_key_and_damage_and_another_place_are_told_apart(
    account: Account, kek: KEKProvider, arn: str
) -> None:
    wrapped = kek.wrap(ROOT_KEY, b"place")
    other = open_kek(account.uri(account.create()))
    with pytest.raises(WrongKEK, match=arn):
        other.unwrap(wrapped, b"place")
    other.close()
    with pytest.raises(CorruptEnvelope, match="another store"):
        kek.unwrap(wrapped, b"another place")
    for position in (*range(8), 8, 30, *range(8 + len(arn), len(wrapped), 5), len(wrapped) - 1):
        flipped = bytearray(wrapped)
        flipped[position] ^= 1
        with pytest.raises((CorruptEnvelope, WrongKEK, KEKUnavailable)):
            kek.unwrap(bytes(flipped), b"place")
    for length in (0, 7, 8, 8 + len(arn), len(wrapped) - 1, 4097):
        with pytest.raises(CorruptEnvelope):
            kek.unwrap(wrapped.ljust(length, b"\0")[:length], b"place")
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY


def test_a_key_is_named_by_arn_id_or_alias(account: Account, kek: KEKProvider, arn: str) -> None:
    wrapped = kek.wrap(ROOT_KEY, b"place")
    account.kms.create_alias(AliasName="alias/pfs/kek", TargetKeyId=arn)
    for name in (arn, arn.rpartition("/")[2], "alias/pfs/kek"):
        named = open_kek(account.uri(name))
        assert named.unwrap(wrapped, b"place") == ROOT_KEY
        named.close()
    account.kms.update_alias(AliasName="alias/pfs/kek", TargetKeyId=account.create())
    moved = open_kek(account.uri("alias/pfs/kek"))
    with pytest.raises(WrongKEK, match=arn):
        moved.unwrap(wrapped, b"place")
    moved.close()


def test_the_region_of_an_arn_is_asked(endpoint: str, account: Account, arn: str) -> None:
    by_arn = open_kek(f"awskms:{arn}?endpoint={endpoint}")
    assert by_arn.unwrap(by_arn.wrap(ROOT_KEY, b"place"), b"place") == ROOT_KEY
    by_arn.close()
    elsewhere = open_kek(f"awskms:{arn.rpartition('/')[2]}?region=us-east-1&endpoint={endpoint}")
    with pytest.raises(KEKUnavailable, match=r"NotFoundException; name a key"):
        elsewhere.wrap(ROOT_KEY, b"place")
    elsewhere.close()
    assert account.options


def test_a_key_that_cannot_be_used_says_what_to_do(account: Account) -> None:
    disabled = account.create().rpartition("/")[2]  # moto changes the state by id only
    kek = open_kek(account.uri(disabled))
    wrapped = kek.wrap(ROOT_KEY, b"place")
    account.kms.disable_key(KeyId=disabled)
    for use in (kek.wrap, kek.unwrap):
        with pytest.raises(KEKUnavailable, match="is Disabled; enable it"):
            use(ROOT_KEY if use == kek.wrap else wrapped, b"place")
    account.kms.enable_key(KeyId=disabled)
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY
    account.kms.schedule_key_deletion(KeyId=disabled, PendingWindowInDays=7)
    with pytest.raises(KEKUnavailable, match="PendingDeletion"):
        kek.unwrap(wrapped, b"place")
    kek.close()
    signing = open_kek(account.uri(account.create(KeyUsage="SIGN_VERIFY", KeySpec="RSA_2048")))
    with pytest.raises(KEKUnavailable, match="no symmetric key"):
        signing.wrap(ROOT_KEY, b"place")
    signing.close()


def test_a_store_lives_under_a_key_of_kms(account: Account, arn: str, tmp_path: Path) -> None:
    uri = account.uri(arn)
    with KeyStore.create(tmp_path / "store", uri) as store:
        store.create_key("name", KeyType.ED25519)
        made = store.public_key("name")
    with KeyStore.open(tmp_path / "store", uri) as store:
        assert store.public_key("name") == made
    with pytest.raises(WrongKEK):
        KeyStore.open(tmp_path / "store", account.uri(account.create()))


def test_nobody_there_is_said_within_bounds(arn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    kek = open_kek(f"awskms:{arn}?endpoint=http://127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(KEKUnavailable, match="EndpointConnectionError; check") as caught:
        kek.wrap(ROOT_KEY, b"place")
    assert time.monotonic() - began < 20
    assert "\n" not in str(caught.value)
    kek.close()


@pytest.mark.slow
def test_who_never_answers_is_left_within_bounds(arn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        kek = open_kek(f"awskms:{arn}?endpoint=http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(KEKUnavailable, match="ReadTimeoutError"):
            kek.wrap(ROOT_KEY, b"place")
        assert 5 <= time.monotonic() - began < 40
        kek.close()


def test_without_credentials_or_region_it_says_so(
    account: Account, arn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KEKUnavailable, match="no region is set"):
        open_kek("awskms:alias/name")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    kek = open_kek(account.uri(arn))
    with pytest.raises(KEKUnavailable, match="no AWS credentials"):
        kek.wrap(ROOT_KEY, b"place")
    kek.close()


@pytest.mark.parametrize(
    "uri",
    [
        "awskms:",
        "awskms:a b",
        "awskms:key/1234",
        "awskms:arn:aws:s3:eu-west-1:123456789012:key/1",
        "awskms:alias/name?secret=hunter2",
        "awskms:alias/name?region=eu-west-1&region=hunter2",
        "awskms:alias/name?region=EU%20hunter2",
        "awskms:alias/name?region=eu-west-1&endpoint=http://hunter2.example",
        "awskms:alias/name?region=eu-west-1&endpoint=https://user:hunter2@host",
        "awskms:alias/name?region=eu-west-1&endpoint=https://host:hunter2",
        "awskms:alias/name?region=eu-west-1&endpoint=file:///hunter2",
        "awskms:alias/" + "n" * 5000,
    ],
)
def test_a_uri_that_names_no_key_is_refused(uri: str) -> None:
    with pytest.raises(KEKUnavailable) as caught:
        open_kek(uri)
    assert "hunter2" not in str(caught.value)


def test_a_key_is_made_with_awss_own_tools() -> None:
    with pytest.raises(KEKUnavailable, match="aws kms create-key"):
        create_kek("awskms:alias/name?region=eu-west-1")


def test_nothing_secret_is_shown_and_a_closed_kek_asks_no_more(kek: KEKProvider) -> None:
    wrapped = kek.wrap(ROOT_KEY, b"place")
    assert SECRET not in repr(kek) + kek.uri() + json.dumps({"uri": kek.uri()})
    kek.close()
    kek.close()
    for use in (kek.wrap, kek.unwrap):
        with pytest.raises(StoreError, match="closed"):
            use(wrapped, b"place")
