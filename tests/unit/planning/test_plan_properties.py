# SPDX-License-Identifier: Apache-2.0
"""What holds for every history: limits, one writer, no success without proof, an end, and the same answer twice."""

from dataclasses import replace

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from flashjob.api.flashtask import Phase
from flashjob.planning.job_status import finished
from flashjob.planning.plan import plan
from flashjob.wire.pod import MAX_DEVICES
from tests.unit.planning.model import Model, device, job

ACTS = st.one_of(
    st.just(("rounds", 3)),
    st.just(("rounds", 1)),
    st.just(("all permitted", 0)),
    st.tuples(st.just("plan"), st.integers(0, 12)),
    st.tuples(st.just("permit"), st.integers(0, 3)),
    st.tuples(st.just("proven"), st.integers(0, 3)),
    st.tuples(st.just("rejected"), st.integers(0, 3), st.sampled_from(["ConfirmTimeout", "MeasurementMismatch"])),
    st.tuples(st.just("fails"), st.integers(0, 3), st.sampled_from(["PortSilent", "WrongDevice", "TransportLost"])),
    st.tuples(st.just("exits"), st.integers(0, 3)),
    st.tuples(st.just("dies"), st.integers(0, 3)),
    st.tuples(st.just("vanishes"), st.integers(0, 3)),
    st.tuples(st.just("listed"), st.integers(0, 3)),
    st.tuples(st.just("reap"), st.just(0)),
    st.tuples(st.just("time"), st.sampled_from([1, 3, 12, 45, 130])),
)


def run_plan(model: Model, prefix: int | None = None) -> None:
    state = model.state()
    decisions = plan(state, model.now)
    assert plan(state, model.now) == decisions, "deterministic"
    at_work = {seat.pod.uid for seat in model.seats() if any(seat.pod.uid in w for w in model.writers.values())}
    assert model.job.deleting or not at_work & {pod.uid for pod in decisions.delete_pods}, "nobody's end is another's"
    writes = model.writes(decisions)
    for write in writes if prefix is None else writes[:prefix]:
        write()
        check(model)


def check(model: Model) -> None:
    limit = model.job.spec.strategy.max_in_flight
    at_work = [seat.task for seat in model.seats()]
    assert len(set(at_work)) <= limit, "never above maxInFlight"
    assert len(at_work) == len(set(at_work)), "never two live pods that hold one device"
    assert all(len(pod.assignments) <= MAX_DEVICES for pod in model.live())
    for pods in model.writers.values():
        assert len(pods) <= 1, "never two writers on one device"
    for task in model.tasks.values():
        if task.status.phase is Phase.SUCCEEDED:
            assert task.device in model.proven, "never Succeeded without a Proven verdict"


def act(model: Model, step: tuple[object, ...]) -> None:
    kind, n = step[0], int(str(step[1]))
    if kind == "plan":
        return run_plan(model, n)
    if kind == "rounds":
        for _ in range(n):
            run_plan(model)
        return None
    if kind == "all permitted":
        for seat in model.seats():
            model.permit(seat)
        return None
    if kind == "time":
        return model.pass_time(n)
    if kind == "reap":
        return model.reap()
    if kind == "listed":
        return model.list_device(sorted(model.devices)[n % len(model.devices)])
    seats = model.seats()
    if not seats:
        return None
    seat = seats[n % len(seats)]
    match kind:
        case "permit":
            model.permit(seat)
        case "proven":
            model.verdict(seat, "Proven", "Proven")
        case "rejected":
            model.verdict(seat, "Rejected", str(step[2]))
        case "fails":
            model.end(seat, str(step[2]))
        case "exits":
            model.end(seat, None)
        case "dies":
            model.die(seat.pod)
        case "vanishes":
            model.vanish(seat.pod)
    return None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(devices=st.integers(1, 5), limit=st.integers(1, 4), history=st.lists(ACTS, max_size=60))
def test_every_history_keeps_the_promises_and_comes_to_an_end(
    devices: int, limit: int, history: list[tuple[object, ...]]
) -> None:
    made = [device(f"d{n}") for n in range(devices)]
    model = Model(job(strategy={"maxInFlight": limit}), {d.id: d for d in made})
    for step in [("rounds", 3), *history]:
        act(model, step)
        check(model)
    for _ in range(400):
        run_plan(model)
        if finished(model.job.status):
            break
        model.reap()
        for seat in model.seats():
            model.permit(seat)
            model.verdict(seat, "Proven", "Proven")
        for device_id in model.devices:
            model.list_device(device_id)
        check(model)
        model.pass_time(7)
    assert finished(model.job.status), "every job ends"
    counts = model.job.status.counts
    assert counts.total == devices
    assert counts.succeeded + counts.failed + counts.rejected + counts.skipped == devices
    ended = {t.name: t.status for t in model.tasks.values()}
    run_plan(model)
    assert ended == {t.name: t.status for t in model.tasks.values()}, "the end is the end"


@settings(max_examples=100, deadline=None)
@given(prefixes=st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_any_crash_prefix_of_a_good_run_leads_to_success_with_one_attempt(prefixes: list[int]) -> None:
    made = [device(f"d{n}") for n in range(3)]
    model = Model(job(), {d.id: d for d in made})
    for prefix in prefixes:
        run_plan(model, prefix)
        model.pass_time(0.1)
    for _ in range(60):
        run_plan(model)
        for seat in model.seats():
            model.permit(seat)
            model.verdict(seat, "Proven", "Proven")
        for device_id in model.devices:
            model.list_device(device_id)
        model.pass_time(1)
    assert finished(model.job.status)
    assert {t.status.phase for t in model.tasks.values()} == {Phase.SUCCEEDED}
    assert {t.status.attempt for t in model.tasks.values()} == {1}
    assert all(len(t.status.report.permits) == 1 for t in model.tasks.values() if t.status.report)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(ACTS, max_size=40), paused=st.booleans())
def test_a_deleted_job_drains(history: list[tuple[object, ...]], paused: bool) -> None:
    made = [device(f"d{n}") for n in range(3)]
    model = Model(job(paused=paused), {d.id: d for d in made})
    for step in [("rounds", 3), *history]:
        act(model, step)
    assume(not finished(model.job.status))
    model.job = replace(model.job, deleting=True)
    before = len(model.pods)
    for _ in range(200):
        decisions = plan(model.state(), model.now)
        assert decisions.starts == ()
        assert decisions.create_tasks == ()
        if decisions.drained:
            break
        for write in model.writes(decisions):
            write()
        model.reap()
        model.pass_time(11)
    assert plan(model.state(), model.now).drained
    assert len(model.pods) <= before
    for d in made:
        lease = model.leases.get(d.id)
        if lease is not None:
            outcomes = model.devices[d.id].status.outcomes
            assert outcomes, "a device whose Lease was held has its outcome, so it is free at once"
