# SPDX-License-Identifier: Apache-2.0
"""`flashjob flash` at a bench without a cluster: what a person sees when artifact, device or line are not right.

Every refusal ends with exit code 3, its own reason and a next step, and by the device's own counter not one byte of a
slot was touched. What is written but not proven never ends with 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import keys
from attestation.directory import TrustDirectory
from firmware_pipeline import api
from firmware_pipeline.inputs.build_list import load_builds
from firmware_pipeline.plan import BuildPlan
from firmware_pipeline.signing.keys import Signer, load_signer
from firmware_pipeline.signing.release import load_release_key
from flashjob import bench
from flashjob.cli.main import run
from flashjob.demo.fleet_process import FleetProcess
from flashjob.demo.materials import APP_A, MAKER_SECRET, DemoDevice, Materials, dump
from flashjob.virtual.fleet import ReadyDevice
from flashjob.wire.base import b64url
from tests.bad_builds import spoil, too_large, with_image_of

SLOT_BYTES = 1_835_008
SERIAL = ("porch", "wall", "pulled", "silent", "attic")
NETWORK = ("yard", "liar", "stale", "replayer", "moved", "strict", "stranger")
LIES = {"liar": "RunsOldImage", "stale": "StaleBootId", "replayer": "ReplaysEvidence", "moved": "OtherTable"}
FAULTS = {
    "pulled": [{"kind": "CablePulled", "percent": 30, "replug_seconds": None}],
    "silent": [{"kind": "SilentPort"}],
}


@dataclass
class Place:
    """Devices, keys and layouts of this file's tests."""

    root: Path
    materials: Materials
    fleet: FleetProcess
    trust: TrustDirectory

    def untouched(self, name: str) -> bool:
        """Whether no byte of an application slot was erased or programmed."""
        parts = self.fleet.counters(name)["partitions"]
        return all(not part["erased"] and not part["programmed"] for key, part in parts.items() if key[:4] == "ota_")

    def plans(self, *chips: str) -> list[BuildPlan]:
        builds = (self.materials.build(chip, self.materials.image(chip, APP_A, "2.0.0")) for chip in chips)
        return load_builds([*chain.from_iterable(builds)])

    def push(self, name: str, plans: list[BuildPlan], signer: Signer | None) -> Path:
        """A layout with one release."""
        release = api.Release(load_release_key(self.materials.key("release").read_bytes(), "owner"), 2)
        api.push(plans, f"oci:{self.root / name}:2.0.0", signer=signer, release=release)
        return self.root / name

    def flash(self, layout: object, name: str, *more: str, trust: Path | None = None) -> int:
        """What the person types; the exit code."""
        ready = self.fleet.devices[name]
        where = ["--port", ready.link] if ready.link else ["--host", ready.address]
        return run("flashjob", ["flash", str(layout), *where, "--trust", str(trust or self.trust.root), *more])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("bench")
    materials = Materials.make(root / "materials")
    chips = dict.fromkeys(SERIAL, "esp32c3") | dict.fromkeys(NETWORK, "esp32s3") | {"attic": "esp32"}
    devices = [DemoDevice(name, chips[name], "serial", "SelfReported", "bench") for name in SERIAL]
    devices += [DemoDevice(name, chips[name], "network", "SignedBoot", "field") for name in NETWORK]
    spec = materials.fleet(devices, root)
    for entry in spec["devices"]:
        entry["behaviour"] = LIES.get(entry["name"], "Honest")
        entry["faults"] = FAULTS.get(entry["name"], [])
    with FleetProcess(spec, root) as fleet:
        trust = trust_of(root / "trust", materials, fleet)
        yield Place(root, materials, fleet, trust)


def trust_of(root: Path, materials: Materials, fleet: FleetProcess) -> TrustDirectory:
    """Everybody but the stranger is enrolled."""
    trust = TrustDirectory.create(root)
    trust.write_grant_key(keys.private_from_pem(materials.key("grant").read_bytes()))
    (root / "release" / "owner.pub").write_text(materials.public("release").read_text())
    chips = ("esp32", "esp32c3", "esp32s3")
    for name in ("field", "bench"):
        dump(root / "policies" / f"{name}.yaml", materials.policy(name, chips))
    strict = materials.policy("field", chips)
    strict["bootloader"]["measurements"] = [{"alg": -16, "value": "ab" * 32}]
    dump(root / "policies" / "strict.yaml", strict)
    for name, ready in fleet.devices.items():
        if name != "stranger":
            policy = {"strict": "strict", "attic": "field"}.get(name, "bench" if name in SERIAL else "field")
            trust.enroll(entry_of(ready, policy))
    return trust


def entry_of(ready: ReadyDevice, policy: str) -> dict[str, object]:
    return {
        "id": ready.ueid,
        "trustAnchor": {"coseKey": b64url(bytes.fromhex(ready.public_key))},
        "rootOfTrust": ready.tier,
        "policyRef": {"name": policy},
        "connection": {"network": {}},
        "hardware": {"chip": ready.chip, "revision": ready.revision, "flashSize": ready.flash_size, "mac": ready.mac},
    }


@pytest.fixture(scope="module")
def signer(place: Place) -> Signer:
    return load_signer(place.materials.key("signer").read_bytes(), "ci")


@pytest.fixture(scope="module")
def good(place: Place, signer: Signer) -> Path:
    return place.push("good", place.plans("esp32", "esp32c3", "esp32s3"), signer)


Make = Callable[[Place, Signer], Path | str]


def stranger(place: Place, _: Signer) -> Path:
    pem = keys.private_to_pem(ec.generate_private_key(ec.SECP256R1()))
    return place.push("foreign", place.plans("esp32s3"), load_signer(pem, "stranger"))


def unknown_tag(place: Place, signer: Signer) -> str:
    return f"oci:{place.push('known', place.plans('esp32s3'), signer)}:9.9.9"


def unsigned(place: Place, _: Signer) -> Path:
    return place.push("unsigned", place.plans("esp32s3"), None)


def without_chip(place: Place, signer: Signer) -> Path:
    return place.push("c3only", place.plans("esp32c3"), signer)


def another_chips_image(place: Place, signer: Signer) -> Path:
    mine, other = place.plans("esp32s3", "esp32c3")
    return place.push("twisted", [with_image_of(mine, other)], signer)


def large(place: Place, signer: Signer) -> Path:
    plan = too_large(place.root, "esp32s3", "2.0.0", MAKER_SECRET.encode(), SLOT_BYTES)
    return place.push("large", [plan], signer)


def spoilt(place: Place, signer: Signer) -> Path:
    layout = place.push("spoilt", place.plans("esp32s3"), signer)
    store = api.open_store(f"oci:{layout}")
    digest = api.open_chip(store, api.resolve(store, f"oci:{layout}"), "esp32s3").app.descriptor.digest
    spoil(layout / "blobs" / "sha256" / digest.removeprefix("sha256:"))
    return layout


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (unknown_tag, "ImageNotFound"),
        (unsigned, "Unsigned"),
        (stranger, "SignatureMissing"),
        (without_chip, "NoMatchingPlatform"),
        (another_chips_image, "WrongChip"),
        (large, "ImageTooLarge"),
        (spoilt, "DigestMismatch"),
    ],
)
def test_artifacts_that_are_refused(
    place: Place, signer: Signer, capsys: pytest.CaptureFixture[str], make: Make, reason: str
) -> None:
    assert place.flash(make(place, signer), "yard") == 3
    refused_with(capsys, reason)
    assert place.untouched("yard")


def refused_with(capsys: pytest.CaptureFixture[str], reason: str) -> str:
    """The reason stands first on its line, and a next step beside it; all that was printed."""
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert f"{reason}: " in said
    assert "Next: " in said or " next " in said, said
    return said


def test_no_signer_configured(place: Place, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trust = trust_of(place.root / "nobody", place.materials, place.fleet)
    policy = place.materials.policy("field", ["esp32s3"])
    del policy["requiredSigners"]
    dump(trust.root / "policies" / "field.yaml", policy)
    assert place.flash(good, "yard", trust=trust.root) == 3
    refused_with(capsys, "SignersNotConfigured")
    assert place.untouched("yard")


def test_device_that_is_not_enrolled(place: Place, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.flash(good, "stranger") == 3
    assert place.fleet.devices["stranger"].ueid in refused_with(capsys, "DeviceNotEnrolled").replace("\n", "")
    assert place.untouched("stranger")


def test_port_that_holds_another_chip(place: Place, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meant = place.fleet.devices["porch"]
    assert place.flash(good, "wall", "--device", meant.ueid, "--chip", meant.chip) == 3
    refused_with(capsys, "WrongDevice")
    assert place.untouched("porch")
    assert place.untouched("wall")


def test_identity_that_the_policy_does_not_take(place: Place, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.flash(good, "strict") == 3
    refused_with(capsys, "BeforeAttestationFailed")
    assert place.untouched("strict")


def test_silent_port(
    place: Place, good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_FIRST_ANSWER_SECONDS", 1.0)
    assert place.flash(good, "silent") == 3
    refused_with(capsys, "PortSilent")
    assert place.untouched("silent")


def test_cable_pulled_at_30_percent_then_right(place: Place, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.flash(good, "pulled") == 1
    refused_with(capsys, "PortVanished")
    assert not place.untouched("pulled")
    place.fleet.ask("replug", "pulled")
    assert place.flash(good, "pulled") == 0
    assert "Proven" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("liar", "MeasurementMismatch"),
        ("stale", "BootIdMismatch"),
        ("replayer", "EvidenceReplayed"),
        ("moved", "PartitionMismatch"),
    ],
)
def test_lies(place: Place, good: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str) -> None:
    assert place.flash(good, name) == 1
    refused_with(capsys, reason)
    assert not place.untouched(name)
    assert not place.trust.confirmed(bytes.fromhex(place.fleet.devices[name].ueid))


def test_what_cannot_be_proven_is_no_success(place: Place, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.flash(good, "attic") == 4
    refused_with(capsys, "RootOfTrustTooLow")


def test_proven_once_and_then_left_alone(place: Place, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.flash(good, "porch") == 0
    assert "Proven" in capsys.readouterr().out
    boots = place.fleet.counters("porch")["boots"]
    assert place.flash(good, "porch") == 0
    assert "AlreadyRunning" in capsys.readouterr().out
    assert place.fleet.counters("porch")["boots"] == boots
