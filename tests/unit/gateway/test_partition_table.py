# SPDX-License-Identifier: Apache-2.0
"""The target runs under the partition table that its artifact names. The number in a test's name is the rule in judge.py."""

from __future__ import annotations

from flashjob.virtual.adversaries import OtherTable, WrongSlot
from flashjob.wire.gateway import Outcome, PermitDecision
from flashjob.wire.pod import Before
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Target
from tests.unit.gateway.court import Court
from tests.unit.gateway.test_judge import NEW, refusal
from tests.unit.virtual.workbench import Bench

NOBODY_SAYS = "the partition table: nothing says which it must be"
ELSEWHERE = "ab" * 32


def names(court: Court, table: str | None) -> Court:
    """The same court, whose artifact names another table or, as those of older tasks, none."""
    court.target = court.target.model_copy(update={"partition_table": table})
    return court


async def test_9_the_right_image_under_another_table_is_refused_and_given_up() -> None:
    court = Court(Bench(behaviour=OtherTable()), NEW)
    await court.write_and_reboot(await court.permit())
    assert (await refusal(court.prove())).reason == Reason.PARTITION_MISMATCH
    verdict = court.verdict
    assert verdict is not None
    assert (verdict.outcome, verdict.code, verdict.version) == (Outcome.REJECTED, "ref.partitions", "2.0")
    assert await court.revert(), "it is told to go back"


async def test_11_the_confirming_evidence_is_held_against_it_as_well() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    proof = court.hand_over(await court.prove())
    names(court, ELSEWHERE)
    assert (await refusal(court.confirm(proof))).reason == Reason.PARTITION_MISMATCH
    assert court.verdict is not None
    assert court.verdict.outcome is Outcome.REJECTED


async def test_9_where_the_artifact_names_none_any_will_do_and_that_is_said() -> None:
    court = names(Court(Bench(behaviour=OtherTable()), NEW), None)
    assert (await court.whole_update()).outcome is Outcome.PROVEN
    assert court.verdict is not None
    assert court.verdict.unproven == (NOBODY_SAYS,)


async def test_9_where_it_names_one_nothing_is_left_open() -> None:
    court = Court(Bench(), NEW)
    assert (await court.whole_update()).outcome is Outcome.PROVEN
    assert court.verdict is not None
    assert court.verdict.unproven == ()


async def test_3_before_the_write_any_table_proves_the_identity() -> None:
    """Whether the image may be written beside it is preflight's question."""
    for before, policy in ((Before.IDENTITY, {}), (Before.KNOWN, {"application": {"measurements": known()}})):
        court = names(Court(Bench(), NEW, before=before, policy_changes=policy), ELSEWHERE)
        assert (await court.permit()).decision is PermitDecision.WRITE


async def test_4_the_target_under_another_table_does_not_run_already() -> None:
    bench = Bench(first=NEW)
    assert (await Court(bench, NEW).permit()).decision is PermitDecision.ALREADY_RUNNING
    assert (await names(Court(bench, NEW), ELSEWHERE).permit()).decision is PermitDecision.WRITE


async def test_5_nor_is_it_resumed() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    assert (await court.retried().permit()).decision is PermitDecision.RESUME
    assert (await names(court, ELSEWHERE).permit()).decision is PermitDecision.WRITE


async def test_15_a_device_that_went_back_did_so_under_whatever_table() -> None:
    court = names(Court(Bench(behaviour=WrongSlot()), NEW), ELSEWHERE)
    await court.write_and_reboot(await court.permit())
    assert (await refusal(court.prove())).reason == Reason.WENT_BACK
    assert court.verdict is None


async def test_15_also_where_it_ran_the_very_same_image() -> None:
    court = names(Court(Bench(first=NEW, behaviour=WrongSlot()), NEW), ELSEWHERE)
    await court.write_and_reboot(await court.permit())
    assert (await refusal(court.prove())).reason == Reason.WENT_BACK


async def test_the_policys_word_stays_the_policys() -> None:
    court = Court(Bench(behaviour=OtherTable()), NEW)
    await court.write_and_reboot(await court.permit())
    court.policy_changes = {"partitionTables": [court.target.partition_table]}
    assert (await refusal(court.prove())).reason == Reason.POLICY_REJECTED


def test_a_task_of_an_older_build_still_reads() -> None:
    target = Court(Bench(), NEW).target.dump()
    del target["partitionTable"]
    assert Target.parse(target).partition_table is None


def known() -> list[dict[str, object]]:
    """What the bench runs at first, as a policy names it."""
    running = Bench().application.boot.measurement
    return [{"alg": running.alg, "value": running.value.hex()}]
