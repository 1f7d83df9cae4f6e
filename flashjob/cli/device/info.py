# SPDX-License-Identifier: Apache-2.0
"""`flashjob device info`: what chip, flash and application say, and what may honestly be claimed of them."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from firmware_pipeline.esp.partitions import DEFAULT_TABLE_OFFSET
from flashjob import inspection, terminal
from flashjob.cli.place import BAUD, RESET, STUB, Baud, Place, Reset, Stub, Target, place, serial_settings
from flashjob.flasher.transports.base import Transport
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.wire.serial import SerialSettings


def info(
    target: Target,
    loader: Annotated[
        bool, typer.Option(help="Serial: also look through the ROM loader, which resets the chip; nothing is written.")
    ] = True,
    table_offset: Annotated[int, typer.Option(min=0, help="Offset of the partition table.")] = DEFAULT_TABLE_OFFSET,
    baud: Baud = BAUD,
    reset: Reset = RESET,
    stub: Stub = STUB,
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the application.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show ROM facts, eFuses, slots, application, and the root of trust that it could have: what it says proves nothing."""
    settings = serial_settings(baud, reset, stub)
    seen = asyncio.run(_look(place(target), settings, wait, table_offset, loader))
    if as_json:
        typer.echo(json.dumps(inspection.to_json(seen), sort_keys=True))
        return
    table = Table(box=None, show_header=False, padding=(0, 1))
    last = ""
    for whose, what, value in inspection.rows(seen):
        bad = whose in ("differs", "not read")
        table.add_row(Text(whose if whose != last else "", style="bold"), what, Text(value, "red" if bad else ""))
        last = whose
    terminal.console().print(table, highlight=False)


async def _look(
    where: Place, settings: SerialSettings, seconds: float, offset: int, loader: bool
) -> inspection.Inspection:
    with tempfile.TemporaryDirectory(prefix="flashjob-") as folder:
        port = where.port
        way: Transport = SerialTransport(port, Path(folder)) if port else NetworkTransport(where.address or "")
        return await inspection.look(way, port, settings, seconds=seconds, table_offset=offset, loader=loader)
