# SPDX-License-Identifier: Apache-2.0
"""What a ruling leaves in the task's report, by the rules of record.py."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flashjob.api.flashtask import Report
from flashjob.gateway.case import PermitRecord
from flashjob.gateway.record import added, at_stage
from flashjob.gateway.ruling import Addition, Finding
from flashjob.wire.gateway import Outcome, Stage
from flashjob.wire.reasons import Reason
from tests.unit.gateway.court import Court
from tests.unit.virtual.workbench import Bench, image

AT, LATER = "2026-01-02T03:04:05.000000Z", "2026-01-02T03:05:00.000000Z"


def permit(attempt: int) -> Addition:
    return Addition(permit=PermitRecord(attempt, f"{attempt:032x}", attempt, AT))


def finding(outcome: Outcome, message: str = "said") -> Addition:
    reason = Reason.PROVEN if outcome is Outcome.PROVEN else Reason.MEASUREMENT_MISMATCH
    return Addition(finding=Finding(outcome, reason, message))


def marks(*values: int) -> Addition:
    return Addition(used_nonces=tuple(f"{value:020x}" for value in values))


def test_1_permits_and_marks_are_kept_in_the_order_in_which_they_came() -> None:
    report = Report()
    for addition in (permit(1), marks(9), permit(2), marks(3, 5)):
        report = added(report, addition, attempt=1, at=AT)
    assert [p.attempt for p in report.permits] == [1, 2]
    assert report.used_nonces == marks(9, 3, 5).used_nonces


_ADDITIONS = st.lists(st.lists(st.integers(0, 2**32), max_size=3), max_size=60)


@given(_ADDITIONS)
def test_1_marks_never_shrink_and_the_latest_are_all_there(steps: list[list[int]]) -> None:
    report = Report()
    everything: list[str] = []
    for number, step in enumerate(steps):
        before = report
        report = added(report, marks(*step), attempt=1, at=AT)
        report = added(report, permit(number + 1), attempt=1, at=AT)
        everything += marks(*step).used_nonces
        assert len(report.used_nonces) >= len(before.used_nonces)
        assert report.permits[:-1] == before.permits
        assert list(report.used_nonces) == everything[-64:]
        Report.parse(report.dump())


def test_1_a_report_that_is_full_is_still_valid() -> None:
    report = added(Report(), marks(*range(200)), attempt=1, at=AT)
    assert report.used_nonces == marks(*range(136, 200)).used_nonces
    assert Report.parse(report.dump()) == report


def test_2_a_rejection_is_replaced_by_what_comes_later() -> None:
    report = added(Report(), finding(Outcome.REJECTED), attempt=1, at=AT)
    report = added(report, finding(Outcome.REJECTED, "again"), attempt=2, at=LATER)
    assert report.verdict is not None
    assert (report.verdict.attempt, report.verdict.message, report.verdict.at) == (2, "again", LATER)
    report = added(report, finding(Outcome.PROVEN), attempt=3, at=LATER)
    assert report.verdict is not None
    assert (report.verdict.outcome, report.verdict.reason) == (Outcome.PROVEN, "Proven")


def test_2_a_success_is_never_overwritten() -> None:
    for success in (Outcome.PROVEN, Outcome.BELOW_POLICY, Outcome.ALREADY_RUNNING):
        report = added(Report(), finding(success), attempt=1, at=AT)
        after = added(report, finding(Outcome.REJECTED), attempt=2, at=LATER)
        assert after.verdict == report.verdict


def test_a_stage_is_there_until_the_verdict() -> None:
    report = at_stage(Report(), Stage.WRITING, AT)
    report = added(report, permit(1), attempt=1, at=LATER)
    assert report.stage is not None
    assert (report.stage.name, report.stage.since) == (Stage.WRITING, AT)
    assert added(report, finding(Outcome.REJECTED), attempt=1, at=LATER).stage is None


def test_a_finding_without_evidence_claims_nothing() -> None:
    verdict = added(Report(), finding(Outcome.REJECTED, "x" * 3000), attempt=1, at=AT).verdict
    assert verdict is not None
    assert (verdict.measurement, verdict.boot_id, verdict.evidence_hash, verdict.code) == (None, None, None, "")
    assert len(verdict.message) == 1024


async def test_a_proven_verdict_carries_what_was_certified() -> None:
    court = Court(Bench(), image("2.0"))
    await court.whole_update()
    verdict = court.verdict
    assert verdict is not None
    assert verdict.measurement is not None
    assert verdict.measurement in court.target.measurements
    assert (verdict.code, verdict.attempt, verdict.secure_version) == ("", 1, 0)
    assert verdict.boot_id == court.report.permits[0].grant_id
    assert verdict.policy_hash is not None
    assert verdict.evidence_hash is not None
    assert Report.parse(court.report.dump()) == court.report, "and it is what the FlashTask's schema takes"
