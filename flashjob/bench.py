# SPDX-License-Identifier: Apache-2.0
"""One device at a bench: fetch, verify, flash, judge, all in this process and without a cluster.

Rules:

1. Who the device is, is looked up by its own claim; what it proves afterwards must fit what was looked up.
2. Its policy's required signers must have signed, and if the trust directory names signers, one of those as well.
   Nobody named anywhere: refused.
3. The device's file is locked for the whole attempt: one writer.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from attestation.anchors import DeviceAnchor
from attestation.directory import TrustDirectory
from attestation.errors import Reject
from attestation.policy import AttestationPolicySpec
from firmware_pipeline import api
from firmware_pipeline.credentials import load_credentials
from firmware_pipeline.esp.chips import by_id
from firmware_pipeline.signing.keys import load_trusted_key
from firmware_pipeline.store import ArtifactStore
from flashjob.api.flashtask import Verdict
from flashjob.errors import FlashJobError
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt, Listener
from flashjob.flasher.transports.base import Transport
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.gateway.local import BenchJudge
from flashjob.pinning import pin, verification_policy
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.gateway import DeviceResult, Outcome, Stage
from flashjob.wire.pod import Assignment, Before, Safety, Timeouts, TransportKind
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Target

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
    evidence: Path | None = None
    """Directory for evidence records."""


async def flash_one(
    wish: Wish, console: Console, listener: Listener = lambda _stage, _done, _total: None
) -> tuple[DeviceResult, Verdict | None]:
    """Flash and judge one device; `listener` sees every stage and progress.

    Raises:
        FlashJobError, PipelineError, Reject: nothing was begun.
    """
    trust = TrustDirectory(wish.trust)
    with tempfile.TemporaryDirectory(prefix="flashjob-") as folder:
        transport: Transport = (
            SerialTransport(wish.port, Path(folder), baud=wish.baud, in_place=wish.safety.allow_in_place)
            if wish.port
            else NetworkTransport(wish.host or "")
        )
        try:
            device_id, chip = await _who(wish, transport)
            anchor = _anchor(trust, device_id)
        except BaseException:
            await transport.close()
            raise
        try:
            with _alone(trust, anchor):
                return await _flash(wish, trust, transport, anchor, chip, Path(folder), console, listener)
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


def _anchor(trust: TrustDirectory, device_id: str) -> DeviceAnchor:
    """Rule 1: what was looked up."""
    anchor = trust.by_ueid(bytes.fromhex(device_id))
    if anchor is None:
        raise FlashJobError(
            Reason.DEVICE_NOT_ENROLLED,
            f"{trust.root} has no trust anchor of device {device_id}",
            Reason.DEVICE_NOT_ENROLLED.next_step,
        )
    return anchor


@contextlib.contextmanager
def _alone(trust: TrustDirectory, anchor: DeviceAnchor) -> Iterator[None]:
    """Rule 3."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(trust.locked(anchor.ueid))
        except Reject as reject:
            raise FlashJobError(
                Reason.DEVICE_BUSY, reject.message, "wait until the other process has ended, then try again"
            ) from reject
        yield


async def _flash(
    wish: Wish,
    trust: TrustDirectory,
    transport: Transport,
    anchor: DeviceAnchor,
    chip: str,
    folder: Path,
    console: Console,
    listener: Listener,
) -> tuple[DeviceResult, Verdict | None]:
    device_id = anchor.ueid.hex()
    entry = trust.device(anchor.ueid) or {}
    policy = trust.policy(anchor.policy)
    if policy is None:
        raise FlashJobError(
            Reason.POLICY_MISSING,
            f"policy {anchor.policy} of device {device_id} is not in {trust.root}",
            f"write {trust.root}/policies/{anchor.policy}.yaml",
        )
    store, target = await asyncio.to_thread(_open_verified, wish, trust, policy, anchor.policy, chip)
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
    judge = BenchJudge(trust, assignment, evidence=wish.evidence)
    with _bars(console) as bars:
        line = Lines(bars)

        def show(stage: Stage, done: int, total: int) -> None:
            line.show(stage, done, total)
            listener(stage, done, total)

        result = await Attempt(assignment, firmware, transport, judge, show).run()
    return result, judge.verdict


def exit_code(result: DeviceResult, verdict: Verdict | None) -> ExitCode:
    """What the process ends with; success is the verdict's word, never the flow's."""
    if verdict is not None and verdict.outcome in (Outcome.PROVEN, Outcome.ALREADY_RUNNING):
        return ExitCode.DONE
    if verdict is not None and verdict.outcome is Outcome.BELOW_POLICY:
        return ExitCode.UNPROVEN
    return ExitCode.FAILED if result.bytes_written else ExitCode.REFUSED


def _open_verified(
    wish: Wish, trust: TrustDirectory, policy: AttestationPolicySpec, policy_name: str, chip: str
) -> tuple[ArtifactStore, Target]:
    """Rule 2."""
    required = policy.required_signers
    own = [load_trusted_key(pem.encode(), name) for name, pem in trust.signers().items()]
    if required is None and not own:
        raise FlashJobError(
            Reason.SIGNERS_NOT_CONFIGURED,
            f"neither policy {policy_name} nor {trust.root}/signers names a signer",
            Reason.SIGNERS_NOT_CONFIGURED.next_step,
        )
    where = api.locate(wish.reference)
    options = api.ClientOptions(credentials=load_credentials(os.environ), plain_http=wish.plain_http)
    store = api.open_store(where, options)
    digest = api.resolve(store, where)
    if required is not None:
        api.verify_policy(store, digest, verification_policy(required))
    if own:
        api.verify(store, digest, own)
    return store, pin(store.name, digest, api.open_chip(store, digest, chip), plain_http=wish.plain_http)


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
