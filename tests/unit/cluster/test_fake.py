# SPDX-License-Identifier: Apache-2.0
"""The knobs of the cluster in memory, and what only it promises."""

from datetime import UTC, datetime

import pytest

from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.faults import Crash
from flashjob.cluster.kubeapi import ApiError
from flashjob.cluster.resources import CONFIG_MAPS, FLASHJOBS, FLASHTASKS, PODS
from tests.clusters import fake_cluster
from tests.objects import flashjob, flashtask

NS = "default"


async def test_the_nth_call_fails_and_the_next_does_not(cluster: FakeCluster) -> None:
    cluster.fail(ApiError(500, "InternalError", "x"), verb="create", resource=CONFIG_MAPS, skip=1)
    await cluster.create(CONFIG_MAPS, NS, {"metadata": {"name": "a"}})
    with pytest.raises(ApiError):
        await cluster.create(CONFIG_MAPS, NS, {"metadata": {"name": "b"}})
    await cluster.create(CONFIG_MAPS, NS, {"metadata": {"name": "b"}})
    assert cluster.faults == []


async def test_a_crash_before_and_after_the_effect(cluster: FakeCluster) -> None:
    cluster.crash()
    with pytest.raises(Crash):
        await cluster.create(CONFIG_MAPS, NS, {"metadata": {"name": "a"}})
    assert cluster.all(CONFIG_MAPS) == []
    cluster.crash(after=True)
    with pytest.raises(Crash):
        await cluster.create(CONFIG_MAPS, NS, {"metadata": {"name": "a"}})
    assert len(cluster.all(CONFIG_MAPS)) == 1


async def test_a_scheduled_pod_ends_gracefully(cluster: FakeCluster) -> None:
    await cluster.create(PODS, NS, {"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": []}})
    await cluster.delete(PODS, NS, "p")
    (pod,) = cluster.all(PODS)
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 30
    await cluster.patch_status(PODS, NS, "p", {"phase": "Failed"}, field_manager="kubelet")
    assert len(cluster.all(PODS)) == 1
    await cluster.delete(PODS, NS, "p", grace_seconds=0)
    assert cluster.all(PODS) == []


async def test_an_unscheduled_or_ended_pod_goes_at_once(cluster: FakeCluster) -> None:
    await cluster.create(PODS, NS, {"metadata": {"name": "p"}, "spec": {"containers": []}})
    await cluster.delete(PODS, NS, "p")
    await cluster.create(PODS, NS, {"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": []}})
    await cluster.patch_status(PODS, NS, "p", {"phase": "Succeeded"}, field_manager="kubelet")
    await cluster.delete(PODS, NS, "p")
    assert cluster.all(PODS) == []


async def test_children_may_outlive_their_owner_for_a_while() -> None:
    cluster = fake_cluster(collect=False)
    owner = await cluster.create(FLASHJOBS, NS, flashjob("j"))
    reference = {
        "apiVersion": "flashjob.dev/v1alpha1",
        "kind": "FlashJob",
        "name": "j",
        "uid": owner["metadata"]["uid"],
    }
    child = flashtask("t")
    child["metadata"]["ownerReferences"] = [reference]
    await cluster.create(FLASHTASKS, NS, child)
    await cluster.delete(FLASHJOBS, NS, "j")
    await cluster.create(FLASHJOBS, NS, flashjob("j"))
    assert len(cluster.all(FLASHTASKS)) == 1
    assert cluster.collect_garbage() == 1
    assert cluster.all(FLASHTASKS) == []


async def test_the_clock_is_an_argument() -> None:
    cluster = fake_cluster(now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    made = await cluster.create(CONFIG_MAPS, NS, {"metadata": {"generateName": "x-"}})
    assert made["metadata"]["creationTimestamp"] == "2026-01-02T03:04:05Z"
    assert made["metadata"]["name"].startswith("x-")


async def test_what_is_handed_out_is_a_copy(cluster: FakeCluster) -> None:
    made = await cluster.create(CONFIG_MAPS, NS, {"metadata": {"name": "a"}, "data": {"k": "v"}})
    made["data"]["k"] = "changed"
    assert (await cluster.get(CONFIG_MAPS, NS, "a"))["data"] == {"k": "v"}


async def test_calls_are_counted(cluster: FakeCluster) -> None:
    await cluster.create(FLASHTASKS, NS, flashtask("t"))
    await cluster.patch_status(FLASHTASKS, NS, "t", {"phase": "Writing"}, field_manager="x")
    assert [(call.verb, call.name, call.subresource) for call in cluster.calls] == [
        ("create", "t", ""),
        ("patch", "t", "status"),
    ]
