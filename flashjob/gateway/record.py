# SPDX-License-Identifier: Apache-2.0
"""From a ruling's addition to FlashTask.status.report. Pure.

Rules:

1. Permits and used nonces only grow. They are kept in the order in which they came; the oldest marks of nonces go first
   when the list is full: by then they have long expired.
2. A verdict replaces an older one only if that one was a rejection: a success is never overwritten.
"""

from typing import Final

from attestation.policy import Measurement as Measured
from flashjob.api.flashtask import FromTo, Permit, Ran, Report, StageReport, Verdict
from flashjob.wire.gateway import Outcome, Stage
from flashjob.wire.target import Measurement

from .case import Installation, PermitRecord, as_measurement
from .ruling import Addition, Finding

_MOST_MARKS: Final = 64


def added(report: Report, addition: Addition, *, attempt: int, at: str) -> Report:
    """The report with the addition in it.

    Args:
        report: as read.
        addition: what the judge says.
        attempt: the attempt that was judged.
        at: now, RFC 3339.
    """
    permits = report.permits
    if addition.permit is not None:
        new = addition.permit
        ran = (
            Ran(measurement=_measurement(new.before.measurement), boot_id=new.before.boot_id.hex())
            if new.before
            else None
        )
        permits = (*permits, Permit(attempt=new.attempt, grant_id=new.grant_id, fence=new.fence, at=new.at, before=ran))
    verdict = report.verdict
    if addition.finding is not None and (verdict is None or verdict.outcome is Outcome.REJECTED):
        verdict = as_verdict(addition.finding, attempt=attempt, at=at)
    return report.model_copy(
        update={
            "permits": permits,
            "used_nonces": (*report.used_nonces, *addition.used_nonces)[-_MOST_MARKS:],
            "before": _ran(addition.before) or report.before,
            "verdict": verdict,
            "stage": None if addition.finding is not None else report.stage,
        }
    )


def permits_of(report: Report) -> tuple[PermitRecord, ...]:
    """The permits as the judge reads them."""
    return tuple(
        PermitRecord(
            p.attempt,
            p.grant_id,
            p.fence,
            p.at,
            Installation(as_measurement(p.before.measurement), bytes.fromhex(p.before.boot_id)) if p.before else None,
        )
        for p in report.permits
    )


def refused_of(report: Report, attempt: int) -> Installation | None:
    """What the device proved to run when this attempt was rejected; None where it was not, or proved nothing."""
    verdict = report.verdict
    if verdict is None or verdict.outcome is not Outcome.REJECTED or verdict.attempt != attempt:
        return None
    if verdict.measurement is None or verdict.boot_id is None:
        return None
    return Installation(as_measurement(verdict.measurement), bytes.fromhex(verdict.boot_id))


def _ran(before: tuple[str, str] | None) -> FromTo | None:
    return FromTo(application=before[0][:32], version=before[1][:32]) if before else None


def at_stage(report: Report, stage: Stage, at: str) -> Report:
    """The report with the stage of a long attempt in it."""
    return report.model_copy(update={"stage": StageReport(name=stage, since=at)})


def as_verdict(finding: Finding, *, attempt: int, at: str) -> Verdict:
    """The verdict as the task carries it: certified claims where the evidence was authentic."""
    judged = finding.verdict
    claims = judged.claims if judged else None
    return Verdict(
        attempt=attempt,
        outcome=finding.outcome,
        reason=str(finding.reason),
        code=str(judged.code) if judged and judged.code else "",
        message=finding.message[:1024],
        measurement=_measurement(claims.measurement) if claims else None,
        application=claims.application[:32] if claims else "",
        version=claims.version[:32] if claims else "",
        secure_version=claims.secure_version if claims else None,
        boot_id=claims.boot_id.hex() if claims else None,
        root_of_trust=str(judged.tier) if judged and judged.tier else "",
        unproven=tuple(item[:256] for item in finding.unproven[:16]),
        policy_hash=judged.policy_hash.hex() if judged and judged.policy_hash else None,
        evidence_hash=judged.evidence_sha256.hex() if judged else None,
        boot_count=claims.boot_count if claims else None,
        at=at,
    )


def _measurement(found: Measured) -> Measurement:
    return Measurement(scheme="esp-image", alg=found.alg, value=found.value.hex())
