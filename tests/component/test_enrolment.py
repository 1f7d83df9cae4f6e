# SPDX-License-Identifier: Apache-2.0
"""Enrolment of live virtual devices, by the rules of enrolment.py. The number in a test's name is the rule."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import keys
from attestation.anchors import DeviceAnchor
from attestation.policy import BootloaderRules, MeasurementRef, RootOfTrust
from firmware_pipeline.hardware import HardwareFacts
from flashjob.api.device import Device
from flashjob.cli.device.enroll import _into_cluster
from flashjob.cluster import login
from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.resources import ATTESTATION_POLICIES, DEVICES
from flashjob.enrolment import Enrolment, device_spec, look
from flashjob.errors import FlashJobError
from flashjob.flasher.content import Content
from flashjob.flasher.transports.base import Transport
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.virtual.adversaries import ReplaysEvidence
from flashjob.virtual.device import VirtualDevice
from flashjob.wire.reasons import Reason
from tests.clusters import fake_cluster

from .bench import GRANT_KEY, Bench, policy, runs

NONCE = bytes(range(32))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


def enrolment(device: VirtualDevice, **changes: Any) -> Enrolment:
    """What an honest enroller states of it."""
    signed = device.identity.hardware.fuses.secure_boot
    base = Enrolment(
        anchor=device.identity.anchor,
        tier=RootOfTrust.SIGNED_BOOT if signed else RootOfTrust.SELF_REPORTED,
        policy_name="field",
        policy=policy(device.identity.hardware.chip.target),
        grant_key_id=keys.key_id(GRANT_KEY.public_key()),
    )
    return replace(base, **changes)


def way_to(device: VirtualDevice, bench: Bench) -> Transport:
    if device.port is not None:
        return SerialTransport(device.port.place, bench.work)
    return NetworkTransport(device.server.address)


async def facts_of(device: VirtualDevice, bench: Bench, stated: Enrolment, *, nonce: bytes = NONCE) -> HardwareFacts:
    way = way_to(device, bench)
    try:
        return await look(way, stated, nonce=nonce, now=int(time.time()), seconds=5)
    finally:
        await way.close()


async def refused(device: VirtualDevice, bench: Bench, stated: Enrolment) -> FlashJobError:
    with pytest.raises(FlashJobError) as caught:
        await facts_of(device, bench, stated)
    assert caught.value.next_step
    return caught.value


@pytest.mark.parametrize(("chip", "network"), [("esp32s3", True), ("esp32c3", False), ("esp32", False)])
async def test_4_what_is_written_down_is_read_from_the_chip(bench: Bench, chip: str, network: bool) -> None:
    device = await bench.device(chip=chip, network=network)
    stated, hardware = enrolment(device), device.identity.hardware
    facts = await facts_of(device, bench, stated)
    spec = device_spec(stated, facts, {"network": {}})
    assert spec["hardware"]["chip"] == chip
    assert spec["hardware"]["revision"] == hardware.revision
    assert spec["hardware"]["flashSize"] == hardware.flash_size
    if not network:
        assert spec["hardware"]["mac"] == ":".join(f"{byte:02x}" for byte in hardware.mac)
    assert spec["id"] == device.identity.ueid.hex()
    body = {"apiVersion": "flashjob.dev/v1alpha1", "kind": "Device", "metadata": {"name": "d", "namespace": "ns"}}
    known = Device.parse({**body, "spec": spec}).spec
    assert known.trust_anchor is not None
    anchor = keys.from_cose(known.trust_anchor.cose_key)
    assert DeviceAnchor(ueid=bytes.fromhex(known.id), key=anchor, tier=stated.tier, policy="field"), "id and anchor fit"
    await runs(device, "1.0.0")


async def test_1_the_anchor_is_the_enrollers_not_the_devices(bench: Bench) -> None:
    """The device would gladly prove a key of its own; what counts is the key it was expected to have."""
    device = await bench.device(network=True)
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    error = await refused(device, bench, enrolment(device, anchor=stranger))
    assert error.reason == Reason.EVIDENCE_INVALID
    assert "does not prove this anchor under policy field" in error.message


async def test_2_evidence_is_fresh(bench: Bench) -> None:
    device = await bench.device(network=True, behaviour=ReplaysEvidence())
    stated = enrolment(device)
    await facts_of(device, bench, stated)
    with pytest.raises(FlashJobError) as caught:
        await facts_of(device, bench, stated, nonce=bytes(32))
    assert caught.value.reason == Reason.EVIDENCE_INVALID
    assert "eat.nonce" in caught.value.message


async def test_2_under_the_policy_that_will_judge_it(bench: Bench) -> None:
    device = await bench.device(network=True)
    foreign = BootloaderRules(measurements=(MeasurementRef(alg=-16, value="ab" * 32),))
    strict = enrolment(device).policy.model_copy(update={"bootloader": foreign})
    error = await refused(device, bench, enrolment(device, policy=strict))
    assert error.reason == Reason.EVIDENCE_INVALID
    assert "ref.code" in error.message


async def test_2_whatever_application_it_runs(bench: Bench) -> None:
    """Nothing has been confirmed and no task pins anything yet: the policy names no application at all."""
    device = await bench.device(network=True)
    stated = enrolment(device)
    assert stated.policy.application.measurements == ()
    assert (await facts_of(device, bench, stated)).target == "esp32s3"


async def test_3_it_lists_the_key_that_will_sign_its_grants(bench: Bench) -> None:
    device = await bench.device(network=True)
    foreign = keys.key_id(ec.generate_private_key(ec.SECP256R1()).public_key())
    error = await refused(device, bench, enrolment(device, grant_key_id=foreign))
    assert error.reason == Reason.GRANT_KEY_UNKNOWN
    assert foreign.hex() in error.message
    assert keys.key_id(GRANT_KEY.public_key()).hex() in error.message, "and which keys it does know"


async def test_5_a_claim_of_secure_boot_is_held_against_the_evidence(bench: Bench) -> None:
    device = await bench.device(chip="esp32", network=True)
    error = await refused(device, bench, enrolment(device, tier=RootOfTrust.SIGNED_BOOT))
    assert error.reason == Reason.EVIDENCE_INVALID


class OtherChip(NetworkTransport):
    """Evidence of one chip over a line at whose end another one answers the probe."""

    target: str | None = None

    async def probe(self, partition_table_offset: int, content: Content | None = None) -> HardwareFacts:
        facts = await super().probe(partition_table_offset, content)
        return facts.model_copy(update={"target": self.target})


@pytest.mark.parametrize("target", ["esp32", "esp32c2", None])
async def test_5_no_chip_gets_a_root_of_trust_that_it_cannot_have(bench: Bench, target: str | None) -> None:
    device = await bench.device(network=True)
    way = OtherChip(device.server.address)
    way.target = target
    with pytest.raises(FlashJobError) as caught:
        await look(way, enrolment(device), nonce=NONCE, now=int(time.time()), seconds=5)
    await way.close()
    assert caught.value.reason == Reason.WRONG_DEVICE
    assert "SignedBoot" in caught.value.message


async def test_a_device_of_that_name_is_left_as_it_is(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command, as far as it speaks to a cluster."""
    device, cluster = await bench.device(network=True), fake_cluster()

    async def connect(*_: object) -> FakeCluster:
        return cluster

    monkeypatch.setattr(login, "connect", connect)
    stated, grant_key = enrolment(device), tmp_path / "grant.pub"
    grant_key.write_text(keys.to_pem(GRANT_KEY.public_key()))
    body = {"metadata": {"name": "field"}, "spec": json.loads(stated.policy.model_dump_json(by_alias=True))}
    await cluster.create(ATTESTATION_POLICIES, "ns", body)

    async def enrolled(name: str, namespace: str = "ns") -> str:
        way, where = way_to(device, bench), (None, None, namespace)
        anchor, tier = stated.anchor, stated.tier
        return await _into_cluster(where, name, way, anchor, tier, "field", grant_key, {"network": {}}, {})

    assert await enrolled("porch") == device.identity.ueid.hex()
    first = await cluster.get(DEVICES, "ns", "porch")
    with pytest.raises(FlashJobError) as caught:
        await enrolled("porch")
    assert caught.value.reason == Reason.ALREADY_ENROLLED
    assert "there is a Device ns/porch already" in caught.value.message
    assert "enroll under another name" in caught.value.next_step
    assert await cluster.get(DEVICES, "ns", "porch") == first
    with pytest.raises(FlashJobError) as caught:
        await enrolled("porch", "elsewhere")
    assert caught.value.reason == Reason.POLICY_MISSING
