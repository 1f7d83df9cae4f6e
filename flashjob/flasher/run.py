# SPDX-License-Identifier: Apache-2.0
"""One attempt at one device, from its first answer to its verdict. The flow never decides what success is.

Order: evidence before -> preflight -> permit -> write (boot id last) -> reboot -> evidence -> confirm -> result.

Rules (tests name them):

1. Before the permit nothing is written; a refusal lets the application run again and reports 0 bytes.
2. A device that already runs the target's measurement, under its partition table, asks for its permit before the loader
   is entered: if nothing is to be written it is not even reset. Its claim only orders the questions; the judge decides by
   evidence.
3. Silence before the write fails the attempt, unless an earlier attempt of this task had a permit. Then a network
   device is given time for its own rollback (SilentAfterWrite). A serial one may wait in its loader because its writer
   died before the reset: it is reset once; still silent, the attempt goes on by chip and eFuse MAC alone.
4. A permit that the device forgot is asked for again, at most three times an attempt.
5. Every wait has a bound from the assignment's timeouts, and every bound a reason.
6. An answer to the confirm grant that was lost is asked for again (proof.py).
7. Whatever happens, port and connection are released and the result is reported, the stage it ended in included.
8. A device that can apply deltas is offered one from what it runs, where that image is known; what refuses or forgets
   it gets the whole image.
9. A judge that could not use evidence because it came too late is asked again with fresh evidence, once.
10. After a verdict that refuses what was installed, the device is told to go back (proof.py).
11. A device that is receiving when the attempt is stopped is left so: what is incomplete boots nothing, the next install
    takes its place, and a reset forgets it. A cancel would gain nothing and could come late.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from pydantic import ValidationError

from attestation.device_protocol import Flag, Info
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp.partitions import DEFAULT_TABLE_OFFSET
from firmware_pipeline.hardware import HardwareFacts
from flashjob.errors import FlashJobError
from flashjob.flasher import preflight
from flashjob.flasher.content import Content, Extra, content
from flashjob.flasher.delta import Delta
from flashjob.flasher.judge import Judge
from flashjob.flasher.patience import limit, twice
from flashjob.flasher.proof import Proof, runs_target
from flashjob.flasher.tail import Tail
from flashjob.flasher.transports.base import SILENT, PermitSpent, Transport, problem
from flashjob.wire.gateway import (
    DeltaOffer,
    DeviceResult,
    HardwareReport,
    NonceRequest,
    PermitDecision,
    PermitReply,
    PermitRequest,
    Progress,
    Purpose,
    Stage,
    VerdictReply,
)
from flashjob.wire.pod import Assignment, Before, Data
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Measurement

log = logging.getLogger(__name__)

_PERMITS = 3
PROGRESS_SECONDS = 0.5
_LAST_WORDS_SECONDS = 3.0
PROVING = (Stage.REBOOTING, Stage.ATTESTING, Stage.CONFIRMING)
"""Stages after the write: a stop in them would only leave an installed image unproven."""


@dataclass(frozen=True, slots=True)
class Firmware:
    """What was fetched for one chip: verified signed config, image bytes, release statement, other images."""

    config: FirmwareConfig
    image: bytes = field(repr=False)
    release: bytes | None = None
    extras: tuple[Extra, ...] = field(default=(), repr=False)
    """Those that the job permits to write beside the application."""

    def content(self, assignment: Assignment) -> Content:
        """What is to be written."""
        return content(self.config, len(self.image), self.extras, assignment.safety, assignment.transport)


Listener = Callable[[Stage, int, int], None]
"""Called with (stage, done, total) at every change: for a progress bar beside the judge's own."""


DeltaMaker = Callable[[Info], Awaitable[Delta | None]]


class Attempt:
    """One attempt; `run` it once.

    Args:
        assignment: device, target, limits.
        firmware: what to write.
        transport: the way to the device; closed at the end.
        judge: decides.
        listener: sees every stage and progress.
        delta: makes a delta from what the device says that it runs, where it can; never raises.
        progress_seconds: the judge is told progress at most that often.
        tail: keeps its log for the result.
    """

    def __init__(
        self,
        assignment: Assignment,
        firmware: Firmware,
        transport: Transport,
        judge: Judge,
        listener: Listener = lambda _stage, _done, _total: None,
        *,
        delta: DeltaMaker | None = None,
        progress_seconds: float = PROGRESS_SECONDS,
        tail: Tail | None = None,
    ) -> None:
        self._task, self._firmware = assignment, firmware
        self._transport, self._judge, self._listener = transport, judge, listener
        self._tail = tail
        self._delta_maker = delta
        self._delta: Delta | None = None
        self.stage = Stage.PREFLIGHT
        """Where it is."""
        self.stopped: DeviceResult | None = None
        """How it ended, where it was cancelled."""
        self.stop_reason = "the pod was told to stop"
        """Why it is cancelled, if it is."""
        self._progress_seconds = progress_seconds
        self._seconds: dict[str, float] = {}
        self._facts: HardwareFacts | None = None
        self._latest: Progress | None = None
        self._news = asyncio.Event()
        self._proof = Proof(assignment, transport, judge)

    @property
    def bytes_written(self) -> int:
        """Of flash, so far."""
        return self._transport.bytes_written

    async def run(self) -> DeviceResult:
        """Carry the attempt out. Never raises but for cancellation; the result says everything."""
        reporter = asyncio.create_task(self._report())
        try:
            verdict = await self._walk()
            result = self._result(True, verdict.reason, verdict.message)
        except FlashJobError as error:
            result = self._result(False, error.reason, error.message)
        except (OSError, PipelineError, ValidationError) as error:
            reason = Reason.INTERNAL_ERROR
            result = self._result(False, reason.value, f"{type(error).__name__}: {error}. Next: {reason.next_step}")
        except asyncio.CancelledError:
            await self._transport.close()
            refused = self._proof.refused
            if refused is not None:  # the device was only still to go back
                self.stopped = self._result(False, refused.reason, refused.message)
            else:
                said = f"{self.stop_reason}: {_left_behind(self.stage, self._task)}"
                self.stopped = self._result(False, Reason.STOPPED.value, said)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_SECONDS):
                    await self._end(self.stopped)
            raise
        finally:
            reporter.cancel()
            await self._transport.close()
        await self._end(result)
        return result

    async def _walk(self) -> VerdictReply:
        task, transport = self._task, self._transport
        preflight.check_image(self._firmware.image, task.target)
        async with self._in(Stage.PREFLIGHT):
            info, permit = await twice(self._permitted)
        if permit.decision is PermitDecision.ALREADY_RUNNING:
            reason = Reason.ALREADY_RUNNING
            return VerdictReply.parse({"outcome": "AlreadyRunning", "reason": reason.value, "message": reason.meaning})
        if permit.decision is PermitDecision.WRITE:
            await self._write(permit)
            async with self._in(Stage.REBOOTING):
                try:
                    await transport.reboot(task.timeouts.boot_seconds, self._judge.address)
                except FlashJobError as error:
                    if error.reason == Reason.PORT_SILENT:
                        raise problem(Reason.SILENT_AFTER_WRITE, error.message) from error
                    raise
        elif transport.bytes_written == 0 and info is None:
            await transport.reboot(task.timeouts.boot_seconds, self._judge.address)
        return await self._proof.walk(self._in)

    async def _permitted(self) -> tuple[Info | None, PermitReply]:
        """What the device says of itself, where it was asked, and the permit."""
        info, evidence = await self._before()
        at_target = info is not None and runs_target(info, self._task) and _table_fits(info, self._task)
        if not at_target:
            await self._preflight(info)
        self._delta = await self._make_delta(info)
        permit = await self._permit(evidence)
        if permit.decision is PermitDecision.WRITE and at_target:
            await self._preflight(info)
        return info, permit

    async def _before(self) -> tuple[Info | None, bytes | None]:
        """Evidence before anything else, as the assignment demands it (rule 3)."""
        task, transport = self._task, self._transport
        if task.before is Before.NONE and not task.permitted_before:
            return None, None
        try:
            return await self._identify()
        except FlashJobError as error:
            if error.reason not in SILENT or not (task.permitted_before or task.before is Before.NONE):
                raise
            if transport.kind == "network":
                raise problem(Reason.SILENT_AFTER_WRITE, error.message) from error
        try:
            await self._preflight(None)
            await transport.abandon()
            return await self._identify()
        except FlashJobError as error:
            if error.reason not in SILENT:
                raise
            return None, None

    async def _identify(self) -> tuple[Info, bytes]:
        task, transport = self._task, self._transport
        patience = task.timeouts.boot_seconds if task.permitted_before else task.timeouts.attest_seconds
        info = await transport.info(patience)
        preflight.check_identity(task, ueid=info.ueid)
        nonce = await self._judge.nonce(NonceRequest(attempt=task.attempt, purpose=Purpose.BEFORE))
        async with limit(task.timeouts.attest_seconds, Reason.ATTEST_TIMEOUT):
            return info, await transport.evidence(nonce.nonce)

    async def _preflight(self, info: Info | None) -> None:
        offset = self._firmware.config.partition_table_offset
        brought = self._firmware.content(self._task)
        self._facts = await self._transport.probe(DEFAULT_TABLE_OFFSET if offset is None else offset, brought)
        try:
            preflight.check_hardware(self._task, self._facts, self._firmware.config, info, brought)
        except FlashJobError:
            await self._abandon()
            raise

    async def _permit(self, evidence: bytes | None) -> PermitReply:
        try:
            permit = await self._judge.permit(
                PermitRequest(
                    attempt=self._task.attempt,
                    evidence=evidence,
                    device_nonce=await self._transport.install_nonce(),
                    release=self._firmware.release,
                    delta=_offer(self._delta),
                )
            )
        except FlashJobError:
            await self._abandon()
            raise
        log.info("permit: %s, fence %d", permit.decision.value, permit.fence)
        if permit.decision is not PermitDecision.WRITE:
            await self._abandon()
        return permit

    async def _make_delta(self, info: Info | None) -> Delta | None:
        """Rule 8."""
        if self._delta_maker is None or info is None or Flag.DELTA not in info.flags or runs_target(info, self._task):
            return None
        return await self._delta_maker(info)

    async def _write(self, permit: PermitReply) -> None:
        async with self._in(Stage.WRITING):
            for again in range(_PERMITS):
                payload = self._delta.payload if self._delta is not None and permit.delta else self._firmware.image
                try:
                    await self._transport.write(payload, permit, self._progress)
                    return
                except PermitSpent as error:
                    log.warning("the device forgot its permit: %s", error.message)
                    if again == _PERMITS - 1:
                        raise
                    self._delta = None
                    permit = await self._permit(None)
                except FlashJobError as error:
                    if error.reason != Reason.DEVICE_REFUSED or not permit.delta:
                        raise
                    log.warning("the delta was refused, the whole image follows: %s", error.message)
                    self._delta = None
                    permit = await self._permit(None)

    async def _abandon(self) -> None:
        """Best effort: the reason why nothing is written matters more than a port that does not let go."""
        with contextlib.suppress(FlashJobError):
            await self._transport.abandon()

    @contextlib.asynccontextmanager
    async def _in(self, stage: Stage) -> AsyncIterator[None]:
        self.stage = stage
        log.info("%s", stage.value)
        started = time.monotonic()
        self._progress(0, 0)
        try:
            yield
        finally:
            self._seconds[stage.value] = round(time.monotonic() - started, 3)

    def _progress(self, done: int, total: int) -> None:
        self._latest = Progress(attempt=self._task.attempt, stage=self.stage, done=done, total=total)
        self._listener(self.stage, done, total)
        self._news.set()

    async def _report(self) -> None:
        """Tell the judge the newest progress, at most twice a second, never in the way of the work."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._latest is not None:
                with contextlib.suppress(FlashJobError):
                    await self._judge.progress(self._latest)
            await asyncio.sleep(self._progress_seconds)

    async def _end(self, result: DeviceResult) -> None:
        with contextlib.suppress(FlashJobError):
            await self._judge.result(result)

    def _result(self, ok: bool, reason: str, message: str) -> DeviceResult:
        return DeviceResult(
            task=self._task.task,
            attempt=self._task.attempt,
            stage=self.stage,
            ok=ok,
            reason=reason,
            message=message[:1024],
            log=self._tail.text if self._tail is not None else "",
            bytes_written=self._transport.bytes_written,
            seconds=self._seconds,
            hardware=_hardware(self._facts) if self._facts else None,
        )


def _left_behind(stage: Stage, task: Assignment) -> str:
    """In what state the device was left."""
    if stage is Stage.WRITING:
        data = "; data may be erased already" if task.safety.data is Data.WIPE else ""
        if task.safety.allow_bootloader or task.safety.allow_partition_table:
            return f"not everything is written; the chip may wait in its ROM loader for the next attempt{data}"
        return f"the image is not complete; a device with two slots goes on booting what it ran before{data}"
    if stage in PROVING:
        return "the image is written, but not proven; the device goes back by itself unless it is confirmed in time"
    return "nothing was written"


def _table_fits(info: Info, task: Assignment) -> bool:
    """Whether the device claims the target's partition table; of an artifact that names none, any."""
    return task.target.partition_table in (None, info.partition_table.hex())


def _offer(delta: Delta | None) -> DeltaOffer | None:
    if delta is None:
        return None
    alg, value = delta.base
    return DeltaOffer(
        base=Measurement(scheme="esp-image", alg=alg, value=value.hex()),
        sha256=hashlib.sha256(delta.payload).hexdigest(),
        size=len(delta.payload),
    )


def _hardware(facts: HardwareFacts) -> HardwareReport:
    return HardwareReport(
        chip=facts.target or "",
        revision=facts.revision,
        flash_size=facts.flash_size,
        mac=facts.mac,
        secure_boot=facts.secure_boot,
        flash_encryption=None if facts.flash_encryption is None else facts.flash_encryption != "off",
    )
