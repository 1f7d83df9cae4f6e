# SPDX-License-Identifier: Apache-2.0
"""Devices at a bench: fetch, verify, flash, judge, all in this process and without a cluster.

Rules (tests name them):

1. Who a device is, is looked up by its own claim; what it proves afterwards must fit what was looked up.
2. What it is to run is bench_artifact's to say.
3. The device's file is locked for the whole attempt: one writer, also between two places that turn out to be one device.
4. Several devices are flashed side by side, a bounded number at once. One device's end never ends another's.
5. Stopped by hand, every device has an end that says in what state it was left.
6. A chip on a serial line whose application is silent may wait in its loader, where a write was stopped: it is reset
   once.
7. What this way can never do is refused before anything is fetched or asked.
"""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from attestation.anchors import DeviceAnchor
from attestation.directory import TrustDirectory
from attestation.errors import Reject
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp.chips import by_id
from firmware_pipeline.esp.partitions import DEFAULT_TABLE_OFFSET
from flashjob.api.flashtask import Verdict
from flashjob.bench_artifact import Artifact
from flashjob.errors import FlashJobError
from flashjob.flasher.content import permitted
from flashjob.flasher.run import Attempt, Listener
from flashjob.flasher.transports.base import Transport, problem
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.gateway.local import BenchJudge
from flashjob.pipeline_reasons import artifact_error
from flashjob.trust_reasons import bench_error
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.gateway import DeviceResult, Outcome, Stage
from flashjob.wire.pod import Assignment, Before, Safety, Timeouts, TransportKind
from flashjob.wire.reasons import Reason
from flashjob.wire.serial import USUAL, SerialSettings

_FIRST_ANSWER_SECONDS: Final = 15.0
_BY_HAND: Final = "stopped by hand"
_AGAIN: Final = "run the same command again: it looks at the device first, and goes on from there"
Said = Callable[[str], None]
log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for, of one device."""

    reference: str
    port: str | None
    host: str | None
    trust: Path
    device: str | None
    chip: str | None
    before: Before
    safety: Safety
    plain_http: bool
    serial: SerialSettings = USUAL
    evidence: Path | None = None
    """Directory for evidence records."""

    @property
    def place(self) -> str:
        """Where the device is, for people."""
        return self.port or self.host or ""

    @property
    def kind(self) -> TransportKind:
        """How the device is reached."""
        return TransportKind.SERIAL if self.port else TransportKind.NETWORK


@dataclass(frozen=True, slots=True)
class End:
    """How it ended with one device.

    Attributes:
        place: where it is.
        error: why nothing was begun, or that it was stopped.
        result: of the attempt, if one was begun.
        verdict: if the attempt came to one.
    """

    place: str
    error: FlashJobError | None = None
    result: DeviceResult | None = None
    verdict: Verdict | None = None

    @property
    def code(self) -> ExitCode:
        """What a process ends with that is about this device alone."""
        if self.result is None:
            return ExitCode.REFUSED
        return exit_code(self.result, self.verdict)


class Seat:
    """One device at the bench; `flash` it once.

    Args:
        wish: what is asked for.
        artifact: what it is to run.
        said: called with a line about the verified artifact.
        listener: sees every stage and progress.
    """

    def __init__(self, wish: Wish, artifact: Artifact, said: Said, listener: Listener) -> None:
        self._wish, self._artifact, self._said, self._listener = wish, artifact, said, listener
        self._attempt: Attempt | None = None

    async def flash(self) -> tuple[DeviceResult, Verdict | None]:
        """Flash and judge the device.

        Raises:
            FlashJobError, PipelineError, Reject: nothing was begun.
        """
        wish = self._wish
        if wish.safety.wipe_impossible(wish.kind):  # rule 7
            why = Reason.WIPE_NEEDS_SERIAL
            raise FlashJobError(why, f"{wish.place} is reached over the network", why.next_step)
        trust = TrustDirectory(wish.trust)
        with tempfile.TemporaryDirectory(prefix="flashjob-") as folder:
            transport: Transport = (
                SerialTransport(wish.port, Path(folder), wish.serial)
                if wish.port
                else NetworkTransport(wish.host or "")
            )
            try:
                device_id, chip = await _who(wish, transport)
                anchor = _anchor(trust, device_id)
                with _alone(trust, anchor):
                    return await self._flash(trust, transport, anchor, chip)
            finally:
                await transport.close()

    @property
    def stopped(self) -> End:
        """What to say if it was cancelled (rule 5)."""
        attempt, result = self._attempt, None
        message = f"{_BY_HAND}: nothing was written"
        if attempt is not None and attempt.stopped is not None:
            result, message = attempt.stopped, attempt.stopped.message
        elif attempt is not None:  # it was over already, and only letting go
            message = f"{_BY_HAND} at its end ({attempt.stage}): {attempt.bytes_written} bytes were written"
        return End(self._wish.place, FlashJobError(Reason.STOPPED, message, _AGAIN), result)

    async def _flash(
        self, trust: TrustDirectory, transport: Transport, anchor: DeviceAnchor, chip: str
    ) -> tuple[DeviceResult, Verdict | None]:
        wish, device_id = self._wish, anchor.ueid.hex()
        policy = trust.policy(anchor.policy)
        if policy is None:
            raise FlashJobError(
                Reason.POLICY_MISSING,
                f"policy {anchor.policy} of device {device_id} is not in {trust.root}",
                f"write {trust.root}/policies/{anchor.policy}.yaml",
            )
        target, firmware = await asyncio.to_thread(
            self._artifact.firmware, chip, trust, anchor.policy, policy, permitted(wish.safety, wish.kind)
        )
        self._said(
            f"[bold]{target.application} {target.version}[/] for {chip}, {target.index_digest[:19]}, signature verified"
        )
        hardware = ((trust.device(anchor.ueid) or {}).get("spec") or {}).get("hardware") or {}
        assignment = Assignment(
            task=f"bench-{device_id[:16]}",
            attempt=1,
            device=device_id,
            transport=wish.kind,
            address=wish.host,
            mac=hardware.get("mac"),
            serial=wish.serial if wish.port else None,
            target=target,
            before=wish.before,
            timeouts=Timeouts(),
            safety=wish.safety,
        )
        judge = BenchJudge(trust, assignment, evidence=wish.evidence)
        self._attempt = Attempt(assignment, firmware, transport, judge, self._listener)
        self._attempt.stop_reason = _BY_HAND
        return await self._attempt.run(), judge.verdict


async def flash_one(
    wish: Wish, console: Console, listener: Listener = lambda _stage, _done, _total: None
) -> tuple[DeviceResult, Verdict | None]:
    """Flash and judge one device, with a bar on the console; `listener` sees every stage and progress.

    Raises:
        FlashJobError, PipelineError, Reject: nothing was begun.
    """
    with _supply(wish) as artifact, bars(console) as shown:
        line = Line(shown)

        def show(stage: Stage, done: int, total: int) -> None:
            line.show(stage, done, total)
            listener(stage, done, total)

        return await Seat(wish, artifact, _say(console), show).flash()


async def flash_all(
    wishes: Sequence[Wish], console: Console, ended: Callable[[End], None], *, at_once: int
) -> tuple[list[End], bool]:
    """Flash and judge several devices with one artifact (rules 4 and 5). Raises nothing but what a second Ctrl-C does.

    Args:
        wishes: of one reference and trust directory; each its own place.
        console: for the bars.
        ended: called with each end as it comes.
        at_once: how many devices are worked with at the same time.

    Returns:
        The ends in the order of the wishes, and whether they were stopped by hand.
    """
    with _supply(wishes[0]) as artifact, bars(console) as shown:
        width = max(len(wish.place) for wish in wishes) if len(wishes) > 1 else 0
        free, say = asyncio.Semaphore(at_once), _say(console)

        async def one(wish: Wish) -> End:
            line = Line(shown, escape(f"{wish.place:<{width}} ") if width else "")
            seat = Seat(wish, artifact, say, line.show)
            try:
                async with free:
                    end = await _end(wish, seat)
            except asyncio.CancelledError:
                end = seat.stopped
            line.leave()
            ended(end)
            return end

        works = [asyncio.create_task(one(wish)) for wish in wishes]
        stopped = False
        try:
            await asyncio.wait(works)
        except asyncio.CancelledError:
            stopped = True
            for work in works:
                work.cancel()
            await asyncio.wait(works)
    return [work.result() for work in works], stopped


async def _end(wish: Wish, seat: Seat) -> End:
    try:
        result, verdict = await seat.flash()
    except FlashJobError as error:
        return End(wish.place, error)
    except PipelineError as error:
        return End(wish.place, artifact_error(error))
    except Reject as error:
        return End(wish.place, bench_error(error, wish.trust))
    except OSError as error:
        log.debug("%s", wish.place, exc_info=error)
        return End(wish.place, problem(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}"))
    return End(wish.place, None, result, verdict)


@contextlib.contextmanager
def _supply(wish: Wish) -> Iterator[Artifact]:
    with tempfile.TemporaryDirectory(prefix="flashjob-") as folder:
        yield Artifact(wish.reference, Path(folder), plain_http=wish.plain_http)


def _say(console: Console) -> Said:
    """Each line once, however many devices are told the same."""
    seen: set[str] = set()

    def say(line: str) -> None:
        if line not in seen:
            seen.add(line)
            console.print(line)

    return say


async def _who(wish: Wish, transport: Transport) -> tuple[str, str]:
    """The device's own claim, only to look it up; what it proves comes later."""
    if wish.device and wish.chip:
        return wish.device, wish.chip
    if wish.before is Before.NONE:
        raise FlashJobError(
            Reason.DEVICE_NOT_ENROLLED, "a device that is not asked cannot say who it is", "add --device ID --chip CHIP"
        )
    try:
        info = await transport.info(_FIRST_ANSWER_SECONDS)
    except FlashJobError as error:
        if error.reason != Reason.PORT_SILENT or not await _left_its_loader(transport):
            raise
        info = await transport.info(_FIRST_ANSWER_SECONDS)
    return wish.device or info.ueid.hex(), wish.chip or by_id(info.chip_id).target


async def _left_its_loader(transport: Transport) -> bool:
    """Rule 6."""
    try:
        await transport.probe(DEFAULT_TABLE_OFFSET)
        await transport.abandon()
    except FlashJobError as error:
        return error.reason != Reason.PORT_SILENT  # a chip that was found is let go whatever it holds
    return True


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


def exit_code(result: DeviceResult, verdict: Verdict | None) -> ExitCode:
    """What the process ends with; success is the verdict's word, never the flow's."""
    if verdict is not None and verdict.outcome in (Outcome.PROVEN, Outcome.ALREADY_RUNNING):
        return ExitCode.DONE
    if verdict is not None and verdict.outcome is Outcome.BELOW_POLICY:
        return ExitCode.UNPROVEN
    return ExitCode.FAILED if result.bytes_written else ExitCode.REFUSED


class Line:
    """One progress line: of one device alone a new one for each stage, of several one for each device.

    Args:
        shown: where the line is.
        name: of the device, before the stage; "" where there is only one.
    """

    def __init__(self, shown: Progress, name: str = "") -> None:
        self._shown, self._name = shown, name
        self._current: tuple[Stage, TaskID] | None = None

    def show(self, stage: Stage, done: int, total: int) -> None:
        """Called at every change of stage or progress."""
        if self._current is None or (self._current[0] is not stage and not self._name):
            self._finish()
            self._current = (stage, self._shown.add_task(f"{self._name}{stage}", total=None))
        elif self._current[0] is not stage:
            self._current = (stage, self._current[1])
            self._shown.update(self._current[1], description=f"{self._name}{stage}")
        if total:
            self._shown.update(self._current[1], completed=done, total=total)

    def leave(self) -> None:
        """The device's end is said elsewhere: the line of one of several is not shown any more."""
        if self._current is not None and self._name:
            self._shown.update(self._current[1], visible=False)

    def _finish(self) -> None:
        """The stage is over."""
        if self._current is not None:
            task = next(task for task in self._shown.tasks if task.id == self._current[1])
            self._shown.update(task.id, total=task.total or 1, completed=task.total or 1)


def bars(console: Console) -> Progress:
    """Where progress is shown; nowhere unless the console is a terminal."""
    columns = (TextColumn("{task.description:<11}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
