# SPDX-License-Identifier: Apache-2.0
"""Gather, rule, write, answer: what others write in between, and what is recorded of a refusal."""

from __future__ import annotations

import asyncio

import pytest

from flashjob.api.flashtask import Report
from flashjob.errors import FlashJobError
from flashjob.gateway.ruling import Refused
from flashjob.gateway.service import Clock, Gathered
from flashjob.wire.gateway import Outcome, Purpose
from flashjob.wire.reasons import Reason
from tests.unit.gateway.court import Court
from tests.unit.virtual.workbench import Bench, image

NEW = image("2.0")


class Busy(Court):
    """Others get their turn between the reading of a case and the write of the ruling."""

    async def gather(self, namespace: str, task: str, attempt: int) -> Gathered:
        found = await super().gather(namespace, task, attempt)
        await asyncio.sleep(0)
        return found


async def test_a_conflict_is_ruled_anew_on_what_is_true_then() -> None:
    court = Court(Bench(), NEW)
    evidence = court.bench.evidence(await court.nonce(Purpose.BEFORE))
    write = court.write

    async def paused_first(namespace: str, task: str, report: Report, version: str) -> None:
        court.held, court.conflicts = (Reason.PAUSED, "job j is paused"), 1
        await write(namespace, task, report, version)

    court.write = paused_first  # type: ignore[method-assign]
    with pytest.raises(Refused) as refused:
        await court.permit(evidence)
    assert refused.value.reason == Reason.PAUSED
    assert court.report == Report(), "no permit was recorded"


async def test_the_grant_id_survives_a_conflict() -> None:
    """One request draws once: ruling anew is no second permit."""
    court = Court(Bench(), NEW, conflicts=2)
    reply = await court.permit()
    assert [p.grant_id for p in court.report.permits] == [reply.grant_id]


async def test_endless_conflicts_end_retryable() -> None:
    court = Court(Bench(), NEW, conflicts=5)
    with pytest.raises(Refused) as refused:
        await court.permit()
    assert (refused.value.reason, refused.value.problem.retryable) == (Reason.GATEWAY_UNAVAILABLE, True)
    assert court.writes == 0
    assert (await court.permit()).grant_id, "the pod asks again, and it is fine"


async def test_a_verdict_that_could_not_be_written_is_not_given() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    proof = court.hand_over(await court.prove())
    write = court.write

    async def broken(namespace: str, task: str, report: Report, version: str) -> None:
        raise FlashJobError(Reason.GATEWAY_UNAVAILABLE, "the API server is away")

    court.write = broken  # type: ignore[method-assign]
    with pytest.raises(FlashJobError) as trouble:
        await court.confirm(proof)
    assert trouble.value.reason == Reason.GATEWAY_UNAVAILABLE
    court.write = write  # type: ignore[method-assign]
    assert court.verdict is None
    assert (await court.confirm(proof)).outcome is Outcome.PROVEN, "the same proof counts once it can be recorded"


async def test_a_rejection_is_written_before_it_is_said() -> None:
    court = Court(Bench(), NEW, policy_changes={"authorityHashes": ["ab" * 64]})
    with pytest.raises(Refused):
        await court.permit()
    assert court.verdict is not None
    assert court.verdict.outcome is Outcome.REJECTED


async def test_a_permit_given_by_two_replicas_at_once_is_one_permit() -> None:
    court = Busy(Bench(), NEW)
    evidence = court.bench.evidence(await court.nonce(Purpose.BEFORE))
    replies = await asyncio.gather(*(court.permit(evidence) for _ in range(4)))
    assert {reply.grant_id for reply in replies} == {court.report.permits[0].grant_id}
    assert len(court.report.permits) == 1
    assert len(court.report.used_nonces) == 1


async def test_one_proof_sent_twice_at_once_is_one_verdict() -> None:
    court = Busy(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    proof = court.hand_over(await court.prove())
    results = await asyncio.gather(court.confirm(proof), court.confirm(proof), return_exceptions=True)
    said = sorted(str(r.reason) for r in results if not isinstance(r, BaseException) or isinstance(r, Refused))
    assert said == ["EvidenceReplayed", "Proven"]
    assert court.verdict is not None
    assert court.verdict.outcome is Outcome.PROVEN


def test_stamps_are_utc_and_sortable() -> None:
    stamps = [Clock().stamp(now) for now in (0.0, 0.5, 1.0, 1_800_000_000.25)]
    assert stamps == sorted(stamps)
    assert stamps[-1] == "2027-01-15T08:00:00.250000Z"
