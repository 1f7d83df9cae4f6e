# SPDX-License-Identifier: Apache-2.0
"""The whole loop: whom a job is about, what becomes of honest devices, and what Akri lists afterwards."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from attestation import keys
from flashjob.demo.materials import APP_A, APP_B
from flashjob.wire.reasons import Reason

from .world import NEW, Obj, Place, World, condition, end_of

pytestmark = pytest.mark.integration


def listed(place: Place, configuration: str, count: int = 1) -> list[Obj]:
    """The Instances of this place's devices under one Configuration, as soon as there are that many."""
    name = f"{place.namespace}-{configuration}"
    assert place.fleet is not None
    own = {device.ueid for device in place.fleet.devices.values()}

    def enough(instances: dict[str, Obj]) -> tuple[list[Obj]] | None:
        found = [item for item in instances.values() if item["spec"]["configurationName"] == name]
        found = [item for item in found if item["spec"]["brokerProperties"].get("FLASHJOB_DEVICE_ID") in own]
        return (found,) if len(found) == count else None

    return place.until("instances", enough)[0]


def test_network_and_serial_devices_are_updated_and_proven(world: World, place: Place) -> None:
    place.start_fleet(
        {"name": "yard", "chip": "esp32s3"},
        {"name": "porch", "chip": "esp32c3", "transport": "serial"},
        {"name": "attic", "chip": "esp32", "transport": "serial"},
    )
    image = world.push(place.namespace, world.plans(("esp32s3", "esp32c3", "esp32"), NEW), signer=world.signer())
    place.apply(*(place.device(name, job="spring") for name in ("yard", "porch")))
    place.apply(place.device("attic", job="spring", policy="field"), place.job("spring", image))
    job = place.finished("spring", 120)
    tasks = place.tasks("spring")
    assert {name: end_of(task) for name, task in tasks.items()} == {
        "yard": ("Succeeded", "Proven"),
        "porch": ("Succeeded", "Proven"),
        "attic": ("Unproven", "RootOfTrustTooLow"),
    }
    assert {key: value for key, value in job["status"]["counts"].items() if value} == {
        "total": 3,
        "succeeded": 2,
        "unproven": 1,
    }
    assert condition(job, "Succeeded")["reason"] == "SomeUnproven"
    pinned = job["status"]["firmware"]["digest"]
    firmware = {item["metadata"]["name"]: item["status"]["firmware"] for item in place.items("devices")}
    for name, task in tasks.items():
        assert place.installs(name) == 1
        assert firmware[place.full(name)]["digest"] == pinned
        assert firmware[place.full(name)]["version"] == NEW
        report = task["status"]["report"]
        assert report["verdict"]["bootId"] == report["permits"][0]["grantId"]
        assert report["verdict"]["measurement"] in task["spec"]["target"]["measurements"]
    assert "unproven" in tasks["attic"]["status"]["report"]["verdict"]


def test_what_runs_already_is_not_written_again(world: World, place: Place) -> None:
    place.start_fleet({"name": "yard", "chip": "esp32s3"}, {"name": "wall", "chip": "esp32c3", "transport": "serial"})
    image = world.push(place.namespace, world.plans(("esp32s3", "esp32c3"), NEW), signer=world.signer())
    by_label = {"selector": {"matchExpressions": [{"key": "update", "operator": "Exists"}]}}
    place.apply(*(place.device(name, job="any") for name in ("yard", "wall")))
    place.apply(place.job("first", image, devices=by_label))
    place.finished("first")
    boots = {name: place.counters(name)["boots"] for name in ("yard", "wall")}
    place.apply(place.job("second", image, devices=by_label))
    job = place.finished("second")
    assert condition(job, "Succeeded")["status"] == "True"
    assert {end_of(task) for task in place.tasks("second").values()} == {("Skipped", "AlreadyRunning")}
    assert {name: place.counters(name)["boots"] for name in ("yard", "wall")} == boots
    assert [place.installs(name) for name in ("yard", "wall")] == [1, 1]


def test_repurposing_moves_the_instance_and_keeps_the_device(world: World, place: Place) -> None:
    """Over a serial line, over the network, and over TLS, which holds from discovery to job to re-discovery."""
    place.start_fleet(
        {"name": "yard", "chip": "esp32s3"},
        {"name": "gate", "chip": "esp32s3", "tls": True},
        {"name": "wall", "chip": "esp32c3", "transport": "serial"},
    )
    roles = {"network": ("yard", "gate"), "serial": ("wall",)}
    ports = {"ports": [f"{place.directory}/ports/*"]}
    static = {"static": [place.ready("gate").address]}
    place.apply(
        *(place.device(name, policy="bench") for name in ("yard", "wall")),
        place.device("gate", policy="bench", connection={"network": {}}),
        *(
            place.configuration(f"{app}-{role}", role, {"list": "Devices", "applications": [app], **more})
            for app in (APP_A, APP_B)
            for role, more in (("network", {"network": static}), ("serial", {"serial": ports}))
        ),
    )

    def shown(app: str, role: str) -> dict[str, Obj]:
        found = (item["spec"]["brokerProperties"] for item in listed(place, f"{app}-{role}", len(roles[role])))
        return {properties["FLASHJOB_DEVICE_ID"]: properties for properties in found}

    before = {role: shown(APP_A, role) for role in roles}
    image = world.push(place.namespace, world.plans(("esp32s3", "esp32c3"), NEW, APP_B), signer=world.signer())
    for role in roles:
        devices = {"akri": {"configuration": f"{place.namespace}-{APP_A}-{role}"}}
        place.apply(place.job(f"move-{role}", image, devices=devices, rediscovery="Required"))
    for role, names in roles.items():
        job = place.finished(f"move-{role}")
        assert condition(job, "Succeeded")["status"] == "True", {
            n: end_of(t) for n, t in place.tasks(f"move-{role}").items()
        }
        after = shown(APP_B, role)
        assert set(after) == set(before[role]) == {place.ready(name).ueid for name in names}
        for ueid, properties in after.items():
            assert properties["FLASHJOB_LISTING"] != before[role][ueid]["FLASHJOB_LISTING"]
        assert listed(place, f"{APP_A}-{role}", 0) == []
    status = {item["metadata"]["name"]: item["status"] for item in place.items("devices")}
    assert {one["firmware"]["application"] for one in status.values()} == {APP_B}
    gate = place.ready("gate")
    assert gate.address.startswith("https://")
    assert status[gate.name]["endpoint"] == gate.address == shown(APP_B, "network")[gate.ueid]["FLASHJOB_ENDPOINT"]


def test_a_device_that_goes_back_after_its_confirmation_is_no_success(world: World, place: Place) -> None:
    place.start_fleet({"name": "yard", "chip": "esp32s3", "behaviour": "RollsBackAfterAccept"})
    image = world.push(place.namespace, world.plans(("esp32s3",), NEW), signer=world.signer())
    timeouts = {"startSeconds": 90, "rediscoverSeconds": 6}
    place.apply(
        place.device("yard", job="spring"),
        place.configuration("all", "network", {"list": "Devices"}),
        place.job("spring", image, rediscovery="Required", timeouts=timeouts),
    )
    place.finished("spring")
    (task,) = place.tasks("spring").values()
    assert end_of(task) == ("Failed", "RediscoveryTimeout")
    assert Reason.REDISCOVERY_TIMEOUT.next_step in task["status"]["message"]


def test_whom_a_job_is_about(world: World, place: Place) -> None:
    place.start_fleet({"name": "yard", "chip": "esp32s3"})
    image = world.push(place.namespace, world.plans(("esp32s3",), NEW), signer=world.signer())
    place.apply(place.device("yard"), place.configuration("all", "network", {"list": "Devices"}))
    listed(place, "all")
    with world.place() as elsewhere:
        elsewhere.apply(
            elsewhere.job("nobody", image),
            elsewhere.job("strangers", image, devices={"akri": {"configuration": f"{place.namespace}-all"}}),
        )
        for name, reason in (("nobody", Reason.NO_DEVICES), ("strangers", Reason.DEVICE_NOT_ENROLLED)):
            job = elsewhere.finished(name)
            assert condition(job, "Validated")["reason"] == reason
            assert condition(job, "Failed")["status"] == "True"
            assert reason.next_step in condition(job, "Validated")["message"]
            assert elsewhere.tasks(name) == {}
    assert place.untouched("yard")


def test_private_keys_of_signer_and_release_are_nowhere_in_the_cluster(world: World) -> None:
    for kind in ("secrets", "configmaps"):
        text = world.sandbox.plane.kubectl("get", kind, "-A", "-o", "json")
        assert json.loads(text)["items"]
        for name in ("signer", "release"):
            path = world.materials.key(name)
            forms = private_forms(path)
            assert forms[0] in path.read_text(), "what is looked for is what would be there"
            assert [form for form in forms if form in text] == []


def private_forms(path: Path) -> list[str]:
    """How a private key could stand in an object: as PEM, base64 of that, or its number in hex or base64."""
    pem = path.read_bytes()
    key = keys.private_from_pem(pem)
    assert isinstance(key, EllipticCurvePrivateKey)
    raw = key.private_numbers().private_value.to_bytes(32, "big")
    return [
        pem.decode().splitlines()[2],
        base64.b64encode(pem).decode()[40:120],
        raw.hex(),
        base64.b64encode(raw).decode()[:40],
        base64.urlsafe_b64encode(raw).decode()[:40],
    ]
