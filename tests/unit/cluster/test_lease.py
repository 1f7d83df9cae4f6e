# SPDX-License-Identifier: Apache-2.0
"""The lock of a device: one Lease per id, a fence that only rises, and two takers of whom one wins."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.kubeapi import ApiError
from flashjob.cluster.lease import DeviceLease, adopt, ensure, lease_name, take
from flashjob.cluster.resources import LEASES
from flashjob.errors import FlashJobError
from flashjob.wire.lock import Holder
from tests.objects import DEVICE_ID

NOW = "2026-01-02T03:04:05.000000Z"


def test_rule_1_the_name_is_a_function_of_the_id() -> None:
    assert lease_name("abc") == "fj-xj4bnp4pahh6uqkbidpf3lrceoyagynd"
    assert lease_name(DEVICE_ID) == lease_name(DEVICE_ID) != lease_name("01" + "22" * 32)
    assert len(lease_name(DEVICE_ID)) == 35


async def test_rule_2_a_second_device_of_one_id_is_a_conflict(cluster: FakeCluster) -> None:
    first = await ensure(cluster, "system", DEVICE_ID, "default/a")
    assert await ensure(cluster, "system", DEVICE_ID, "default/a") == first
    with pytest.raises(FlashJobError, match=r"default/a.*other/a") as caught:
        await ensure(cluster, "system", DEVICE_ID, "other/a")
    assert caught.value.reason == "IdentityConflict"
    assert len(cluster.all(LEASES)) == 1


async def test_rules_3_and_4_every_take_is_a_new_fence(cluster: FakeCluster) -> None:
    lease = await ensure(cluster, "system", DEVICE_ID, "default/a")
    assert (lease.holder, lease.transitions) == (None, 0)
    first = await take(cluster, lease, Holder("default", "t", 1), NOW)
    assert (first.holder, first.transitions, first.acquire_time) == (Holder("default", "t", 1), 1, NOW)
    second = await take(cluster, first, Holder("default", "t", 1), NOW)
    assert second.transitions == 2
    assert second == DeviceLease.read(cluster.all(LEASES)[0])


async def test_rule_3_of_two_takers_one_wins(cluster: FakeCluster) -> None:
    lease = await ensure(cluster, "system", DEVICE_ID, "default/a")
    results = await asyncio.gather(
        *(take(cluster, lease, Holder("default", f"t{n}", 1), NOW) for n in range(4)), return_exceptions=True
    )
    assert sum(isinstance(result, DeviceLease) for result in results) == 1
    assert all(result.conflict for result in results if isinstance(result, ApiError))


async def test_a_successor_inherits_holder_and_fence(cluster: FakeCluster) -> None:
    lease = await ensure(cluster, "system", DEVICE_ID, "default/old")
    held = await take(cluster, lease, Holder("default", "t", 3), NOW)
    adopted = await adopt(cluster, held, "default/new")
    assert adopted.device == "default/new"
    assert (adopted.holder, adopted.transitions, adopted.acquire_time) == (held.holder, 1, NOW)
    assert await ensure(cluster, "system", DEVICE_ID, "default/new") == adopted


async def test_a_foreign_lease_is_not_read_as_ours(cluster: FakeCluster) -> None:
    made = await cluster.create(LEASES, "system", {"metadata": {"name": "kube-scheduler"}, "spec": {}})
    with pytest.raises(ValueError, match="names no Device"):
        DeviceLease.read(made)


@pytest.mark.parametrize("text", ["a", "a/b", "a/b/c", "a/b/1/2"])
async def test_a_lease_held_by_somebody_unknown_is_not_read_as_free(cluster: FakeCluster, text: str) -> None:
    lease = {
        "metadata": {"name": "fj-x", "annotations": {"flashjob.dev/device": "ns/d"}},
        "spec": {"holderIdentity": text},
    }
    made = await cluster.create(LEASES, "system", lease)
    with pytest.raises(ValueError, match="no task attempt"):
        DeviceLease.read(made)


names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)


@given(names, names, st.integers(1, 100))
def test_a_holder_reads_back(namespace: str, task: str, attempt: int) -> None:
    holder = Holder(namespace, task, attempt)
    assert Holder.parse(str(holder)) == holder
    assert Holder.parse("") is None
