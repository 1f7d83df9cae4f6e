# SPDX-License-Identifier: Apache-2.0
"""`flashjob flash`: one device, from a bench, with a verdict that is true. No cluster."""

import asyncio
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from attestation.directory import TrustDirectory
from attestation.errors import Reject
from firmware_pipeline import api
from firmware_pipeline.credentials import load_credentials
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp.chips import by_id
from firmware_pipeline.signing.keys import TrustedKey, load_trusted_key
from flashjob.api.flashtask import Verdict
from flashjob.errors import FlashJobError
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt
from flashjob.flasher.transports.base import Transport
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.gateway.local import BenchJudge
from flashjob.pinning import pin
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.gateway import DeviceResult, Outcome, Stage
from flashjob.wire.pod import Assignment, Before, Safety, Timeouts, TransportKind
from flashjob.wire.reasons import Reason

app = typer.Typer(add_completion=False)
_FIRST_ANSWER_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for."""

    reference: str
    port: str | None
    host: str | None
    trust: Path
    device: str | None
    chip: str | None
    before: Before
    safety: Safety
    plain_http: bool
    baud: int


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
    device: Annotated[str | None, typer.Option(help="Device id; needed where the device cannot say it.")] = None,
    chip: Annotated[str | None, typer.Option(help="Chip; needed with --before None.")] = None,
    before: Annotated[Before, typer.Option(help="What the device proves before the first byte.")] = Before.IDENTITY,
    allow_downgrade: Annotated[bool, typer.Option(help="Permit an older release.")] = False,
    allow_security_version_burn: Annotated[bool, typer.Option(help="Permit burning the eFuse counter.")] = False,
    plain_http: Annotated[bool, typer.Option(help="Speak to the registry without TLS.")] = False,
    baud: Annotated[int, typer.Option(help="Line rate of the transfer.")] = 460_800,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Fetch, verify the signature, preflight, write, reboot, attest, confirm: then a verdict, and only then.

    Exit codes: 0 proven (or already running, proven); 1 failed; 2 usage; 3 refused before the first byte;
    4 written, but not provable at the demanded root of trust.
    """
    if (port is None) == (host is None):
        raise typer.BadParameter("give exactly one of --port and --host")
    wish = Wish(
        reference, port, host, trust or default_trust(), device, chip, before,
        Safety(allow_downgrade=allow_downgrade, allow_security_version_burn=allow_security_version_burn),
        plain_http, baud,
    )  # fmt: skip
    console = Console(stderr=as_json)
    try:
        result, verdict = asyncio.run(flash_one(wish, console))
    except Reject as reject:
        raise FlashJobError(Reason.EVIDENCE_INVALID, str(reject), f"check the trust directory {wish.trust}") from reject
    except PipelineError as error:
        raise FlashJobError(str(error.reason), error.message, error.next_step) from error
    if as_json:
        body: dict[str, Any] = {"result": result.dump(), "verdict": verdict.dump() if verdict else None}
        typer.echo(json.dumps(body, sort_keys=True))
    else:
        _print(console, result, verdict)
    raise typer.Exit(int(exit_code(result, verdict)))


async def flash_one(wish: Wish, console: Console) -> tuple[DeviceResult, Verdict | None]:
    """Flash and judge one device.

    Raises:
        FlashJobError, PipelineError, Reject: nothing was begun.
    """
    trust = TrustDirectory(wish.trust)
    with tempfile.TemporaryDirectory(prefix="flashjob-") as folder:
        transport: Transport = (
            SerialTransport(wish.port, Path(folder), baud=wish.baud) if wish.port else NetworkTransport(wish.host or "")
        )
        try:
            device_id, chip = await _who(wish, transport)
        except BaseException:
            await transport.close()
            raise
        try:
            with trust.locked(bytes.fromhex(device_id)):
                return await _flash(wish, trust, transport, device_id, chip, Path(folder), console)
        finally:
            await transport.close()


async def _who(wish: Wish, transport: Transport) -> tuple[str, str]:
    """The device's own claim, only to look it up; what it proves comes later."""
    if wish.device and wish.chip:
        return wish.device, wish.chip
    if wish.before is Before.NONE:
        raise FlashJobError(
            Reason.DEVICE_NOT_ENROLLED, "a device that is not asked cannot say who it is", "add --device ID --chip CHIP"
        )
    info = await transport.info(_FIRST_ANSWER_SECONDS)
    return wish.device or info.ueid.hex(), wish.chip or by_id(info.chip_id).target


async def _flash(
    wish: Wish, trust: TrustDirectory, transport: Transport, device_id: str, chip: str, folder: Path, console: Console
) -> tuple[DeviceResult, Verdict | None]:
    entry = trust.device(bytes.fromhex(device_id)) or {}
    anchor = trust.by_ueid(bytes.fromhex(device_id))
    policy = trust.policy(anchor.policy) if anchor else None
    if anchor is None or policy is None:
        raise FlashJobError(
            Reason.POLICY_MISSING, f"device {device_id} has no trust anchor or no policy in {trust.root}", "enroll it"
        )
    required = policy.required_signers
    keys = [load_trusted_key(signer.public_key.encode(), signer.name) for signer in required.keys] if required else []
    own = [load_trusted_key(pem.encode(), name) for name, pem in trust.signers().items()]
    if not keys and not own:
        raise FlashJobError(
            Reason.SIGNERS_NOT_CONFIGURED,
            f"neither policy {anchor.policy} nor {trust.root}/signers names a signer",
            Reason.SIGNERS_NOT_CONFIGURED.next_step,
        )

    def open_verified() -> Any:
        where = api.locate(wish.reference)
        options = api.ClientOptions(credentials=load_credentials(os.environ), plain_http=wish.plain_http)
        store = api.open_store(where, options)
        digest = api.resolve(store, where)
        signers: tuple[TrustedKey, ...]
        for signers, threshold in ((tuple(keys), required.threshold if required else 1), (tuple(own), 1)):
            if signers:
                api.verify(store, digest, signers, threshold)
        opened = api.open_chip(store, digest, chip)
        return store, pin(store.name, digest, opened, plain_http=wish.plain_http)

    store, target = await asyncio.to_thread(open_verified)
    console.print(
        f"[bold]{target.application} {target.version}[/] for {chip}, {target.index_digest[:19]}, signature verified"
    )
    firmware = await asyncio.to_thread(fetch, store, target, folder)
    hardware = (entry.get("spec") or {}).get("hardware") or {}
    assignment = Assignment(
        task=f"bench-{device_id[:16]}",
        attempt=1,
        device=device_id,
        transport=TransportKind.SERIAL if wish.port else TransportKind.NETWORK,
        address=wish.host,
        mac=hardware.get("mac"),
        target=target,
        before=wish.before,
        timeouts=Timeouts(),
        safety=wish.safety,
    )
    judge = BenchJudge(trust, assignment)
    with _bars(console) as bars:
        line = Lines(bars)
        result = await Attempt(assignment, firmware, transport, judge, line.show).run()
    return result, judge.verdict


class Lines:
    """One progress line per stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._current: tuple[Stage, TaskID] | None = None

    def show(self, stage: Stage, done: int, total: int) -> None:
        """Called at every change of stage or progress."""
        if self._current is None or self._current[0] is not stage:
            self.finish()
            self._current = (stage, self._bars.add_task(str(stage), total=None))
        if total:
            self._bars.update(self._current[1], completed=done, total=total)

    def finish(self) -> None:
        """The stage is over."""
        if self._current is not None:
            task = next(task for task in self._bars.tasks if task.id == self._current[1])
            self._bars.update(task.id, total=task.total or 1, completed=task.total or 1)


def _bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<11}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def exit_code(result: DeviceResult, verdict: Verdict | None) -> ExitCode:
    """What the process ends with; success is the verdict's word, never the flow's."""
    if verdict is not None and verdict.outcome in (Outcome.PROVEN, Outcome.ALREADY_RUNNING):
        return ExitCode.DONE
    if verdict is not None and verdict.outcome is Outcome.BELOW_POLICY:
        return ExitCode.UNPROVEN
    return ExitCode.FAILED if result.bytes_written else ExitCode.REFUSED


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
    console.print(table, highlight=False)
