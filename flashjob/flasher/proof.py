# SPDX-License-Identifier: Apache-2.0
"""From the first boot of what was written to the judge's verdict, and back where the verdict refuses it.

Rules (tests name them, as rules of run.py):

6. An answer to the confirm grant that was lost is asked for again with the same grant: the device answers equally.
9. A judge that could not use evidence because it came too late is asked again with fresh evidence, once.
10. After a verdict that refuses what was installed, the device is told to go back, if judge and device will. That is best
    effort, within bootSeconds: it adds to the result what runs now, and changes neither its reason nor its stage.

A device that falls silent meanwhile may have reset: it is looked for where it is now, and what it says of itself explains
the failure, no more.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from attestation.device_protocol import Info, Verb
from flashjob.errors import FlashJobError
from flashjob.flasher.judge import Judge
from flashjob.flasher.patience import limit, twice
from flashjob.flasher.transports.base import SILENT, Transport, problem
from flashjob.wire.gateway import (
    ConfirmRequest,
    EvidenceReply,
    EvidenceRequest,
    NonceRequest,
    Purpose,
    RevertRequest,
    Stage,
    VerdictReply,
)
from flashjob.wire.pod import Assignment
from flashjob.wire.reasons import Reason
from flashjob.wire.refusal import Refused

log = logging.getLogger(__name__)

_CONFIRMS = 3
_FELL_SILENT = (*SILENT, Reason.PORT_NOT_FOUND, Reason.PORT_VANISHED)
"""After a reset the port may be away as well."""


class Proof:
    """Of one attempt; `walk` it once.

    Args:
        assignment: the attempt.
        transport: the way to the device.
        judge: decides.
    """

    def __init__(self, assignment: Assignment, transport: Transport, judge: Judge) -> None:
        self._task, self._transport, self._judge = assignment, transport, judge
        self.refused: Refused | None = None
        """The verdict, where it refuses what was installed."""

    async def walk(self, stage: Callable[[Stage], AbstractAsyncContextManager[None]]) -> VerdictReply:
        """Attest and confirm; the judge's word.

        Args:
            stage: marks the time spent in a stage.

        Raises:
            FlashJobError: no proof; Refused where the judge itself said no.
        """
        try:
            async with stage(Stage.ATTESTING):
                reply = await twice(self._present)
            async with stage(Stage.CONFIRMING):
                proof = await self._confirmed(reply)
                return await self._judge.confirm(ConfirmRequest(attempt=self._task.attempt, evidence=proof))
        except Refused as refused:
            if not refused.problem.judged:
                raise
            self.refused = refused
            raise await self._reverted(refused) from refused

    async def _present(self) -> EvidenceReply:
        """Evidence of what was installed, before the judge."""
        task, transport = self._task, self._transport
        nonce = await self._judge.nonce(NonceRequest(attempt=task.attempt, purpose=Purpose.AFTER))
        try:
            async with limit(task.timeouts.attest_seconds, Reason.ATTEST_TIMEOUT):
                evidence = await transport.evidence(nonce.nonce)
                device_nonce = await transport.device_nonce(Verb.CONFIRM)
        except FlashJobError as error:
            raise await self._explained(error) from error
        return await self._judge.evidence(
            EvidenceRequest(attempt=task.attempt, evidence=evidence, device_nonce=device_nonce)
        )

    async def _explained(self, error: FlashJobError) -> FlashJobError:
        """Why a device fell silent between reboot and confirmation: it may have gone back to the old image."""
        if error.reason in _FELL_SILENT:
            with contextlib.suppress(FlashJobError):
                info = await self._transport.info(self._task.timeouts.boot_seconds, self._judge.address)
                if not runs_target(info, self._task):
                    return problem(Reason.RESET_BEFORE_CONFIRM, f"it runs {info.name} {info.version} again")
        return error

    async def _confirmed(self, reply: EvidenceReply) -> bytes:
        """Evidence over the second nonce."""
        async with limit(self._task.timeouts.confirm_seconds, Reason.CONFIRM_TIMEOUT):
            if reply.confirm_grant is None:
                return await self._transport.evidence(reply.second_nonce)
            return await self._confirm(reply.confirm_grant)

    async def _confirm(self, grant: bytes) -> bytes:
        """Rule 6."""
        for again in range(_CONFIRMS):
            try:
                return await self._transport.confirm(grant)
            except FlashJobError as error:
                if error.reason == Reason.DEVICE_REFUSED:
                    raise problem(Reason.RESET_BEFORE_CONFIRM, error.message) from error
                if again == _CONFIRMS - 1:
                    raise problem(Reason.CONFIRM_TIMEOUT, error.message) from error
        raise problem(Reason.CONFIRM_TIMEOUT, "no answer to the confirm grant")

    async def _reverted(self, refused: Refused) -> FlashJobError:
        """Rule 10: the refusal, with what runs now where that was brought about."""
        task, seconds = self._task, float(self._task.timeouts.boot_seconds)
        try:
            async with limit(seconds, Reason.SILENT_AFTER_WRITE):
                device_nonce = await self._transport.device_nonce(Verb.REVERT)
                reply = await self._judge.revert(RevertRequest(attempt=task.attempt, device_nonce=device_nonce))
                info = await self._transport.revert(reply.revert_grant, seconds, self._judge.address)
        except FlashJobError as error:
            log.warning("not reverted, the device goes back at its own deadline: %s", error)
            return refused
        log.info("reverted: it runs %s %s", info.name, info.version)
        message = f"{refused.message}; told to go back, it says that it runs {info.name} {info.version}"
        return FlashJobError(refused.reason, message, refused.next_step)


def runs_target(info: Info, task: Assignment) -> bool:
    """Whether the device claims the target's measurement."""
    return any(
        m.alg == info.measurement.alg and m.value == info.measurement.value.hex() for m in task.target.measurements
    )
