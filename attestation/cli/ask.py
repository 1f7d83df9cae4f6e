# SPDX-License-Identifier: Apache-2.0
"""``attest ask``: ask a live device, with a fresh nonce, and judge its answer."""

import asyncio
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from attestation.cli import judging
from attestation.cli.common import AsJson, Trust, console, json_or, now, open_trust, policy_from, print_json, verb
from attestation.device_protocol import NONCE_SIZE, DeviceClient, Info


@verb
def command(
    where: Annotated[str, typer.Argument(metavar="URL|PORT", help="HOST:PORT, https://HOST:PORT, or a serial port.")],
    trust: Trust = None,
    policy: Annotated[str | None, typer.Option(help="Judge by this policy file, not by the device's own.")] = None,
    info_only: Annotated[bool, typer.Option("--info", help="Ask only who it says it is; nothing is proven.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the evidence to this file; the nonce goes to FILE.nonce.")
    ] = None,
    evidence_dir: Annotated[
        Path | None, typer.Option(help="Keep a signed record of the verdict here, for `attest reappraise`.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The verdict alone, without the trail.")] = False,
    baud: Annotated[int, typer.Option(help="Serial: line rate.")] = 115_200,
    as_json: AsJson = False,
) -> None:
    """Ask a device for evidence over a fresh nonce and judge it. A boot that contradicts an earlier one suspends it."""
    if info_only:
        said = _info_json(asyncio.run(_info(where, baud)))
        json_or(as_json, said, lambda: _show_info(said))
        return
    rules = policy_from(policy) if policy else None
    store = open_trust(trust)
    nonce = secrets.token_bytes(NONCE_SIZE)
    asked_at = now()
    data = asyncio.run(answer(where, nonce, baud))
    if save is not None:
        _save(save, data, nonce)
    context = judging.context_for(store, data, nonce, now=now(), policy=rules)
    verdict = judging.judge_live(store, data, context, asked_at=asked_at)
    if evidence_dir is not None:
        judging.keep(store, evidence_dir, data, context, verdict, about={"asked": where})
    if as_json:
        print_json({**judging.as_json(verdict), "nonce": nonce.hex()})
    else:
        judging.show(verdict, quiet=quiet)
    raise typer.Exit(judging.exit_code(verdict))


async def answer(where: str, nonce: bytes, baud: int = 115_200) -> bytes:
    """The device's evidence over a nonce. Raises DeviceError."""
    device = await connect(where, baud)
    try:
        return await device.attest(nonce)
    finally:
        await device.close()


async def connect(where: str, baud: int) -> DeviceClient:
    """A client of the device. Raises DeviceError where a port cannot be opened, BadParameter for no address."""
    if where.startswith("/"):
        from attestation.device_serial import SerialDevice
        from attestation.serial_port import open_port

        return SerialDevice(await open_port(where, baud))
    from attestation.device_http import HttpDevice
    from attestation.discovery.addresses import parse_address

    try:
        address = parse_address(where.removeprefix("http://").rstrip("/"))
    except ValueError as error:
        message = f"{where} is neither HOST:PORT, with http:// or https:// before it or not, nor a serial port's path"
        raise typer.BadParameter(message) from error
    return HttpDevice(address.host, address.port, tls=address.tls)


async def _info(where: str, baud: int) -> Info:
    device = await connect(where, baud)
    try:
        return await device.info()
    finally:
        await device.close()


def _info_json(info: Info) -> dict[str, Any]:
    content = info.model_dump(exclude_none=True)
    return {name: _plain(value) for name, value in content.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | bool) else int(value)


def _show_info(said: dict[str, Any]) -> None:
    table = Table("what", "says", title="Not verified")
    for name, value in said.items():
        table.add_row(Text(name), Text(str(value)))
    console().print(table)


def _save(path: Path, evidence: bytes, nonce: bytes) -> None:
    try:
        path.write_bytes(evidence)
        path.with_name(path.name + ".nonce").write_text(nonce.hex() + "\n", encoding="ascii")
    except OSError as error:
        raise typer.BadParameter(f"--save {path}: {error.strerror}") from error
