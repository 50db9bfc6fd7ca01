"""The PKCS #11 KEK and token keys on a real SoftHSM2, from one thread, many, and many processes.

A token folder is made for the run, before the module is loaded, because SoftHSM reads its
configuration when it is initialised.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import re
import secrets
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric import utils as asymmetric_utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from certs.errors import (
    CorruptEnvelope,
    KEKUnavailable,
    KeyExists,
    KeyNotExportable,
    KeyNotFound,
    StoreError,
    UnsupportedKey,
    WrongKEK,
    WrongPurpose,
)
from certs.key_types import KeyType
from certs.keystore import KeyStore
from certs.keystore.kek import KeepsPrivateKeys, KEKProvider, create_kek, open_kek

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interop.peers.programs import Program

MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm.so",
)
HOW_TO = Path(__file__).parents[2] / "docs/how-to.md"
PIN = "a-pin-that-shows"
ROOT_KEY = bytes(range(32))


class SoftHSM(NamedTuple):
    """A folder with two tokens, `first` and `second`, and the files of right and wrong PINs."""

    module: str
    folder: Path

    def uri(self, label: str, *, at: str = "first", pin: str = "pin") -> str:
        return (
            f"pkcs11:token={at};object={label}"
            f"?module-path={self.module}&pin-source=file:{self.folder}/{pin}"
        )


@pytest.fixture(scope="session")
def softhsm(
    require_program: Callable[[str], Program], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SoftHSM]:
    util = require_program("softhsm2")
    module = next(filter(os.path.exists, MODULES))
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    for name, pin in (("pin", PIN), ("wrong-pin", "another pin")):
        (folder / name).touch(0o600)
        (folder / name).write_text(f"{pin}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(configuration))
        for token in ("first", "second", "locked"):
            arguments = ("--init-token", "--free", "--label", token, "--so-pin", "12345678")
            subprocess.run([util.path, *arguments, "--pin", PIN], check=True, capture_output=True)
        yield SoftHSM(module, folder)


@pytest.fixture
def label() -> str:
    return f"kek-{secrets.token_hex(4)}"


@pytest.fixture
def kek(softhsm: SoftHSM, label: str) -> Iterator[KEKProvider]:
    made = create_kek(softhsm.uri(label))
    yield made
    made.close()


def tool(softhsm: SoftHSM, program: str) -> None:
    """Use the token as another application would, by python-pkcs11 alone, in another process."""
    prelude = textwrap.dedent(
        f"""
        import pkcs11
        from pkcs11 import Attribute as A, KeyType, MechanismFlag as F
        token = pkcs11.lib({softhsm.module!r}).get_token(token_label="first")
        session = token.open(rw=True, user_pin={PIN!r})
        """
    )
    subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(program) + "\nsession.close()\n"],
        check=True,
    )


def test_a_key_is_made_once_and_found_again(softhsm: SoftHSM, label: str) -> None:
    uri = softhsm.uri(label)
    with pytest.raises(KEKUnavailable, match="no AES keys"):
        open_kek(uri)
    made = create_kek(uri)
    assert isinstance(made, KEKProvider)
    assert isinstance(made, KeepsPrivateKeys)
    wrapped = made.wrap(ROOT_KEY, b"place")
    with pytest.raises(KEKUnavailable, match="never overwritten"):
        create_kek(uri)
    made.close()
    found = open_kek(uri)
    assert found.uri() == uri
    assert found.unwrap(wrapped, b"place") == ROOT_KEY
    found.close()


def test_a_root_key_unwraps_by_the_format_document_and_the_token_alone(
    softhsm: SoftHSM, kek: KEKProvider, label: str
) -> None:
    wrapped = kek.wrap(ROOT_KEY, b"place")
    assert len(wrapped) == 131
    assert wrapped[:9] == b"PFSK\x02\x02\x00\x01\x01"
    assert wrapped[9:11] == (60).to_bytes(2)
    opened = softhsm.folder / f"{label}.opened"
    tool(
        softhsm,
        f"""
        key = session.get_key(label={label!r})
        bound = pkcs11.GCMParams(bytes.fromhex("{wrapped[11:23].hex()}"), b"pfs kek 2 pkcs11")
        fresh = key.decrypt(bytes.fromhex("{wrapped[23:71].hex()}"),
                            mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=bound)
        open({str(opened)!r}, "wb").write(fresh)
        """,
    )
    bound = (9).to_bytes(4) + wrapped[:9] + b"place"
    fresh = opened.read_bytes()
    assert AESGCM(fresh).decrypt(wrapped[71:83], wrapped[83:], bound) == ROOT_KEY


def test_another_key_another_token_and_damage_are_told_apart(
    softhsm: SoftHSM, kek: KEKProvider, label: str
) -> None:
    wrapped = kek.wrap(ROOT_KEY, b"place")
    for wrong in (softhsm.uri(f"{label}-2"), softhsm.uri(label, at="second")):
        other = create_kek(wrong)
        with pytest.raises(WrongKEK, match="not the KEK of this store"):
            other.unwrap(wrapped, b"place")
        other.close()
    with pytest.raises(CorruptEnvelope, match="another store"):
        kek.unwrap(wrapped, b"another place")
    for position in range(len(wrapped)):
        flipped = bytearray(wrapped)
        flipped[position] ^= 1
        with pytest.raises((CorruptEnvelope, WrongKEK)):
            kek.unwrap(bytes(flipped), b"place")
    for length in (*range(len(wrapped)), len(wrapped) + 1, 4097):
        with pytest.raises(CorruptEnvelope):
            kek.unwrap(wrapped.ljust(length, b"\0")[:length], b"place")
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY


def test_a_key_for_wrapping_only_wraps_by_aes_key_wrap(softhsm: SoftHSM, label: str) -> None:
    tool(
        softhsm,
        f"""
        session.generate_key(KeyType.AES, 256, label={label!r}, store=True,
            capabilities=F.WRAP | F.UNWRAP, template={{A.SENSITIVE: True, A.EXTRACTABLE: False}})
        """,
    )
    kek = open_kek(softhsm.uri(label))
    wrapped = kek.wrap(ROOT_KEY, b"place")
    assert len(wrapped) == 111
    assert wrapped[8] == 2
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY
    for position in range(len(wrapped)):
        flipped = bytearray(wrapped)
        flipped[position] ^= 1
        with pytest.raises((CorruptEnvelope, WrongKEK)):
            kek.unwrap(bytes(flipped), b"place")
    with pytest.raises(CorruptEnvelope):
        kek.unwrap(wrapped, b"another place")
    by_gcm = create_kek(softhsm.uri(f"{label}-gcm"))
    with pytest.raises(WrongKEK, match="does not unwrap in the way"):
        kek.unwrap(by_gcm.wrap(ROOT_KEY, b"place"), b"place")
    with pytest.raises(WrongKEK, match="does not unwrap in the way"):
        by_gcm.unwrap(wrapped, b"place")
    by_gcm.close()
    kek.close()


@pytest.mark.parametrize(
    ("bits", "capabilities", "template", "match"),
    [
        (128, "F.ENCRYPT | F.DECRYPT", "A.EXTRACTABLE: False", "no AES-256 key"),
        (256, "F.ENCRYPT | F.DECRYPT", "A.EXTRACTABLE: True", "taken out"),
        (256, "F.ENCRYPT | F.DECRYPT", "A.SENSITIVE: False", "taken out"),
        (256, "F.ENCRYPT | F.WRAP", "A.EXTRACTABLE: False", "neither"),
    ],
)
def test_a_key_that_is_no_kek_is_refused(
    softhsm: SoftHSM, label: str, bits: int, capabilities: str, template: str, match: str
) -> None:
    tool(
        softhsm,
        f"""
        session.generate_key(KeyType.AES, {bits}, label={label!r}, store=True,
            capabilities={capabilities}, template={{{template}}})
        """,
    )
    with pytest.raises(KEKUnavailable, match=match):
        open_kek(softhsm.uri(label))


def test_two_keys_of_one_label_are_not_chosen_between(softhsm: SoftHSM, label: str) -> None:
    tool(
        softhsm,
        f"""
        for number in (1, 2):
            session.generate_key(KeyType.AES, 256, label={label!r}, id=bytes([number]), store=True,
                capabilities=F.ENCRYPT | F.DECRYPT, template={{A.EXTRACTABLE: False}})
        """,
    )
    with pytest.raises(KEKUnavailable, match="2 AES keys"):
        open_kek(softhsm.uri(label))
    open_kek(softhsm.uri(label).replace("?", ";id=%01?")).close()


def test_what_keeps_from_the_token_is_told_in_one_line(
    softhsm: SoftHSM, kek: KEKProvider, label: str, tmp_path: Path
) -> None:
    right = softhsm.uri(label)
    (tmp_path / "module.so").write_bytes(b"no module")
    (softhsm.folder / "loose").touch(0o644)
    cases = {
        softhsm.uri(label, at="third"): "no tokens",
        right.replace("token=first;", ""): "3 tokens",
        right.replace("token=first", "token=first;serial=0"): "no tokens",
        softhsm.uri(label, pin="nowhere"): "PIN file.*No such file",
        softhsm.uri(label, pin="loose"): "mode 0644",
        softhsm.uri(label, pin="wrong-pin"): "the PIN is wrong",  # while the right one is in use
        softhsm.uri(label, at="locked", pin="wrong-pin"): "the PIN is wrong",  # and first
        right.replace(softhsm.module, "/nowhere.so"): "nowhere.so",
        right.replace(softhsm.module, f"{tmp_path}/module.so"): "module.so",
    }
    for uri, match in cases.items():
        with pytest.raises(KEKUnavailable, match=match) as caught:
            open_kek(uri)
        assert "\n" not in str(caught.value)
        assert PIN not in str(caught.value)
        assert "another pin" not in str(caught.value)
    assert kek.unwrap(kek.wrap(ROOT_KEY, b"place"), b"place") == ROOT_KEY


def test_each_attribute_of_a_token_narrows_the_search(softhsm: SoftHSM, kek: KEKProvider) -> None:
    for right, wrong in (
        ("model=SoftHSM%20v2", "model=SoftHSM%20v3"),
        ("manufacturer=SoftHSM%20project", "manufacturer=SoftHSM"),
        ("library-manufacturer=SoftHSM", "library-manufacturer=Soft"),
        ("library-version=2.6", "library-version=2.7"),
    ):
        open_kek(kek.uri().replace("?", f";{right}?")).close()
        with pytest.raises(KEKUnavailable, match="no tokens"):
            open_kek(kek.uri().replace("?", f";{wrong}?"))
    assert softhsm.module in kek.uri()


def test_nothing_secret_is_shown_and_a_closed_kek_has_left(
    softhsm: SoftHSM, kek: KEKProvider, label: str
) -> None:
    wrapped = kek.wrap(ROOT_KEY, b"place")
    second = open_kek(softhsm.uri(label))
    assert PIN not in repr(kek) + kek.uri() + repr(vars(kek))
    second.close()
    second.close()
    for use in (second.wrap, second.unwrap):
        with pytest.raises(StoreError, match="closed"):
            use(wrapped, b"place")
    # The first is still logged in, and the token is left by the last of them.
    assert kek.unwrap(wrapped, b"place") == ROOT_KEY


def test_a_store_lives_under_a_token(softhsm: SoftHSM, kek: KEKProvider, tmp_path: Path) -> None:
    with KeyStore.create(tmp_path / "store", kek.uri()) as store:
        store.create_key("name", KeyType.ED25519)
        made = store.public_key("name")
    with KeyStore.open(tmp_path / "store", kek.uri()) as store:
        assert store.public_key("name") == made
    other = create_kek(softhsm.uri(f"other-{secrets.token_hex(4)}"))
    with pytest.raises(WrongKEK):
        KeyStore.open(tmp_path / "store", other)
    other.close()


THREADS = """
import faulthandler, os, sys
from concurrent.futures import ThreadPoolExecutor
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from certs.errors import CorruptEnvelope
from certs.key_types import KeyType
from certs.keystore.kek import create_kek, open_kek

faulthandler.enable()
root_key = bytes(32)

def work(number, uris):
    uri = uris[number % len(uris)]
    for turn in range(5):
        kek = open_kek(uri)
        key = kek.generate_private_key(f"{os.getpid()}-{number}-{turn}", KeyType.EC_P256)
        for _ in range(4):
            wrapped = kek.wrap(root_key, b"place")
            assert kek.unwrap(wrapped, b"place") == root_key
            key.sign(b"message", ec.ECDSA(hashes.SHA256()))
            try:
                kek.unwrap(wrapped, b"another place")
            except CorruptEnvelope:
                pass
            else:
                raise SystemExit("opened elsewhere")
        kek.close()

for uri in sys.argv[1:3]:
    create_kek(uri).close()
with ThreadPoolExecutor(8) as threads:
    for done in [threads.submit(work, number, sys.argv[1:]) for number in range(8)]:
        done.result()
print("done")
"""


def test_threads_take_turns_at_one_module(softhsm: SoftHSM, label: str) -> None:
    """SoftHSM 2.6.1 crashes the whole process when its calls are not serialised.

    Two tokens under two names of the module, so that it is the module's lock that serialises.
    """
    uris = [softhsm.uri(label), softhsm.uri(label, at="second")]
    real = os.path.realpath(softhsm.module)
    uris += [uri.replace(softhsm.module, real) for uri in uris]
    done = subprocess.run(
        [sys.executable, "-c", THREADS, *uris],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


PROCESS = """
import sys
from certs.keystore.kek import open_kek
kek = open_kek(sys.argv[1])
wrapped = bytes.fromhex(sys.argv[2])
for _ in range(20):
    root_key = kek.unwrap(wrapped, b"place")
    assert kek.unwrap(kek.wrap(root_key, b"place"), b"place") == root_key
print(root_key.hex())
kek.close()
"""


def test_processes_use_one_token_at_once(kek: KEKProvider) -> None:
    arguments = [kek.uri(), kek.wrap(ROOT_KEY, b"place").hex()]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", PROCESS, *arguments],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    encoding="ascii",
                )
            )
            for _ in range(6)
        ]
        outcomes = [(process.communicate(timeout=60), process.returncode) for process in processes]
    for (output, errors), status in outcomes:
        assert (status, output.strip()) == (0, ROOT_KEY.hex()), errors


FORK = """
import os, sys
from certs.errors import StoreError
from certs.keystore.kek import open_kek
uri, wrapped = sys.argv[1], bytes.fromhex(sys.argv[2])
kek = open_kek(uri)
child = os.fork()
if child == 0:
    try:
        kek.unwrap(wrapped, b"place")
    except StoreError as error:
        assert "forked" in str(error), error
    else:
        os._exit(2)
    again = open_kek(uri)
    same = again.unwrap(wrapped, b"place") == bytes(range(32))
    again.close()
    os._exit(0 if same else 3)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert kek.unwrap(wrapped, b"place") == bytes(range(32))
kek.close()
print("both")
"""


def test_a_fork_says_so_and_its_child_opens_again(kek: KEKProvider) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, kek.uri(), kek.wrap(ROOT_KEY, b"place").hex()],
        capture_output=True,
        encoding="ascii",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "both\n"), done.stderr


TYPES = (KeyType.EC_P256, KeyType.EC_P384, KeyType.ED25519, KeyType.RSA_3072)


@pytest.mark.parametrize("key_type", TYPES)
def test_a_key_of_the_token_signs_certificates(
    kek: KEKProvider, label: str, key_type: KeyType
) -> None:
    key = kek.generate_private_key(label, key_type)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "in a token")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, None if key_type is KeyType.ED25519 else hashes.SHA256())
    )
    certificate.verify_directly_issued_by(certificate)
    found = kek.private_key(label)
    assert found.public_key() == key.public_key()
    with pytest.raises(KeyExists):
        kek.generate_private_key(label, key_type)
    with pytest.raises(KeyNotFound):
        kek.private_key(f"{label}-")


@pytest.mark.parametrize("key_type", TYPES)
def test_a_key_of_the_token_never_leaves_it(
    kek: KEKProvider, label: str, key_type: KeyType
) -> None:
    key = kek.generate_private_key(label, key_type)
    with pytest.raises(KeyNotExportable):
        key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    with pytest.raises(KeyNotExportable):
        pickle.dumps(key)
    assert copy.deepcopy(key) is key
    assert repr(key).endswith(f"PrivateKey {label!r}>")
    if isinstance(key, ec.EllipticCurvePrivateKey):
        with pytest.raises(WrongPurpose):
            key.exchange(ec.ECDH(), ec.generate_private_key(key.curve).public_key())
    if isinstance(key, rsa.RSAPrivateKey):
        with pytest.raises(WrongPurpose):
            key.decrypt(b"", padding.PKCS1v15())
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        with pytest.raises(KeyNotExportable):
            key.private_numbers()


@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_every_way_to_sign_verifies_elsewhere(
    kek: KEKProvider, label: str, algorithm: hashes.HashAlgorithm
) -> None:
    message = secrets.token_bytes(5000)
    hashed = hashes.Hash(algorithm)
    hashed.update(message)
    digest = hashed.finalize()
    prehashed = asymmetric_utils.Prehashed(algorithm)
    curve_key = kek.generate_private_key(f"{label}-ec", KeyType.EC_P256)
    assert isinstance(curve_key, ec.EllipticCurvePrivateKey)
    for data, named in ((message, algorithm), (digest, prehashed)):
        signature = curve_key.sign(data, ec.ECDSA(named))
        curve_key.public_key().verify(signature, message, ec.ECDSA(algorithm))
        with pytest.raises(InvalidSignature):
            curve_key.public_key().verify(signature, message + b"!", ec.ECDSA(algorithm))
    rsa_key = kek.generate_private_key(f"{label}-rsa", KeyType.RSA_2048)
    assert isinstance(rsa_key, rsa.RSAPrivateKey)
    masked = padding.MGF1(algorithm)
    for scheme in (
        padding.PKCS1v15(),
        padding.PSS(masked, 20),
        padding.PSS(masked, padding.PSS.DIGEST_LENGTH),
        padding.PSS(masked, padding.PSS.MAX_LENGTH),
    ):
        for data, named in ((message, algorithm), (digest, prehashed)):
            signature = rsa_key.sign(data, scheme, named)
            rsa_key.public_key().verify(signature, message, scheme, algorithm)
            with pytest.raises(InvalidSignature):
                rsa_key.public_key().verify(signature, message + b"!", scheme, algorithm)
    for refused in (
        lambda: curve_key.sign(message, ec.ECDSA(algorithm, deterministic_signing=True)),
        lambda: rsa_key.sign(message, padding.PSS(masked, padding.PSS.AUTO), algorithm),
        lambda: rsa_key.sign(message, padding.PSS(masked, 20), hashes.SHA224()),
        lambda: rsa_key.sign(message, padding.OAEP(masked, algorithm, None), algorithm),
        lambda: rsa_key.sign(message, padding.PKCS1v15(), hashes.SHA3_256()),
    ):
        with pytest.raises(UnsupportedAlgorithm):
            refused()
    with pytest.raises(ValueError, match="length"):
        curve_key.sign(digest[:-1], ec.ECDSA(prehashed))


def test_a_token_signs_as_in_the_document(
    softhsm: SoftHSM, kek: KEKProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(
        r"^```python\n(def sign_in_a_token.*?)^```$",
        HOW_TO.read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    names: dict[str, Callable[[str], None]] = {}
    exec(block, names)  # noqa: S102 - the document's own code
    names["sign_in_a_token"](kek.uri())
    signature = bytes.fromhex(capsys.readouterr().out)
    public_key = kek.private_key("issuing").public_key()
    public_key.verify(signature, b"message")
    with pytest.raises(InvalidSignature):
        public_key.verify(signature, b"another message")
    with pytest.raises(ValueError, match="keeps no private keys"):
        names["sign_in_a_token"](f"passphrase:?file={softhsm.folder}/pin")


def test_a_signature_that_does_not_verify_is_thrown_away(
    softhsm: SoftHSM, kek: KEKProvider, label: str
) -> None:
    """The public key beside the private one belongs to another pair."""
    tool(
        softhsm,
        f"""
        from pkcs11.util.ec import encode_named_curve_parameters
        parameters = {{A.EC_PARAMS: encode_named_curve_parameters("secp256r1")}}
        domain = session.create_domain_parameters(KeyType.EC, parameters, local=True)
        uses = F.SIGN | F.VERIFY
        first, _ = domain.generate_keypair(store=True, label={label!r}, capabilities=uses)
        _, second = domain.generate_keypair(store=True, label={label!r}, capabilities=uses)
        _.destroy()
        [p.destroy() for p in session.get_objects({{A.LABEL: {label!r},
            A.CLASS: pkcs11.ObjectClass.PRIVATE_KEY}}) if p.handle != second.handle]
        """,
    )
    key = kek.private_key(label)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    with pytest.raises(KEKUnavailable, match="does not verify"):
        key.sign(b"message", ec.ECDSA(hashes.SHA256()))


def test_a_private_key_that_can_leave_is_refused(
    softhsm: SoftHSM, kek: KEKProvider, label: str
) -> None:
    tool(
        softhsm,
        f"""
        session.generate_keypair(KeyType.RSA, 2048, store=True, label={label!r},
            capabilities=F.SIGN | F.VERIFY, private_template={{A.EXTRACTABLE: True}})
        """,
    )
    with pytest.raises(UnsupportedKey, match="taken out"):
        kek.private_key(label)


def test_a_type_that_tokens_do_not_make_is_refused(kek: KEKProvider, label: str) -> None:
    for key_type in set(KeyType) - {*TYPES, KeyType.RSA_2048} - {"rsa-4096"}:
        with pytest.raises(UnsupportedKey, match="not made in a token"):
            kek.generate_private_key(label, key_type)
        with pytest.raises(KeyNotFound):
            kek.private_key(label)
    for refused in ("", "two\nlines", "l" * 129):
        with pytest.raises(UnsupportedKey, match="label"):
            kek.generate_private_key(refused, KeyType.ED25519)


def test_a_key_of_a_closed_kek_no_longer_signs(softhsm: SoftHSM, label: str) -> None:
    kek = create_kek(softhsm.uri(label))
    key = kek.generate_private_key(f"{label}-sign", KeyType.ED25519)
    kek.close()
    with pytest.raises(StoreError, match="closed"):
        key.sign(b"message")
