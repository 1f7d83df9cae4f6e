# SPDX-License-Identifier: Apache-2.0
"""Which starts share a pod; rules of planning/batches.py."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flashjob.planning.batches import batches, name
from flashjob.planning.decisions import Start
from flashjob.planning.plan import plan
from flashjob.planning.state import Lease
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
