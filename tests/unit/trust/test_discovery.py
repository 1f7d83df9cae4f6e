# SPDX-License-Identifier: Apache-2.0
"""What the discovery handler is told by the cluster, and what it writes there."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from attestation import eat, keys
from attestation.discovery.details import Transport, parse_details
from attestation.discovery.enrolled import EnrolledDevice, Look
from attestation.discovery.rules import judge as judge_listing
from attestation.errors import Code, Reject
from flashjob.api.device import MOST_BOOTS, Device, DeviceStatus
from flashjob.cluster.faults import Call
from flashjob.cluster.kubeapi import ApiError
from flashjob.cluster.resources import ATTESTATION_POLICIES, CONFIGURATIONS, DEVICES, FLASHTASKS
from flashjob.sandbox.akri.instances import device_hash
from flashjob.trust.cluster_store import ClusterTrust
from flashjob.trust.discovery import ClusterEnrolment, Configurations, DeviceReports
from flashjob.wire.base import b64url
from tests.clusters import fake_cluster, until
from tests.objects import device, flashtask
from tests.unit.attestation.world import NOW, Minted, judge
from tests.unit.discovery.test_rules import answer

NS = "default"
PHONE = Minted()
ID = PHONE.ueid.hex()
ANCHOR = {"coseKey": b64url(keys.encode_cose(PHONE.key("uds").public_key()))}


def look(phone: Minted = PHONE, *, endpoint: str = "192.0.2.7:80", **context: Any) -> Look:
    judged, listing = judge_listing(answer(), judge(phone, **context))
    return Look(ID, endpoint, judged, listing)


class World:
    def __init__(self) -> None:
        self.cluster = fake_cluster()
        self.trust = ClusterTrust(self.cluster)
        self.enrolment = ClusterEnrolment(self.trust, lambda: self.now)
        self.configurations = Configurations(self.cluster, Transport.NETWORK, "node-a")
        self.now = 1_800_000_000.0
        self.reports = DeviceReports(self.cluster, self.trust, self.configurations, lambda: self.now)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for work in (self.trust.run(), self.configurations.reflector.run(), self.reports.run()):
                group.create_task(work)

    async def configure(self, name: str, details: str, handler: str = "flashjob-network") -> None:
        asked = {"name": handler, "discoveryDetails": details}
        body = {"metadata": {"name": name}, "spec": {"discoveryHandler": asked}}
        await self.cluster.create(CONFIGURATIONS, NS, body)
        await until(lambda: self.configurations.reflector.get(NS, name) is not None)

    @property
    def status(self) -> Any:
        (obj,) = self.cluster.all(DEVICES)
        return Device.parse(obj).status

    def writes(self) -> int:
        mine: list[Call] = [c for c in self.cluster.calls if (c.resource, c.subresource) == (DEVICES, "status")]
        return len(mine)

    async def wrote(self, count: int) -> None:
        """All that is to be written is written, in this many requests."""
        await until(lambda: self.writes() >= count)
        for _ in range(200):
            await asyncio.sleep(0)
        assert self.writes() == count


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    spec: dict[str, Any] = {"trustAnchor": ANCHOR, "connection": {"network": {"address": "192.0.2.7:80"}}}
    await world.cluster.create(DEVICES, NS, device("d", device_id=ID, **spec))
    running = asyncio.create_task(world.run())
    await world.trust.wait_ready()
    await world.configurations.reflector.synced.wait()
    yield world
    running.cancel()


async def test_what_is_enrolled(world: World) -> None:
    assert world.enrolment.device(ID) == EnrolledDevice(ID, address="192.0.2.7:80")
    assert world.enrolment.device("00" * 33) is None
    hardware: dict[str, Any] = {
        "hardware": {"chip": "esp32s3"},
        "connection": {"serial": {"match": {"UDEV_DEVPATH": "/virtual/e"}}},
    }
    other = "01" + "22" * 32
    await world.cluster.create(DEVICES, NS, device("e", device_id=other, **hardware))
    await until(lambda: world.enrolment.device(other) is not None)
    found = world.enrolment.device(other)
    assert found == EnrolledDevice(other, port={"UDEV_DEVPATH": "/virtual/e"}, chip="esp32s3")
    assert {one.id for one in world.enrolment.devices()} == {ID, other}


async def test_rule_1_quarantine_and_tasks(world: World) -> None:
    heard: list[str] = []
    world.enrolment.subscribe(heard.append)
    quarantine = {"reason": "BootIdMismatch", "since": "2026-01-01T00:00:00Z"}
    await world.cluster.patch_status(DEVICES, NS, "d", {"quarantine": quarantine}, field_manager="o")
    await until(lambda: heard)
    enrolled = world.enrolment.device(ID)
    assert enrolled is not None
    assert enrolled.withheld == "in quarantine since 2026-01-01T00:00:00Z: BootIdMismatch"
    early = {"by": "ann", "reason": "looked at", "at": "2099-01-01T00:00:00Z"}
    await world.cluster.patch(DEVICES, NS, "d", {"spec": {"releaseFromQuarantine": early}}, field_manager="ann")
    await until(lambda: "yet to come" in getattr(world.enrolment.device(ID), "withheld", ""))
    await world.cluster.create(FLASHTASKS, NS, flashtask("t", device_id=ID))
    one = {"attempt": 1, "grantId": "1" * 32, "fence": 1, "at": "2026-01-01T00:00:00Z"}
    await world.cluster.patch_status(FLASHTASKS, NS, "t", {"report": {"permits": [one]}}, field_manager="g")
    await until(lambda: (found := world.enrolment.device(ID)) is not None and found.in_hand)


@pytest.mark.parametrize("written", ["before", "after"])
async def test_rule_1_of_a_release_that_is_yet_to_come_it_is_told_again_at_its_time(world: World, written: str) -> None:
    """Before or after somebody subscribed; told too early it is told once more."""
    heard: list[str] = []
    quarantine = {"quarantine": {"reason": "BootIdMismatch", "since": "2026-01-01T00:00:00Z"}}
    await world.cluster.patch_status(DEVICES, NS, "d", quarantine, field_manager="o")
    await until(lambda: getattr(world.enrolment.device(ID), "withheld", ""))
    if written == "after":
        world.enrolment.subscribe(heard.append)
    release = {"by": "ann", "reason": "her clock is fast", "at": "2027-01-15T08:00:00.050000Z"}
    await world.cluster.patch(DEVICES, NS, "d", {"spec": {"releaseFromQuarantine": release}}, field_manager="ann")
    await until(lambda: "yet to come" in getattr(world.enrolment.device(ID), "withheld", ""))
    if written == "before":
        world.enrolment.subscribe(heard.append)
    heard.clear()
    await until(lambda: heard == [ID])
    assert getattr(world.enrolment.device(ID), "withheld", ""), "this world's clock stands still"
    world.now += 1
    await until(lambda: heard == [ID, ID])
    assert getattr(world.enrolment.device(ID), "withheld", None) == ""


async def test_an_id_that_two_devices_claim_is_nobodys(world: World) -> None:
    await world.cluster.create(DEVICES, NS, device("twin", device_id=ID, trustAnchor=ANCHOR))
    await until(lambda: len(world.trust.devices) == 2)
    with pytest.raises(Reject) as caught:
        world.enrolment.device(ID)
    assert caught.value.code is Code.STORE_INVALID
    assert tuple(world.enrolment.devices()) == ()
    world.reports.saw(look())
    await world.wrote(0)


async def test_rule_2_only_what_is_new_is_written(world: World) -> None:
    world.reports.saw(look())
    await world.wrote(1)
    state = world.status.attestation
    assert (state.accepted, state.application, state.version, state.boot_count) == (True, "porch", "2.0.0", 12)
    assert world.status.endpoint == "192.0.2.7:80"
    world.now += 60
    world.reports.saw(look())
    await world.wrote(1)
    world.reports.saw(look(replace(PHONE, boot_count=13)))
    await world.wrote(2)
    world.reports.saw(Look(ID))  # withdrawn: nothing new is known, and the last verdict stays
    await world.wrote(2)
    assert world.status.attestation.boot_count == 13


async def test_rule_2_a_rejection_replaces_every_claim(world: World) -> None:
    world.reports.saw(look())
    await world.wrote(1)
    world.reports.saw(look(policy=None))
    await world.wrote(2)
    state = world.status.attestation
    assert (state.accepted, state.code) == (False, "policy.missing")
    assert (state.measurement, state.boot_count, state.policy_hash, state.slot_state) == (None, None, None, "")


async def test_rule_2_two_devices_with_one_identity_are_withheld_until_released(world: World) -> None:
    await world.configure("devices", "{list: Devices}")
    world.reports.saw(look(Minted(boot_count=7)))
    await world.wrote(1)
    heard: list[str] = []
    world.enrolment.subscribe(heard.append)
    world.now += 60
    twin = look(Minted(boot_count=6))
    assert twin.judged is not None
    world.reports.saw(replace(twin, judged=replace(twin.judged, asked_at=int(world.now))))
    await world.wrote(2)
    assert (world.status.attestation.accepted, world.status.attestation.code) == (False, "clone.bootcount")
    assert world.status.instance is None
    await until(lambda: heard)
    enrolled = world.enrolment.device(ID)
    assert enrolled is not None
    assert enrolled.withheld == "two devices seem to share its identity, seen at 2027-01-15T08:01:00Z: clone.bootcount"
    world.now += 60
    world.reports.saw(look(Minted(boot_count=8)))
    for _ in range(200):
        await asyncio.sleep(0)
    assert world.status.attestation.code == "clone.bootcount", "it stands until somebody releases the device"
    release = {"by": "ann", "reason": "one of the two is taken away", "at": "2027-01-15T08:02:00Z"}
    await world.cluster.patch(DEVICES, NS, "d", {"spec": {"releaseFromQuarantine": release}}, field_manager="ann")
    await until(lambda: (found := world.enrolment.device(ID)) is not None and not found.withheld)
    world.reports.saw(look(Minted(boot_count=8)))
    await until(lambda: world.status.attestation.accepted)


def seen(count: int, seed: bytes, at: int) -> Look:
    """A look at a boot that proved itself, `at` seconds after the first."""
    phone = Minted(boot_count=count)
    judged = judge(phone, phone.evidence(token=phone.token({eat.BOOTSEED: seed})))
    said, listing = judge_listing(replace(answer(), unix=NOW + at), judged)
    return Look(ID, "192.0.2.7:80", said, listing)


async def test_rule_2_devices_that_take_turns_with_a_seed_each_are_told_apart(world: World) -> None:
    for number, (count, seed) in enumerate([(5, b"a" * 16), (6, b"b" * 16), (7, b"a" * 16)], 1):
        world.reports.saw(seen(count, seed, number))
        await world.wrote(number)
    assert world.status.attestation.code == "clone.seed", "each look is honest beside the one before it"
    assert world.status.boots is None


async def test_rule_2_a_look_that_proves_nothing_erases_no_boot(world: World) -> None:
    world.reports.saw(seen(5, b"a" * 16, 1))
    await world.wrote(1)
    before = world.status.boots
    assert before.seen == (f"5:{hashlib.sha256(b'a' * 16).hexdigest()[:12]}",)
    world.reports.saw(look(evidence=b"junk"))
    await world.wrote(2)
    assert (world.status.attestation.boot_count, world.status.boots) == (None, before)
    world.reports.saw(seen(5, b"b" * 16, 2))
    await world.wrote(3)
    assert world.status.attestation.code == "clone.seed"


async def test_rule_2_boots_are_few_and_the_same_boot_is_not_written_again(world: World) -> None:
    for count in range(1, MOST_BOOTS + 3):
        world.reports.saw(seen(count, bytes([count]) * 16, count))
        await world.wrote(count)
    assert [int(one.split(":")[0]) for one in world.status.boots.seen] == [3, 4, 5, 6]
    world.reports.saw(seen(6, bytes([6]) * 16, 99))
    await world.wrote(6)


def test_a_full_status_has_room_for_the_boots() -> None:
    """At most 2 KB, with names as long as people give them."""
    at, digits = "2026-01-02T03:04:05Z", "a" * 64
    sha512 = {"scheme": "esp-image", "alg": -44, "value": digits * 2}
    outcome = {
        "task": "spring-abcdefghijklmnop",
        "phase": "Succeeded",
        "reason": "Proven",
        "version": "2.14.3",
        "at": at,
    }
    status = {
        "hardware": {"chip": "esp32c3", "revision": 4, "flashSize": 1 << 22, "mac": "aa:bb:cc:dd:ee:ff",
                     "secureBoot": True, "flashEncryption": True, "slotSize": 1900544},
        "firmware": {"repository": "registry.example.com/team/porch-sensor", "digest": f"sha256:{digits}",
                     "application": "porch-sensor", "version": "2.14.3", "sequence": 214, "bootId": digits[:32],
                     "measurements": [{**sha512, "alg": -16, "value": digits}, sha512], "confirmedAt": at},
        "attestation": {"accepted": True, "message": "all rules hold", "application": "porch-sensor",
                        "version": "2.14.3", "measurement": sha512, "slotState": "VALID", "bootCount": 123456,
                        "policyHash": digits, "at": at},
        "boots": {"at": at, "seen": ["123456:" + digits[:12]] * MOST_BOOTS},
        "floors": {"securityVersion": 3, "sequence": 214, "bootCount": 123400},
        "outcomes": [outcome] * 3,
        "instance": {"name": "porches-abc123", "configuration": "porches"},
        "endpoint": "https://192.168.100.100:8443",
    }  # fmt: skip
    assert len(json.dumps(DeviceStatus.parse(status).dump())) <= 2048


async def test_rule_3_the_instance_is_named_as_akri_names_it(world: World) -> None:
    await world.configure("z-any", "list: Devices")
    await world.configure("b-porch", "{list: Devices, applications: [porch]}")
    await world.configure("a-garden", "{list: Devices, applications: [garden]}")
    await world.configure("a-broken", "list: Everything")
    await world.configure("a-foreign", "list: Devices", handler="udev")
    world.reports.saw(look())
    await world.wrote(1)
    assert world.status.instance.configuration == "b-porch"
    shared = Configurations(world.cluster, Transport.SERIAL, "node-a")
    assert shared.instance(ID, "porch") is None
    await world.cluster.delete(CONFIGURATIONS, NS, "b-porch")
    await world.wrote(2)  # without a new look
    assert world.status.instance.configuration == "z-any"
    world.reports.saw(Look(ID))
    await world.wrote(3)
    assert world.status.instance is None


@pytest.mark.parametrize("shared", [True, False])
async def test_rule_3_the_same_name_as_the_agents(shared: bool) -> None:
    cluster = fake_cluster()
    transport = Transport.NETWORK if shared else Transport.SERIAL
    details = "list: Devices" if shared else "{list: Devices, serial: {ports: [/dev/x]}}"
    configurations = Configurations(cluster, transport, "node-a")
    body = {
        "metadata": {"name": "c"},
        "spec": {"discoveryHandler": {"name": transport.handler_name, "discoveryDetails": details}},
    }
    await cluster.create(CONFIGURATIONS, NS, body)
    running = asyncio.create_task(configurations.reflector.run())
    await configurations.reflector.synced.wait()
    found = configurations.instance("dev_1", "porch")
    assert found is not None
    assert found.name == f"c-{device_hash('dev_1', 'node-a', shared=shared)}"
    assert (found.name == "c-cb2ad7") is shared
    running.cancel()


async def test_rule_4_what_cannot_be_written_is_written_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashjob.trust.discovery._FIRST_PAUSE_SECONDS", 0.01)
    world.cluster.fail(ApiError(0, "Unreachable", "no answer"), verb="patch", resource=DEVICES, times=2)
    world.reports.saw(look())
    world.reports.saw(look(replace(PHONE, boot_count=44)))
    async with asyncio.timeout(5):
        while world.status.attestation is None:
            await asyncio.sleep(0.01)
    assert world.status.attestation.boot_count == 44
    await world.wrote(3)


async def test_rule_4_a_refusal_is_not_repeated(world: World) -> None:
    world.cluster.fail(ApiError(403, "Forbidden", "no right"), verb="patch", resource=DEVICES)
    world.reports.saw(look())
    await world.wrote(1)
    assert world.status.attestation is None


async def test_wake_touches_only_its_own(world: World) -> None:
    await world.configure("mine", "nonsense")
    await world.configure("other", "list: Devices", handler="udev")
    world.cluster.fail(ApiError(409, "Conflict", "busy"), verb="patch", resource=CONFIGURATIONS, name="mine")
    await world.configurations.wake()
    await world.configurations.wake()
    touched = [c["metadata"]["name"] for c in world.cluster.all(CONFIGURATIONS) if c["metadata"].get("annotations")]
    assert touched == ["mine"]
    assert ATTESTATION_POLICIES not in {call.resource for call in world.cluster.calls if call.verb == "patch"}


async def test_what_can_be_followed_is_wanted(world: World) -> None:
    await world.configure("any", "list: Devices")
    await world.configure("also-any", "list: Devices")
    await world.configure("porch", "{list: Devices, applications: [porch]}")
    await world.configure("broken", "list: Everything")
    asked = {"name": "flashjob-network", "discoveryDetails": "{list: Devices, applications: [garden]}"}
    properties = {"discoveryProperties": [{"name": "VERIFIER", "value": "elsewhere"}]}
    body = {"metadata": {"name": "with-properties"}, "spec": {"discoveryHandler": asked | properties}}
    await world.cluster.create(CONFIGURATIONS, NS, body)
    await until(lambda: world.configurations.reflector.get(NS, "with-properties") is not None)
    wanted = {
        parse_details(text, Transport.NETWORK) for text in ("list: Devices", "{list: Devices, applications: [porch]}")
    }
    assert world.configurations.wanted() == wanted
