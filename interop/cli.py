"""The ``pfs`` command: prove, verify, attack.

One line on stderr and exit status 2 for bad input, 1 for a refuted claim or changed evidence, 0
when all holds. Never a traceback for what a user can cause; Ctrl-C leaves nothing half-written.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from certs.errors import CertsError
from interop.errors import InputError, InteropError
from interop.progress import ConsoleProgress, SilentProgress
from interop.proof import layout
from interop.proof.application import MAX_PAYLOAD_BYTES
from interop.proof.attack import AttackReport, attack_captures, load_stolen
from interop.proof.directory import whole_directory
from interop.proof.experiment import DEFAULT_PAYLOAD_BYTES, prove
from interop.proof.report.terminal import print_attack, print_report, print_verification
from interop.proof.verification import verify
from transport import TransportError

__all__ = ["application", "main"]

EXIT_HOLDS, EXIT_REFUTED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

application = typer.Typer(
    name="pfs",
    help="Forward-secret TLS, with the evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@application.command("prove")
def prove_command(
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
def verify_command(
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
    verification = verify(directory, fingerprint=fingerprint)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(verification), indent=1))
        sys.stdout.buffer.write(b"\n")
    else:
        print_verification(Console(highlight=False), verification)
    if not verification.holds:
        raise typer.Exit(EXIT_REFUTED)


@application.command("attack")
def attack_command(  # noqa: PLR0917 - the command line names them all
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
        bool, typer.Option(help="Do not use keys that a pcapng file carries itself.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Try stolen keys on any capture, and say what opens, by what, and why not.

    Exit status: 0 when the captures were read, whatever opened; 2 bad input.
    """
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
    try:
        application()
    except (InteropError, CertsError, TransportError) as error:
        _complain(str(error))
        sys.exit(EXIT_BAD_INPUT)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has gone; there is nobody left to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_REFUTED)
        _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        _complain("interrupted; nothing was written")
        sys.exit(EXIT_INTERRUPTED)


def _complain(message: str) -> None:
    sys.stderr.write(f"pfs: {' '.join(message.split())}\n")
