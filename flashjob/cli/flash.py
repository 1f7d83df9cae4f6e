# SPDX-License-Identifier: Apache-2.0
"""`flashjob flash`: devices at a bench, each with a verdict that is true. No cluster."""

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flashjob import terminal
from flashjob.api.flashtask import Verdict
from flashjob.bench import End, Wish, exit_code, flash_all
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.gateway import DeviceResult
from flashjob.wire.pod import Before, Data, Safety
from flashjob.wire.reasons import known

from .main import show
from .place import BAUD, RESET, STUB, Baud, Place, Reset, Stub, on_network, place, serial_settings

app = typer.Typer(add_completion=False)
_HEX = re.compile(r"([0-9a-f]{2}){1,64}")
Places = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PORT|HOST:PORT]...", help="Where the devices are; several: side by side."),
]
_WORST = (ExitCode.FAILED, ExitCode.UNPROVEN, ExitCode.REFUSED, ExitCode.DONE)
_INTERRUPTED = 130


def default_trust() -> Path:
    """$XDG_DATA_HOME/flashjob/trust."""
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "flashjob" / "trust"


@app.command()
def flash(
    reference: Annotated[
        str, typer.Argument(help="Registry reference, or an OCI layout directory.", metavar="REF|LAYOUT")
    ],
    places: Places = None,
    port: Annotated[str | None, typer.Option(help="Serial port of the device.")] = None,
    host: Annotated[str | None, typer.Option(help="Network address: HOST:PORT, with TLS https://HOST:PORT.")] = None,
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
    allow_bootloader: Annotated[
        bool, typer.Option(help="Serial: permit to write the artifact's bootloader where the device has another.")
    ] = False,
    allow_partition_table: Annotated[
        bool, typer.Option(help="Serial: permit to write the artifact's partition table where the device has another.")
    ] = False,
    data: Annotated[
        Data, typer.Option(help="Wipe, serial only: erase data partitions, and write the artifact's images of them.")
    ] = Data.KEEP,
    from_version: Annotated[
        list[str] | None, typer.Option(help="Only if the device runs this version; repeatable.")
    ] = None,
    plain_http: Annotated[bool, typer.Option(help="Speak to the registry without TLS.")] = False,
    baud: Baud = BAUD,
    reset: Reset = RESET,
    stub: Stub = STUB,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Several devices: so many at once.")] = 8,
    evidence_dir: Annotated[
        Path | None, typer.Option(help="Keep the evidence of the verdict here, signed: see attest reappraise.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Fetch, verify the signature, preflight, write, reboot, attest, confirm: then a verdict, and only then.

    Exit codes: 0 proven (or already running, proven); 1 failed; 2 usage; 3 refused before the first byte;
    4 written, but not provable at the demanded root of trust; 130 stopped by Ctrl-C, 143 by SIGTERM.
    Of several devices, that of the worst: 1 before 4 before 3 before 0.

    --json: {"error", "result", "verdict"}. An error says that nothing was begun, or that it was stopped (a result then
    says how far it was); else there is a result, and a verdict if the attempt came to one. Of several devices:
    {"devices": [{"place", "error", "result", "verdict"}]}.
    """
    where = _where(places or [], port, host)
    if len(where) > 1 and (device is not None or chip is not None or before is Before.NONE):
        raise typer.BadParameter("--device, --chip and --before None speak of one device: give one place")
    if device is not None and not _HEX.fullmatch(device):
        raise typer.BadParameter(f"--device {device!r} is no device id: an even number of lower-case hex digits")
    if not all(0 < len(version) <= 32 for version in from_version or ()):
        raise typer.BadParameter("--from-version: a version has 1 to 32 characters")
    safety = Safety(
        allow_downgrade=allow_downgrade, allow_security_version_burn=allow_security_version_burn,
        allow_in_place=allow_in_place, allow_without_rollback=allow_without_rollback,
        allow_bootloader=allow_bootloader, allow_partition_table=allow_partition_table, data=data,
        from_versions=tuple(from_version or ()),
    )  # fmt: skip
    settings = serial_settings(baud, reset, stub)
    wishes = [
        Wish(
            reference, one.port, one.address, trust or default_trust(), device, chip, before, safety, plain_http,
            settings, evidence_dir,
        )
        for one in where
    ]  # fmt: skip
    console, alone = terminal.console(stderr=as_json), len(where) == 1

    def show_end(end: End) -> None:
        _print(console, end, named=not alone, as_json=as_json)

    ends, stopped = asyncio.run(flash_all(wishes, console, show_end, at_once=parallel))
    if as_json:
        said = [_json(end) for end in ends]
        body = (
            said[0]
            if alone
            else {"devices": [{"place": end.place, **one} for end, one in zip(ends, said, strict=True)]}
        )
        typer.echo(json.dumps(body, sort_keys=True))
    elif not alone:
        proven = sum(end.code is ExitCode.DONE for end in ends)
        console.print(f"{proven} of {len(ends)} devices proven", highlight=False)
    raise typer.Exit(_INTERRUPTED if stopped else int(min((end.code for end in ends), key=_WORST.index)))


def _where(places: list[str], port: str | None, host: str | None) -> list[Place]:
    """Each place once, whichever way it was given. Raises BadParameter."""
    where = [place(text) for text in places]
    where += [Place(port, None)] if port is not None else []
    where += [Place(None, on_network(host))] if host is not None else []
    if not where:
        raise typer.BadParameter("say where the device is: PORT or HOST:PORT")
    if (port is not None or host is not None) and len(where) > 1:
        raise typer.BadParameter("--port and --host are for one device; give several places without them")
    if twice := [one.name for one in where if where.count(one) > 1]:
        raise typer.BadParameter(f"{twice[0]} is given twice")
    return where


def _json(end: End) -> dict[str, Any]:
    error = end.error
    return {
        "error": error and {"reason": str(error.reason), "message": error.message, "nextStep": error.next_step},
        "result": end.result.dump() if end.result else None,
        "verdict": end.verdict.dump() if end.verdict else None,
    }


def _print(console: Console, end: End, *, named: bool, as_json: bool) -> None:
    """How it ended, to people: an error always, on the error stream; a result unless it is said as JSON."""
    if as_json and end.error is None:
        return
    out = terminal.console(stderr=True) if end.error is not None else console
    if named:
        out.print(f"[bold]{escape(end.place)}[/]", highlight=False)
    if end.error is not None:
        show(out, end.error)
    elif end.result is not None:
        _print_result(out, end.result, end.verdict)


def _print_result(console: Console, result: DeviceResult, verdict: Verdict | None) -> None:
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
