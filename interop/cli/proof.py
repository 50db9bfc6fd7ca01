"""``pfs prove``, ``pfs verify``, ``pfs attack``, ``pfs replay``: how they are spelled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["commands"]

commands = typer.Typer()

_CA = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The authorities to trust the target by, in PEM."),
]
_SERVER_NAME = Annotated[
    str | None, typer.Option(metavar="NAME", help="The target's name; the host unless given.")
]
_JSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_JUNIT = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the claims as JUnit XML too.")
]
_SARIF = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the claims as SARIF 2.1.0 too.")
]
_MARKDOWN = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a summary in Markdown too.")
]
_NO_TSHARK = Annotated[
    bool,
    typer.Option("--no-tshark", help="Do not ask tshark, if it is installed, what it can open."),
]


@commands.command("prove", short_help="Record sessions, steal the keys, and show what opens.")
def _prove(  # noqa: PLR0917 - the command line names them all
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the evidence goes; old evidence is replaced.")
    ] = Path("evidence"),
    payload: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What the clients send; 64 KiB at random unless given."),
    ] = None,
    handshakes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Handshakes in the census of session keys; 10,000, or 500 with a target, "
            "unless given.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Prove it of a server of yours too; it needs the next options. The port is 443 if "
            "left out.",
        ),
    ] = None,
    server_key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PEM",
            help="The target's private key, which stays out of the evidence; once for each "
            "certificate that it has.",
        ),
    ] = None,
    ca: _CA = None,
    server_name: _SERVER_NAME = None,
    no_tshark: _NO_TSHARK = False,
    junit: _JUNIT = None,
    sarif: _SARIF = None,
    markdown: _MARKDOWN = None,
    as_json: _JSON = False,
) -> int:
    """Record real sessions, steal the keys, show what opens, and leave signed evidence.

    With --target the same is done to a server of yours: the sessions that it makes are recorded
    beside those of servers made for the run, its key is tried on all of them, and what it had
    better refuse (static RSA, tickets that hold main secrets, resumption without a key exchange,
    0-RTT data) is asked for.

    Exit status: 0 proved, 1 refuted, 2 bad input.
    """
    from interop.commands import prove  # noqa: PLC0415 - see the top of interop.cli
    from interop.proof.report.files import ReportFiles  # noqa: PLC0415 - the same

    return prove.run(
        out=out,
        payload=payload,
        handshakes=handshakes,
        target=prove.TargetOptions(
            address=target, server_keys=server_key or (), server_name=server_name, ca=ca
        ),
        ask_tshark=not no_tshark,
        files=ReportFiles(junit=junit, sarif=sarif, markdown=markdown),
        as_json=as_json,
    )


@commands.command("verify", short_help="Recompute every verdict of evidence, offline.")
def _verify(  # noqa: PLR0917 - the same
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Evidence of `pfs prove`.")],
    fingerprint: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256:HEX", help="The signing key's fingerprint, as `pfs prove` printed it."
        ),
    ] = None,
    server_key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PEM", help="Each key of the server that the evidence is about, if it is."
        ),
    ] = None,
    no_tshark: _NO_TSHARK = False,
    junit: _JUNIT = None,
    sarif: _SARIF = None,
    markdown: _MARKDOWN = None,
    as_json: _JSON = False,
) -> int:
    """Recompute every verdict of an evidence directory from its captures, offline.

    Exit status: 0 intact and proved, 1 changed or refuted, 2 not an evidence directory.
    """
    from interop.commands import verify  # noqa: PLC0415 - see the top of interop.cli
    from interop.proof.report.files import ReportFiles  # noqa: PLC0415 - the same

    return verify.run(
        directory=directory,
        fingerprint=fingerprint,
        server_keys=server_key or (),
        ask_tshark=not no_tshark,
        files=ReportFiles(junit=junit, sarif=sarif, markdown=markdown),
        as_json=as_json,
    )


@commands.command("attack", short_help="Try stolen keys on any capture, and say what opens.")
def _attack(  # noqa: PLR0917 - the command line names them all
    captures: Annotated[
        list[Path], typer.Argument(metavar="CAPTURE", help="pcap or pcapng files.")
    ],
    server_key: Annotated[
        list[Path] | None,
        typer.Option(metavar="PEM", help="A stolen server key; may be given more than once."),
    ] = None,
    key_log: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A stolen key log; may be given more than once."),
    ] = None,
    ephemeral_key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PEM", help="Stolen private keys of key exchanges; both halves of a hybrid's."
        ),
    ] = None,
    ticket_key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A stolen ticket key of OpenSSL, nginx, Go or tlslite-ng."
        ),
    ] = None,
    psk: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Stolen pre-shared keys, in hex, or a session OpenSSL stored."
        ),
    ] = None,
    plaintext: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write what is recovered into this new or empty folder."),
    ] = None,
    ignore_secrets_blocks: Annotated[
        bool,
        typer.Option(
            "--ignore-secrets-blocks", help="Do not use keys that a pcapng file carries itself."
        ),
    ] = False,
    as_json: _JSON = False,
) -> int:
    """Try stolen keys on any capture, and say what opens, by what, and why not.

    Exit status: 0 when the captures were read, whatever opened; 2 bad input.
    """
    from interop.commands import attack  # noqa: PLC0415 - see the top of interop.cli
    from interop.proof.stolen import StolenFiles  # noqa: PLC0415

    return attack.run(
        captures=captures,
        stolen=StolenFiles(
            server_keys=server_key or (),
            key_logs=key_log or (),
            ephemeral_keys=ephemeral_key or (),
            ticket_keys=ticket_key or (),
            pre_shared_keys=psk or (),
        ),
        plaintext=plaintext,
        use_secrets_blocks=not ignore_secrets_blocks,
        as_json=as_json,
    )


@commands.command("replay", short_help="Send recorded and live traffic again, and count what runs.")
def _replay(  # noqa: PLR0917 - the command line names them all
    target: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A server of yours to replay at, on port 443 if left out; servers of our own, "
            "made for it, unless given.",
        ),
    ] = None,
    ca: _CA = None,
    server_name: _SERVER_NAME = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD", help="Of the requests, GET unless given; uploads need PUT or POST."
        ),
    ] = None,
    path: Annotated[
        str | None, typer.Option(metavar="PATH", help="Of the requests, / unless given.")
    ] = None,
    count_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Answers GET with how many requests the target executed so far, a decimal number. "
            "Only reactions are seen unless given.",
        ),
    ] = None,
    capture: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Send the target the client flights of this capture too; may be repeated.",
        ),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this case; may be repeated. Controls always run."),
    ] = None,
    list_cases: Annotated[
        bool, typer.Option("--list", help="List the cases, and do nothing.")
    ] = False,
    as_json: _JSON = False,
) -> int:
    """Send recorded and live traffic again, altered, and count what the application executes.

    Exit status: 0 nothing was executed beyond what honest clients asked for, or nothing could be
    counted; 1 a replay got through, or a control did not open; 2 bad input.
    """
    from interop.commands import replay  # noqa: PLC0415 - see the top of interop.cli

    if list_cases:
        return replay.run_list(as_json=as_json)
    return replay.run(
        cases=case or (),
        target=target,
        ca=ca,
        server_name=server_name,
        method=method,
        path=path,
        count_url=count_url,
        captures=capture or (),
        as_json=as_json,
    )
