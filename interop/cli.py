"""The ``pfs`` command line: names, options and help; what commands do is in `interop.commands`.

One line on stderr and exit status 2 for bad input, 1 for a refuted claim or changed evidence, 0
when all holds. Never a traceback for what a user can cause; Ctrl-C leaves nothing half-written.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from certs.errors import CertsError
from interop.errors import InteropError

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["application", "main"]

_EXIT_REFUTED, _EXIT_BAD_INPUT, _EXIT_INTERRUPTED = 1, 2, 130

application = typer.Typer(
    name="pfs",
    help="Forward-secret TLS, with the evidence.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_JSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@application.command("prove")
def _prove(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the evidence goes; old evidence is replaced.")
    ] = Path("evidence"),
    payload: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What the clients send.", show_default="64 KiB, random"),
    ] = None,
    handshakes: Annotated[
        int, typer.Option(metavar="N", help="Handshakes in the census of session keys.")
    ] = 10_000,
    as_json: _JSON = False,
) -> int:
    """Record real sessions, steal the keys, show what opens, and leave signed evidence.

    Exit status: 0 proved, 1 refuted, 2 bad input.
    """
    from interop.commands import prove  # noqa: PLC0415 - see the top of interop.commands

    return prove.run(out=out, payload=payload, handshakes=handshakes, as_json=as_json)


@application.command("verify")
def _verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Evidence of `pfs prove`.")],
    fingerprint: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256:HEX", help="The signing key's fingerprint, as `pfs prove` printed it."
        ),
    ] = None,
    as_json: _JSON = False,
) -> int:
    """Recompute every verdict of an evidence directory from its captures, offline.

    Exit status: 0 intact and proved, 1 changed or refuted, 2 not an evidence directory.
    """
    from interop.commands import verify  # noqa: PLC0415 - see the top of interop.commands

    return verify.run(directory=directory, fingerprint=fingerprint, as_json=as_json)


@application.command("attack")
def _attack(  # noqa: PLR0917 - the command line names them all
    captures: Annotated[
        list[Path], typer.Argument(metavar="CAPTURE...", help="pcap or pcapng files.")
    ],
    server_key: Annotated[
        list[Path] | None,
        typer.Option(metavar="PEM", help="A stolen server key; may be given more than once."),
    ] = None,
    key_log: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A stolen key log; may be given more than once."),
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
    from interop.commands import attack  # noqa: PLC0415 - see the top of interop.commands

    return attack.run(
        captures=captures,
        server_keys=server_key or (),
        key_logs=key_log or (),
        plaintext=plaintext,
        use_secrets_blocks=not ignore_secrets_blocks,
        as_json=as_json,
    )


def main() -> None:
    """Run the command line; the entry point of ``pfs``."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # Not standalone: a usage error is then one line of ours, like any other bad input.
        status = application(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (InteropError, CertsError) as error:
        status = _complain(str(error))
    except typer.TyperException as error:
        status = _complain(f"{error.format_message()} (pfs --help lists what there is)")
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = _EXIT_REFUTED
    except OSError as error:
        status = _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
    if status == _EXIT_INTERRUPTED:
        _complain("interrupted; nothing was written")
    sys.exit(status)


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does, cleaning up, with the exit status of the signal."""
    sys.exit(128 + number)


def _complain(message: str) -> int:
    sys.stderr.write(f"pfs: {' '.join(message.split())}\n")
    return _EXIT_BAD_INPUT
