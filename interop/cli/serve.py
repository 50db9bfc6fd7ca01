"""``pfs serve``, ``pfs connect``: how they are spelled."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

__all__ = ["commands"]

commands = typer.Typer()


class _Application(StrEnum):
    HTTP = "http"
    ECHO = "echo"


class _Engine(StrEnum):
    ASYNCIO = "asyncio"
    BLOCKING = "blocking"


def _positive(value: float | None) -> float | None:
    """Return `value` if it is above zero, or none was given."""
    if value is not None and not value > 0:
        raise typer.BadParameter(f"{value:g} is not a positive number")
    return value


def _finite(value: float) -> float:
    """Return `value` if it is above zero, and not without end."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is not a number of seconds")
    _positive(value)
    return value


_Policy = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What may be negotiated; `pfs policy list` shows the names, and which is the default.",
        show_default=False,
    ),
]
_Protocols = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="An application protocol (ALPN); may be repeated."),
]


@commands.command("serve")
def _serve(  # noqa: PLR0917 - the command line names them all
    application: Annotated[
        _Application,
        typer.Argument(
            metavar="APPLICATION", help="http answers GET / with 200; echo sends back what comes."
        ),
    ],
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where to listen, 127.0.0.1:8443 unless given; may be repeated. "
            "A port alone is on 127.0.0.1; 0.0.0.0 is all of IPv4.",
        ),
    ] = None,
    cert: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A certificate chain, leaf first, in PEM; the first is the default. "
            "Repeat --cert and --key for more names.",
        ),
    ] = None,
    key: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="The private key of a --cert.")
    ] = None,
    sni: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=CERT,KEY[,STAPLE]",
            help="Another credential, for clients that ask for this name (or *.name), "
            "and an OCSP response for it.",
        ),
    ] = None,
    refuse_unknown_names: Annotated[
        bool,
        typer.Option(
            "--refuse-unknown-names",
            help="Refuse clients that ask for a name of no certificate, with unrecognized_name.",
        ),
    ] = False,
    client_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take only clients with a certificate from here."),
    ] = None,
    client_crl: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Refuse clients that were revoked: a CRL, in PEM or DER, of each authority above "
            "them. Repeat it for more. A client whose authority has none here, or one that ended, "
            "is refused too.",
        ),
    ] = None,
    ocsp_staple: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="An OCSP response, in DER, to staple to a --cert; the first belongs to the first. "
            "Read again when it changes.",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Of those, only clients that match one of these rules: dns:*.clients.example, "
            "uri:spiffe://example.org/ns/*/sa/web or pin:BASE64, the SHA-256 of the key.",
        ),
    ] = None,
    policy: _Policy = "default",
    alpn: _Protocols = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, max=512, help="Worker processes.")
    ] = 1,
    engine: Annotated[
        _Engine, typer.Option(help="One event loop a worker, or a thread for each connection.")
    ] = _Engine.ASYNCIO,
    max_connections: Annotated[
        int, typer.Option(metavar="N", min=1, help="Open connections, for each worker.")
    ] = 10_000,
    max_connections_per_address: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="The same from one IPv4 address or IPv6 /64; any number unless given.",
        ),
    ] = None,
    handshakes_per_second: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            callback=_positive,
            help="New connections a second, for each worker; any number unless given.",
        ),
    ] = None,
    handshake_timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", callback=_positive, help="How long a handshake may take."),
    ] = 10.0,
    header_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", callback=_positive, help="How long the head of a request may take."
        ),
    ] = 10.0,
    idle_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", callback=_positive, help="End a connection on which nothing moves."
        ),
    ] = 75.0,
    lifetime: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            callback=_positive,
            help="End a connection that is older; none is too old unless given.",
        ),
    ] = None,
    drain_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            callback=_positive,
            help="How long open requests may go on after SIGTERM.",
        ),
    ] = 30.0,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Serve Prometheus metrics over HTTP; loopback only."
        ),
    ] = None,
    reload_check: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="Look for changed files this often; 0 is never."
        ),
    ] = 2.0,
    log_connections: Annotated[
        bool, typer.Option("--log-connections", help="Log each session and what it negotiated.")
    ] = False,
) -> int:
    """Serve TLS that has forward secrecy or does not happen.

    Changed certificate files, or SIGHUP, change the certificate of new connections; none is
    dropped. SIGTERM or Ctrl-C stops accepting and lets open requests finish; once more ends at
    once. The log on stderr is JSON, one line for each event.

    Exit status: 0 stopped as asked, 2 bad input.
    """
    from transport.commands import serve  # noqa: PLC0415 - see the top of interop.cli
    from transport.server_limits import Limits  # noqa: PLC0415 - the same

    return serve.run(
        application=application.value,
        listen=listen or (f"127.0.0.1:{serve.DEFAULT_PORT}",),
        certificates=cert or (),
        keys=key or (),
        named=sni or (),
        client_ca=client_ca,
        client_crls=client_crl or (),
        ocsp_staples=ocsp_staple or (),
        allow=allow or (),
        policy=policy,
        alpn=alpn or (),
        engine=engine.value,
        workers=workers,
        refuse_unknown_names=refuse_unknown_names,
        limits=Limits(
            max_connections=max_connections,
            max_connections_per_address=max_connections_per_address,
            handshakes_per_second=handshakes_per_second,
            handshake_timeout_seconds=handshake_timeout,
            header_timeout_seconds=header_timeout,
            idle_timeout_seconds=idle_timeout,
            lifetime_seconds=lifetime,
            drain_seconds=drain_seconds,
        ),
        metrics=metrics,
        reload_check_seconds=reload_check,
        log_connections=log_connections,
    )


@commands.command("connect", short_help="Show what is negotiated, then pipe stdin and stdout.")
def _connect(  # noqa: PLR0917 - the command line names them all
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="The server; the port is 443 if left out.")
    ],
    ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The authorities to trust, in PEM; the system's unless given.",
        ),
    ] = None,
    server_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whom to expect and ask for; the host unless given."),
    ] = None,
    policy: _Policy = "default",
    cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Our own certificate chain, in PEM.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key.")] = None,
    alpn: _Protocols = None,
    crl: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Refuse a server that was revoked: a CRL, in PEM or DER, of each authority above "
            "it. Repeat it for more.",
        ),
    ] = None,
    require_ocsp: Annotated[
        bool,
        typer.Option(
            "--require-ocsp",
            help="Refuse a server that staples no OCSP response. One that is stapled is checked "
            "in any case.",
        ),
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", callback=_finite, help="How long connecting may take."),
    ] = 10.0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Do not show the negotiated session.")
    ] = False,
) -> int:
    """Show on stderr what is negotiated with a server, then pipe stdin and stdout.

    The end of stdin is told to the server; what it still sends is written out. A server that ends
    first is sent the rest of stdin all the same, as long as it takes it.

    Exit status: 0 both sides ended properly, 1 the server ended properly and before it took all of
    stdin, 2 bad input, no connection, or cut off.
    """
    from transport.commands import connect  # noqa: PLC0415 - see the top of interop.cli

    return connect.run(
        address=address,
        ca=ca,
        server_name=server_name,
        policy=policy,
        certificate=cert,
        key=key,
        alpn=alpn or (),
        crls=crl or (),
        require_ocsp=require_ocsp,
        timeout_seconds=timeout,
        quiet=quiet,
    )
