"""The ``pfs`` command line: names, options, help. What commands do is in the ``commands`` packages.

One line on stderr and exit status 2 for bad input, 1 for a refuted claim or changed evidence, 0
when all holds; 128 and the number of a signal for what ended by one, or by a reader that went away
(SIGPIPE). Never a traceback for what a user can cause; Ctrl-C leaves nothing half-written.

Modules here import only what spelling takes. A command's own module is imported when the command
is called, so that none pays for what another needs: the database and the TLS library take longer
to import than a small capture takes to read.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from certs.errors import CertsError
from interop.cli import policy, proof, serve, uniqueness
from interop.commands.output import complain
from interop.errors import InteropError
from interop.interruption import remember_interrupts

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["application", "main"]

_EXIT_BAD_INPUT, _EXIT_INTERRUPTED = 2, 130

application = typer.Typer(
    name="pfs",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # tables of 80 columns cut long options and addresses short
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(*, wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"pfs {metadata.version('pfs-transport')}\n")
        raise typer.Exit


@application.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Forward-secret TLS, with the evidence."""


application.add_typer(proof.commands)
application.add_typer(uniqueness.commands)
application.add_typer(serve.commands)
application.add_typer(policy.commands, name="policy")


def main() -> None:
    """Run the command line; the entry point of ``pfs``."""
    signal.signal(signal.SIGTERM, _terminate)
    remember_interrupts()
    try:
        # Not standalone: a usage error is then one line of ours, like any other bad input.
        arguments = sys.argv[1:] or ["--help"]
        if arguments[0] not in _names_without_keys():
            _add_keys()
        status = application(arguments, standalone_mode=False)
        sys.stdout.flush()
    except (InteropError, CertsError) as error:
        status = _bad_input(str(error))
    except typer.TyperException as error:
        status = _bad_input(f"{error.format_message()} (pfs --help lists what there is)")
    except BrokenPipeError:
        status = _reader_gone()
    except SystemExit as error:
        # What typer makes of a broken pipe is a status that means "refuted" here.
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        status = _reader_gone()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status = _bad_input(f"{where}{error.strerror or error}")
    if status == _EXIT_INTERRUPTED:
        complain("interrupted")
    sys.exit(status)


def _names_without_keys() -> set[str | None]:
    return {
        command.name
        for module in (proof, serve, uniqueness)
        for command in module.commands.registered_commands
    }


def _add_keys() -> None:
    """Add ``pfs keys`` and ``pfs ca``: commands that take longer to spell out than to leave out."""
    from interop.cli import ca, keys, keys_access, keys_upkeep  # noqa: PLC0415 - see the top

    keys.commands.add_typer(keys_access.commands)
    keys.commands.add_typer(keys_upkeep.commands)
    application.add_typer(keys.commands, name="keys")
    application.add_typer(ca.commands, name="ca")


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does, cleaning up, with the exit status of the signal."""
    sys.exit(128 + number)


def _reader_gone() -> int:
    """End as SIGPIPE would: whoever read our output has gone, and nobody is left to tell."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _bad_input(message: str) -> int:
    complain(message)
    return _EXIT_BAD_INPUT
