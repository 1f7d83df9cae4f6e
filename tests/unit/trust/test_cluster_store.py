# SPDX-License-Identifier: Apache-2.0
"""Trust on the cluster: what is enrolled, what may run, what is in hand; judged by the real verifier on real evidence."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from attestation import keys
from attestation.anchors import AnchorStore, DeviceState, Floors, PolicyStore
from attestation.errors import Code
from attestation.policy import AttestationPolicySpec, Measurement, RootOfTrust
from attestation.verdict import IssuedNonce, Verdict
from attestation.verifier import verify
from flashjob.api.crds import structural_schema
from flashjob.api.device import Device
from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.resources import ATTESTATION_POLICIES, DEVICES, FLASHTASKS, Obj
from flashjob.cluster.structural import problems
from flashjob.trust.cluster_store import ClusterTrust
from flashjob.trust.records import read_device
from flashjob.wire.base import b64url
from flashjob.wire.clock import seconds
from tests.clusters import fake_cluster, until
from tests.objects import device, flashtask, target
from tests.unit.attestation.world import AUDIENCE, NOW, RING, Minted, digest, policy, rejects

NS = "default"
PHONE = Minted()
ID = PHONE.ueid.hex()


def anchor(phone: Minted) -> dict[str, str]:
    return {"coseKey": b64url(keys.encode_cose(phone.key("uds").public_key()))}


def enrolled(name: str = "d", phone: Minted = PHONE, **spec: Any) -> Obj:
    return device(name, device_id=phone.ueid.hex(), **{"trustAnchor": anchor(phone), **spec})


def policy_object(spec: AttestationPolicySpec, name: str = "default") -> Obj:
    content = json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"metadata": {"name": name}, "spec": content}


def pins(measurement: Measurement) -> list[dict[str, Any]]:
    return [{"scheme": "esp-image", "alg": measurement.alg, "value": measurement.value.hex()}]


class World:
    """A cluster and the trust that follows it."""

    def __init__(self) -> None:
        self.cluster = fake_cluster()
        self.trust = ClusterTrust(self.cluster, NS)
        self.changed: list[str] = []
        self.trust.subscribe(self.changed.append)

    async def settle(self) -> None:
        """Until the caches hold what the cluster holds."""

        def same() -> bool:
            caches = (self.trust.devices, self.trust.policies, self.trust.tasks)
            return all(
                {key: seen.version for key, seen in cache._seen.items()}
                == {
                    (obj["metadata"]["namespace"], obj["metadata"]["name"]): obj["metadata"]["resourceVersion"]
                    for obj in self.cluster.all(cache.resource, NS)
                }
                for cache in caches
            )

        await self.trust.wait_ready()
        await until(same)

    def judge(self, phone: Minted = PHONE) -> Verdict:
        context = self.trust.context(phone.ueid.hex(), IssuedNonce(RING, AUDIENCE), NOW)
        return verify(phone.evidence(), context)

    async def task(self, name: str = "t", code: str = "app 2.0") -> None:
        pinned = target(measurements=pins(Measurement.of_hash(digest(code))))
        await self.cluster.create(FLASHTASKS, NS, flashtask(name, device_id=ID, target=pinned))

    async def status(self, resource: Any, name: str, status: Obj) -> None:
        await self.cluster.patch_status(resource, NS, name, status, field_manager="t")
        await self.settle()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.cluster.create(DEVICES, NS, enrolled())
    await world.cluster.create(ATTESTATION_POLICIES, NS, policy_object(policy(PHONE)))
    running = asyncio.create_task(world.trust.run())
    await world.settle()
    yield world
    running.cancel()


def permit(attempt: int) -> dict[str, Any]:
    return {"attempt": attempt, "grantId": f"{attempt:032x}", "fence": attempt, "at": "2026-01-02T03:04:05Z"}


def verdict(attempt: int, outcome: str = "Rejected") -> dict[str, Any]:
    return {"attempt": attempt, "outcome": outcome, "reason": "MeasurementMismatch", "at": "2026-01-02T03:04:05Z"}


async def test_it_is_what_the_verifier_asks_for(world: World) -> None:
    anchors: AnchorStore = world.trust
    policies: PolicyStore = world.trust
    found = anchors.by_ueid(PHONE.ueid)
    assert found is not None
    assert (found.tier, found.policy, found.state) == (RootOfTrust.SIGNED_BOOT, "default/default", DeviceState.ACTIVE)
    assert len(set(found.anchor_ids)) == 2
    assert [anchors.by_anchor_id(form) for form in found.anchor_ids] == [found, found]
    assert anchors.by_anchor_id(bytes(20)) is None
    assert policies.policy(found.policy) == policy(PHONE)
    assert policies.policy("default/other") is None
    assert policies.policy("other/default") is None


async def test_honest_evidence_is_accepted_and_a_stranger_is_not(world: World) -> None:
    assert world.judge().accepted
    stranger = world.judge(Minted(seed=b"somebody else"))
    assert (stranger.accepted, stranger.code) == (False, Code.DEVICE_UNKNOWN)


def test_rule_1_nothing_can_be_told_before_the_caches_are_filled() -> None:
    trust = ClusterTrust(FakeCluster(), NS)
    for ask in (
        lambda: trust.by_ueid(PHONE.ueid),
        lambda: trust.by_anchor_id(bytes(20)),
        lambda: trust.policy("default/default"),
        lambda: trust.floors(PHONE.ueid),
        lambda: trust.live_tasks(ID),
        lambda: trust.context(ID, IssuedNonce(RING, AUDIENCE), NOW),
    ):
        rejects(Code.STORE_UNAVAILABLE, ask)


async def test_rule_2_an_id_enrolled_twice_is_nobodys_until_one_goes(world: World) -> None:
    await world.cluster.create(DEVICES, NS, enrolled("twin"))
    await world.settle()
    reject = rejects(Code.STORE_INVALID, lambda: world.trust.by_ueid(PHONE.ueid))
    assert "IdentityConflict" in str(reject)
    assert "default/d, default/twin" in str(reject)
    rejects(Code.STORE_INVALID, lambda: world.judge())
    await world.cluster.delete(DEVICES, NS, "twin")
    await world.settle()
    assert world.judge().accepted


async def test_rule_3_an_anchor_of_another_key_holds_nothing(world: World) -> None:
    other = Minted(seed=b"other")
    await world.cluster.create(DEVICES, NS, enrolled("x", other, trustAnchor=anchor(PHONE)))
    await world.settle()
    known = world.trust.device(other.ueid.hex())
    assert known is not None
    assert known.anchor is None
    assert "does not belong to the key" in known.problem
    reject = rejects(Code.STORE_INVALID, lambda: world.trust.by_ueid(other.ueid))
    assert "default/x" in str(reject)
    assert world.judge().accepted  # the device whose key was borrowed is not harmed


async def test_rule_3_an_unreadable_policy_is_not_a_missing_one(world: World) -> None:
    bad = policy_object(policy(PHONE))
    bad["spec"]["application"]["measurements"][0]["alg"] = -16  # passes the schema; only CEL or the model can tell
    await world.cluster.create(ATTESTATION_POLICIES, NS, {**bad, "metadata": {"name": "bad"}})
    await world.settle()
    reject = rejects(Code.POLICY_INVALID, lambda: world.trust.policy("default/bad"))
    assert "not the length of algorithm" in str(reject)


async def test_a_device_without_anchor_cannot_attest(world: World) -> None:
    plain = device("plain", device_id="aabbccdd")
    del plain["spec"]["trustAnchor"]
    await world.cluster.create(DEVICES, NS, plain)
    await world.settle()
    assert world.trust.device("aabbccdd") is not None
    assert world.trust.by_ueid(bytes.fromhex("aabbccdd")) is None


async def test_a_suspended_device_is_not_believed(world: World) -> None:
    await world.cluster.patch(DEVICES, NS, "d", {"spec": {"suspended": True}}, field_manager="t")
    await world.settle()
    assert world.judge().code == Code.DEVICE_SUSPENDED


async def test_a_measurement_is_acceptable_by_policy_by_confirmation_or_by_a_live_task(world: World) -> None:
    phone = Minted(code="app 3.0")
    three = phone.measurement
    assert not world.judge(phone).accepted

    await world.task("t", "app 3.0")
    await world.settle()
    assert world.trust.pinned(ID) == {three}
    assert world.judge(phone).accepted
    await world.status(FLASHTASKS, "t", {"phase": "Failed"})
    assert world.trust.pinned(ID) == frozenset()
    assert not world.judge(phone).accepted

    firmware = {"measurements": pins(three), "confirmedAt": "2026-01-02T03:04:05Z"}
    await world.status(DEVICES, "d", {"firmware": firmware})
    assert tuple(world.trust.confirmed(PHONE.ueid)) == (three,)
    assert world.judge(phone).accepted

    denied = policy_object(policy(PHONE))
    denied["spec"]["deny"]["measurements"] = [{"alg": three.alg, "value": three.value.hex()}]
    await world.cluster.patch(ATTESTATION_POLICIES, NS, "default", denied, field_manager="t")
    await world.settle()
    assert not world.judge(phone).accepted


async def test_floors_are_read_and_hold(world: World) -> None:
    assert world.trust.floors(PHONE.ueid) == Floors()
    await world.status(DEVICES, "d", {"floors": {"securityVersion": 4, "sequence": 9, "bootCount": 2}})
    assert world.trust.floors(PHONE.ueid) == Floors(4, 9, 2)
    assert not world.judge().accepted
    assert world.judge(replace(PHONE, secure_version=4)).accepted


async def test_a_device_is_in_hand_from_permit_to_verdict(world: World) -> None:
    await world.task()
    await world.settle()
    assert [task.name for task in world.trust.live_tasks(ID)] == ["t"]
    assert not world.trust.in_hand(ID)
    await world.status(FLASHTASKS, "t", {"report": {"permits": [permit(1)]}})
    assert world.trust.in_hand(ID)
    await world.status(FLASHTASKS, "t", {"report": {"verdict": verdict(1)}})
    assert not world.trust.in_hand(ID)
    await world.status(FLASHTASKS, "t", {"report": {"permits": [permit(1), permit(2)]}})
    assert world.trust.in_hand(ID)
    assert world.trust.live_tasks(ID)[0].grant_ids == {f"{1:032x}", f"{2:032x}"}
    await world.status(FLASHTASKS, "t", {"phase": "Failed"})
    assert not world.trust.in_hand(ID)
    assert world.trust.live_tasks(ID) == ()


async def test_a_task_that_is_being_deleted_pins_nothing(world: World) -> None:
    await world.task()
    hold = {"metadata": {"finalizers": ["flashjob.dev/finalizer"]}}
    await world.cluster.patch(FLASHTASKS, NS, "t", hold, field_manager="t")
    await world.cluster.delete(FLASHTASKS, NS, "t")
    await world.settle()
    assert world.trust.live_tasks(ID) == ()


async def test_whoever_subscribed_hears_which_device_changed(world: World) -> None:
    other = Minted(seed=b"other")
    await world.cluster.create(DEVICES, NS, enrolled("other", other, policyRef={"name": "second"}))
    await world.settle()
    world.changed.clear()
    await world.task()
    await world.settle()
    assert world.changed == [ID]
    world.changed.clear()
    narrower = {"spec": {"nonceTtlSeconds": 60}}
    await world.cluster.patch(ATTESTATION_POLICIES, NS, "default", narrower, field_manager="t")
    await world.settle()
    assert world.changed == [ID]
    world.changed.clear()
    await world.cluster.delete(DEVICES, NS, "other")
    await world.settle()
    assert world.changed == [other.ueid.hex()]
    assert world.trust.device(other.ueid.hex()) is None


@pytest.mark.parametrize(
    ("release", "quarantined"),
    [
        (None, "MeasurementMismatch"),
        ("2026-01-02T03:04:04Z", "MeasurementMismatch"),
        ("2026-01-02T03:04:05Z", "MeasurementMismatch"),
        ("2026-01-02T03:04:05.500001Z", ""),
        ("2026-01-02T03:04:06Z", ""),
        ("2026-01-02T03:04:07Z", ""),
        ("2026-01-02T03:04:08Z", "MeasurementMismatch"),
    ],
)
def test_a_release_ends_only_the_quarantine_that_began_before_it(release: str | None, quarantined: str) -> None:
    obj = enrolled()
    obj["metadata"]["namespace"] = NS
    obj["status"] = {"quarantine": {"reason": "MeasurementMismatch", "since": "2026-01-02T03:04:05.5Z"}}
    if release:
        obj["spec"]["releaseFromQuarantine"] = {"by": "ada", "reason": "examined", "at": release}
    assert list(problems(structural_schema(Device), obj)) == []
    found = read_device(obj).withheld(seconds("2026-01-02T03:04:07Z"))
    assert (found.cause.code if found else "") == quarantined
