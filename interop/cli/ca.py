"""``pfs ca``: how its commands are spelled."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from interop.cli.keys_options import JSON, STANDARD, Kek, Store

__all__ = ["commands"]

commands = typer.Typer(
    help="Run a local certification authority, whose keys stay in a key store (pfs keys init)."
)
_issue = typer.Typer(help="Issue a certificate with a new key.")
commands.add_typer(_issue, name="issue")


class _Reason(StrEnum):
    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key-compromise"
    CA_COMPROMISE = "ca-compromise"
    AFFILIATION_CHANGED = "affiliation-changed"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessation-of-operation"
    PRIVILEGE_WITHDRAWN = "privilege-withdrawn"


_CA = Annotated[
    str, typer.Option("--ca", metavar="NAME", help="Which CA, if the store has several.")
]
_Serial = Annotated[
    str, typer.Argument(metavar="SERIAL", help="The serial number, hexadecimal, as list shows it.")
]
_OutCert = Annotated[
    Path,
    typer.Option(metavar="FILE", help="A new file for the certificate, with its chain, in PEM."),
]
_OutKey = Annotated[
    Path, typer.Option(metavar="FILE", help="A new file of mode 0600 for its private key, in PEM.")
]
_Days = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=90, help="How long it is valid; else 90.")
]
_KeyType = Annotated[
    str, typer.Option(metavar="TYPE", help="ec-p256, ec-p384, ed25519, rsa-3072 or rsa-4096.")
]
_KeyName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The key's name in the store; else after the first name."),
]
_Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="A new file; - for stdout.")]


@commands.command("init")
def _init(
    ca: _CA = "ca",
    common_name: Annotated[
        str, typer.Option(metavar="TEXT", help="What the two certificates are called after.")
    ] = "Local",
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Make a CA in a store that is there: a root, and an authority below it that issues.

    As in: pfs ca init --common-name "Example Ltd"
    """
    from certs.commands import ca as run  # noqa: PLC0415 - see the top of interop.cli

    return run.run_init(store=store, kek=kek, ca=ca, common_name=common_name, as_json=as_json)


@_issue.command("server")
def _server(  # noqa: PLR0917 - the command line names them all
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="DNS names and IP addresses.")
    ],
    out_cert: _OutCert,
    out_key: _OutKey,
    days: _Days = None,
    key_type: _KeyType = "ec-p256",
    key_name: _KeyName = None,
    ca: _CA = "ca",
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Issue a TLS server certificate; the first name is its common name, too.

    As in: pfs ca issue server www.example 10.0.0.1 --out-cert www.pem --out-key www.key
    """
    from certs.commands import ca as run  # noqa: PLC0415 - see the top of interop.cli

    return run.run_issue(
        store=store,
        kek=kek,
        ca=ca,
        kind="server",
        names=names,
        out_cert=out_cert,
        out_key=out_key,
        days=days,
        key_type=key_type,
        key_name=key_name,
        as_json=as_json,
    )


@_issue.command("client")
def _client(  # noqa: PLR0917 - the command line names them all
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="DNS names, IP addresses and URIs.")
    ],
    out_cert: _OutCert,
    out_key: _OutKey,
    days: _Days = None,
    key_type: _KeyType = "ec-p256",
    key_name: _KeyName = None,
    ca: _CA = "ca",
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Issue a TLS client certificate; one URI, or one DNS name, says who the client is.

    As in: pfs ca issue client spiffe://example.org/deploy --out-cert me.pem --out-key me.key
    """
    from certs.commands import ca as run  # noqa: PLC0415 - see the top of interop.cli

    return run.run_issue(
        store=store,
        kek=kek,
        ca=ca,
        kind="client",
        names=names,
        out_cert=out_cert,
        out_key=out_key,
        days=days,
        key_type=key_type,
        key_name=key_name,
        as_json=as_json,
    )


@commands.command("list")
def _list(ca: _CA = "ca", store: Store = None, kek: Kek = None, as_json: JSON = False) -> int:
    """List all that the CA issued, oldest first, and what was revoked of it.

    As in: pfs ca list --json
    """
    from certs.commands import ca as run  # noqa: PLC0415 - see the top of interop.cli

    return run.run_list(store=store, kek=kek, ca=ca, as_json=as_json)


@commands.command("show")
def _show(serial: _Serial, store: Store = None, kek: Kek = None, as_json: JSON = False) -> int:
    """Show a certificate, and whether it is revoked.

    As in: pfs ca show 5f0c1e62d9a7
    """
    from certs.commands import ca as run  # noqa: PLC0415 - see the top of interop.cli

    return run.run_show(store=store, kek=kek, serial=serial, as_json=as_json)


@commands.command("revoke")
def _revoke(
    serial: _Serial,
    reason: Annotated[_Reason, typer.Option(help="Why.")] = _Reason.UNSPECIFIED,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Revoke a certificate for good. Nobody learns of it before the next list: pfs ca crl.

    As in: pfs ca revoke 5f0c1e62d9a7 --reason key-compromise
    """
    from certs.commands import ca as run  # noqa: PLC0415 - see the top of interop.cli

    return run.run_revoke(store=store, kek=kek, serial=serial, reason=reason.value, as_json=as_json)


@commands.command("crl")
def _crl(  # noqa: PLR0917 - the command line names them all
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="A file, whose older list is replaced; - for stdout."),
    ] = STANDARD,
    days: Annotated[
        int, typer.Option(metavar="N", min=1, max=366, help="For how long the lists are good.")
    ] = 7,
    ca: _CA = "ca",
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Sign new lists of what was revoked (CRLs), of the CA and of its root, in one file.

    Make them again before they end, revoked or not: who asks for lists refuses all without one.

    As in: pfs ca crl --out ca.crl
    """
    from certs.commands import ca as run  # noqa: PLC0415 - see the top of interop.cli

    return run.run_crl(store=store, kek=kek, ca=ca, days=days, out=out, as_json=as_json)


@commands.command("anchors")
def _anchors(
    out: _Out = STANDARD,
    ca: _CA = "ca",
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Write the root's certificate, which others are to trust.

    As in: pfs ca anchors --out ca.pem
    """
    from certs.commands import ca as run  # noqa: PLC0415 - see the top of interop.cli

    return run.run_certificates(store=store, kek=kek, ca=ca, anchors=True, out=out, as_json=as_json)


@commands.command("chain")
def _chain(
    out: _Out = STANDARD,
    ca: _CA = "ca",
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Write the issuing certificate, which issue has put behind each certificate already.

    As in: pfs ca chain --out chain.pem
    """
    from certs.commands import ca as run  # noqa: PLC0415 - see the top of interop.cli

    return run.run_certificates(
        store=store, kek=kek, ca=ca, anchors=False, out=out, as_json=as_json
    )


@commands.command("renew")
def _renew(ca: _CA = "ca", store: Store = None, kek: Kek = None, as_json: JSON = False) -> int:
    """Give the issuing authority a new key and certificate; what it issued before stays valid.

    Its certificate lasts five years, and no other outlasts it. A root, ten years, is not renewed:
    make another CA (pfs ca init --ca NAME), and let both roots be trusted meanwhile.

    As in: pfs ca renew
    """
    from certs.commands import ca as run  # noqa: PLC0415 - see the top of interop.cli

    return run.run_renew(store=store, kek=kek, ca=ca, as_json=as_json)
