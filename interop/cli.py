"""The ``pfs`` command: prove, verify, attack.

One line on stderr and exit status 2 for bad input, 1 for a refuted claim or changed evidence, 0
when all holds. Never a traceback for what a user can cause; Ctrl-C leaves nothing half-written.

Each command imports what it needs when it runs: the database, for one, takes longer to import than
a small capture takes to read.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec
import typer
from rich.console import Console

from certs.errors import CertsError
from interop.errors import InputError, InteropError
from interop.progress import ConsoleProgress, SilentProgress
from interop.proof.report.terminal import print_attack, print_report, print_verification
from transport import TransportError

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["application", "main"]

EXIT_HOLDS, EXIT_REFUTED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

application = typer.Typer(
    name="pfs",
    help="Forward-secret TLS, with the evidence.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@application.command("prove")
def _prove(
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where the evidence goes; replaced if it is evidence."),
    ] = Path("evidence"),
    payload: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What the clients send [default: 64 KiB of random bytes]"
        ),
    ] = None,
    handshakes: Annotated[
        int, typer.Option(metavar="N", help="Handshakes in the census of session keys.")
    ] = 10_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Record real sessions, steal the keys, show what opens, and leave signed evidence.

    Exit status: 0 proved, 1 refuted, 2 bad input.
    """
    from interop.proof import layout  # noqa: PLC0415 - see the top of this module
    from interop.proof.experiment import prove  # noqa: PLC0415

    content = _read_payload(payload)
    progress = SilentProgress() if as_json else ConsoleProgress()
    with progress:
        report, fingerprint = prove(out, payload=content, handshakes=handshakes, progress=progress)
    if as_json:
        sys.stdout.buffer.write(report.to_json())
    else:
        console = Console(highlight=False)
        print_report(console, report)
        console.print(f"signed   {fingerprint}", soft_wrap=True, markup=False)
        console.print(f"report   {out / layout.REPORT_HTML}", soft_wrap=True, markup=False)
    if report.verdict != "proved":
        raise typer.Exit(EXIT_REFUTED)


@application.command("verify")
def _verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Evidence of `pfs prove`.")],
    fingerprint: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256:HEX", help="The signing key's fingerprint, as `pfs prove` printed it."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Recompute every verdict of an evidence directory from its captures, offline.

    Exit status: 0 intact and proved, 1 changed or refuted, 2 not an evidence directory.
    """
    from interop.proof.verification import verify  # noqa: PLC0415 - see the top of this module

    verification = verify(directory, fingerprint=fingerprint)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(verification), indent=1))
        sys.stdout.buffer.write(b"\n")
    else:
        print_verification(Console(highlight=False), verification)
    if not verification.holds:
        raise typer.Exit(EXIT_REFUTED)


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
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Try stolen keys on any capture, and say what opens, by what, and why not.

    Exit status: 0 when the captures were read, whatever opened; 2 bad input.
    """
    from interop.proof.attack import (  # noqa: PLC0415 - see the top of this module
        AttackReport,
        attack_captures,
        load_stolen,
    )
    from interop.proof.directory import whole_directory  # noqa: PLC0415

    keys, problems = load_stolen(server_key or (), key_log or ())
    with ExitStack() as stack:
        progress = stack.enter_context(SilentProgress() if as_json else ConsoleProgress())
        progress.stage("attacking")
        folder = None if plaintext is None else stack.enter_context(whole_directory(plaintext))
        report = attack_captures(
            captures, keys, plaintext=folder, use_secrets_blocks=not ignore_secrets_blocks
        )
    for problem in (*problems, *report.problems):
        _complain(f"{problem.file}: {problem.message}")
    if as_json:
        whole = AttackReport(report.sessions, (*problems, *report.problems))
        sys.stdout.buffer.write(whole.to_json())
    else:
        print_attack(Console(highlight=False), report)


def _read_payload(path: Path | None) -> bytes:
    from interop.proof.application import MAX_PAYLOAD_BYTES  # noqa: PLC0415
    from interop.proof.experiment import DEFAULT_PAYLOAD_BYTES  # noqa: PLC0415

    if path is None:
        return secrets.token_bytes(DEFAULT_PAYLOAD_BYTES)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PAYLOAD_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if not content:
        raise InputError(f"{path}: empty; a payload needs at least one byte to recover")
    if len(content) > MAX_PAYLOAD_BYTES:
        raise InputError(f"{path}: larger than {MAX_PAYLOAD_BYTES} bytes, the most that is sent")
    return content


def main() -> None:
    """Run the command line; the entry point of ``pfs``."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # Not standalone: a usage error is then one line of ours, like any other bad input.
        status = application(sys.argv[1:] or ["--help"], standalone_mode=False) or EXIT_HOLDS
    except (InteropError, CertsError, TransportError) as error:
        status = _complain(str(error))
    except typer.TyperException as error:
        status = _complain(f"{error.format_message()} (pfs --help lists what there is)")
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_REFUTED
    except OSError as error:
        status = _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
    if status == EXIT_INTERRUPTED:
        _complain("interrupted; nothing was written")
    sys.exit(status)


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does, cleaning up, with the exit status of the signal."""
    sys.exit(128 + number)


def _complain(message: str) -> int:
    sys.stderr.write(f"pfs: {' '.join(message.split())}\n")
    return EXIT_BAD_INPUT
