"""What the tests against real programs share: credentials made per run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from interop.peers.endpoints import CredentialFiles

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.peers)


class Authority(NamedTuple):
    """A CA: its root, and the credentials of a server, with two kinds of key, and of a client."""

    ca_file: Path
    ec: CredentialFiles
    rsa: CredentialFiles
    client: CredentialFiles


def make_authority(folder: Path) -> Authority:
    root = trustme.CA()
    issuing = root.create_child_ca()  # so that every chain has an intermediate to get lost
    ca_file = folder / "ca.pem"
    root.cert_pem.write_to_path(ca_file)

    def write(name: str, leaf: trustme.LeafCert) -> CredentialFiles:
        chain, key = folder / f"{name}.pem", folder / f"{name}.key"
        chain.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        key.touch(mode=0o600)
        leaf.private_key_pem.write_to_path(key)
        return CredentialFiles(certificate_chain=chain, private_key=key)

    names = ("localhost", "127.0.0.1")
    return Authority(
        ca_file=ca_file,
        ec=write("ec", issuing.issue_cert(*names, key_type=trustme.KeyType.ECDSA)),
        rsa=write("rsa", issuing.issue_cert(*names, key_type=trustme.KeyType.RSA)),
        client=write("client", issuing.issue_cert("client.example")),
    )


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make the CA that the tests trust."""
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def foreign_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make a CA that nobody trusts."""
    return make_authority(tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="session")
def ca_file(authority: Authority) -> Path:
    return authority.ca_file


@pytest.fixture(scope="session")
def foreign_ca_file(foreign_authority: Authority) -> Path:
    return foreign_authority.ca_file


@pytest.fixture(scope="session")
def ec_credential(authority: Authority) -> CredentialFiles:
    """Give a server on localhost and 127.0.0.1 an ECDSA P-256 key."""
    return authority.ec


@pytest.fixture(scope="session")
def rsa_credential(authority: Authority) -> CredentialFiles:
    """Give a server on localhost and 127.0.0.1 an RSA 2048 key."""
    return authority.rsa


@pytest.fixture(scope="session")
def client_credential(authority: Authority) -> CredentialFiles:
    return authority.client


@pytest.fixture(scope="session")
def foreign_rsa_credential(foreign_authority: Authority) -> CredentialFiles:
    return foreign_authority.rsa


@pytest.fixture(scope="session")
def foreign_client_credential(foreign_authority: Authority) -> CredentialFiles:
    return foreign_authority.client
