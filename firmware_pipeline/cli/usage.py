# SPDX-License-Identifier: Apache-2.0
"""Wrong usage looks like every other refusal: a reason, what is wrong and where, and what to do next."""

import re
from collections.abc import Sequence
from typing import Any, Final

import typer

USAGE: Final = 2
INTERRUPTED: Final = 130
_NOISE: Final = re.compile(r"^Invalid value: |\bValue error, ")


def run(app: typer.Typer, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; wrong usage is told on standard error.

    Args:
        app: the commands.
        program: its name, as it was called.
        arguments: default: those of this process.
    """
    words = None if arguments is None else list(arguments)
    try:
        code = typer.main.get_command(app).main(words, prog_name=program, standalone_mode=False)
    except typer.TyperException as error:
        return _wrong(error, program)
    except typer.Abort:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def tell(reason: str, message: str, next_step: str) -> None:
    """Two lines on standard error."""
    typer.echo(f"{reason}: {message}", err=True)
    typer.echo(f"Next: {next_step}", err=True)


def _wrong(error: typer.TyperException, program: str) -> int:
    context: Any = getattr(error, "ctx", None)
    text = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # the help is said already, or is the message
        typer.echo(text, err=True, nl=bool(text))
        return USAGE
    where = context.command_path if context else program
    tell("WrongUsage", f"{where}: {_NOISE.sub('', ' '.join(text.split()))}", f"{where} --help")
    return error.exit_code
