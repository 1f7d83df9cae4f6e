# SPDX-License-Identifier: Apache-2.0
"""`flashjob device provision`: what must be burnt, and with --execute the burning of it."""

import asyncio
import json
import os
import shlex
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from attestation import factory_list, keys
from attestation.errors import Reject
from attestation.keys import PublicKey
from attestation.policy import RootOfTrust
from firmware_pipeline.esp.chips import Chip
from flashjob import inspection, terminal
from flashjob.cli.place import BAUD, RESET, STUB, Baud, Reset, Stub, serial_settings
from flashjob.errors import FlashJobError
from flashjob.flasher.transports.base import problem
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.provisioning.burn import burn, check_mac
from flashjob.provisioning.plan import RESETS, Step, command, plan
from flashjob.wire.esptool_lines import ChipEvent
from flashjob.wire.reasons import Reason
from flashjob.wire.serial import SerialSettings

_WAIT_SECONDS = 3.0
_MOST_KEYS = 2


def provision(
    port: Annotated[str, typer.Argument(help="Serial port of the board.")],
    batch: Annotated[str, typer.Option(help="Batch of the factory list that the device belongs to.")],
    root_of_trust: Annotated[RootOfTrust, typer.Option(help="What it is to reach.")] = RootOfTrust.SIGNED_BOOT,
    secure_boot_digest: Annotated[
        Path | None, typer.Option(help="SHA-256 of the secure boot public key (espsecure digest-sbv2-public-key).")
    ] = None,
    grant_key: Annotated[
        list[Path] | None, typer.Option(help="PEM public key that will sign grants; at most two.")
    ] = None,
    release_key: Annotated[
        list[Path] | None, typer.Option(help="PEM public key that signs releases; at most two.")
    ] = None,
    factory_file: Annotated[
        Path, typer.Option("--list", help="Factory list that the device's line is added to, for `attest enroll`.")
    ] = Path("factory.csv"),
    virtual: Annotated[
        Path | None, typer.Option(help="The device is virtual: control socket of its process. PORT's name is its name.")
    ] = None,
    baud: Baud = BAUD,
    reset: Reset = RESET,
    stub: Stub = STUB,
    execute: Annotated[bool, typer.Option("--execute", help="Do it. Asks for the chip's eFuse MAC.")] = False,
) -> None:
    """Show the eFuse plan of a board, or carry it out; what is burnt can never be taken back.

    Without --execute nothing is changed: no key is drawn, nothing is burnt or written. The chip is reset into its
    loader and back.
    """
    if secure_boot_digest is not None and not secure_boot_digest.is_file():
        raise typer.BadParameter(f"--secure-boot-digest {secure_boot_digest}: there is no such file")
    owner = {"grantKeys": _keys(grant_key, "--grant-key"), "releaseKeys": _keys(release_key, "--release-key")}
    console = terminal.console()
    settings = serial_settings(baud, reset, stub)
    if virtual is None and settings.reset not in RESETS:
        raise typer.BadParameter(
            f"--reset: espefuse, which burns, knows {', '.join(RESETS)}; put a sequence into an esptool.cfg beside you, as "
            "custom_reset_sequence, and leave --reset away"
        )
    chip, seen = asyncio.run(_look(port, settings))
    console.print(
        f"[bold]{chip.display}[/] revision {seen.revision}, eFuse MAC {seen.mac or 'not told'}", highlight=False
    )
    digest = str(secure_boot_digest or "SECURE_BOOT.digest")
    steps = () if virtual else plan(chip, seen, root_of_trust, secret="SECRET.bin", digest=digest)
    _show(console, chip, port, steps, owner, virtual, settings.reset)
    if not execute:
        console.print("Nothing was changed. --execute does it, after you typed the eFuse MAC.")
        return
    if virtual is None and root_of_trust is not RootOfTrust.SIGNED_BOOT:
        raise typer.BadParameter(
            "there is nothing to burn for SelfReported: flash firmware that holds a secret instead"
        )
    if virtual is None and secure_boot_digest is None:
        raise typer.BadParameter("--execute needs --secure-boot-digest FILE")
    if virtual is not None and not owner["grantKeys"]:
        raise typer.BadParameter("--execute on a virtual device needs --grant-key and --release-key")
    typed = typer.prompt("Irreversible. eFuse MAC of the chip that you mean")
    check_mac(seen, typed)
    entry = asyncio.run(
        _virtual(virtual, Path(port).name, owner, batch)
        if virtual is not None
        else _burn(chip, seen, port, typed, Path(digest), batch, console, settings.reset)
    )
    _append(factory_file, entry, batch)
    ueid = keys.ueid(keys.from_cose(entry.cose_key)).hex()
    console.print(f"[bold green]provisioned[/] {ueid}; its line is in {factory_file} (batch {batch})", highlight=False)


async def _look(port: str, settings: SerialSettings) -> tuple[Chip, ChipEvent]:
    with tempfile.TemporaryDirectory(prefix="flashjob-") as folder:
        way = SerialTransport(port, Path(folder))
        seen = await inspection.look(way, port, settings, seconds=_WAIT_SECONDS, table_offset=0x8000, loader=True)
    if seen.chip is None or seen.model is None:
        raise problem(Reason.WRONG_CHIP, f"{port} holds a chip that is not known")
    return seen.model, seen.chip


def _show(
    console: Console,
    chip: Chip,
    port: str,
    steps: tuple[Step, ...],
    owner: dict[str, list[PublicKey]],
    virtual: Path | None,
    reset: str,
) -> None:
    for number, step in enumerate(steps, 1):
        state = "done" if step.done else "to do" if step.arguments else "left"
        console.print(f"{number}. {state:<6} {step.what}", highlight=False)
        if step.arguments and not step.done:
            console.print(f"          {shlex.join(command(chip, port, step, reset))}", highlight=False, soft_wrap=True)
    for what, held in owner.items():
        for key in held:
            kind = "grant" if what == "grantKeys" else "release"
            console.print(f"{kind} key {keys.key_id(key).hex()}", highlight=False)
    if virtual is None:
        console.print(
            "Owner keys and firmware are not written from here: build the keys into the firmware's own storage, flash "
            "the first image with esptool, then `flashjob device enroll`.",
            highlight=False,
        )


async def _burn(
    chip: Chip, seen: ChipEvent, port: str, typed: str, digest: Path, batch: str, console: Console, reset: str
) -> factory_list.Entry:
    with tempfile.TemporaryDirectory(prefix="flashjob-") as folder:
        done = await burn(
            chip, seen, port, typed_mac=typed, digest=digest, batch=batch, folder=Path(folder),
            said=lambda what: console.print(f"burning: {what}", highlight=False),
            reset=reset,
        )  # fmt: skip
    return done.entry


async def _virtual(control: Path, name: str, owner: dict[str, list[PublicKey]], batch: str) -> factory_list.Entry:
    held = {kind: [keys.encode_cose(key).hex() for key in each] for kind, each in owner.items()}
    request = {"do": "provision", "device": name, "batch": batch, **held}
    try:
        reader, writer = await asyncio.open_unix_connection(control)
        writer.write(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await reader.readline())
        writer.close()
    except (OSError, ValueError) as error:
        step = "give the path that the fleet file calls `control`"
        raise FlashJobError(Reason.DEVICE_UNREACHABLE, f"{control}: {error}", step) from error
    if "error" in answer:
        raise FlashJobError(
            Reason.DEVICE_REFUSED, answer["error"], "keys of a provisioned device change by succession only"
        )
    return factory_list.Entry(
        bytes.fromhex(answer["coseKey"]), bytes.fromhex(answer["proof"]), None, answer.get("hwmodel")
    )


def _append(path: Path, entry: factory_list.Entry, batch: str) -> None:
    """Add a line; the whole list must read as one that `attest enroll` takes, before it replaces the old one."""
    line = factory_list.write_csv([entry])
    header, _, row = line.partition(b"\n")
    before = path.read_bytes() if path.exists() else header + b"\n"
    after = before + row
    try:
        factory_list.read(after, batch)
    except Reject as reject:
        path.with_suffix(".line").write_bytes(line)
        message = f"{path} does not take the line of the device, which is in {path.with_suffix('.line')}: {reject}"
        raise FlashJobError(
            Reason.EVIDENCE_INVALID, message, "give another --list, or the batch of this one"
        ) from reject
    new = path.with_suffix(".new")
    new.write_bytes(after)
    os.replace(new, path)


def _keys(files: list[Path] | None, option: str) -> list[PublicKey]:
    found = []
    for file in files or []:
        try:
            found.append(keys.from_pem(file.read_bytes()))
        except (OSError, Reject) as error:
            raise typer.BadParameter(f"{option} {file} is no PEM public key: {error}") from error
    if len(found) > _MOST_KEYS:
        raise typer.BadParameter(f"{option}: a device holds at most {_MOST_KEYS}")
    return found
