# SPDX-License-Identifier: Apache-2.0
"""`firmware-pipeline`: build folders in, signed OCI artifacts out, and back.

One verb per module; a verb's module is imported when the verb is called, so help, completion and every verb load only
what they need. Exit codes: see `exit_codes`. Results go to standard output, everything else to standard error.
"""

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any, Final

import typer
from typer.core import CompletionItem, TyperGroup  # type: ignore[attr-defined]

from firmware_pipeline.cli.usage import run

VERBS: Final[dict[str, tuple[str, str]]] = {
    "push": ("push", "Push one release for one or several chips; sign it; set the tags last."),
    "pack": ("pack", "Like push, into an OCI layout directory: no registry needed."),
    "pull": ("pull", "Fetch one chip's files, config and release statement, each checked."),
    "inspect": ("inspect", "Show everything an artifact holds; signatures are listed, not judged."),
    "verify": ("verify", "Judge signatures and content; print the pinned reference."),
    "index": ("index", "Join artifacts of one release, each for its chip, into one."),
    "cp": ("copy", "Copy an artifact with its signatures and other referrers; the digest stays."),
    "diff": ("diff", "Show what differs between two artifacts."),
    "export": ("export", "Write artifacts into one archive, for a site without a network."),
    "import": ("import_", "Check such an archive and store what it holds."),
    "gc": ("gc", "Make room in a node cache."),
    "serve": ("serve", "Offer a node cache over HTTP, read-only and by digest."),
    "sign": ("sign", "Add a signature to what is stored already."),
    "attach": ("attach", "Attach an SBOM, provenance or another file, signed."),
    "release": ("release", "Mint release statements for what was packed before, where the owner's key is."),
    "keygen": ("keygen", "Make a key pair, for signing artifacts or for releases."),
}
"""Verb -> (module in this package with a function `command`, one line of help). A new verb is one line here."""
GRACE_SECONDS: Final = 3.0


class _Commands(MutableMapping[str, Any]):
    """The verbs as commands, each imported when it is asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module = importlib.import_module(f"{__name__}.{VERBS[name][0]}")
            single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
            single.command(name)(module.command)
            self[name] = typer.main.get_command(single)
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)

    def __contains__(self, name: object) -> bool:
        return name in VERBS


class _Group(TyperGroup):
    """The program: knows its verbs by name and help line, without importing them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()

    def format_commands(self, _context: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])

    def shell_complete(self, context: Any, incomplete: str) -> list[Any]:
        if incomplete.startswith("-"):
            return super().shell_complete(context, incomplete)
        return [CompletionItem(name, help=line) for name, (_, line) in VERBS.items() if name.startswith(incomplete)]


app = typer.Typer(
    name="firmware-pipeline",
    cls=_Group,
    help="Firmware as signed OCI artifacts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the versions of program and libraries.")
    ] = False,
) -> None:
    if show_version:
        from firmware_pipeline.cli.versions import versions

        typer.echo(versions())
        raise typer.Exit


def main() -> None:
    """Entry point. Ctrl-C, and SIGTERM as a cancelled CI job sends it, end with 130 and 143 and without a traceback.

    What runs is unwound, so that nothing unfinished stays. A registry that hangs just then does not hold the user up: after
    `GRACE_SECONDS` the process ends, and only a hidden `.part` file may be left, which the next call does not look at.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        sys.exit(run(app, "firmware-pipeline"))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _stop(number: int, _frame: object) -> None:
    last = threading.Timer(GRACE_SECONDS, os._exit, [128 + number])
    last.daemon = True
    last.start()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
