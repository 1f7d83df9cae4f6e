# SPDX-License-Identifier: Apache-2.0
"""Leader election: one at a time, quick hand-over, and a leader that knows when it has lost."""

import asyncio

import pytest

from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.kubeapi import ApiError
from flashjob.cluster.leader import LeaderElection, LeadershipLost
from flashjob.cluster.resources import LEASES
from tests.clusters import until


def election(cluster: FakeCluster, who: str, *, duration: float = 0.3, renew: float = 0.05) -> LeaderElection:
    return LeaderElection(
        cluster,
        "system",
        "flashjob-operator",
        who,
        duration_seconds=duration,
        renew_seconds=renew,
    )


def holder(cluster: FakeCluster) -> tuple[str, int]:
    (lease,) = cluster.all(LEASES)
    return lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]


async def test_rule_1_the_first_takes_what_does_not_exist(cluster: FakeCluster) -> None:
    assert await election(cluster, "a").acquire() == 1
    assert holder(cluster) == ("a", 1)


async def test_rule_2_of_many_exactly_one_leads(cluster: FakeCluster) -> None:
    contenders = [asyncio.create_task(election(cluster, f"p{n}", duration=3600).acquire()) for n in range(5)]
    await until(lambda: any(task.done() for task in contenders))
    await asyncio.sleep(0.05)
    assert sum(task.done() for task in contenders) == 1
    for task in contenders:
        task.cancel()


async def test_rule_1_a_restarted_container_takes_its_own_back_at_once(cluster: FakeCluster) -> None:
    await election(cluster, "pod-uid", duration=3600).acquire()
    again = election(cluster, "pod-uid", duration=3600)
    async with asyncio.timeout(1):
        assert await again.acquire() == 1


async def test_rule_3_a_silent_leader_is_succeeded_with_a_new_epoch(cluster: FakeCluster) -> None:
    first, second = election(cluster, "a", duration=1.0), election(cluster, "b", duration=1.0)
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(0.2)
    assert not waiting.done()
    async with asyncio.timeout(5):
        assert await waiting == 2
    assert holder(cluster) == ("b", 2)
    with pytest.raises(LeadershipLost):
        await first.hold()


async def test_a_leader_that_was_replaced_knows_it_at_the_next_renewal(cluster: FakeCluster) -> None:
    first = election(cluster, "a", duration=3600, renew=0.01)
    await first.acquire()
    await cluster.patch(
        LEASES, "system", "flashjob-operator", {"spec": {"holderIdentity": "person"}}, field_manager="kubectl"
    )
    with pytest.raises(LeadershipLost, match="another process holds it"):
        await first.hold()
    await first.release()
    assert holder(cluster)[0] == "person"


async def test_a_renewing_leader_stays(cluster: FakeCluster) -> None:
    first = election(cluster, "a", duration=1.0, renew=0.1)
    await first.acquire()
    holding = asyncio.create_task(first.hold())
    waiting = asyncio.create_task(election(cluster, "b", duration=1.0).acquire())
    await asyncio.sleep(1.6)
    assert not waiting.done()
    assert not holding.done()
    holding.cancel()
    waiting.cancel()


async def test_rule_5_a_release_is_seen_at_once_and_nobody_polls(cluster: FakeCluster) -> None:
    first = election(cluster, "a", duration=3600)
    await first.acquire()
    waiting = asyncio.create_task(election(cluster, "b", duration=3600).acquire())
    await until(lambda: cluster.watching(LEASES) == 1)
    asked = len(cluster.calls)
    await asyncio.sleep(0.1)
    assert len(cluster.calls) == asked
    await first.release()
    async with asyncio.timeout(1):
        assert await waiting == 2


async def test_rule_4_a_leader_cut_off_knows_that_it_has_lost(cluster: FakeCluster) -> None:
    first = election(cluster, "a", duration=0.6, renew=0.05)
    await first.acquire()
    cluster.fail(ApiError(0, "Unreachable", "no route"), resource=LEASES, times=10_000)
    started = asyncio.get_running_loop().time()
    with pytest.raises(LeadershipLost, match="in time"):
        await first.hold()
    assert asyncio.get_running_loop().time() - started < 0.6


async def test_a_lost_right_is_told_at_once(cluster: FakeCluster) -> None:
    first = election(cluster, "a", duration=3600, renew=0.01)
    await first.acquire()
    cluster.fail(ApiError(403, "Forbidden", "no"), resource=LEASES)
    with pytest.raises(LeadershipLost, match="no"):
        await first.hold()


async def test_acquire_outlasts_a_server_that_is_starting(cluster: FakeCluster) -> None:
    cluster.fail(ApiError(503, "ServiceUnavailable", "starting"), resource=LEASES)
    assert await election(cluster, "a").acquire() == 1


async def test_releasing_what_is_not_ours_any_more_does_no_harm(cluster: FakeCluster) -> None:
    first = election(cluster, "a", duration=1.0)
    await first.acquire()
    await election(cluster, "a", duration=1.0).acquire()
    await first.release()
    assert holder(cluster)[0] == "a"
