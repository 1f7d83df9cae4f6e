# SPDX-License-Identifier: Apache-2.0
"""`flashjob flash`: one device, from a bench, with a verdict that is true. No cluster."""

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from attestation.errors import Reject
from firmware_pipeline.errors import PipelineError
from flashjob.api.flashtask import Verdict
from flashjob.bench import Wish, exit_code, flash_one
from flashjob.errors import FlashJobError
from flashjob.pipeline_reasons import artifact_error
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.gateway import DeviceResult
from flashjob.wire.pod import Before, Safety
from flashjob.wire.reasons import Reason, known

from .main import show

app = typer.Typer(add_completion=False)
_HEX = re.compile(r"([0-9a-f]{2}){1,64}")
_STOPPED = FlashJobError(
    Reason.STOPPED,
    "stopped by hand: the slot that ran was not touched unless --allow-in-place was given; another one may be half written",
    "run the same command again: it looks at the device first, and goes on from there",
)


def default_trust() -> Path:
    """$XDG_DATA_HOME/flashjob/trust."""
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "flashjob" / "trust"


@app.command()
def flash(
    reference: Annotated[
        str, typer.Argument(help="Registry reference, or an OCI layout directory.", metavar="REF|LAYOUT")
    ],
    port: Annotated[str | None, typer.Option(help="Serial port of the device.")] = None,
    host: Annotated[str | None, typer.Option(help="Network address of the device, HOST:PORT.")] = None,
    trust: Annotated[Path | None, typer.Option(help="Trust directory; default $XDG_DATA_HOME/flashjob/trust.")] = None,
    device: Annotated[str | None, typer.Option(help="Device id in hex; needed where the device cannot say it.")] = None,
    chip: Annotated[str | None, typer.Option(help="Chip; needed with --before None.")] = None,
    before: Annotated[Before, typer.Option(help="What the device proves before the first byte.")] = Before.IDENTITY,
    allow_downgrade: Annotated[bool, typer.Option(help="Permit an older release.")] = False,
    allow_security_version_burn: Annotated[bool, typer.Option(help="Permit burning the eFuse counter.")] = False,
    allow_in_place: Annotated[
        bool, typer.Option(help="Serial: permit to overwrite the only slot; a failure leaves nothing to boot.")
    ] = False,
    allow_without_rollback: Annotated[
        bool, typer.Option(help="Permit a bootloader that does not go back from a bad image.")
    ] = False,
    from_version: Annotated[
        list[str] | None, typer.Option(help="Only if the device runs this version; repeatable.")
    ] = None,
    plain_http: Annotated[bool, typer.Option(help="Speak to the registry without TLS.")] = False,
    baud: Annotated[int, typer.Option(min=9600, max=4_000_000, help="Line rate of the transfer.")] = 460_800,
    evidence_dir: Annotated[
        Path | None, typer.Option(help="Keep the evidence of the verdict here, signed: see attest reappraise.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Fetch, verify the signature, preflight, write, reboot, attest, confirm: then a verdict, and only then.

    Exit codes: 0 proven (or already running, proven); 1 failed; 2 usage; 3 refused before the first byte;
    4 written, but not provable at the demanded root of trust; 130 stopped by Ctrl-C.

    --json: {"error", "result", "verdict"}. An error says that nothing was begun, or that it was stopped; else there is
    a result, and a verdict if the attempt came to one.
    """
    if (port is None) == (host is None):
        raise typer.BadParameter("give exactly one of --port and --host")
    if device is not None and not _HEX.fullmatch(device):
        raise typer.BadParameter(f"--device {device!r} is no device id: an even number of lower-case hex digits")
    if not all(0 < len(version) <= 32 for version in from_version or ()):
        raise typer.BadParameter("--from-version: a version has 1 to 32 characters")
    wish = Wish(
        reference, port, host, trust or default_trust(), device, chip, before,
        Safety(
            allow_downgrade=allow_downgrade, allow_security_version_burn=allow_security_version_burn,
            allow_in_place=allow_in_place, allow_without_rollback=allow_without_rollback,
            from_versions=tuple(from_version or ()),
        ),
        plain_http, baud, evidence_dir,
    )  # fmt: skip
    console = Console(stderr=as_json)
    try:
        result, verdict = asyncio.run(flash_one(wish, console))
    except (FlashJobError, PipelineError, Reject) as error:
        _say(_refusal(error, wish), as_json)
        raise typer.Exit(ExitCode.REFUSED) from error
    except KeyboardInterrupt:
        _say(_STOPPED, as_json)
        raise
    if as_json:
        body: dict[str, Any] = {"error": None, "result": result.dump(), "verdict": verdict.dump() if verdict else None}
        typer.echo(json.dumps(body, sort_keys=True))
    else:
        _print(console, result, verdict)
    raise typer.Exit(int(exit_code(result, verdict)))


def _say(error: FlashJobError, as_json: bool) -> None:
    """To people on the error stream, and to a script as its one object."""
    show(Console(stderr=True), error)
    if as_json:
        why = {"reason": str(error.reason), "message": error.message, "nextStep": error.next_step}
        typer.echo(json.dumps({"error": why, "result": None, "verdict": None}, sort_keys=True))


def _refusal(error: FlashJobError | PipelineError | Reject, wish: Wish) -> FlashJobError:
    """Nothing was begun: why, and what to do next."""
    if isinstance(error, FlashJobError):
        return error
    if isinstance(error, PipelineError):
        return artifact_error(error)
    return FlashJobError(Reason.EVIDENCE_INVALID, str(error), f"check the trust directory {wish.trust}")


def _print(console: Console, result: DeviceResult, verdict: Verdict | None) -> None:
    code = exit_code(result, verdict)
    style = {ExitCode.DONE: "green", ExitCode.UNPROVEN: "yellow"}.get(code, "red")
    reason, message = (verdict.reason, verdict.message) if verdict else (result.reason, result.message)
    console.print(f"[bold {style}]{reason}[/]: {message}", highlight=False)
    table = Table(box=None, show_header=False)
    if verdict is not None and verdict.measurement is not None:
        table.add_row("runs", f"{verdict.application} {verdict.version}")
        table.add_row("measured", verdict.measurement.value)
        table.add_row("boot id", verdict.boot_id or "")
        table.add_row("root of trust", verdict.root_of_trust)
        table.add_row("not proven", "; ".join(verdict.unproven) or "nothing is left open")
    table.add_row("written", f"{result.bytes_written} bytes")
    why = known(reason)
    if code is not ExitCode.DONE and why is not None:
        table.add_row("next", why.next_step)
    console.print(table, highlight=False)
