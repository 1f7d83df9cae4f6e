# SPDX-License-Identifier: Apache-2.0
"""The command line: `flashjob`, and the same as `kubectl flash`. A command's module is imported when it is called."""

import importlib
import sys
from importlib.metadata import version
from typing import Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from firmware_pipeline.cli import usage
from flashjob.errors import FlashJobError
from flashjob.terminal import console
from flashjob.wire.exit_codes import ExitCode

from .interruption import Termination

COMMANDS: Final = {
    "demo": ("flashjob.cli.demo", "Play the whole loop on the embedded default, enemies included."),
    "flash": ("flashjob.cli.flash", "Flash one device from here and prove it, without a cluster."),
    "device": ("flashjob.cli.device", "Enroll devices and look at them."),
    "evidence": ("flashjob.cli.evidence", "Keep the evidence of verdicts beside the firmware."),
    "watch": ("flashjob.cli.watch", "Watch a FlashJob: device, phase, per cent, what and why."),
    "wait": ("flashjob.cli.wait", "Wait for the end of a FlashJob; exit 0 proven, 1 failed, 2 not finished in time."),
    "operator": ("flashjob.cli.operator", "Run the operator."),
    "gateway": ("flashjob.cli.gateway", "Run the gateway."),
    "discovery-handler": ("flashjob.cli.discovery_handler", "Run the attesting Akri discovery handler."),
    "sandbox": ("flashjob.cli.sandbox", "Start and stop the embedded control plane, registry and agents."),
    "virtual": ("flashjob.cli.virtual", "Run virtual devices."),
}
"""Name -> (module with a Typer object named `app`, one line of help)."""


def run(name: str, arguments: list[str]) -> int:
    """Run one command line and return its exit code; an error is told on standard error, with what to do next."""
    with Termination() as termination:
        try:
            code = _run(name, arguments)
        except KeyboardInterrupt:
            code = usage.INTERRUPTED
    return 128 + termination.number if termination.number and code == usage.INTERRUPTED else code


def _run(name: str, arguments: list[str]) -> int:
    match arguments:
        case [] | ["-h" | "--help", *_]:
            _help(name)
            return int(ExitCode.DONE)
        case ["--version", *_]:
            console().print(f"flashjob {version('flashjob')}", highlight=False)
            return int(ExitCode.DONE)
        case [command, *_] if command not in COMMANDS:
            usage.tell("WrongUsage", f"{name}: No such command {command!r}.", f"{name} --help")
            return int(ExitCode.USAGE)
    command, *rest = arguments
    try:
        app: typer.Typer = importlib.import_module(COMMANDS[command][0]).app
        return usage.run(app, f"{name} {command}", rest)
    except FlashJobError as error:
        show(console(stderr=True), error)
        return int(ExitCode.FAILED)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def show(on: Console, error: FlashJobError) -> None:
    """What went wrong and what to do next."""
    on.print(f"[bold red]{error.reason}[/]: {escape(error.message)}", highlight=False, soft_wrap=True)
    if error.next_step:
        on.print(f"Next: {escape(error.next_step)}", highlight=False, soft_wrap=True)


def _help(name: str) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for command, (_, text) in COMMANDS.items():
        table.add_row(command, text)
    out = console()
    out.print("Firmware operations that count an update only when the device has proven it.\n", highlight=False)
    out.print(f"Usage: {name} COMMAND [OPTIONS]; {name} COMMAND --help says more.\n", highlight=False)
    out.print(table)


def main() -> None:
    """Entry point `flashjob`."""
    sys.exit(run("flashjob", sys.argv[1:]))


def kubectl_main() -> None:
    """Entry point `kubectl-flash`: the same commands as `kubectl flash`."""
    sys.exit(run("kubectl flash", sys.argv[1:]))
