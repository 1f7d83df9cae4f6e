# SPDX-License-Identifier: Apache-2.0
"""Which starts share a pod; rules of planning/batches.py."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flashjob.api.flashtask import Phase
from flashjob.planning.batches import batches, name
from flashjob.planning.decisions import Start
from flashjob.planning.plan import plan
from flashjob.planning.state import Lease
from flashjob.planning.timeouts import GRACE
from flashjob.wire.pod import MAX_DEVICES, TransportKind
from tests.unit.planning.model import Model, device, job


def starts(count: int) -> tuple[Start, ...]:
    """What the planner starts at once for `count` network devices."""
    devices = (device(f"d{n:03}") for n in range(count))
    model = Model(job(strategy={"maxInFlight": 200}), {d.id: d for d in devices})
    for _ in range(4):
        decisions = plan(model.state(), model.now)
        if decisions.starts:
            return decisions.starts
        for write in model.writes(decisions):
            write()
        model.job = replace(model.job, finalizer=True)
    return ()


def serial(start: Start) -> Start:
    where = replace(start.connection, kind=TransportKind.SERIAL, address=None, instance="ports-a", node="node1")
    return replace(start, connection=where)


def begun(start: Start, attempt: int = 1) -> Start:
    holder = f"{start.task.namespace}/{start.task.name}/{attempt}"
    return replace(start, lease=Lease("fj-x", ("farm", start.device.name), holder, 0.0, 1))


ALL = starts(60)


@given(st.lists(st.sampled_from(range(60)), unique=True, max_size=60))
def test_every_start_is_in_exactly_one_pod_of_bounded_size(chosen: list[int]) -> None:
    wanted = [ALL[n] for n in chosen]
    made = batches(wanted)
    assert sorted(s.task.name for pod in made for s in pod) == sorted(s.task.name for s in wanted)
    assert all(1 <= len(pod) <= MAX_DEVICES for pod in made)
    assert len(made) == -(-len(wanted) // MAX_DEVICES)
    assert len({name(pod) for pod in made}) == len(made)
    assert made == batches(reversed(wanted)), "the order in which they come changes nothing"


def test_serial_devices_have_pods_of_their_own() -> None:
    made = batches([serial(ALL[0]), serial(ALL[1]), ALL[2], ALL[3]])
    assert sorted(map(len, made)) == [1, 1, 2]


def test_an_attempt_begun_before_starts_alone_under_its_own_name() -> None:
    again = begun(ALL[0])
    (alone, others) = batches([ALL[1], again, ALL[2]])
    assert alone == (again,)
    assert name(alone) == f"{again.task.name}-1"
    assert len(others) == 2


def test_a_device_held_by_an_earlier_attempt_shares() -> None:
    assert len(batches([begun(ALL[0], attempt=7), ALL[1]])) == 1


def test_another_composition_is_another_name() -> None:
    assert name(ALL[:2]) != name(ALL[:3])
    assert len(name(ALL[:25])) <= 253


# --- what a shared pod means for each of its devices

BACKOFF = 45
"""Seconds, and more than the job's back-off after a first attempt."""


def sharing(count: int) -> Model:
    """A model in which one pod runs for `count` devices, all permitted."""
    made = [device(f"d{n}") for n in range(count)]
    model = Model(job(strategy={"maxInFlight": count}), {d.id: d for d in made})
    rounds(model, 3)
    for seat in model.seats():
        model.permit(seat)
    (pod,) = model.live()
    assert len(pod.assignments) == count
    return model


def rounds(model: Model, count: int = 2) -> None:
    for _ in range(count):
        for write in model.writes(plan(model.state(), model.now)):
            write()


def settle(model: Model, seconds: float = GRACE) -> None:
    """What was to be waited for before an end is believed is over."""
    model.pass_time(seconds)
    rounds(model)


def test_one_devices_end_ends_no_other() -> None:
    model = sharing(3)
    first, second, third = model.seats()
    model.verdict(first, "Rejected", "MeasurementMismatch")
    model.end(second, "TransportLost")
    settle(model)
    phases = {name: task.status.phase for (_, name), task in model.tasks.items()}
    assert phases[first.task] is Phase.FAILED, "its verdict is known at once"
    assert not phases[second.task].final, "its end is known when the pod has ended"
    assert [seat.task for seat in model.seats()] == [third.task]
    assert not model.live()[0].deleting
    model.verdict(third, "Proven", "Proven")
    settle(model)
    settle(model, BACKOFF)
    assert [(seat.task, seat.attempt) for seat in model.seats()] == [(second.task, 2)], "tried again, alone"


def test_a_pod_that_dies_takes_the_attempts_of_all_its_devices() -> None:
    model = sharing(3)
    model.end(model.seats()[0], "TransportLost")
    model.die(model.live()[0])
    settle(model)
    reasons = {task.status.last_attempt.reason for task in model.tasks.values() if task.status.last_attempt}
    assert reasons == {"PodFailed"}, "its last words were those of all"
    settle(model, BACKOFF)
    assert [seat.attempt for seat in model.seats()] == [2, 2, 2]
    assert len(model.live()) == 1, "and they share the next one"


def test_an_attempt_that_is_tried_again_waits_for_the_pod_it_shared() -> None:
    model = sharing(2)
    early, late = model.seats()
    model.verdict(early, "Rejected", "ConfirmTimeout")
    settle(model)
    settle(model, BACKOFF)
    assert [seat.task for seat in model.seats()] == [late.task]
    settle(model)
    waiting = model.tasks["farm", early.task].status.waiting
    assert waiting is not None
    assert waiting.reason == "DeviceBusy", "the pod that it was in works for another"
    model.verdict(late, "Proven", "Proven")
    settle(model)
    assert [(seat.task, seat.attempt) for seat in model.seats()] == [(early.task, 2)]
