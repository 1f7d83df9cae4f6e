# SPDX-License-Identifier: Apache-2.0
"""What the judge says: findings, what they add to the task's report, and refusals. Data only."""

from dataclasses import dataclass
from typing import Final

from attestation import verifier
from flashjob.wire import refusal
from flashjob.wire.gateway import Outcome, Problem
from flashjob.wire.reasons import Reason

from .case import Case, PermitRecord


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict and all that it rested on."""

    verdict: verifier.Verdict
    evidence: bytes
    context: verifier.Context


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict to be recorded in the task's report; `judged` where there was evidence."""

    outcome: Outcome
    reason: Reason
    message: str
    judged: Judged | None = None
    beyond: tuple[str, ...] = ()
    """What was asked of the attempt and no evidence speaks of."""

    @property
    def unproven(self) -> tuple[str, ...]:
        """What this finding leaves open."""
        return (*(self.judged.verdict.unproven if self.judged else ()), *self.beyond)

    @property
    def verdict(self) -> verifier.Verdict | None:
        """The verifier's verdict, where there was evidence."""
        return self.judged.verdict if self.judged else None


@dataclass(frozen=True, slots=True)
class Addition:
    """What a ruling adds to the task's report; written before the answer leaves."""

    permit: PermitRecord | None = None
    used_nonces: tuple[str, ...] = ()
    finding: Finding | None = None
    before: tuple[str, str] | None = None
    """Application and version that the device proved before the first byte."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return self.permit is None and not self.used_nonces and self.finding is None


NOTHING: Final = Addition()


class Refused(refusal.Refused):
    """No.

    Args:
        reason, message: why.
        retryable: fresh evidence in the same attempt may do.
        judged: the attempt has its verdict.
        addition: what must be recorded all the same.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retryable: bool = False,
        judged: bool = False,
        addition: Addition = NOTHING,
    ) -> None:
        super().__init__(
            Problem(
                reason=str(reason),
                message=message[:1024],
                next_step=reason.next_step,
                retryable=retryable,
                judged=judged,
            )
        )
        self.addition = addition


def rejection(reason: Reason, message: str, judged: Judged | None = None) -> Refused:
    """A refusal that is a verdict: the attempt is over."""
    finding = Finding(Outcome.REJECTED, reason, message, judged)
    return Refused(reason, message, judged=True, addition=Addition(finding=finding))


def require_open(case: Case) -> None:
    """Rule 1 of judge.py. Raises Refused."""
    if case.judged:
        said = f"attempt {case.attempt} of {case.task} has been judged already"
        raise Refused(Reason.EVIDENCE_REPLAYED, said, judged=True)
