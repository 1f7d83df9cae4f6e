# SPDX-License-Identifier: Apache-2.0
"""Devices and lines that fail, lie or are not what they seem. All jobs run side by side; each test looks at its own.

The devices' own counters say what was written; no lie and no accident ends as a success.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from .world import NEW, Obj, Place, World, condition, end_of

pytestmark = pytest.mark.integration


class Case(NamedTuple):
    """A device of its own, what its job says besides the usual, and how that must end."""

    device: dict[str, Any]
    phase: str
    reason: str
    installs: int
    attempts: int = 1
    last_attempt: str = ""
    job: dict[str, Any] = {}  # noqa: RUF012 - never changed


def network(behaviour: object = "Honest", chip: str = "esp32s3") -> dict[str, Any]:
    return {"chip": chip, "behaviour": behaviour}


def serial(chip: str = "esp32c3", **fault: Any) -> dict[str, Any]:
    return {"chip": chip, "transport": "serial", "faults": [fault] if fault else []}


HASTE = {"startSeconds": 90, "bootSeconds": 5, "confirmSeconds": 5, "attestSeconds": 5}
# The next attempt comes when the device has gone back by itself; before that it would find its installation and go on.
LATER = {"retries": {"limit": 1, "backoffSeconds": 5}}
# On a busy machine a device may be too late twice, and then it has failed and was never judged. What is meant is the refusal.
HEARD_OUT = {"strategy": {"retries": {"limit": 9, "backoffSeconds": 1}}}
TIME_ALONE = {"DeviceUnreachable", "TransportLost", "AttestTimeout", "StartTimeout", "GatewayUnavailable", "PortSilent"}
CASES = {
    # What goes wrong and is made good
    "cable-pulled": Case(
        serial(kind="CablePulled", percent=30), "Succeeded", "Proven", 1, attempts=2, last_attempt="PortVanished"
    ),
    "confirm-lost": Case(
        # Asked three times; the first goes over a kept connection, and is sent again when that breaks.
        network({"kind": "LosesConfirm", "times": 4}), "Succeeded", "Proven", 2, attempts=2,
        last_attempt="ConfirmTimeout", job={"timeouts": HASTE, "strategy": LATER},
    ),
    "browned-out": Case(
        {**network(), "faults": [{"kind": "BrownOut"}]}, "Succeeded", "Proven", 2, attempts=2, last_attempt="WentBack"
    ),
    # What goes wrong and stays so
    "always-goes-back": Case(
        {**network(), "faults": [{"kind": "BrownOut", "times": 9}]}, "Failed", "WentBack", 2, attempts=2,
        last_attempt="WentBack",
    ),
    "silent-port": Case(
        serial(kind="SilentPort"), "Failed", "PortSilent", 0, attempts=2, last_attempt="PortSilent",
        job={"timeouts": HASTE},
    ),
    "nobody-there": Case(
        network(), "Failed", "DeviceUnreachable", 0, attempts=2, last_attempt="DeviceUnreachable",
        job={"timeouts": HASTE},
    ),
    "never-comes-back": Case(
        network("NeverComesBack"), "Failed", "SilentAfterWrite", 1, attempts=2, last_attempt="SilentAfterWrite",
        job={"timeouts": HASTE},
    ),
    "gives-up": Case(
        network("RollsBackBeforeConfirm"), "Failed", "ResetBeforeConfirm", 2, attempts=2,
        last_attempt="ResetBeforeConfirm", job={"timeouts": HASTE},
    ),
    # Refused before the first byte
    "another-chip-on-port": Case(serial(), "Rejected", "WrongDevice", 0, job=HEARD_OUT),
    "unproven-identity": Case(network(), "Rejected", "BeforeAttestationFailed", 0, job=HEARD_OUT),
    "replayed-evidence": Case(network("ReplaysEvidence"), "Rejected", "BeforeAttestationFailed", 0, job=HEARD_OUT),
    "enrolled-twice": Case(network(), "Rejected", "IdentityConflict", 0, attempts=0),
    # Lies
    "old-image": Case(network("RunsOldImage"), "Failed", "MeasurementMismatch", 1),
    "old-image-serial": Case(
        {**serial("esp32s2"), "behaviour": "RunsOldImage"}, "Failed", "MeasurementMismatch", 1
    ),
    "earlier-installation": Case(network("StaleBootId"), "Failed", "BootIdMismatch", 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def done(world: World) -> Iterator[Place]:
    """All jobs applied at once."""
    with world.place() as place:
        decoy = {"name": "decoy", "chip": "esp32c3", "transport": "serial"}
        place.start_fleet(*({"name": name, **case.device} for name, case in CASES.items()), decoy)
        image = world.push(place.namespace, world.plans(("esp32c3", "esp32s2", "esp32s3"), NEW), signer=world.signer())
        strict = world.materials.policy("field", ["esp32s3"])
        strict["bootloader"]["measurements"] = [{"alg": -16, "value": "ab" * 32}]
        place.apply(place.policy("strict", strict))
        # It has something to replay once the discovery handler has taken evidence.
        replayer = place.device("replayed-evidence")
        place.apply(replayer)
        place.until("devices", lambda devices: attested(devices[replayer["metadata"]["name"]]))
        objects: list[Obj] = []
        for name, case in CASES.items():
            device = place.device(name, job=name, policy="strict" if name == "unproven-identity" else "")
            if name == "another-chip-on-port":
                device["spec"]["connection"]["serial"]["match"] = {"UDEV_DEVPATH": f"/virtual/{place.full('decoy')}"}
            if name == "nobody-there":
                device["spec"]["connection"]["network"] = {"address": "127.0.0.1:1"}
            if name == "enrolled-twice":
                twin = place.device(name)
                twin["metadata"]["name"] += "-twin"
                objects.append(twin)
            objects += [device, place.job(name, image, **case.job)]
        place.apply(*objects)
        yield place


def attested(device: Obj) -> bool:
    return bool(device.get("status", {}).get("attestation", {}).get("accepted"))


@pytest.mark.parametrize("name", CASES)
def test_ends_as_it_must(done: Place, name: str) -> None:
    case = CASES[name]
    job = done.finished(name, 150)
    (task,) = done.tasks(name).values()
    status = task["status"]
    assert end_of(task) == (case.phase, case.reason), status
    succeeded = case.phase == "Succeeded"
    assert condition(job, "Succeeded")["status"] == ("True" if succeeded else "False")
    assert job["status"]["counts"]["succeeded"] == int(succeeded)
    if not succeeded:
        assert "Next: " in status["message"]
        assert condition(job, "Failed")["reason"] == case.reason
    attempts, last = status.get("attempt", 0), status.get("lastAttempt", {}).get("reason", "")
    if case.job is HEARD_OUT and last in TIME_ALONE:
        attempts, last = 1, ""
    assert (attempts, last) == (case.attempts, case.last_attempt)
    assert done.installs(name) == case.installs
    assert done.untouched(name) == (case.installs == 0)


def test_the_chip_that_was_there_instead_is_untouched(done: Place) -> None:
    done.finished("another-chip-on-port")
    assert done.untouched("decoy")


def test_a_lie_is_no_firmware_state(done: Place) -> None:
    done.finished("old-image")
    devices = {item["metadata"]["name"]: item for item in done.items("devices")}
    assert "firmware" not in devices[done.full("old-image")].get("status", {})
    outcomes = devices[done.full("old-image")]["status"]["outcomes"]
    assert [outcome["reason"] for outcome in outcomes] == ["MeasurementMismatch"]
