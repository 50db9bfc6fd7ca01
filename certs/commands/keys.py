"""``pfs keys …``: one function a command; each opens the store, does one thing, prints it."""

from __future__ import annotations

import base64
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from certs.commands.arguments import (
    ask,
    kek_uri,
    open_store,
    read_bytes,
    read_secret,
    require_absent,
    store_address,
    text_bytes,
    write_secret,
)
from certs.commands.output import print_json, say
from certs.errors import BadSignature, UnsupportedKey
from certs.key_types import KeyType, key_type_of, require_private_key
from certs.keystore import KeyStore
from certs.keystore.address import require_vacant
from certs.keystore.kek import create_kek
from certs.keystore.kinds import require_key_type
from certs.keystore.payload import AES_256_BYTES, MAX_SECRET_BYTES
from certs.keystore.wrapping import MAX_WRAPPED_KEY_BYTES, MAX_WRAPPING_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from certs.keystore import KeyInfo
    from certs.keystore.store import VersionInfo

__all__ = [
    "run_change",
    "run_create",
    "run_data_key",
    "run_delete",
    "run_export",
    "run_import",
    "run_init",
    "run_list",
    "run_public_key",
    "run_secret_get",
    "run_secret_set",
    "run_sign",
    "run_unwrap",
    "run_verify",
    "run_versions",
    "run_wrap",
]

_MAX_SIGNATURE_BYTES = 64 * 1024
_MAX_KEY_FILE_BYTES = 64 * 1024


def run_init(*, store: str | None, kek: str | None, new_kek: bool, as_json: bool) -> int:
    """Make a store, and with `new_kek` its KEK before it; return 0."""
    address, uri = store_address(store), kek_uri(kek)
    require_vacant(address)  # before there is a KEK for nothing
    if new_kek:
        create_kek(uri).close()
    with KeyStore.create(address, uri) as made:
        say({"store": address, "store_id": made.store_id}, f"made {address}", as_json=as_json)
    return 0


def run_create(
    *,
    store: str | None,
    kek: str | None,
    name: str,
    key_type: str,
    purpose: str | None,
    exportable: bool,
    purge_protected: bool,
    as_json: bool,
) -> int:
    """Make a key; return 0."""
    with open_store(store, kek) as keys:
        info = keys.create_key(
            name,
            require_key_type(key_type),
            purpose=purpose,
            exportable=exportable,
            purge_protected=purge_protected,
        )
    return _show(info, as_json=as_json)


def run_import(
    *,
    store: str | None,
    kek: str | None,
    name: str,
    source: Path,
    key_type: str | None,
    purpose: str | None,
    password_file: Path | None,
    exportable: bool,
    purge_protected: bool,
    as_json: bool,
) -> int:
    """Store a private key from PEM or DER, or the 32 bytes of an AES-256 key; return 0."""
    content = read_bytes(source, _MAX_KEY_FILE_BYTES)
    wanted = None if key_type is None else require_key_type(key_type)
    if wanted is KeyType.AES_256:
        if len(content) != AES_256_BYTES:
            raise UnsupportedKey(f"an AES-256 key has {AES_256_BYTES} bytes, not {len(content)}")
        key: object = content
    else:
        key = _loaded(content, password_file)
        if wanted not in (None, found := key_type_of(require_private_key(key))):
            raise UnsupportedKey(f"{source} holds a key of type {found}, not {wanted}")
    with open_store(store, kek) as keys:
        info = keys.import_key(
            name, key, purpose=purpose, exportable=exportable, purge_protected=purge_protected
        )
    return _show(info, as_json=as_json)


def run_list(
    *, store: str | None, kek: str | None, under: str, deleted: bool, as_json: bool
) -> int:
    """Print every key, a line or a JSON object each; return 0."""
    with open_store(store, kek) as keys:
        if as_json:
            print_json([_facts(info) for info in keys.keys(under, deleted=deleted)])
        else:
            for info in keys.keys(under, deleted=deleted):
                sys.stdout.write(_line(info))
    return 0


def run_change(
    *,
    store: str | None,
    kek: str | None,
    operation: str,
    name: str,
    version: int | None,
    as_json: bool,
) -> int:
    """Show, rotate, disable, enable, recover or purge a key; print what it is then; return 0."""
    with open_store(store, kek) as keys:
        changes: Mapping[str, Callable[[], KeyInfo]] = {
            "show": lambda: keys.key(name),
            "rotate": lambda: keys.rotate(name),
            "disable": lambda: keys.disable(name, version),
            "enable": lambda: keys.enable(name, version),
            "recover": lambda: keys.recover(name),
            "purge": lambda: keys.purge(name),
        }
        info = changes[operation]()
    return _show(info, as_json=as_json)


def run_versions(*, store: str | None, kek: str | None, name: str, as_json: bool) -> int:
    """Print every version of a key; return 0."""
    with open_store(store, kek) as keys:
        versions = keys.versions(name)
    if as_json:
        print_json([_version_facts(one) for one in versions])
        return 0
    for one in versions:
        state = "enabled" if one.enabled else "disabled"
        sys.stdout.write(f"{one.version}  {one.created_at:%Y-%m-%d %H:%M}  {state}\n")
    return 0


def run_delete(
    *, store: str | None, kek: str | None, name: str, retention_days: int, as_json: bool
) -> int:
    """Delete a key, to be recovered until its retention time is over; return 0."""
    with open_store(store, kek) as keys:
        info = keys.delete(name, retention=timedelta(days=retention_days))
    return _show(info, as_json=as_json)


def run_public_key(
    *, store: str | None, kek: str | None, name: str, version: int | None, as_json: bool
) -> int:
    """Print a public key as PEM; return 0."""
    with open_store(store, kek) as keys:
        key = keys.public_key(name, version)
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
    if as_json:
        print_json({"name": name, "public_key": pem})
    else:
        sys.stdout.write(pem)
    return 0


def run_export(
    *,
    store: str | None,
    kek: str | None,
    name: str,
    version: int | None,
    out: Path,
    as_json: bool,
) -> int:
    """Write a key that was created exportable: PKCS#8 PEM, not encrypted, or 32 bytes; return 0."""
    with open_store(store, kek) as keys:
        if keys.key(name).key_type.value == "aes-256":
            content = keys.export_symmetric_key(name, version)
        else:
            content = keys.export_private_key(name, version).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
    return _give(out, content, {"name": name}, as_json=as_json)


def run_sign(
    *,
    store: str | None,
    kek: str | None,
    name: str,
    version: int | None,
    source: Path,
    out: Path,
    as_json: bool,
) -> int:
    """Sign a file's bytes and write the signature; return 0."""
    message = read_bytes(source)
    with open_store(store, kek) as keys:
        made = keys.sign(name, message, version=version)
    facts = {"name": name, "version": made.version, "algorithm": made.algorithm}
    return _give(out, made.signature, facts, as_json=as_json, field="signature")


def run_verify(
    *,
    store: str | None,
    kek: str | None,
    name: str,
    version: int | None,
    source: Path,
    signature: Path,
    as_json: bool,
) -> int:
    """Say whether a signature is the key's over a file's bytes; return 0 if it is, else 1."""
    message, claimed = read_bytes(source), read_bytes(signature, _MAX_SIGNATURE_BYTES)
    with open_store(store, kek) as keys:
        try:
            found = keys.verify(name, claimed, message, version=version)
        except BadSignature as error:
            say({"verified": False, "reason": str(error)}, str(error), as_json=as_json)
            return 1
    facts = {"verified": True, "name": name, "version": found.version, "algorithm": found.algorithm}
    say(facts, f"signed by {name} version {found.version}, {found.algorithm}", as_json=as_json)
    return 0


def run_wrap(
    *,
    store: str | None,
    kek: str | None,
    name: str,
    version: int | None,
    source: Path,
    out: Path,
    context: str,
    as_json: bool,
) -> int:
    """Wrap the bytes of a file; return 0."""
    plaintext = read_bytes(source, MAX_WRAPPED_KEY_BYTES)
    bound_to = text_bytes(context, "--context")
    with open_store(store, kek) as keys:
        wrapped = keys.wrap(name, plaintext, context=bound_to, version=version)
    return _give(out, wrapped, {"name": name}, as_json=as_json, field="wrapped")


def run_unwrap(
    *,
    store: str | None,
    kek: str | None,
    name: str,
    source: Path,
    out: Path,
    context: str,
    as_json: bool,
) -> int:
    """Unwrap what `run_wrap` or `run_data_key` wrapped; return 0."""
    wrapped = read_bytes(source, MAX_WRAPPING_BYTES)
    with open_store(store, kek) as keys:
        plaintext = keys.unwrap(name, wrapped, context=text_bytes(context, "--context"))
    return _give(out, plaintext, {"name": name}, as_json=as_json, field="plaintext")


def run_data_key(
    *,
    store: str | None,
    kek: str | None,
    name: str,
    context: str,
    out: Path,
    wrapped_out: Path,
    as_json: bool,
) -> int:
    """Make a data key; write its wrapped form, then the key itself; return 0."""
    require_absent(wrapped_out, out)  # before a half of it is written
    with open_store(store, kek) as keys:
        key = keys.generate_data_key(name, context=text_bytes(context, "--context"))
    write_secret(wrapped_out, key.wrapped)
    return _give(out, key.plaintext, {"name": name, "version": key.version}, as_json=as_json)


def run_secret_set(
    *,
    store: str | None,
    kek: str | None,
    name: str,
    source: Path | None,
    purge_protected: bool,
    as_json: bool,
) -> int:
    """Store a secret from a file, standard input or a prompt; return 0."""
    value = read_secret(source, MAX_SECRET_BYTES, prompt=f"secret {name}")
    with open_store(store, kek) as keys:
        info = keys.set_secret(name, value, purge_protected=purge_protected)
    return _show(info, as_json=as_json)


def run_secret_get(
    *,
    store: str | None,
    kek: str | None,
    name: str,
    version: int | None,
    out: Path,
    as_json: bool,
) -> int:
    """Write a secret exactly as it was stored; return 0."""
    with open_store(store, kek) as keys:
        value = keys.get_secret(name, version)
    return _give(out, value, {"name": name}, as_json=as_json, field="secret")


def _loaded(content: bytes, password_file: Path | None) -> object:
    """Read a private key; ask at the terminal for a password that it needs and that none gave."""
    password = None
    is_pem = content.lstrip().startswith(b"-----BEGIN")
    load = serialization.load_pem_private_key if is_pem else serialization.load_der_private_key
    is_open = is_pem and b"ENCRYPTED" not in content[:200]  # and takes no password
    if password_file is not None and not is_open:
        password = read_bytes(password_file, _MAX_KEY_FILE_BYTES).rstrip(b"\r\n")
    elif is_pem and not is_open and sys.stdin.isatty():
        password = ask("password of the key")
    try:
        return load(content, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Never chained: the cause may quote what it could not parse.
        raise UnsupportedKey(
            "that is no private key in PEM or DER, or its password is missing or wrong; "
            "give --password-file, and --type aes-256 for 32 raw bytes"
        ) from None


def _facts(info: KeyInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "type": info.key_type.value,
        "purpose": info.purpose,
        "version": info.version,
        "enabled": info.enabled,
        "disabled_versions": sorted(info.disabled_versions),
        "exportable": info.exportable,
        "created_at": info.created_at.isoformat(),
        "purge_protected": info.purge_protected,
        "deleted_at": _iso(info.deleted_at),
        "purge_at": _iso(info.purge_at),
        "purged": info.purged,
    }


def _version_facts(one: VersionInfo) -> dict[str, object]:
    return {
        "version": one.version,
        "created_at": one.created_at.isoformat(),
        "enabled": one.enabled,
        "term": one.term,
    }


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _line(info: KeyInfo) -> str:
    marks = {
        "exportable": info.exportable and info.purpose != "secret",
        "disabled": not info.enabled,
        f"disabled versions: {', '.join(map(str, sorted(info.disabled_versions)))}": bool(
            info.disabled_versions
        ),
        "purge-protected": info.purge_protected,
        "purged": info.purged,
        f"deleted, recoverable until {info.purge_at:%Y-%m-%d %H:%M} UTC"
        if info.purge_at
        else "": info.purge_at is not None and not info.purged,
    }
    told = "".join(f"  {mark}" for mark, holds in marks.items() if holds)
    return f"{info.name}  {info.key_type}  {info.purpose}  version {info.version}{told}\n"


def _show(info: KeyInfo, *, as_json: bool) -> int:
    if as_json:
        print_json(_facts(info))
    else:
        sys.stdout.write(_line(info))
    return 0


def _give(
    out: Path,
    content: bytes,
    facts: Mapping[str, object],
    *,
    as_json: bool,
    field: str = "key",
) -> int:
    """Hand bytes over: raw to a file or standard output, or in base64 within JSON."""
    if as_json and out == Path("-"):
        print_json({**facts, field: base64.b64encode(content).decode()})
        return 0
    write_secret(out, content)
    if as_json:
        print_json({**facts, "out": str(out)})
    return 0
