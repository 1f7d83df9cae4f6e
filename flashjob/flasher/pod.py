# SPDX-License-Identifier: Apache-2.0
"""The attempts of one flashing pod, side by side.

Rules (tests name them):

1. One device's failure, whatever it is, never ends another's attempt; every assignment has its result.
2. Told to stop, attempts whose image is written already have `grace` seconds to prove it; all others stop at once.
   Every result says which it was.
3. An attempt ends by itself when its stages' limits together are over, before the kubelet ends the pod.
4. All run at once; their number is bounded by the assignments (wire/pod.py). The more, the less often each of them tells
   its progress: the gateway hears at most ten words a second from one pod.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from attestation.device_protocol import Info
from flashjob.errors import FlashJobError
from flashjob.flasher.delta import Delta
from flashjob.flasher.judge import Judge
from flashjob.flasher.run import PROGRESS_SECONDS, PROVING, Attempt, Firmware
from flashjob.flasher.tail import Tail
from flashjob.flasher.transports.base import Transport
from flashjob.wire.gateway import DeviceResult, Progress, Stage
from flashjob.wire.pod import Assignment
from flashjob.wire.reasons import Reason

STOP_SECONDS: Final = 20.0
"""For attempts that are proving their image when the pod is told to stop; the kubelet grants 30 in all."""
BEFORE_BYTE_ONE: Final = (Stage.STARTING, Stage.FETCHING, Stage.PREFLIGHT)
_WORDS_A_SECOND: Final = 10
_LAST_WORDS_SECONDS: Final = 3.0
log = logging.getLogger(__name__)


class Pod:
    """Runs each assignment once.

    Args:
        assignments: what to do.
        fetch: gets an assignment's firmware; raises FlashJobError.
        judge: the judge of a task, by its name.
        transport: the way to an assignment's device; raises FlashJobError.
        delta: makes an assignment's delta, where it can; never raises.
        grace: rule 2, seconds.
    """

    def __init__(
        self,
        assignments: Sequence[Assignment],
        fetch: Callable[[Assignment], Awaitable[Firmware]],
        judge: Callable[[str], Judge],
        transport: Callable[[Assignment], Transport],
        *,
        delta: Callable[[Assignment, Info], Awaitable[Delta | None]] | None = None,
        grace: float = STOP_SECONDS,
    ) -> None:
        self._fetch, self._judge, self._transport, self._grace = fetch, judge, transport, grace
        self._delta = delta
        pause = max(PROGRESS_SECONDS, len(assignments) / _WORDS_A_SECOND)
        self._seats = [_Seat(self, item, judge(item.task), pause) for item in assignments]

    async def run(self) -> list[DeviceResult]:
        """Carry all attempts out; their results in the assignments' order. Raises nothing but CancelledError."""
        return list(await asyncio.gather(*(seat.run() for seat in self._seats)))

    def stop(self) -> None:
        """Rule 2. Returns at once; `run` returns when all have stopped."""
        loop = asyncio.get_running_loop()
        for seat in self._seats:
            if seat.stage in PROVING:
                log.info("told to stop: %s has %g s to prove its image", seat.task, self._grace)
                loop.call_later(self._grace, seat.stop, f"told to stop, and not done {self._grace:g} s later")
            else:
                seat.stop("the pod was told to stop")

    async def attempt(self, assignment: Assignment, judge: Judge, pause: float, tail: Tail) -> Attempt:
        """The attempt, ready to run. Raises FlashJobError."""
        await judge.progress(Progress(attempt=assignment.attempt, stage=Stage.FETCHING))
        firmware = await self._fetch(assignment)
        maker = partial(self._delta, assignment) if self._delta is not None else None
        return Attempt(
            assignment, firmware, self._transport(assignment), judge, delta=maker, progress_seconds=pause, tail=tail
        )


class _Seat:
    """One assignment of the pod."""

    def __init__(self, pod: Pod, assignment: Assignment, judge: Judge, pause: float) -> None:
        self.task = assignment.task
        self._pod, self._assignment, self._judge, self._pause = pod, assignment, judge, pause
        self._attempt: Attempt | None = None
        self._tail = Tail(assignment.task)
        self._why = ""
        self._work: asyncio.Task[DeviceResult] | None = None

    @property
    def stage(self) -> Stage:
        """Where it is."""
        return self._attempt.stage if self._attempt is not None else Stage.FETCHING

    def stop(self, why: str) -> None:
        """End it now, if it has not ended."""
        self._why = self._why or why
        if self._attempt is not None:
            self._attempt.stop_reason = self._why
        if self._work is not None:
            self._work.cancel()

    async def run(self) -> DeviceResult:
        """Its result (rules 1 and 3)."""
        seconds = self._assignment.timeouts.attempt_seconds
        self._work = asyncio.create_task(self._carry_out())
        overdue = asyncio.get_running_loop().call_later(seconds, self.stop, f"not done after {seconds} s")
        if self._why:
            self._work.cancel()
        (outcome,) = await asyncio.gather(self._work, return_exceptions=True)
        overdue.cancel()
        if isinstance(outcome, DeviceResult):
            return outcome
        if isinstance(outcome, asyncio.CancelledError):
            stopped = self._attempt.stopped if self._attempt is not None else None
            return stopped or await self._told(Reason.STOPPED.value, f"{self._why}: nothing was written")
        if isinstance(outcome, FlashJobError):
            return await self._told(outcome.reason, outcome.message)
        log.error("%s: unexpected", self.task, exc_info=outcome)
        reason = Reason.INTERNAL_ERROR
        return await self._told(reason.value, f"{type(outcome).__name__}: {outcome}. Next: {reason.next_step}")

    async def _carry_out(self) -> DeviceResult:
        self._tail.begin()
        self._attempt = await self._pod.attempt(self._assignment, self._judge, self._pause, self._tail)
        return await self._attempt.run()

    async def _told(self, reason: str, message: str) -> DeviceResult:
        """The result of an attempt that has none of its own; the gateway hears it too."""
        written = self._attempt.bytes_written if self._attempt is not None else 0
        result = DeviceResult(
            task=self.task,
            attempt=self._assignment.attempt,
            stage=self.stage,
            ok=False,
            reason=reason,
            message=message[:1024],
            bytes_written=written,
            seconds={},
            log=self._tail.text,
        )
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._judge.result(result)
        except (FlashJobError, TimeoutError) as error:
            log.warning("%s: result not reported: %s", self.task, error)
        return result
