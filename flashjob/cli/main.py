# SPDX-License-Identifier: Apache-2.0
"""The command line: `flashjob`, and the same as `kubectl flash`. A command's module is imported when it is called."""

import importlib
import sys
from typing import Any, Final

import click
import typer
from rich.console import Console

from flashjob.errors import FlashJobError
from flashjob.wire.exit_codes import ExitCode

COMMANDS: Final = {
    "demo": ("flashjob.cli.demo", "Play the whole loop on the embedded default, enemies included."),
    "flash": ("flashjob.cli.flash", "Flash one device from here and prove it, without a cluster."),
    "device": ("flashjob.cli.device", "Enroll devices and look at them."),
    "watch": ("flashjob.cli.watch", "Watch a FlashJob: device, phase, per cent, what and why."),
    "wait": ("flashjob.cli.wait", "Wait for the end of a FlashJob; exit 0 proven, 1 failed, 2 not finished in time."),
    "operator": ("flashjob.cli.operator", "Run the operator."),
    "gateway": ("flashjob.cli.gateway", "Run the gateway."),
    "discovery-handler": ("flashjob.cli.discovery_handler", "Run the attesting Akri discovery handler."),
    "sandbox": ("flashjob.cli.sandbox", "Start and stop the embedded control plane, registry and agents."),
    "virtual": ("flashjob.cli.virtual", "Run virtual devices."),
}
"""Name -> (module with a Typer object named `app`, one line of help)."""


class LazyGroup(click.Group):
    """A group whose commands are imported only when they are used: `--help` stays fast, roles stay apart."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = COMMANDS.get(cmd_name)
        if known is None:
            return None
        if ctx.resilient_parsing:
            return click.Command(cmd_name, help=known[1])
        app: typer.Typer = importlib.import_module(known[0]).app
        command = typer.main.get_command(app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"flashjob {version('flashjob')}")
        ctx.exit()


def _group(name: str) -> click.Group:
    return LazyGroup(
        name=name,
        help="Firmware operations that count an update only when the device has proven it.",
        params=[click.Option(["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version)],
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
    )


def run(name: str, arguments: list[str]) -> int:
    """Run one command line and return its exit code; an error of ours is printed with what to do next."""
    console = Console(stderr=True)
    try:
        result: Any = _group(name).main(arguments, prog_name=name, standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except FlashJobError as error:
        console.print(f"[bold red]{error.reason}[/]: {error.message}", highlight=False, soft_wrap=True)
        if error.next_step:
            console.print(f"Next: {error.next_step}", highlight=False, soft_wrap=True)
        return int(ExitCode.FAILED)
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point `flashjob`."""
    sys.exit(run("flashjob", sys.argv[1:]))


def kubectl_main() -> None:
    """Entry point `kubectl-flash`: the same commands as `kubectl flash`."""
    sys.exit(run("kubectl flash", sys.argv[1:]))
