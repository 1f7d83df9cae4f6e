# SPDX-License-Identifier: Apache-2.0
"""Where text for people goes. On a terminal it fits the window; in a pipe or a file every line stays whole."""

import sys
from typing import Final

from rich.console import Console
from rich.rule import Rule

_UNBOUND: Final = 10_000
_HEADING: Final = 100


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error; columns are as wide as a line may become where nobody looks."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _UNBOUND)


def heading(on: Console, title: str) -> None:
    """A line across the window, or as long as a window is wide, with the title in bold."""
    on.print(Rule(f"[bold]{title}"), width=min(on.width, _HEADING))
