# SPDX-License-Identifier: Apache-2.0
"""`flashjob device owner-key`: hand a device the statement by which one owner key follows another."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from attestation import succession
from attestation.cli.ask import connect
from attestation.device_protocol import DeviceError, ErrorCode, OwnerKeys
from attestation.errors import Reject
from flashjob.errors import FlashJobError
from flashjob.flasher.transports.base import failure
from flashjob.wire.reasons import Reason

_NEXT_STEP = {
    ErrorCode.UNKNOWN_KEY: "sign it with a key that the device holds: its evidence lists them (attest ask)",
    ErrorCode.SEQUENCE: "the device took a newer one: mint the next with a higher --generation",
    ErrorCode.STATE: "nothing is to be done, unless the key is held as the other kind: then use a key of its own",
}


def owner_key(
    where: Annotated[str, typer.Argument(metavar="URL|PORT", help="HOST:PORT, https://HOST:PORT, or a serial port.")],
    statement: Annotated[Path, typer.Argument(help="The statement, as `attest mint succession` wrote it.")],
    baud: Annotated[int, typer.Option(help="Serial: line rate.")] = 115_200,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Give a device the owner key that follows one it holds. The key that signed stays good; the other one goes."""
    try:
        data = statement.read_bytes()
        told = succession.parse(data).content
    except (OSError, Reject) as error:
        raise typer.BadParameter(f"{statement} is no succession statement: {error}") from error
    try:
        held = asyncio.run(_deliver(where, data, baud))
    except DeviceError as error:
        known = failure(error, Reason.PORT_SILENT if where.startswith("/") else Reason.DEVICE_UNREACHABLE)
        step = _NEXT_STEP.get(error.code, known.next_step) if error.code else known.next_step
        raise FlashJobError(known.reason, known.message, step) from error
    ids = [one.hex() for one in held.ids]
    if as_json:
        typer.echo(json.dumps({"kind": held.kind.name.lower(), "keys": ids, "generation": held.generation}))
    else:
        typer.echo(f"{told.kind.name.lower()} keys are {' and '.join(ids)} now (generation {held.generation})")


async def _deliver(where: str, data: bytes, baud: int) -> OwnerKeys:
    device = await connect(where, baud)
    try:
        return await device.owner_key(data)
    finally:
        await device.close()
