# SPDX-License-Identifier: Apache-2.0
"""The rules of planning one by one; each test names its module's rule."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashjob.api.device import DeviceStatus
from flashjob.api.flashjob import Retries
from flashjob.api.flashtask import FlashTaskStatus, Phase
from flashjob.planning import connection, lock, names, retries, selection
from flashjob.planning.admission import Enrolment, admit
from flashjob.planning.attempts import open_attempt
from flashjob.planning.job_status import finished
from flashjob.planning.outcome import Awaited, Ending, judge
from flashjob.planning.plan import plan
from flashjob.planning.progress import AttemptEnds, Ends, Idle, Lost, Runs, assess
from flashjob.planning.rediscovery import rediscovered
from flashjob.planning.state import Admission, Device, Instance, Lease, Pod, Policy, Refusal, Task
from flashjob.wire.clock import micro, seconds, stamp
from flashjob.wire.gateway import DeviceResult
from flashjob.wire.lock import Holder
from flashjob.wire.pod import TransportKind
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Measurement
from tests.unit.planning.model import READY, T0, TARGET, Model, device, job
from tests.unit.planning.tasks import GRANT, PERMIT, lease, listed, pod, port, reported, task

# --- names, clock


@given(st.text("abc-.", min_size=1, max_size=253), st.uuids(), st.binary(min_size=33, max_size=33))
def test_names_fit_and_differ(name: str, uid: object, device_id: bytes) -> None:
    made = names.task_name(name, str(uid), device_id.hex())
    assert len(names.pod_name(made, 100)) <= 253
    assert made != names.task_name(name, f"{uid}x", device_id.hex())
    assert len(names.job_label(name)) <= 63
    holder = Holder("farm", made, 7)
    assert Holder.parse(str(holder)) == holder


@pytest.mark.parametrize("text", ["", "x", "a/b", "a/b/c", "a/b/-1", "/b/1", "a//1"])
def test_foreign_holders_are_none(text: str) -> None:
    assert Holder.parse(text) is None


@given(st.integers(0, 4_000_000_000))
def test_stamps_come_back(at: int) -> None:
    assert seconds(stamp(at)) == at
    assert seconds(micro(at + 0.25)) == at + 0.25


# --- selection


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ({"matchLabels": {"site": "berlin"}}, True),
        ({"matchLabels": {"site": "paris"}}, False),
        ({"matchExpressions": [{"key": "site", "operator": "In", "values": ["paris", "berlin"]}]}, True),
        ({"matchExpressions": [{"key": "site", "operator": "NotIn", "values": ["berlin"]}]}, False),
        ({"matchExpressions": [{"key": "lab", "operator": "NotIn", "values": ["x"]}]}, True),
        ({"matchExpressions": [{"key": "site", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "site", "operator": "DoesNotExist"}]}, False),
        ({}, False),
    ],
)
def test_selection_rule_2(selector: dict[str, Any], chosen: bool) -> None:
    found = selection.select(job(devices={"selector": selector}), [device("d0")], [])
    assert isinstance(found, Refusal) != chosen


def test_selection_rules_1_3_4_5() -> None:
    by_akri = job(devices={"akri": {"configuration": "app"}})
    here, elsewhere = device("d0"), device("d0", namespace="other")
    assert selection.select(by_akri, [elsewhere, here], [listed()]) == (here,)
    for instance in (listed(deleting=True), listed(listing=None), listed(configuration="b")):
        found = selection.select(by_akri, [here], [instance])
        assert isinstance(found, Refusal)
        assert found.reason == Reason.NO_DEVICES
    nobody = selection.select(by_akri, [], [listed()])
    assert isinstance(nobody, Refusal)
    assert nobody.reason == Reason.DEVICE_NOT_ENROLLED
    by_property = job(devices={"properties": {"ROOM": "7"}})
    assert selection.select(by_property, [here], [listed(properties={"ROOM": "7", "X": "y"})]) == (here,)
    assert isinstance(selection.select(by_property, [here], [listed(properties={"ROOM": "8"})]), Refusal)


# --- admission


def refused_as(found: object) -> str:
    assert isinstance(found, Refusal)
    assert "Next:" in found.message
    return found.reason


def test_admission_in_order() -> None:
    d, j = device("d0"), job()
    twin = replace(d, name="twin", namespace="other")
    assert refused_as(admit(j, d, Enrolment.of([d, twin]), {}, READY, T0)) == "IdentityConflict"
    assert refused_as(admit(j, d, Enrolment.of([d, twin]), {d.id: lease()}, READY, T0)) == "IdentityConflict"
    assert refused_as(admit(j, replace(d, suspended=True), Enrolment.of([d]), {}, READY, T0)) == "Suspended"
    held = replace(d, status=DeviceStatus.parse({"quarantine": {"reason": "BootIdMismatch", "since": stamp(T0)}}))
    assert refused_as(admit(j, held, Enrolment.of([held]), {}, READY, T0)) == "Quarantined"
    assert refused_as(admit(j, replace(held, released_at=T0 - 1), Enrolment.of([held]), {}, READY, T0)) == "Quarantined"
    freed = replace(held, released_at=T0 + 1)
    assert refused_as(admit(j, freed, Enrolment.of([held]), {}, READY, T0)) == "Quarantined", "its time is yet to come"
    assert not isinstance(admit(j, freed, Enrolment.of([held]), {}, READY, T0 + 1), Refusal)
    assert refused_as(admit(j, replace(d, policy="none"), Enrolment.of([d]), {}, READY, T0)) == "PolicyMissing"
    unmet = replace(READY, policies={"lab": Policy(Refusal("Unsigned", "no. Next: sign"))})
    assert refused_as(admit(j, d, Enrolment.of([d]), {}, unmet, T0)) == "Unsigned"
    assert refused_as(admit(job(transport="Serial"), d, Enrolment.of([d]), {}, READY, T0)) == "TransportUnsupported"
    assert refused_as(admit(job(safety={"data": "Wipe"}), d, Enrolment.of([d]), {}, READY, T0)) == "WipeNeedsSerial"
    two = replace(READY, targets={"esp32c3": TARGET, "esp32s2": TARGET})
    assert refused_as(admit(j, d, Enrolment.of([d]), {}, two, T0)) == "NoMatchingPlatform"
    assert not isinstance(admit(j, d, Enrolment.of([d]), {}, READY, T0), Refusal), "an unread chip is left to preflight"
    bad = Admission(policies=READY.policies, refused_chips={"esp32s3": Refusal("DigestMismatch", "x. Next: y")})
    assert refused_as(admit(j, d, Enrolment.of([d]), {}, bad, T0)) == "DigestMismatch"


@pytest.mark.parametrize(
    ("status", "safety", "reason"),
    [
        ({"hardware": {"chip": "esp32s3", "slotSize": 1024}}, {}, "ImageTooLarge"),
        ({"floors": {"securityVersion": 1}}, {}, "SecurityVersionRollback"),
        ({"floors": {"sequence": 22}}, {}, "Downgrade"),
        ({"floors": {"sequence": 22}}, {"allowDowngrade": True}, None),
    ],
)
def test_admission_rule_9(status: dict[str, Any], safety: dict[str, Any], reason: str | None) -> None:
    d = device("d0", status=DeviceStatus.parse(status))
    found = admit(job(safety=safety), d, Enrolment.of([d]), {}, READY, T0)
    assert (found.reason if isinstance(found, Refusal) else None) == reason


# --- connection


def test_connection_rule_2() -> None:
    serial = device("d0", network=False, serial_match={"UDEV_DEVPATH": "/virtual/d0"})

    def reason(*ports: Instance) -> str:
        found = connection.connect(TransportKind.SERIAL, serial, ports)
        return found.reason if isinstance(found, Refusal) else f"{found.instance}@{found.node}"

    assert reason(port()) == "port-1@node1"
    assert reason() == "PortNotFound"
    assert reason(port(deleting=True)) == "PortNotFound"
    assert reason(port(token="t")) == "PortNotFound"
    assert reason(port(nodes=())) == "PortNotFound"
    assert reason(port(properties={"UDEV_DEVPATH": "/virtual/d1"})) == "PortNotFound"
    assert reason(port(), port("port-2")) == "PortAmbiguous"
    unmatched = connection.connect(TransportKind.SERIAL, device("d0", serial_match={}), [port()])
    assert refused_as(unmatched) == "PortNotFound", "an empty match is no match"


def test_connection_rules_1_3_4() -> None:
    both = device("d0", serial_match={"a": "b"})
    assert connection.kind("Auto", both) is TransportKind.SERIAL
    assert connection.kind("Network", both) is TransportKind.NETWORK
    silent = device("d0", address="")
    assert refused_as(connection.connect(TransportKind.NETWORK, silent, [])) == "DeviceUnreachable"
    seen = replace(silent, status=DeviceStatus.parse({"endpoint": "10.0.0.1:80"}))
    where = connection.connect(TransportKind.NETWORK, seen, [])
    assert isinstance(where, connection.Connection)
    assert where.address == "10.0.0.1:80"
    broker = Pod("x", "broker", "u", "Running", T0, claims=("app-1",))
    assert connection.used_by(seen, where, [listed()], [broker, pod()]) == broker
    assert connection.used_by(seen, where, [listed()], [replace(broker, phase="Succeeded")]) is None
    assert connection.used_by(seen, where, [listed()], [replace(broker, claims=("app-2",))]) is None


# --- attempts and lock


def test_attempts() -> None:
    assert open_attempt(task(), [], None) is None
    assert open_attempt(task(), [], lease("farm/other/1")) is None
    begun = open_attempt(task(), [], lease())
    assert begun is not None
    assert (begun.number, begun.unseen) == (1, False)
    lost = open_attempt(task({"report": {"permits": [PERMIT]}}), [], None)
    assert lost is not None
    assert lost.unseen
    over = {"lastAttempt": {"attempt": 1, "reason": "PodLost", "endedAt": stamp(T0)}}
    assert open_attempt(task(over), [pod()], lease()) is None
    second = open_attempt(task(over), [pod(), pod(attempt=2)], lease())
    assert second is not None
    assert second.number == 2


def held(found: lock.Held | None) -> bool:
    return found is not None


def test_lock() -> None:
    mine, d = task(), device("d0")
    other = task(name="other", uid="o", job_uid="x")
    tasks = {mine.key: mine, other.key: other}
    theirs = lease("farm/other/1")

    def check(
        lease_: Lease | None,
        other_: Task | None = other,
        *pods: Pod,
        device_: Device = d,
        now: float = T0 + 1,
    ) -> bool:
        known = {mine.key: mine} if other_ is None else {**tasks, other_.key: other_}
        return held(lock.check(mine, device_, lease_, known, {other.key: pods}, now))

    assert not check(None), "rule 1"
    assert not check(lease("")), "rule 1"
    final = replace(other, status=FlashTaskStatus.parse({"phase": "Failed"}))
    assert not check(theirs, final), "rule 2"
    assert not check(lease()), "rule 3"
    over = replace(
        other,
        status=FlashTaskStatus.parse({"lastAttempt": {"attempt": 1, "reason": "PodLost", "endedAt": stamp(T0)}}),
    )
    assert not check(theirs, over), "rule 4, on record"
    assert check(theirs), "rule 4, it may be about to start"
    assert not check(theirs, now=T0 + 61), "rule 4, it did not"
    their_pod = pod(assignments=(("other", 1),))
    assert check(theirs, other, their_pod, now=T0 + 61)
    permitted = replace(other, status=FlashTaskStatus.parse({"report": {"permits": [PERMIT]}}))
    assert check(theirs, permitted, now=T0 + 10_000), "a task that is there says itself when it is over"
    outcome = {"task": "other", "phase": "Failed", "reason": "JobDeleted", "at": stamp(T0)}
    remembered = replace(d, status=DeviceStatus.parse({"outcomes": [outcome]}))
    assert not check(theirs, None, device_=remembered), "rule 5"
    assert check(theirs, None, their_pod, now=T0 + 10_000), "rule 6"
    assert not check(theirs, None, replace(their_pod, phase="Failed")), "rule 6"
    assert check(theirs, None, now=T0 + 700), "rule 7"
    assert not check(theirs, None, now=T0 + 781), "rule 7"
    assert check(lease("somebody"), now=T0 + 10_000), "rule 8"


# --- retries


@pytest.mark.parametrize("reason", [r for r in Reason if r in retries.RETRIED])
def test_what_is_retried_is_no_refusal(reason: Reason) -> None:
    assert retries.retried(reason)
    assert not retries.refusal(reason)


@pytest.mark.parametrize(
    "code", ["MeasurementMismatch", "WrongDevice", "Unsigned", "PolicyRejected", "EvidenceReplayed", "NobodyKnowsThis"]
)
def test_what_is_never_retried(code: str) -> None:
    assert not retries.retried(code)


def test_backoff_doubles_up_to_an_hour() -> None:
    rule = Retries(limit=2, backoff_seconds=30)
    assert [retries.next_start(n, 0, rule) for n in (1, 2, 3, 50)] == [30, 60, 120, 3600]
    assert [retries.attempts_left(n, rule, "PortBusy") for n in (1, 2, 3)] == [True, True, False]
    assert [retries.attempts_left(n, rule, "Paused") for n in (3, 99, 100)] == [True, True, False]


# --- rediscovery


def test_rediscovery() -> None:
    def found(*instances: Instance) -> bool:
        return rediscovered(device("d0").id, TARGET, GRANT, instances)

    assert found(listed())
    assert found(listed(), listed(name="app-2", configuration="b"))
    assert not found()
    assert not found(listed(deleting=True)), "rule 1"
    assert not found(listed(listing=None)), "rule 1"
    assert not found(listed(boot_id="0b" * 16)), "rule 1"
    assert not found(listed(measurement=Measurement(scheme="esp-image", alg=-16, value="33" * 32))), "rule 1"
    assert not found(listed(), listed(boot_id="0b" * 16, deleting=True)), "rule 2"
    assert not found(listed(), listed(endpoint="relay:1")), "rule 2"


# --- outcome


@pytest.mark.parametrize(
    ("judged", "found", "phase", "reason", "confirmed"),
    [
        (reported(), True, Phase.SUCCEEDED, "Proven", True),
        (reported("BelowPolicy"), False, Phase.UNPROVEN, "RootOfTrustTooLow", True),
        (reported("BelowPolicy", permits=0, bootId="0b" * 16), False, Phase.UNPROVEN, "RootOfTrustTooLow", True),
        (reported("AlreadyRunning", permits=0, bootId="0b" * 16), False, Phase.SKIPPED, "AlreadyRunning", True),
        (reported("AlreadyRunning"), True, Phase.FAILED, "BootIdMismatch", False),
        (reported(bootId="0b" * 16), True, Phase.FAILED, "BootIdMismatch", False),
        (reported("BelowPolicy", bootId="0b" * 16), True, Phase.FAILED, "BootIdMismatch", False),
        (reported(permits=0), True, Phase.FAILED, "BootIdMismatch", False),
        (reported(bootId=None), True, Phase.FAILED, "BootIdMismatch", False),
        (reported(measurement=None), True, Phase.FAILED, "MeasurementMismatch", False),
        (
            reported(measurement={"scheme": "esp-image", "alg": -16, "value": "33" * 32}),
            True,
            Phase.FAILED,
            "MeasurementMismatch",
            False,
        ),
        (reported("Rejected", reason="PolicyRejected", code="dice.mode"), True, Phase.FAILED, "PolicyRejected", False),
        (reported("Rejected", permits=0, reason="WrongDevice"), True, Phase.REJECTED, "WrongDevice", False),
    ],
)
def test_outcome(judged: Task, found: bool, phase: Phase, reason: str, confirmed: bool) -> None:
    assert judged.status.report is not None
    assert judged.status.report.verdict is not None
    ending = judge(judged, judged.status.report.verdict, found, T0 + 1)
    assert isinstance(ending, Ending)
    expected = Phase.REJECTED if phase is Phase.FAILED and not judged.status.report.permits else phase
    assert (ending.phase, ending.reason, ending.confirmed) == (expected, reason, confirmed)
    assert ending.message


def test_outcome_rule_6_says_the_gateways_words_once() -> None:
    message = "after the write: mode debug is not allowed (dice.mode)"
    judged = reported("Rejected", reason="PolicyRejected", code="dice.mode", message=message)
    assert judged.status.report is not None
    assert judged.status.report.verdict is not None
    ending = judge(judged, judged.status.report.verdict, False, T0 + 1)
    assert isinstance(ending, Ending)
    assert ending.message.startswith(message)
    assert ending.message.count("(dice.mode)") == 1


def test_outcome_rule_3() -> None:
    waiting = reported()
    assert waiting.status.report is not None
    assert waiting.status.report.verdict is not None
    found = judge(waiting, waiting.status.report.verdict, False, T0 + 119)
    assert found == Awaited(T0 + 120)
    late = judge(waiting, waiting.status.report.verdict, False, T0 + 120)
    assert isinstance(late, Ending)
    assert (late.phase, late.reason, late.confirmed) == (Phase.FAILED, "RediscoveryTimeout", True)
    skip = judge(replace(waiting, rediscovery_required=False), waiting.status.report.verdict, False, T0)
    assert isinstance(skip, Ending)
    assert skip.phase is Phase.SUCCEEDED


# --- progress


def step(of: Task, *pods: Pod, at: float = T0, held_by: Lease | None = None) -> object:
    return assess(of, open_attempt(of, pods, held_by), False, Retries(limit=1, backoff_seconds=1), at)


def test_a_lost_pod_is_unknown_until_it_can_write_no_more() -> None:
    lost = task({"report": {"permits": [PERMIT]}})
    found = step(lost, at=T0 + 100, held_by=lease())
    assert found == Lost(T0 + 300 + 120 + 300 + 60)
    ended = step(lost, at=T0 + 781, held_by=lease())
    assert isinstance(ended, AttemptEnds)
    assert ended.reason == "PodLost"


def test_exit_codes_and_results_are_no_success() -> None:
    done = {"task": "porch-abc", "attempt": 1, "stage": "Confirming", "ok": True, "reason": "Proven", "seconds": {}}
    ended = pod("Succeeded", finished_at=T0, results=(DeviceResult.parse(done),))
    assert isinstance(step(task(), ended, at=T0 + 14), Runs), "its verdict may still be on its way"
    found = step(task(), ended, at=T0 + 15)
    assert isinstance(found, AttemptEnds)
    assert found.reason == "PodFailed"
    assert "proves nothing" in found.message


def test_start_timeout_lost_node_and_exhaustion() -> None:
    assert isinstance(step(task(), pod(), at=T0 + 419), Runs)
    found = step(task(), pod("Pending", trouble="Unschedulable: no node"), at=T0 + 420)
    assert isinstance(found, AttemptEnds)
    assert found.reason == "StartTimeout"
    assert "Unschedulable" in found.message
    second = step(task(), pod("Pending", attempt=2), at=T0 + 420)
    assert isinstance(second, Ends)
    assert (second.ending.phase, second.ending.reason) == (Phase.FAILED, "StartTimeout")
    permitted = task({"report": {"permits": [PERMIT]}})
    assert isinstance(step(permitted, pod(), at=T0 + 1199), Runs)
    gone = step(permitted, pod(), at=T0 + 1200)
    assert isinstance(gone, AttemptEnds)
    assert gone.reason == "PodLost"


def test_a_slow_pod_says_why() -> None:
    found = step(task(), pod("Pending", trouble="ImagePullBackOff"), at=T0 + 12)
    assert isinstance(found, Runs)
    assert found.waiting is not None
    assert found.waiting.reason == "PodPending"
    assert "ImagePullBackOff" in found.waiting.message


def test_an_older_rejection_does_not_end_a_newer_attempt() -> None:
    old = reported("Rejected", reason="ConfirmTimeout")
    assert isinstance(step(old, pod(attempt=2), at=T0 + 20), Runs)
    over = {"attempt": 1, "reason": "ConfirmTimeout", "endedAt": stamp(T0)}
    between = replace(old, status=FlashTaskStatus.parse({**old.status.dump(), "lastAttempt": over}))
    assert step(between, at=T0 + 20) == Idle(None)


def test_a_task_made_to_be_refused_ends_so() -> None:
    made = task(target=None, refusal=Refusal("Quarantined", "m"))
    found = step(made)
    assert isinstance(found, Ends)
    assert found.ending.phase is Phase.QUARANTINED
    without = step(task(target=None))
    assert isinstance(without, Ends)
    assert without.ending.phase is Phase.REJECTED


# --- plan: what no single rule shows


def running(model: Model) -> Pod:
    for _ in range(3):
        for write in model.writes(plan(model.state(), model.now)):
            write()
    (made,) = model.live()
    return made


def rounds(model: Model, count: int = 2) -> None:
    for _ in range(count):
        for write in model.writes(plan(model.state(), model.now)):
            write()


def test_no_second_writer_while_a_lost_one_may_write() -> None:
    d = device("d0")
    model = Model(job(), {d.id: d})
    first = running(model)
    model.permit(*model.seats())
    model.vanish(first)
    rounds(model)
    (lost,) = model.tasks.values()
    assert lost.status.phase is Phase.UNKNOWN
    assert lost.status.waiting is not None
    model.pass_time(29)
    rounds(model)
    assert model.live() == []
    model.pass_time(110)
    rounds(model)
    model.pass_time(3)
    rounds(model)
    (second,) = model.live()
    assert second.assignments[0][1] == 2


def test_no_second_pod_before_the_first_has_ended() -> None:
    d = device("d0")
    model = Model(job(), {d.id: d})
    first = running(model)
    model.pass_time(41)
    rounds(model)
    assert model.pods[first.name].deleting
    model.pass_time(10)
    rounds(model)
    assert [p.name for p in model.live()] == [first.name]
    model.reap()
    rounds(model)
    assert [p.assignments[0][1] for p in model.live()] == [2]


def test_a_lowered_limit_stops_nobody() -> None:
    made = [device(f"d{n}") for n in range(3)]
    model = Model(job(strategy={"maxInFlight": 3}), {d.id: d for d in made})
    rounds(model, 3)
    assert len(model.seats()) == 3
    model.job = replace(model.job, spec=job(strategy={"maxInFlight": 1}).spec)
    decisions = plan(model.state(), model.now)
    assert decisions.delete_pods == ()
    assert decisions.starts == ()


def test_a_deleted_task_is_never_a_success() -> None:
    d = device("d0")
    model = Model(job(), {d.id: d})
    running(model)
    model.tasks.clear()
    model.pods.clear()
    rounds(model)
    assert finished(model.job.status)
    assert model.job.status.phase == "Failed"
    assert {c.reason for c in model.job.status.conditions if c.type == "Failed"} == {"TaskMissing"}
