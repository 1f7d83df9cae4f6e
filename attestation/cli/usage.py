# SPDX-License-Identifier: Apache-2.0
"""Wrong usage looks like every other refusal: a reason, what is wrong and where, and what to do next.

`firmware_pipeline` says it in the same words by code of its own, since either package works without the other.
"""

import re
from typing import Any, Final

import typer

from attestation.cli.common import Exit, say

INTERRUPTED: Final = 130
_NOISE: Final = re.compile(r"^Invalid value: |\bValue error, ")


def run(app: typer.Typer, program: str) -> int:
    """Run this process's command line and return its exit code; wrong usage is told on standard error."""
    try:
        code = typer.main.get_command(app).main(prog_name=program, standalone_mode=False)
    except typer.TyperException as error:
        return _wrong(error, program)
    except typer.Abort:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _wrong(error: typer.TyperException, program: str) -> int:
    context: Any = getattr(error, "ctx", None)
    text = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # the help is said already, or is the message
        typer.echo(text, err=True, nl=bool(text))
        return Exit.USAGE
    where = context.command_path if context else program
    say(f"WrongUsage: {where}: {_NOISE.sub('', ' '.join(text.split()))}")
    say(f"Next: {where} --help")
    return error.exit_code
