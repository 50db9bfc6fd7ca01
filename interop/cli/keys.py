"""``pfs keys``: how its commands are spelled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interop.cli.keys_options import JSON, STANDARD, Kek, Store

__all__ = ["commands"]

commands = typer.Typer(help="Keep keys and secrets, and use them where they are kept.")
_secrets = typer.Typer(help="Set and read opaque secrets.")
commands.add_typer(_secrets, name="secret")

_MAX_DAYS = 3653

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The key's name.")]
_Version = Annotated[
    int | None, typer.Option("--version", metavar="N", min=1, help="A version; else the newest.")
]
_OneVersion = Annotated[
    int | None,
    typer.Option("--version", metavar="N", min=1, help="Only this version; else the whole key."),
]
_Purpose = Annotated[
    str | None,
    typer.Option(metavar="PURPOSE", help="sign, wrap or data; else the type's usual one."),
]
_Exportable = Annotated[bool, typer.Option("--exportable", help="The key may leave the store.")]
_Protected = Annotated[
    bool,
    typer.Option("--purge-protected", help="No purge before the retention time is over, ever."),
]
_In = Annotated[Path, typer.Option("--in", metavar="FILE", help="What to read; - for stdin.")]
_Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="A new file; - for stdout.")]
_Context = Annotated[
    str, typer.Option(metavar="TEXT", help="What unwrapping must be told again; not secret.")
]


@commands.command("init")
def _init(
    store: Store = None,
    kek: Kek = None,
    new_kek: Annotated[bool, typer.Option("--new-kek", help="Make the KEK, too.")] = False,
    as_json: JSON = False,
) -> int:
    """Make a new store."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_init(store=store, kek=kek, new_kek=new_kek, as_json=as_json)


@commands.command("create")
def _create(  # noqa: PLR0917 - the command line names them all
    name: _Name,
    key_type: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="ec-p256, ec-p384, ed25519, rsa-3072, rsa-4096, ml-dsa-65 or aes-256.",
        ),
    ],
    purpose: _Purpose = None,
    exportable: _Exportable = False,
    purge_protected: _Protected = False,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Make a key of a new name."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_create(
        store=store,
        kek=kek,
        name=name,
        key_type=key_type,
        purpose=purpose,
        exportable=exportable,
        purge_protected=purge_protected,
        as_json=as_json,
    )


@commands.command("import")
def _import(  # noqa: PLR0917 - the command line names them all
    name: _Name,
    source: _In,
    key_type: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="aes-256 for 32 raw bytes; else it is seen."),
    ] = None,
    purpose: _Purpose = None,
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the password of the key.")
    ] = None,
    exportable: _Exportable = False,
    purge_protected: _Protected = False,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Store an existing private key (PEM or DER), or an AES-256 key, under a new name."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_import(
        store=store,
        kek=kek,
        name=name,
        source=source,
        key_type=key_type,
        purpose=purpose,
        password_file=password_file,
        exportable=exportable,
        purge_protected=purge_protected,
        as_json=as_json,
    )


@commands.command("list")
def _list(
    under: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Only this key and those below it.")
    ] = "",
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted ones, too.")] = False,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """List the keys and secrets."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_list(store=store, kek=kek, under=under, deleted=deleted, as_json=as_json)


def _change(
    operation: str,
    name: str,
    version: int | None,
    store: str | None,
    kek: str | None,
    *,
    as_json: bool,
) -> int:
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_change(
        store=store, kek=kek, operation=operation, name=name, version=version, as_json=as_json
    )


@commands.command("show")
def _show(name: _Name, store: Store = None, kek: Kek = None, as_json: JSON = False) -> int:
    """Show a key, deleted or not."""
    return _change("show", name, None, store, kek, as_json=as_json)


@commands.command("rotate")
def _rotate(name: _Name, store: Store = None, kek: Kek = None, as_json: JSON = False) -> int:
    """Make a new version of a key; older ones stay usable."""
    return _change("rotate", name, None, store, kek, as_json=as_json)


@commands.command("disable")
def _disable(
    name: _Name,
    version: _OneVersion = None,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Take a key, or one version of it, out of use."""
    return _change("disable", name, version, store, kek, as_json=as_json)


@commands.command("enable")
def _enable(
    name: _Name,
    version: _OneVersion = None,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Put a key, or one version of it, to use again."""
    return _change("enable", name, version, store, kek, as_json=as_json)


@commands.command("recover")
def _recover(name: _Name, store: Store = None, kek: Kek = None, as_json: JSON = False) -> int:
    """Undo a deletion while the retention time lasts."""
    return _change("recover", name, None, store, kek, as_json=as_json)


@commands.command("purge")
def _purge(name: _Name, store: Store = None, kek: Kek = None, as_json: JSON = False) -> int:
    """Destroy a deleted key; its name is never used again."""
    return _change("purge", name, None, store, kek, as_json=as_json)


@commands.command("versions")
def _versions(name: _Name, store: Store = None, kek: Kek = None, as_json: JSON = False) -> int:
    """List the versions of a key."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_versions(store=store, kek=kek, name=name, as_json=as_json)


@commands.command("delete")
def _delete(
    name: _Name,
    retention_days: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=_MAX_DAYS, help="How long it can be recovered."),
    ] = 30,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Delete a key; it can be recovered until its retention time is over."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_delete(
        store=store, kek=kek, name=name, retention_days=retention_days, as_json=as_json
    )


@commands.command("public-key")
def _public_key(
    name: _Name,
    version: _Version = None,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Print the public key of a version as PEM."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_public_key(store=store, kek=kek, name=name, version=version, as_json=as_json)


@commands.command("export")
def _export(  # noqa: PLR0917 - the command line names them all
    name: _Name,
    out: _Out,
    version: _Version = None,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Write a key that was created exportable: unencrypted PKCS#8 PEM, or 32 bytes."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_export(
        store=store, kek=kek, name=name, version=version, out=out, as_json=as_json
    )


@commands.command("sign")
def _sign(  # noqa: PLR0917 - the command line names them all
    name: _Name,
    source: _In = STANDARD,
    out: _Out = STANDARD,
    version: _Version = None,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Sign what is read, with the algorithm of the key's type."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_sign(
        store=store, kek=kek, name=name, version=version, source=source, out=out, as_json=as_json
    )


@commands.command("verify")
def _verify(  # noqa: PLR0917 - the command line names them all
    name: _Name,
    signature: Annotated[Path, typer.Option(metavar="FILE", help="The signature, raw.")],
    source: _In = STANDARD,
    version: _Version = None,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Say whether a signature is this key's.

    Exit status: 0 it is, 1 it is not, 2 bad input.
    """
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_verify(
        store=store,
        kek=kek,
        name=name,
        version=version,
        source=source,
        signature=signature,
        as_json=as_json,
    )


@commands.command("wrap")
def _wrap(  # noqa: PLR0917 - the command line names them all
    name: _Name,
    source: _In = STANDARD,
    out: _Out = STANDARD,
    context: _Context = "",
    version: _Version = None,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Wrap somebody's key, up to 64 KiB, with a key of purpose wrap."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_wrap(
        store=store,
        kek=kek,
        name=name,
        version=version,
        source=source,
        out=out,
        context=context,
        as_json=as_json,
    )


@commands.command("unwrap")
def _unwrap(  # noqa: PLR0917 - the command line names them all
    name: _Name,
    source: _In = STANDARD,
    out: _Out = STANDARD,
    context: _Context = "",
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Unwrap what wrap or data-key wrapped."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_unwrap(
        store=store, kek=kek, name=name, source=source, out=out, context=context, as_json=as_json
    )


@commands.command("data-key")
def _data_key(  # noqa: PLR0917 - the command line names them all
    name: _Name,
    wrapped_out: Annotated[
        Path, typer.Option(metavar="FILE", help="A new file for its wrapped form.")
    ],
    out: _Out = STANDARD,
    context: _Context = "",
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Make a fresh 32-byte key to encrypt data with, and its wrapped form to keep beside it."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_data_key(
        store=store,
        kek=kek,
        name=name,
        context=context,
        out=out,
        wrapped_out=wrapped_out,
        as_json=as_json,
    )


@_secrets.command("set")
def _secret_set(  # noqa: PLR0917 - the command line names them all
    name: _Name,
    source: Annotated[
        Path | None,
        typer.Option("--in", "--from", metavar="FILE", help="- for stdin; else a prompt asks."),
    ] = None,
    purge_protected: _Protected = False,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Store a secret, or a new version of one, byte for byte as it is read."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_secret_set(
        store=store,
        kek=kek,
        name=name,
        source=source,
        purge_protected=purge_protected,
        as_json=as_json,
    )


@_secrets.command("get")
def _secret_get(  # noqa: PLR0917 - the command line names them all
    name: _Name,
    version: _Version = None,
    out: _Out = STANDARD,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Write a secret as it was stored."""
    from certs.commands import keys  # noqa: PLC0415 - see the top of interop.cli

    return keys.run_secret_get(
        store=store, kek=kek, name=name, version=version, out=out, as_json=as_json
    )
