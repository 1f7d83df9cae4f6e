# SPDX-License-Identifier: Apache-2.0
"""One request: gather the case, rule, write, answer. Knows where cases come from only as a Protocol.

The write carries the resourceVersion that the case was read at. When somebody wrote in between (another replica, the
operator), the case is gathered anew and ruled anew: so a nonce is consumed exactly once, and a verdict is never built on
what is no longer true.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar

from flashjob.api.flashtask import Report
from flashjob.wire.gateway import (
    ConfirmRequest,
    EvidenceReply,
    EvidenceRequest,
    NonceReply,
    NonceRequest,
    PermitReply,
    PermitRequest,
    RevertReply,
    RevertRequest,
    VerdictReply,
)
from flashjob.wire.reasons import Reason

from . import judge
from .case import Case, Keys
from .record import added
from .ruling import Addition, Finding, Refused

_TRIES: Final = 5
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Gathered:
    """A case, and what its report was read as."""

    case: Case
    report: Report
    version: str
    """resourceVersion; the precondition of the next write."""


class Conflict(Exception):
    """Somebody wrote since the case was gathered."""


class Cases(Protocol):
    """Where cases come from and reports go to."""

    async def gather(self, namespace: str, task: str, attempt: int) -> Gathered:
        """The case as of now. Raises FlashJobError NotAssigned where there is none, GatewayUnavailable on trouble."""
        ...

    async def write(self, namespace: str, task: str, report: Report, version: str) -> None:
        """Write the report if nobody wrote since `version`. Raises Conflict, FlashJobError GatewayUnavailable."""
        ...


class EvidenceSink(Protocol):
    """Keeps what deciding verdicts rested on, for good."""

    async def keep(self, case: Case, finding: Finding) -> None:
        """Keep one. Must not raise: a verdict that stands is not undone because its record cannot be kept."""
        ...


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time and randomness enter; tests bring their own."""

    now: Callable[[], float] = time.time
    random: Callable[[int], bytes] = secrets.token_bytes

    def stamp(self, now: float) -> str:
        """RFC 3339 in UTC."""
        return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True, slots=True)
class Service:
    """The judge with its case book.

    Args:
        cases: gathers and writes.
        keys: what the gateway signs and recognises with.
        clock: time and randomness.
        sink: where the evidence of verdicts is kept once they are written; None: nowhere.
    """

    cases: Cases
    keys: Keys
    clock: Clock
    sink: EvidenceSink | None = None

    async def nonce(self, namespace: str, task: str, request: NonceRequest) -> NonceReply:
        """A fresh nonce. Raises Refused."""
        gathered = await self.cases.gather(namespace, task, request.attempt)
        return judge.issue_nonce(
            gathered.case, request.purpose, self.keys, now=int(self.clock.now()), random=self.clock.random(10)
        )

    async def permit(self, namespace: str, task: str, request: PermitRequest) -> PermitReply:
        """Whether the first byte may be written. Raises Refused."""
        random = self.clock.random(16)

        def rule(case: Case, now: float) -> tuple[PermitReply, Addition]:
            return judge.permit(case, request, self.keys, now=int(now), at=self.clock.stamp(now), random=random)

        return await self._rule(namespace, task, request.attempt, rule)

    async def evidence(self, namespace: str, task: str, request: EvidenceRequest) -> EvidenceReply:
        """Evidence after the reboot. Raises Refused."""
        return await self._rule(
            namespace,
            task,
            request.attempt,
            lambda case, now: judge.first_evidence(case, request, self.keys, now=int(now)),
        )

    async def confirm(self, namespace: str, task: str, request: ConfirmRequest) -> VerdictReply:
        """Evidence over the second nonce. Raises Refused."""
        return await self._rule(
            namespace, task, request.attempt, lambda case, now: judge.confirm(case, request, self.keys, now=int(now))
        )

    async def revert(self, namespace: str, task: str, request: RevertRequest) -> RevertReply:
        """The order to give up an installation that was refused. Raises Refused."""
        gathered = await self.cases.gather(namespace, task, request.attempt)
        return judge.revert(gathered.case, request, self.keys)

    async def _rule(
        self, namespace: str, task: str, attempt: int, rule: Callable[[Case, float], tuple[R, Addition]]
    ) -> R:
        for _ in range(_TRIES):
            gathered = await self.cases.gather(namespace, task, attempt)
            now = self.clock.now()
            refused: Refused | None = None
            try:
                reply, addition = rule(gathered.case, now)
            except Refused as error:
                refused, addition = error, error.addition
            if not addition.empty:
                report = added(gathered.report, addition, attempt=attempt, at=self.clock.stamp(now))
                try:
                    await self.cases.write(namespace, task, report, gathered.version)
                except Conflict:
                    continue
                if self.sink is not None and addition.finding is not None:
                    await self.sink.keep(gathered.case, addition.finding)
            if refused is not None:
                raise refused
            return reply
        raise Refused(
            Reason.GATEWAY_UNAVAILABLE,
            f"{namespace}/{task} was written by others {_TRIES} times in a row",
            retryable=True,
        )
