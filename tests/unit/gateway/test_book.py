# SPDX-License-Identifier: Apache-2.0
"""The case book on a cluster in memory: assignments by the rules of book.py, what holds a permit, and the one write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from attestation.grants import Verb
from flashjob.cluster.kubeapi import ApiError
from flashjob.cluster.resources import ATTESTATION_POLICIES, DEVICES, FLASHJOBS, FLASHTASKS, LEASES, PODS
from flashjob.errors import FlashJobError
from flashjob.gateway.ruling import Refused
from flashjob.gateway.service import Service
from flashjob.virtual.adversaries import Behaviour, RunsOldImage
from flashjob.wire.gateway import ConfirmRequest, EvidenceRequest, Outcome, Progress, Purpose, Stage
from flashjob.wire.reasons import Reason
from tests import objects
from tests.clusters import until
from tests.unit.gateway.office import JOB, OPS, POD, SPACE, TASK, Office, open_office, running
from tests.unit.gateway.test_tokens import JWKS


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    async with open_office() as office:
        yield office


def turned_away(office: Office, *, reason: Reason = Reason.NOT_ASSIGNED, **who: Any) -> str:
    """The assigned pod, or `who` instead of it, is refused, for its address as well; why."""
    with pytest.raises(FlashJobError) as caught:
        address(office, **who)
    assert caught.value.reason == reason
    with pytest.raises(FlashJobError) as caught:
        office.book.assigned(office.caller(**who), TASK, 1)
    assert caught.value.reason == reason
    return caught.value.message


def address(office: Office, **who: Any) -> str | None:
    return office.book.address(office.caller(**who), TASK)


# --- who


async def test_the_assigned_pod_is_served(office: Office) -> None:
    assert office.book.caller(office.token()) == office.caller()
    assert office.book.assigned(office.caller(), TASK, 1) == JOB


async def test_1_a_pod_of_the_same_name_is_another_pod(office: Office) -> None:
    assert "this UID" in turned_away(office, uid="an-earlier-uid")
    assert "not running" in turned_away(office, pod="flash-2")
    assert "not running" in turned_away(office, namespace="elsewhere")


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_1_a_pod_that_has_ended_is_served_no_more(office: Office, phase: str) -> None:
    await office.phase(POD, phase)
    await office.seen()
    turned_away(office)


async def test_1_a_pod_that_is_being_deleted_or_gone(office: Office) -> None:
    await office.cluster.delete(PODS, SPACE, POD)
    await office.seen()
    turned_away(office)
    await office.cluster.delete(PODS, SPACE, POD, grace_seconds=0)
    await office.seen()
    turned_away(office)


async def test_2_the_annotation_names_task_and_attempt(office: Office) -> None:
    for refs in ([("other", 1)], [(TASK, 2)], [("other", 1), (TASK, 3)]):
        name = f"flash-{refs[0][0]}-{refs[-1][1]}"
        await office.start_pod(name, *refs)
        await office.seen()
        with pytest.raises(FlashJobError, match="not assigned attempt 1"):
            office.book.assigned(office.caller(name), TASK, 1)
        with pytest.raises(FlashJobError):
            address(office, pod=name)


@pytest.mark.parametrize("annotation", ["", "{}", "nonsense", '[{"task": "job-1-abc"}]', '["job-1-abc"]', "null"])
async def test_2_an_annotation_that_is_not_ours_assigns_nothing(office: Office, annotation: str) -> None:
    await office.start_pod("strange", annotation=annotation)
    await office.start_pod("after")
    await office.seen()
    assert office.book.assigned(office.caller("after"), TASK, 1) == JOB, "and hurts nobody else"
    office.pod_uid = office.cluster.all(PODS, SPACE)[-1]["metadata"]["uid"]
    with pytest.raises(FlashJobError):
        office.book.assigned(office.caller("strange"), TASK, 1)


@pytest.mark.parametrize(
    "holder", [(SPACE, TASK, 2), (SPACE, "other", 1), ("elsewhere", TASK, 1)], ids=["attempt", "task", "namespace"]
)
async def test_3_the_lease_is_held_by_exactly_this_attempt(office: Office, holder: tuple[str, str, int]) -> None:
    await office.take(*holder)
    await office.seen()
    assert f"held by {'/'.join(map(str, holder))}" in turned_away(office)


async def test_a_task_that_is_gone_is_nobodys(office: Office) -> None:
    await office.cluster.delete(FLASHTASKS, SPACE, TASK)
    await office.seen()
    assert "no task" in turned_away(office)
    with pytest.raises(FlashJobError) as caught:
        await office.nonce(Purpose.BEFORE)
    assert caught.value.reason == Reason.NOT_ASSIGNED


async def test_before_the_caches_are_filled_nobody_is_turned_away_for_good() -> None:
    office = Office()
    await office.furnish()
    assert not office.book.ready
    turned_away(office, reason=Reason.GATEWAY_UNAVAILABLE)
    with pytest.raises(FlashJobError) as caught:
        office.book.caller(office.token())
    assert caught.value.reason == Reason.GATEWAY_UNAVAILABLE


async def test_the_key_set_is_asked_for_until_it_can_be_used() -> None:
    office = Office()
    office.cluster.raw["/openid/v1/jwks"] = {"keys": []}
    office.cluster.fail(ApiError(503, "ServiceUnavailable", "starting"), verb="raw")
    caches = asyncio.create_task(office.book.run())
    try:
        await until(lambda: sum(call.verb == "raw" for call in office.cluster.calls) == 2)
        assert not office.book.ready
        office.cluster.raw["/openid/v1/jwks"] = JWKS
        await until(lambda: office.book.ready)
    finally:
        caches.cancel()


async def test_address_is_the_fixed_one_or_where_the_handler_saw_the_device(office: Office) -> None:
    assert address(office) is None
    endpoint = {"endpoint": "192.0.2.7:8080"}
    await office.cluster.patch_status(DEVICES, SPACE, "porch-1", endpoint, field_manager="handler")
    await office.seen()
    assert address(office) == "192.0.2.7:8080"
    fixed = {"spec": {"connection": {"network": {"address": "192.0.2.9:80"}}}}
    await office.cluster.patch(DEVICES, SPACE, "porch-1", fixed, field_manager="people")
    await office.seen()
    assert address(office) == "192.0.2.9:80"


# --- what


async def no_permit(office: Office) -> FlashJobError:
    """The permit is refused without a permit on record; how."""
    await office.seen()
    with pytest.raises(FlashJobError) as caught:
        await office.permit()
    assert not office.report.get("permits")
    return caught.value


async def test_a_device_id_that_two_devices_claim_is_written_by_nobody(office: Office) -> None:
    twin = objects.device("porch-2", SPACE, office.device_id)
    await office.create(DEVICES, twin)
    error = await no_permit(office)
    assert error.reason == Reason.IDENTITY_CONFLICT
    assert "factory/porch-1, factory/porch-2" in error.message
    await office.cluster.delete(DEVICES, SPACE, "porch-2")
    await office.seen()
    assert (await office.permit()).grant_id, "people sorted it out"


async def test_a_device_of_another_namespace_is_not_enrolled_here(office: Office) -> None:
    device = office.cluster.all(DEVICES, SPACE)[0]
    await office.cluster.delete(DEVICES, SPACE, "porch-1")
    device["metadata"] = {"name": "porch-1", "namespace": "elsewhere"}
    await office.create(DEVICES, device)
    error = await no_permit(office)
    assert (error.reason, error.next_step) == (Reason.DEVICE_NOT_ENROLLED, "flashjob device enroll")


async def test_no_policy_no_permit(office: Office) -> None:
    await office.cluster.delete(ATTESTATION_POLICIES, SPACE, "field")
    error = await no_permit(office)
    assert error.reason == Reason.POLICY_MISSING
    assert "factory/field" in error.message


async def test_an_anchor_that_is_not_the_ids_is_no_anchor(office: Office) -> None:
    device = office.cluster.all(DEVICES, SPACE)[0]
    await office.cluster.delete(DEVICES, SPACE, "porch-1")
    device["spec"]["trustAnchor"] = objects.device("x")["spec"]["trustAnchor"]
    await office.create(DEVICES, device)
    error = await no_permit(office)
    assert error.reason == Reason.EVIDENCE_INVALID
    assert "factory/porch-1" in error.message


async def pause(office: Office) -> None:
    await office.cluster.patch(FLASHJOBS, SPACE, JOB, {"spec": {"paused": True}}, field_manager="people")


async def delete_job(office: Office) -> None:
    await office.cluster.delete(FLASHJOBS, SPACE, JOB)


async def begin_to_delete_job(office: Office) -> None:
    finalizer = {"metadata": {"finalizers": ["flashjob.dev/finalizer"]}}
    await office.cluster.patch(FLASHJOBS, SPACE, JOB, finalizer, field_manager="operator")
    await office.cluster.delete(FLASHJOBS, SPACE, JOB)


async def replace_job(office: Office) -> None:
    """Deleted, and another one of the same name applied: the old one's tasks are not the new one's."""
    await office.cluster.delete(FLASHJOBS, SPACE, JOB)
    await office.create(FLASHJOBS, objects.flashjob(JOB, SPACE))


async def suspend(office: Office) -> None:
    await office.cluster.patch(DEVICES, SPACE, "porch-1", {"spec": {"suspended": True}}, field_manager="people")


async def quarantine(office: Office) -> None:
    why = {"quarantine": {"reason": "MeasurementMismatch", "since": "1970-01-01T00:10:00Z"}}
    await office.cluster.patch_status(DEVICES, SPACE, "porch-1", why, field_manager="operator")


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (pause, Reason.PAUSED),
        (delete_job, Reason.JOB_DELETED),
        (begin_to_delete_job, Reason.JOB_DELETED),
        (replace_job, Reason.JOB_DELETED),
        (suspend, Reason.SUSPENDED),
        (quarantine, Reason.QUARANTINED),
    ],
)
async def test_what_holds_a_permit(office: Office, happens: Any, reason: Reason) -> None:
    request = await office.permit_request()
    await happens(office)
    await office.seen()
    with pytest.raises(Refused) as caught:
        await office.service.permit(SPACE, TASK, request)
    assert caught.value.reason == reason
    assert office.report == {}, "nothing was recorded"


async def test_a_release_from_quarantine_counts(office: Office) -> None:
    await quarantine(office)
    assert (await no_permit(office)).reason == Reason.QUARANTINED

    async def release(at: str) -> None:
        spec = {"spec": {"releaseFromQuarantine": {"by": "ada", "reason": "looked at", "at": at}}}
        await office.cluster.patch(DEVICES, SPACE, "porch-1", spec, field_manager="people")
        await office.seen()

    await release("2099-01-01T00:00:00Z")
    early = await no_permit(office)
    assert early.reason == Reason.QUARANTINED
    assert "releaseFromQuarantine.at is 2099-01-01T00:00:00Z, which is yet to come" in str(early)
    await release("1970-01-01T00:15:00Z")
    assert (await office.permit()).grant_id


async def test_paused_after_the_permit_the_update_still_ends(office: Office) -> None:
    await office.install()
    await pause(office)
    await office.seen()
    assert (await office.confirm(await office.proof())).outcome is Outcome.PROVEN, "a pause stops starts, not ends"


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Failed"},
        {"phase": "Unknown"},
        {"lastAttempt": {"attempt": 1, "reason": "PodLost", "endedAt": "2026-01-02T03:04:05Z"}},
    ],
)
async def test_what_is_over_is_not_judged(office: Office, status: dict[str, Any]) -> None:
    await office.status(**status)
    with pytest.raises(Refused) as caught:
        await office.nonce(Purpose.BEFORE)
    assert caught.value.reason == Reason.EVIDENCE_REPLAYED


async def test_the_fence_comes_from_the_lease(office: Office) -> None:
    for _ in range(6):
        await office.take()
    await office.seen()
    assert (await office.permit()).fence == 7


# --- the one write


async def test_a_whole_update_is_two_writes_and_leaves_the_rest_of_the_status_alone(office: Office) -> None:
    await office.status(phase="Writing", attempt=1, pod=POD)
    before = len(office.cluster.calls)
    await office.install()
    assert (await office.confirm(await office.proof())).outcome is Outcome.PROVEN
    writes = [call for call in office.cluster.calls[before:] if call.verb in ("patch", "replace", "create", "apply")]
    assert [(call.verb, call.resource, call.subresource) for call in writes] == [("patch", FLASHTASKS, "status")] * 2
    status = office.cluster.all(FLASHTASKS, SPACE)[0]["status"]
    assert (status["phase"], status["attempt"], status["pod"]) == ("Writing", 1, POD)
    assert status["report"]["verdict"]["outcome"] == "Proven"


async def test_somebody_wrote_in_between_so_it_is_ruled_anew(office: Office) -> None:
    """The operator gives the attempt up while its evidence is on the way: no verdict for it any more."""
    await office.install()
    proof = await office.proof()
    gather, last = office.book.gather, {"attempt": 1, "reason": "PodLost", "endedAt": "2026-01-02T03:04:05Z"}
    rounds = 0

    class Slow:
        async def gather(self, namespace: str, task: str, attempt: int) -> Any:
            nonlocal rounds
            found = await gather(namespace, task, attempt)
            rounds += 1
            if rounds == 1:
                await office.status(lastAttempt=last)
            return found

        write = office.book.write

    office.service = Service(Slow(), office.keys, office.clock)
    with pytest.raises(Refused) as caught:
        await office.confirm(proof)
    assert (caught.value.reason, rounds) == (Reason.EVIDENCE_REPLAYED, 2)
    assert "verdict" not in office.report


async def test_two_replicas_with_the_same_proof_record_one_verdict(office: Office) -> None:
    other = office.replica()
    async with running(other):
        await office.install()
        proof = await office.proof()
        request = ConfirmRequest(attempt=1, evidence=proof)
        services = (office.service, Service(other, office.keys, office.clock))
        results = await asyncio.gather(
            *(service.confirm(SPACE, TASK, request) for service in services), return_exceptions=True
        )
    assert sorted(str(getattr(result, "reason", result)) for result in results) == ["EvidenceReplayed", "Proven"]
    assert len(office.report["usedNonces"]) == 3
    patches = [call for call in office.cluster.calls if call.verb == "patch" and call.resource == FLASHTASKS]
    assert len(patches) == 3, "the permit, the verdict, and one that met a conflict"


async def test_two_replicas_give_one_permit(office: Office) -> None:
    other = office.replica()
    async with running(other):
        request = await office.permit_request()
        replies = await asyncio.gather(
            office.service.permit(SPACE, TASK, request),
            Service(other, office.keys, office.clock).permit(SPACE, TASK, request),
        )
    assert replies[0].grant_id == replies[1].grant_id == office.report["permits"][0]["grantId"]
    assert len(office.report["permits"]) == 1


async def test_trouble_with_the_api_server_is_no_verdict(office: Office) -> None:
    await office.install()
    proof = await office.proof()
    for verb in ("get", "patch"):
        office.cluster.fail(ApiError(500, "InternalError", "etcd is away"), verb=verb, resource=FLASHTASKS)
        with pytest.raises(FlashJobError) as caught:
            await office.confirm(proof)
        assert caught.value.reason == Reason.GATEWAY_UNAVAILABLE
    assert (await office.confirm(proof)).outcome is Outcome.PROVEN


async def test_an_answer_that_was_lost_is_found_written_when_asked_again(office: Office) -> None:
    """The write took effect, its answer did not arrive: asked again, the attempt is judged, and the verdict stands."""
    await office.install()
    proof = await office.proof()
    office.cluster.fail(ApiError(504, "Timeout", "lost"), verb="patch", resource=FLASHTASKS, after=True)
    with pytest.raises(FlashJobError) as caught:
        await office.confirm(proof)
    assert caught.value.reason == Reason.GATEWAY_UNAVAILABLE
    with pytest.raises(Refused) as again:
        await office.confirm(proof)
    assert again.value.reason == Reason.EVIDENCE_REPLAYED
    assert office.report["verdict"]["outcome"] == "Proven"


async def test_a_success_leaves_nothing_of_an_earlier_rejection(office: Office) -> None:
    """Attempt 1 is rejected with all that its evidence claims; attempt 2 replaces every one of those fields."""
    office.bench.behaviour = RunsOldImage(first=0)
    await office.install()
    request = EvidenceRequest(
        attempt=1,
        evidence=office.bench.evidence(await office.nonce(Purpose.AFTER)),
        device_nonce=office.bench.nonce(Verb.CONFIRM),
    )
    with pytest.raises(Refused) as caught:
        await office.service.evidence(SPACE, TASK, request)
    assert caught.value.reason == Reason.MEASUREMENT_MISMATCH
    rejected = office.report["verdict"]
    assert (rejected["outcome"], rejected["code"], rejected["version"]) == ("Rejected", "ref.code", "1.0")
    used = office.report["usedNonces"]
    office.bench.behaviour = Behaviour()
    office.bench.reset()
    office.attempt = 2
    await office.take(attempt=2)
    await office.seen()
    await office.install()
    assert (await office.confirm(await office.proof())).outcome is Outcome.PROVEN
    verdict = office.report["verdict"]
    assert (verdict["attempt"], verdict["outcome"], verdict["reason"]) == (2, "Proven", "Proven")
    assert (verdict["version"], verdict["code"], verdict["message"]) == ("2.0", "", Reason.PROVEN.meaning)
    assert verdict["bootId"] == office.report["permits"][1]["grantId"]
    assert [p["attempt"] for p in office.report["permits"]] == [1, 2]
    assert office.report["usedNonces"][: len(used)] == used, "what was used stays used"


async def test_absent_fields_of_a_verdict_are_removed_not_kept(office: Office) -> None:
    """A rejection without evidence after one with evidence: nothing of the device's claims may remain."""
    full = {
        "attempt": 1, "outcome": "Rejected", "reason": "MeasurementMismatch", "code": "ref.code", "message": "m",
        "measurement": {"scheme": "esp-image", "alg": -16, "value": "ab" * 32}, "application": "porch",
        "version": "1.0", "secureVersion": 3, "bootId": "ab" * 16, "rootOfTrust": "SignedBoot", "unproven": ["x"],
        "policyHash": "ab" * 32, "evidenceHash": "cd" * 32, "bootCount": 9, "at": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    stage = {"name": "Writing", "since": "2026-01-02T03:04:05Z"}
    await office.status(report={"verdict": full, "stage": stage})
    office.attempt, office.release = 2, office.bench.release(office.image, sequence=7)
    await office.take(attempt=2)
    await office.seen()
    with pytest.raises(Refused):
        await office.permit()
    verdict = office.report["verdict"]
    assert (verdict["attempt"], verdict["reason"]) == (2, "ReleaseInvalid")
    for field in ("measurement", "secureVersion", "bootId", "policyHash", "evidenceHash", "bootCount"):
        assert field not in verdict
    assert (verdict["code"], verdict["application"], verdict["unproven"]) == ("", "", [])
    assert "stage" not in office.report


# --- stages


def at(stage: Stage, attempt: int = 1) -> Progress:
    return Progress(attempt=attempt, stage=stage, done=1, total=2)


async def test_a_stage_that_takes_ten_seconds_is_written_once(office: Office) -> None:
    office.bench.now = 1_800_000_000.0

    def patches() -> int:
        return sum(call.verb == "patch" and call.resource == FLASHTASKS for call in office.cluster.calls)

    for seconds, expected in ((0, 0), (9.9, 0), (10, 1), (11, 1), (60, 1)):
        office.bench.now = 1_800_000_000.0 + seconds
        office.book.saw(SPACE, TASK, at(Stage.WRITING))
        await office.seen()
        assert patches() == expected, seconds
    assert office.report["stage"] == {"name": "Writing", "since": "2027-01-15T08:00:00.000000Z"}
    office.book.saw(SPACE, TASK, at(Stage.REBOOTING))
    office.bench.now += 10
    office.book.saw(SPACE, TASK, at(Stage.REBOOTING))
    await office.seen()
    assert (patches(), office.report["stage"]["name"]) == (2, "Rebooting")


async def test_replicas_that_hear_the_same_write_it_once(office: Office) -> None:
    office.bench.now = 1_800_000_000.0
    other = office.replica()
    async with running(other):
        office.book.saw(SPACE, TASK, at(Stage.WRITING))
        office.bench.now += 0.3
        other.saw(SPACE, TASK, at(Stage.WRITING))
        for book in (office.book, other):
            office.bench.now += 10
            book.saw(SPACE, TASK, at(Stage.WRITING))
            await office.seen()
    assert office.report["stage"]["since"] == "2027-01-15T08:00:00.000000Z"
    patches = [call for call in office.cluster.calls if call.verb == "patch" and call.resource == FLASHTASKS]
    assert len(patches) == 1
    office.attempt = 2
    office.book.saw(SPACE, TASK, at(Stage.WRITING, attempt=2))
    office.bench.now += 10
    office.book.saw(SPACE, TASK, at(Stage.WRITING, attempt=2))
    await office.seen()
    assert office.report["stage"]["since"] == "2027-01-15T08:00:20.300000Z", "the next attempt's writing began anew"


async def test_the_same_stage_of_the_next_attempt_is_another_one(office: Office) -> None:
    office.book.saw(SPACE, TASK, at(Stage.WRITING))
    office.bench.now += 30
    office.book.saw(SPACE, TASK, at(Stage.WRITING, attempt=2))
    await office.seen()
    assert office.report == {}


async def test_a_stage_never_touches_a_verdict(office: Office) -> None:
    await office.install()
    office.book.saw(SPACE, TASK, at(Stage.CONFIRMING))
    await office.confirm(await office.proof())
    before = office.report
    office.bench.now += 30
    office.book.saw(SPACE, TASK, at(Stage.CONFIRMING))
    await office.seen()
    assert office.report == before


async def test_a_stage_that_cannot_be_written_is_no_loss(office: Office) -> None:
    office.cluster.fail(ApiError(500, "InternalError", "etcd is away"), verb="patch", resource=FLASHTASKS)
    office.book.saw(SPACE, TASK, at(Stage.WRITING))
    office.bench.now += 30
    office.book.saw(SPACE, TASK, at(Stage.WRITING))
    await office.seen()
    assert office.report == {}
    assert (await office.permit()).grant_id


async def test_leases_without_our_label_or_in_other_namespaces_do_not_count(office: Office) -> None:
    lease = next(lease for lease in office.cluster.all(LEASES, OPS))
    forged = {"name": lease["metadata"]["name"], "labels": lease["metadata"]["labels"]}
    annotations = {**lease["metadata"]["annotations"]}
    spec = {**lease["spec"], "holderIdentity": f"{SPACE}/{TASK}/2"}
    await office.cluster.delete(LEASES, OPS, forged["name"])
    for space, labels in (("elsewhere", forged["labels"]), (OPS, {})):
        metadata = {**forged, "namespace": space, "labels": labels, "annotations": annotations}
        await office.cluster.create(LEASES, space, {"metadata": metadata, "spec": spec})
    await office.seen()
    assert "held by nobody" in turned_away(office)
