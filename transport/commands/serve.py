"""``pfs serve``: the server of `transport.server` with one of two small applications."""

from __future__ import annotations

import os
import socket
import sys
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

from transport.applications import echo, echo_blocking, serve_page, serve_page_blocking
from transport.authorization import Authorization, DNSRule, SPKIRule, URIRule
from transport.commands.addresses import parse_address, show_address
from transport.commands.trust import read_anchors, read_credential
from transport.errors import APIMisuse
from transport.policy import get_policy
from transport.server import (
    CredentialFiles,
    Engine,
    JSONLinesLog,
    Limits,
    ServedCredential,
    Server,
    ServerSettings,
    UnknownName,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transport.authorization import Rule
    from transport.server_settings import BlockingHandler, Handler

__all__ = ["DEFAULT_PORT", "run"]

DEFAULT_PORT: Final = 8443
_RULES: Final[Mapping[str, Callable[[str], Rule]]] = {
    "dns": DNSRule,
    "uri": URIRule,
    "pin": SPKIRule,
}


def run(
    *,
    application: str,
    listen: Sequence[str],
    certificates: Sequence[Path],
    keys: Sequence[Path],
    named: Sequence[str],
    client_ca: Path | None,
    client_crls: Sequence[Path],
    ocsp_staples: Sequence[Path],
    allow: Sequence[str],
    policy: str,
    alpn: Sequence[str],
    engine: str,
    workers: int,
    refuse_unknown_names: bool,
    limits: Limits,
    metrics: str | None,
    reload_check_seconds: float,
    log_connections: bool,
) -> int:
    """Serve until SIGTERM or Ctrl-C, drain, and return 0. Raises `APIMisuse` and `OSError`."""
    if client_ca is None and (allow or client_crls):
        raise APIMisuse(
            f"{'--allow' if allow else '--client-crl'} is about clients' certificates, and none is "
            "asked for",
            advice="give --client-ca FILE too",
        )
    if client_ca is not None:
        read_anchors(client_ca)  # the server reads it itself, and again when it changes
    admitted, chosen = get_policy(policy), Engine(engine)
    settings = ServerSettings(
        handler=_handler(application, chosen, limits),
        credentials=_credentials(certificates, keys, named, ocsp_staples),
        engine=chosen,
        workers=workers,
        policy=admitted,
        client_anchors=client_ca,
        client_crls=tuple(client_crls),
        authorization=_authorization(allow),
        alpn_protocols=tuple(alpn) or (("http/1.1",) if application == "http" else ()),
        unknown_name=UnknownName.REFUSE if refuse_unknown_names else UnknownName.DEFAULT,
        limits=limits,
        log=JSONLinesLog(),
        log_connections=log_connections,
        metrics_address=None if metrics is None else _first(metrics),
        reload_check_seconds=reload_check_seconds or None,
    )
    addresses = [found for text in listen for found in _resolve(text)]
    for address in addresses:
        _require_free(address)
    Server(settings, addresses, on_ready=_announce).run()
    return 0


def _handler(application: str, engine: Engine, limits: Limits) -> Handler | BlockingHandler:
    if application == "echo":
        return echo if engine is Engine.ASYNCIO else echo_blocking
    make = serve_page if engine is Engine.ASYNCIO else serve_page_blocking
    return make(limits.header_timeout_seconds)


def _credentials(
    certificates: Sequence[Path],
    keys: Sequence[Path],
    named: Sequence[str],
    ocsp_staples: Sequence[Path],
) -> tuple[ServedCredential, ...]:
    if len(certificates) != len(keys):
        raise APIMisuse(
            f"{len(certificates)} certificates and {len(keys)} keys were given",
            advice="give one --key for each --cert, in the same order",
        )
    if len(ocsp_staples) > len(certificates):
        raise APIMisuse(
            f"{len(ocsp_staples)} staples and {len(certificates)} certificates were given",
            advice="give one --ocsp-staple for a --cert, in the same order",
        )
    for staple in ocsp_staples:
        staple.stat()  # a missing one costs a running server nothing, but at the start it is a typo
    for certificate, key in zip(certificates, keys, strict=True):
        read_credential(certificate, key)  # the same
    served = [
        ServedCredential(CredentialFiles(certificate, key), ocsp_staple=staple)
        for certificate, key, staple in zip_longest(certificates, keys, ocsp_staples)
    ]
    for text in named:
        name, _, files = text.partition("=")
        paths = files.split(",")
        if not (name and len(paths) in {2, 3} and all(paths)):
            raise APIMisuse(
                f"--sni {text!r} is incomplete", advice="write --sni NAME=CERT,KEY[,STAPLE]"
            )
        certificate, key, *staples = map(Path, paths)
        read_credential(certificate, key)
        ocsp_staple = staples[0] if staples else None
        if ocsp_staple is not None:
            ocsp_staple.stat()
        served.append(ServedCredential(CredentialFiles(certificate, key), (name,), ocsp_staple))
    if not served:
        raise APIMisuse(
            "no certificate was given",
            advice="give --cert FILE and --key FILE",
        )
    return tuple(served)


def _authorization(allow: Sequence[str]) -> Authorization | None:
    rules: list[Rule] = []
    for text in allow:
        kind, _colon, pattern = text.partition(":")
        if kind not in _RULES or not pattern:
            raise APIMisuse(
                f"--allow {text!r} is no rule",
                advice="write dns:NAME, uri:URI or pin:BASE64, such as dns:*.clients.example",
            )
        rules.append(_RULES[kind](pattern))
    return Authorization(any_of=tuple(rules)) if rules else None


def _resolve(text: str) -> list[tuple[str, int]]:
    host, port = parse_address(text)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(error.errno, error.strerror, text) from error
    addresses = [(str(entry[4][0]), int(entry[4][1])) for entry in found]
    return list(dict.fromkeys(addresses))


def _first(text: str) -> tuple[str, int]:
    return _resolve(text)[0]


def _require_free(address: tuple[str, int]) -> None:
    """Bind an address once, since of several the server would not say which cannot be had."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        socket.create_server(address, family=family).close()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, why, show_address(address)) from error


def _announce(addresses: tuple[tuple[str, int], ...]) -> None:
    for address in addresses:
        sys.stdout.write(f"listening on {show_address(address)}; Ctrl-C drains and stops\n")
    sys.stdout.flush()
