# SPDX-License-Identifier: Apache-2.0
"""The judge's rules, told as updates of a virtual device. The number in a test's name is the rule in judge.py."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from attestation.anchors import Floors
from attestation.clones import Sighting
from attestation.policy import RootOfTrust
from flashjob.api.flashtask import Ran
from flashjob.gateway.ruling import Refused
from flashjob.virtual.adversaries import (
    OtherDevicesEvidence,
    ReplaysEvidence,
    RollsBackBeforeConfirm,
    RunsOldImage,
    StaleBootId,
    WrongSlot,
)
from flashjob.virtual.profile import make_identity
from flashjob.wire.gateway import Outcome, PermitDecision, Purpose
from flashjob.wire.pod import Before, Data, Safety, TransportKind
from flashjob.wire.reasons import Reason
from tests.unit.gateway.court import Court, both, target_of
from tests.unit.virtual.workbench import Bench, image

NEW = image("2.0")


async def refusal(awaitable: object) -> Refused:
    with pytest.raises(Refused) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value


async def test_the_good_way_ends_proven_with_three_writes() -> None:
    court = Court(Bench(), NEW)
    reply = await court.whole_update()
    assert (reply.outcome, reply.reason) == (Outcome.PROVEN, "Proven")
    verdict = court.verdict
    assert verdict is not None
    assert (verdict.application, verdict.version, verdict.root_of_trust) == ("porch", "2.0", "SignedBoot")
    assert verdict.boot_id == court.report.permits[0].grant_id
    assert court.writes == 2, "the permit and the verdict; the first evidence is not worth a write"
    assert len(court.report.used_nonces) == 3
    before = court.report.before
    assert before is not None
    assert (before.application, before.version) == ("porch", "1.0"), "what it proved before the first byte"


async def test_1_a_judged_attempt_is_not_judged_again() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    proof = court.hand_over(await court.prove())
    await court.confirm(proof)
    again = await refusal(court.confirm(proof))
    assert again.reason == Reason.EVIDENCE_REPLAYED
    assert court.verdict is not None
    assert court.verdict.outcome is Outcome.PROVEN, "a replay takes nothing away from a success"


@pytest.mark.parametrize("reason", [Reason.PAUSED, Reason.JOB_DELETED, Reason.SUSPENDED])
async def test_2_a_held_task_gets_no_permit(reason: Reason) -> None:
    court = Court(Bench(), NEW, held=(reason, "because"))
    refused = await refusal(court.permit())
    assert refused.reason == reason
    assert not refused.problem.retryable, "fresh evidence does not help"
    assert court.writes == 0


async def test_3_without_identity_no_permit() -> None:
    court = Court(Bench(), NEW)
    refused = await refusal(court.permit(unseen=True))
    assert refused.reason == Reason.BEFORE_ATTESTATION_FAILED
    assert court.report.permits == ()


async def test_3_failing_identity_is_a_verdict_and_no_permit() -> None:
    court = Court(Bench(), NEW, policy_changes={"authorityHashes": ["ab" * 64]})
    refused = await refusal(court.permit())
    assert refused.reason == Reason.BEFORE_ATTESTATION_FAILED
    assert "ref.authority" in refused.message
    assert court.verdict is not None
    assert (court.verdict.outcome, court.report.permits) == (Outcome.REJECTED, ())


async def test_3_another_device_is_the_wrong_device() -> None:
    other = Bench(identity=make_identity("other", "esp32s3", secret=b"test"))
    court = Court(Bench(), NEW)
    refused = await refusal(court.permit(other.evidence(await court.nonce(Purpose.BEFORE))))
    assert refused.reason == Reason.WRONG_DEVICE


async def test_3_known_wants_an_acceptable_application() -> None:
    court = Court(Bench(), NEW, before=Before.KNOWN)
    refused = await refusal(court.permit())
    assert refused.reason == Reason.BEFORE_ATTESTATION_FAILED
    assert "ref.code" in refused.message


async def test_3_serial_without_evidence_only_where_the_job_says_so() -> None:
    court = Court(Bench(), NEW, transport=TransportKind.SERIAL, before=Before.NONE, transitions=7)
    reply = await court.permit(unseen=True)
    assert (reply.decision, reply.fence) == (PermitDecision.WRITE, 7)


async def test_3_evidence_for_one_attempt_opens_no_other() -> None:
    court = Court(Bench(), NEW)
    old = court.bench.evidence(await court.nonce(Purpose.BEFORE))
    refused = await refusal(court.retried().permit(old))
    assert refused.reason == Reason.BEFORE_ATTESTATION_FAILED
    assert "nonce.mac" in refused.message


async def test_3_a_replay_is_no_matter_of_time_whatever_key_its_nonce_seems_to_name() -> None:
    """A discovery nonce is random: one in 256 looks like one of ours under a key that we do not have."""
    court = Court(Bench(), NEW)
    refused = await refusal(court.permit(court.bench.evidence(bytes([1, 77]) + bytes(30))))
    assert refused.reason == Reason.BEFORE_ATTESTATION_FAILED
    assert "nonce.key" in refused.message
    assert (refused.problem.retryable, refused.problem.judged) == (False, True)


async def test_3_a_boot_that_contradicts_one_seen_before_proves_no_identity() -> None:
    court = Court(Bench(), NEW)
    now, boot = int(court.bench.now), court.bench.application.boot
    seed = hashlib.sha256(boot.bootseed).digest()
    for sighting, said in (
        (Sighting(boot.boot_count + 1, b"s" * 32, now - 60), "clone.bootcount"),
        (Sighting(boot.boot_count, b"s" * 32, now - 60), "clone.seed"),
    ):
        court.boots = (sighting,)
        refused = await refusal(court.permit())
        assert refused.reason == Reason.BEFORE_ATTESTATION_FAILED
        assert "two devices seem to share this identity: " in refused.message
        assert said in refused.message
        assert not court.report.permits
        court.attempt += 1
    court.boots = (Sighting(boot.boot_count, seed, now - 60),)
    assert (await court.permit()).decision is PermitDecision.WRITE, "the very boot that was seen"


async def test_3_evidence_of_a_boot_before_the_newest_that_was_seen_is_asked_for_anew() -> None:
    """It has booted since it was asked, or there are two of them: a later question tells."""
    court = Court(Bench(), NEW)
    now, boot = int(court.bench.now), court.bench.application.boot
    court.boots = (Sighting(boot.boot_count + 1, b"s" * 32, now + 5),)
    refused = await refusal(court.permit())
    assert (refused.reason, refused.problem.retryable, refused.problem.judged) == (Reason.ATTEST_TIMEOUT, True, False)
    assert f"boot {boot.boot_count}, and boot {boot.boot_count + 1} was seen since" in refused.message
    assert not court.report.permits
    court.bench.now += 5
    refused = await refusal(court.permit())
    assert (refused.reason, refused.problem.judged) == (Reason.BEFORE_ATTESTATION_FAILED, True)
    assert "clone.bootcount" in refused.message


async def test_4_a_device_that_runs_the_target_is_not_written() -> None:
    bench = Bench()
    await Court(bench, NEW).whole_update()
    court = Court(bench, NEW)
    reply = await court.permit()
    assert reply.decision is PermitDecision.ALREADY_RUNNING
    assert court.verdict is not None
    assert (court.verdict.outcome, court.report.permits) == (Outcome.ALREADY_RUNNING, ())


async def test_5_an_installation_of_an_earlier_attempt_is_resumed() -> None:
    court = Court(Bench(), NEW)
    first = await court.permit()
    await court.write_and_reboot(first)
    reply = await court.retried().permit()
    assert (reply.decision, reply.grant_id) == (PermitDecision.RESUME, first.grant_id)
    verdict = await court.confirm(court.hand_over(await court.prove()))
    assert verdict.outcome is Outcome.PROVEN
    assert len(court.report.permits) == 1, "a resumed attempt has no permit of its own"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"name": "cellar"}, "application"),
        ({"version": "2.1"}, "version"),
        ({"chip_id": 5}, "chip id"),
        ({"secure_version": 1}, "secure_version"),
        ({"sequence": 9}, "sequence"),
        ({"image_size": 17}, "image size"),
        ({"measurements": [[-16, b"m" * 32]]}, "measurement"),
    ],
)
async def test_6_the_release_statement_speaks_of_this_artifact(change: dict[str, Any], what: str) -> None:
    court = Court(Bench(), NEW)
    court.release = court.bench.release(NEW, **({"measurements": both(NEW)} | change))
    court.target = target_of(NEW, court.release)
    refused = await refusal(court.permit())
    assert refused.reason == Reason.RELEASE_INVALID
    assert what in refused.message
    assert court.report.permits == ()


async def test_6_another_statement_than_the_pinned_one_is_refused() -> None:
    court = Court(Bench(), NEW)
    court.release = court.bench.release(NEW, sequence=2)
    assert (await refusal(court.permit())).reason == Reason.RELEASE_INVALID


async def test_7_no_downgrade_without_leave() -> None:
    court = Court(Bench(), NEW, floors=Floors(sequence=5))
    assert (await refusal(court.permit())).reason == Reason.DOWNGRADE
    allowed = Court(Bench(), NEW, floors=Floors(sequence=5), safety=Safety(allow_downgrade=True))
    assert (await allowed.permit()).decision is PermitDecision.WRITE


async def test_7_security_version_below_the_floor_or_the_fuse() -> None:
    assert (await refusal(Court(Bench(), NEW, floors=Floors(security_version=1)).permit())).reason == (
        Reason.SECURITY_VERSION_ROLLBACK
    )
    burnt = Bench(identity=make_identity("burnt", "esp32s3", secure_version=3))
    assert (await refusal(Court(burnt, NEW).permit())).reason == Reason.SECURITY_VERSION_ROLLBACK


async def test_7_burning_the_fuse_needs_leave() -> None:
    newer = image("3.0", secure_version=2)
    assert (await refusal(Court(Bench(), newer).permit())).reason == Reason.SECURITY_VERSION_BURN
    court = Court(Bench(), newer, safety=Safety(allow_security_version_burn=True))
    assert (await court.permit()).decision is PermitDecision.WRITE


async def test_8_a_permit_asked_again_has_the_same_grant_id_and_fence() -> None:
    court = Court(Bench(), NEW)
    first, second = await court.permit(), await court.permit()
    assert (first.grant_id, first.fence) == (second.grant_id, second.fence)
    assert first.install_grant != second.install_grant, "signed anew over a new device nonce"
    assert len(court.report.permits) == 1
    third = await court.permit(unseen=True)
    assert third.grant_id == first.grant_id


async def test_8_the_fence_exceeds_what_the_device_has_stored() -> None:
    bench = Bench()
    bench.nvs.fence = 41
    assert (await Court(bench, NEW, transitions=3).permit()).fence == 42
    assert (await Court(Bench(), NEW, transitions=50).permit()).fence == 50


async def test_9_the_old_image_after_the_write_is_a_mismatch() -> None:
    court = Court(Bench(behaviour=RunsOldImage()), NEW)
    await court.write_and_reboot(await court.permit())
    refused = await refusal(court.prove())
    assert refused.reason == Reason.MEASUREMENT_MISMATCH
    assert court.verdict is not None
    assert (court.verdict.outcome, court.verdict.version) == (Outcome.REJECTED, "1.0")


async def test_15_a_device_that_went_back_by_itself_is_no_liar() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    court.bench.reset()  # PENDING, unconfirmed: the bootloader goes back
    refused = await refusal(court.prove())
    assert refused.reason == Reason.WENT_BACK
    assert "it runs porch 1.0 again" in refused.message
    assert court.verdict is None, "the attempt failed, and nobody is convicted"
    assert (await court.retried().whole_update()).outcome is Outcome.PROVEN
    first, second = court.report.permits
    assert first.before is not None
    assert first.before == second.before


async def test_15_who_always_goes_back_is_never_proven() -> None:
    court = Court(Bench(behaviour=WrongSlot()), NEW)
    for _ in range(3):
        await court.write_and_reboot(await court.permit())
        assert (await refusal(court.prove())).reason == Reason.WENT_BACK
        court.bench.reset()
        court.retried()
    assert court.verdict is None


async def test_15_without_proof_from_before_another_image_is_a_mismatch() -> None:
    court = Court(Bench(behaviour=WrongSlot()), NEW, transport=TransportKind.SERIAL, before=Before.NONE)
    court.transport, permit = TransportKind.NETWORK, await court.permit(unseen=True)
    assert court.report.permits[0].before is None
    assert permit.install_grant is None
    assert (await refusal(court.prove())).reason == Reason.MEASUREMENT_MISMATCH


async def test_15_an_earlier_attempts_proof_still_stands_where_the_next_had_none() -> None:
    court = Court(Bench(behaviour=WrongSlot()), NEW)
    await court.write_and_reboot(await court.permit())
    court.retried().transport = TransportKind.SERIAL
    await court.permit(unseen=True)
    assert (await refusal(court.prove())).reason == Reason.WENT_BACK


async def test_15_another_old_image_or_boot_than_the_one_before_is_a_verdict() -> None:
    for change in ({"boot_id": "77" * 16}, {"measurement": {"scheme": "esp-image", "alg": -44, "value": "77" * 64}}):
        court = Court(Bench(behaviour=WrongSlot()), NEW)
        await court.write_and_reboot(await court.permit())
        (permit,) = court.report.permits
        assert permit.before is not None
        before = Ran.model_validate(permit.before.model_dump() | change)
        court.report = court.report.model_copy(update={"permits": (permit.model_copy(update={"before": before}),)})
        assert (await refusal(court.prove())).reason == Reason.MEASUREMENT_MISMATCH
        assert court.verdict is not None


async def test_15_evidence_that_does_not_hold_says_nothing_of_going_back() -> None:
    court = Court(Bench(behaviour=WrongSlot()), NEW)
    await court.write_and_reboot(await court.permit())
    court.policy_changes = {"authorityHashes": ["ab" * 64]}
    assert (await refusal(court.prove())).reason == Reason.POLICY_REJECTED


async def test_9_a_stale_boot_id_is_told_apart() -> None:
    court = Court(Bench(behaviour=StaleBootId()), NEW)
    await court.write_and_reboot(await court.permit())
    assert (await refusal(court.prove())).reason == Reason.BOOT_ID_MISMATCH


async def test_9_another_devices_evidence_is_told_apart() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    other = Bench(identity=make_identity("other", "esp32s3", secret=b"test"), first=NEW)
    court.bench.behaviour = OtherDevicesEvidence(other.evidence)
    court.bench.application._behaviour = court.bench.behaviour
    assert (await refusal(court.prove())).reason == Reason.EVIDENCE_OF_ANOTHER_DEVICE


async def test_9_evidence_from_before_the_write_is_a_replay() -> None:
    court = Court(Bench(), NEW)
    old = court.bench.evidence(await court.nonce(Purpose.BEFORE))
    await court.write_and_reboot(await court.permit(old))
    assert (await refusal(court.prove(old))).reason == Reason.EVIDENCE_REPLAYED


async def test_9_a_device_that_replays_is_never_proven() -> None:
    court = Court(Bench(behaviour=ReplaysEvidence()), NEW)
    permit = await court.permit()
    await court.write_and_reboot(permit)
    assert (await refusal(court.prove())).reason in (Reason.EVIDENCE_REPLAYED, Reason.EVIDENCE_INVALID)


async def test_10_the_same_evidence_earns_the_same_second_nonce() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    evidence = court.bench.evidence(await court.nonce(Purpose.AFTER))
    assert (await court.prove(evidence)).second_nonce == (await court.prove(evidence)).second_nonce


async def test_11_a_pending_slot_is_no_success() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    reply = await court.prove()
    refused = await refusal(court.confirm(court.bench.evidence(reply.second_nonce)))
    assert refused.reason == Reason.CONFIRM_TIMEOUT
    assert court.verdict is None, "time alone explains it: no verdict (rule 13)"


async def test_11_the_first_evidence_does_not_confirm() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    evidence = court.bench.evidence(await court.nonce(Purpose.AFTER))
    await court.prove(evidence)
    assert (await refusal(court.confirm(evidence))).reason == Reason.EVIDENCE_REPLAYED
    assert court.verdict is not None
    assert court.verdict.outcome is Outcome.REJECTED


async def test_11_a_lost_answer_to_the_confirm_is_made_good_by_the_next_attempt() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    court.hand_over(await court.prove())  # the device is VALID, and nobody heard it
    assert (await court.retried().permit()).decision is PermitDecision.RESUME
    reply = await court.prove()
    assert reply.confirm_grant is None
    assert (await court.confirm(court.bench.evidence(reply.second_nonce))).outcome is Outcome.PROVEN


async def test_12_a_weak_root_of_trust_is_below_policy_even_when_all_else_holds() -> None:
    weak = make_identity("weak", "esp32", tier="SelfReported", secret=b"test")
    bench = Bench(identity=weak, first=image(chip="esp32"))
    court = Court(bench, image("2.0", chip="esp32"), tier=RootOfTrust.SELF_REPORTED)
    reply = await court.whole_update()
    assert (reply.outcome, reply.reason) == (Outcome.BELOW_POLICY, "RootOfTrustTooLow")
    assert court.verdict is not None
    assert court.verdict.unproven != ()
    named = Court(
        Bench(identity=weak, first=image(chip="esp32")),
        image("2.0", chip="esp32"),
        tier=RootOfTrust.SELF_REPORTED,
        policy_changes={"minRootOfTrust": RootOfTrust.SELF_REPORTED},
    )
    assert (await named.whole_update()).outcome is Outcome.PROVEN


async def test_12_running_already_at_a_weak_root_is_below_policy_too() -> None:
    weak = make_identity("weak", "esp32", tier="SelfReported", secret=b"test")
    bench, new = Bench(identity=weak, first=image(chip="esp32")), image("2.0", chip="esp32")
    await Court(bench, new, tier=RootOfTrust.SELF_REPORTED).whole_update()
    court = Court(bench, new, tier=RootOfTrust.SELF_REPORTED)
    await court.permit()
    assert court.verdict is not None
    assert court.verdict.outcome is Outcome.BELOW_POLICY


async def test_12_a_wipe_stays_unproven_and_where_nothing_is_written_that_is_said() -> None:
    bench = Bench()
    written = Court(bench, NEW, safety=Safety(data=Data.WIPE))
    assert (await written.whole_update()).outcome is Outcome.PROVEN
    skipped = Court(bench, NEW, safety=Safety(data=Data.WIPE))
    assert (await skipped.permit()).decision is PermitDecision.ALREADY_RUNNING
    assert written.verdict is not None
    assert skipped.verdict is not None
    assert written.verdict.unproven == ("that its data was wiped",)
    assert skipped.verdict.unproven == ("a wipe of its data: nothing was written",)


async def test_13_a_reset_before_the_confirm_leaves_no_verdict() -> None:
    court = Court(Bench(behaviour=RollsBackBeforeConfirm()), NEW)
    await court.write_and_reboot(await court.permit())
    reply = await court.prove()
    court.bench.reset()  # PENDING, unconfirmed: the bootloader goes back
    refused = await refusal(court.confirm(court.bench.evidence(reply.second_nonce)))
    assert refused.reason == Reason.RESET_BEFORE_CONFIRM
    assert court.verdict is None


async def test_13_an_expired_nonce_is_retryable() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    evidence = court.bench.evidence(await court.nonce(Purpose.AFTER))
    court.bench.now += 121
    refused = await refusal(court.prove(evidence))
    assert (refused.reason, refused.problem.retryable, court.verdict) == (Reason.ATTEST_TIMEOUT, True, None)


async def test_16_a_refused_installation_may_be_reverted() -> None:
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    court.policy_changes = {"authorityHashes": ["ab" * 64]}
    assert (await refusal(court.prove())).problem.judged
    writes = court.writes
    reply = court.bench.send_bytes(await court.revert())
    assert (reply.status, reply.reboot, court.writes) == (200, True, writes), "nothing more is recorded"
    assert court.bench.reset().boot.version == "1.0"


async def test_16_a_liar_may_be_reverted_for_the_installation_that_it_claims() -> None:
    court = Court(Bench(behaviour=RunsOldImage()), NEW)
    await court.write_and_reboot(await court.permit())
    assert (await refusal(court.prove())).reason == Reason.MEASUREMENT_MISMATCH
    assert court.bench.send_bytes(await court.revert()).status == 200


async def test_16_nothing_is_reverted_without_a_verdict_that_refuses_it() -> None:
    court = Court(Bench(), NEW)
    assert (await refusal(court.revert())).reason == Reason.NOTHING_TO_REVERT
    await court.write_and_reboot(await court.permit())
    assert (await refusal(court.revert())).reason == Reason.NOTHING_TO_REVERT, "it is being proven"
    await court.confirm(court.hand_over(await court.prove()))
    assert (await refusal(court.revert())).reason == Reason.NOTHING_TO_REVERT, "a success stands"


async def test_16_only_the_refused_attempt_itself_may_revert() -> None:
    court = Court(Bench(behaviour=RunsOldImage()), NEW)
    await court.write_and_reboot(await court.permit())
    await refusal(court.prove())
    assert (await refusal(court.retried().revert())).reason == Reason.NOTHING_TO_REVERT


async def test_16_an_installation_of_somebody_else_is_not_reverted() -> None:
    court = Court(Bench(behaviour=StaleBootId()), NEW)
    await court.write_and_reboot(await court.permit())
    assert (await refusal(court.prove())).reason == Reason.BOOT_ID_MISMATCH
    assert (await refusal(court.revert())).reason == Reason.NOTHING_TO_REVERT


async def test_16_nothing_goes_back_to_what_nobody_knows() -> None:
    court = Court(Bench(behaviour=RunsOldImage()), NEW)
    await court.write_and_reboot(await court.permit())
    (permit,) = court.report.permits
    court.report = court.report.model_copy(update={"permits": (permit.model_copy(update={"before": None}),)})
    await refusal(court.prove())
    refused = await refusal(court.revert())
    assert refused.reason == Reason.NOTHING_TO_REVERT
    assert "proved nothing before" in refused.message


async def test_two_replicas_one_nonce_one_verdict() -> None:
    """Both rule on the same evidence; the write of the second meets a conflict and is ruled anew."""
    court = Court(Bench(), NEW)
    await court.write_and_reboot(await court.permit())
    proof = court.hand_over(await court.prove())
    court.conflicts = 1
    await court.confirm(proof)
    assert court.writes == 2
    assert (await refusal(court.confirm(proof))).reason == Reason.EVIDENCE_REPLAYED


async def test_each_boots_chain_is_verified_once() -> None:
    """Before the write, after the reboot and at the confirmation: two boots, so two chains, whoever asks how often."""
    court = Court(Bench(), NEW)
    assert (await court.whole_update()).outcome is Outcome.PROVEN
    chains = court.service.keys.chains
    assert (len(chains), chains.misses) == (2, 2)
    assert chains.hits >= 2
