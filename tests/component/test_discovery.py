# SPDX-License-Identifier: Apache-2.0
"""Discovery over the network: who proves what it runs is listed, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attestation.device_protocol import Request, encode_info
from attestation.discovery.details import Transport
from attestation.policy import RootOfTrust
from firmware_pipeline.esp import builder
from flashjob.cluster.resources import DEVICES as DEVICES_RESOURCE
from flashjob.virtual.adversaries import LosesConfirm, OtherDevicesEvidence, ReplaysEvidence
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.replies import Reply
from flashjob.wire.gateway import Outcome

from .bench import Bench, BenchJudge, assignment, new_app, old_app, push, signed
from .discovery_world import World, until

DEVICES = "list: Devices"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


@pytest.fixture
async def world(bench: Bench, tmp_path: Path) -> AsyncIterator[World]:
    directory = tmp_path / "akri"
    directory.mkdir()
    world = World(bench, directory, Transport.NETWORK)
    yield world
    await world.stop()


async def enrolled(world: World, name: str = "porch-1", chip: str = "esp32s3") -> VirtualDevice:
    device = await world.bench.device(name, chip, network=True)
    await world.enroll(device, old_app(chip), new_app(chip))
    return device


async def test_a_device_that_proves_what_it_runs_is_listed(world: World) -> None:
    device = await enrolled(world)
    await world.configure("farm-devices", DEVICES)
    await world.start()
    assert (world.endpoint.name, world.endpoint.shared) == ("flashjob-network", True)
    stream = world.discover(DEVICES)
    await stream.lists_only(device)
    assert len(stream.lists) == 1  # settled before the first list
    listing = stream.listing(device)
    assert listing is not None
    assert (listing.application, listing.version, listing.tier) == ("porch", "1.0.0", RootOfTrust.SIGNED_BOOT)
    assert listing.endpoint == device.server.address
    (properties,) = stream.now.values()
    del properties["FLASHJOB_LISTING"]
    assert properties == {
        "FLASHJOB_DEVICE_ID": device.identity.ueid.hex(),
        "FLASHJOB_APPLICATION": "porch",
        "FLASHJOB_VERSION": "1.0.0",
        "FLASHJOB_ENDPOINT": device.server.address,
        "FLASHJOB_CHIP": "esp32s3",
    }
    state = await world.attested(device)
    assert (state["accepted"], state["slotState"], state["bootCount"]) == (True, "VALID", 1)
    assert world.status(device)["endpoint"] == device.server.address
    assert world.status(device)["instance"]["configuration"] == "farm-devices"
    await asyncio.sleep(0.5)  # several scans
    assert (len(stream.lists), world.status_writes()) == (1, 1)


async def test_a_reboot_is_proven_anew_and_changes_nothing_that_is_listed(world: World) -> None:
    device = await enrolled(world)
    await world.start()
    stream = world.discover(DEVICES)
    await stream.lists_only(device)
    before = stream.now
    device.reset()
    await until(lambda: world.status(device).get("attestation", {}).get("bootCount") == 2, "the second boot")
    await stream.lists_only(device)
    assert stream.now == before


async def test_a_device_that_is_gone_is_no_longer_listed_and_comes_back(world: World) -> None:
    device = await enrolled(world)
    await world.configure("farm-devices", DEVICES)
    await world.start()
    stream = world.discover(DEVICES)
    await stream.lists_only(device)
    port = device.server.port
    await device.stop()
    await stream.lists_only()
    await until(lambda: world.status(device).get("instance") is None, "no Instance")
    device._host_port = port
    await device.start()
    await stream.lists_only(device)


async def test_an_answer_from_another_address_is_not_listed(world: World) -> None:
    """Rule 5: a relay passes true, fresh evidence on."""
    device = await world.bench.device(network=True)
    await world.enroll(device, old_app("esp32s3"), address="")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(device.server.host, device.server.port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        await world.start()
        stream = world.discover(f"{{list: Devices, network: {{static: ['{host}:{port}']}}}}")
        state = await world.attested(device, "eat.address")
        assert state["accepted"] is False
        assert f"reached at {host}:{port}" in state["message"]
        assert stream.now == {}
        assert "endpoint" not in world.status(device)
        running = device.application.boot.measurement if device.application else None
        assert running is not None
        denied = {"alg": running.alg, "value": running.value.hex()}
        await world.change_policy(device, deny={"measurements": [denied]})
        await world.attested(device, "ref.denied")
        assert "endpoint" not in world.status(device), "nor where a relay shows a device that is refused for more"
        await world.change_policy(device, deny=None)
        true = world.discover(f"{{list: Devices, network: {{addresses: ['{device.server.address}']}}}}")
        await true.lists_only(device)
        await world.attested(device)
        assert world.status(device)["endpoint"] == device.server.address
    finally:
        server.close()


@pytest.mark.parametrize(
    ("behaviour", "codes"),
    [("foreign", {"anchor.id"}), ("replay", {"eat.nonce"})],
)
async def test_evidence_that_is_not_its_own_or_not_new(world: World, behaviour: str, codes: set[str]) -> None:
    donor = await world.bench.device("donor", network=True)
    assert donor.application is not None
    liar = OtherDevicesEvidence(donor.application.evidence) if behaviour == "foreign" else ReplaysEvidence(b"")
    if isinstance(liar, ReplaysEvidence):
        liar.first = None
    device = await world.bench.device("liar", network=True, behaviour=liar)
    if isinstance(liar, ReplaysEvidence):
        assert device.application is not None
        liar.first = device.application.evidence(b"n" * 32)
    await world.enroll(device, old_app("esp32s3"))
    await world.start()
    stream = world.discover(DEVICES)
    state = await world.attested(device, *codes)
    assert state["accepted"] is False
    await until(lambda: bool(stream.lists), "the first list")
    assert stream.lists == [()]


async def test_unknown_firmware_and_unknown_devices_are_not_listed(world: World) -> None:
    device = await world.bench.device(network=True, app=signed(builder.build_app("esp32s3", "porch", "0.9")))
    await world.enroll(device, old_app("esp32s3"))
    stranger = await world.bench.device("stranger", network=True)
    await world.start()
    stream = world.discover(f"{{list: Devices, network: {{static: ['{stranger.server.address}']}}}}")
    await world.attested(device, "ref.code")
    assert world.status(device)["endpoint"] == device.server.address, "found, so that it can be updated away from it"
    await until(lambda: bool(stream.lists), "the first list")
    assert stream.lists == [()]
    assert stranger.application is not None
    assert stranger.application._last_attest == float("-inf")  # nobody asked it for evidence
    await world.enroll(stranger, old_app("esp32s3"))
    await stream.lists_only(stranger)


async def test_a_root_of_trust_below_the_policy_is_accepted_and_not_listed(world: World) -> None:
    device = await world.bench.device("old-1", "esp32", network=True)
    await world.enroll(device, old_app("esp32"))
    weak = await world.bench.device("old-2", "esp32", network=True)
    await world.enroll(weak, old_app("esp32"), minimum=RootOfTrust.SELF_REPORTED)
    await world.start()
    stream = world.discover(DEVICES)
    state = await world.attested(device)
    assert state["accepted"] is True
    assert "not listed" in state["message"]
    await stream.lists_only(weak)


async def test_a_repurposed_device_moves_to_another_configuration(world: World, tmp_path: Path) -> None:
    device = await enrolled(world)
    await world.configure("porches", "{list: Devices, applications: [porch]}")
    await world.configure("gardens", "{list: Devices, applications: [garden]}")
    await world.start()
    porches = world.discover("{list: Devices, applications: [porch]}")
    gardens = world.discover("{list: Devices, applications: [garden]}")
    await porches.lists_only(device)
    await gardens.lists_only()
    await until(lambda: world.status(device).get("instance", {}).get("configuration") == "porches", "the Instance")
    writes = world.status_writes()

    release = push(tmp_path, signed(builder.build_app("esp32s3", "garden", "3.0.0")), "esp32s3")
    await world.begin(device, release.target)
    task = assignment(device, release.target)
    judge = BenchJudge(device, task)
    permit = judge.permit

    async def permitted(request):  # type: ignore[no-untyped-def]
        reply = await permit(request)
        await world.permit(judge.case.permits[0].grant_id)
        await porches.lists_only()  # withdrawn before the first byte
        return reply

    judge.permit = permitted  # type: ignore[method-assign]
    result, _ = await world.bench.flash(device, release, task=task, judge=judge)
    assert (result.ok, judge.outcome) == (True, Outcome.PROVEN)
    assert len(porches.lists) == 2
    assert gardens.lists == [()]
    await world.conclude("Proven")
    await gardens.lists_only(device)
    await porches.lists_only()
    listing = gardens.listing(device)
    assert listing is not None
    assert listing.boot_id.hex() == judge.case.permits[0].grant_id
    assert (listing.application, listing.version) == ("garden", "3.0.0")
    await until(lambda: world.status(device).get("instance", {}).get("configuration") == "gardens", "the Instance")
    assert world.status(device)["attestation"]["slotState"] == "VALID"
    assert world.status_writes() - writes <= 2


async def test_an_unconfirmed_installation_is_never_listed(world: World, tmp_path: Path) -> None:
    device = await world.bench.device(network=True, behaviour=LosesConfirm(99))
    await world.enroll(device, old_app("esp32s3"), new_app("esp32s3"))
    await world.start()
    stream = world.discover(DEVICES)
    await stream.lists_only(device)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    await world.begin(device, release.target)
    await world.permit("ab" * 16)
    await stream.lists_only()
    result, _ = await world.bench.flash(device, release)
    assert not result.ok
    await world.conclude("Rejected")  # given back, though it still waits for its confirmation
    assert device.application is not None
    asked = device.application._last_attest
    await asyncio.sleep(0.5)
    assert stream.now == {}
    if device.application is not None and device.application.deadline is not None:
        assert device.application._last_attest == asked
        assert device.application.roll_back()
        device.reset()
    await stream.lists_only(device)
    listing = stream.listing(device)
    assert listing is not None
    assert listing.version == "1.0.0"


async def test_a_policy_that_denies_takes_effect_at_once(world: World) -> None:
    device = await enrolled(world)
    await world.start()
    stream = world.discover(DEVICES)
    await stream.lists_only(device)
    listing = stream.listing(device)
    assert listing is not None
    assert device.application is not None
    asked = device.application._last_attest
    denied = {"alg": listing.measurement.alg, "value": listing.measurement.value.hex()}
    await world.change_policy(device, deny={"measurements": [denied]})
    await stream.lists_only()
    await world.attested(device, "ref.denied")
    assert device.application._last_attest == asked  # old evidence, judged anew
    await world.change_policy(device, deny=None)
    await stream.lists_only(device)
    assert device.application._last_attest > asked  # listed only with new evidence


async def test_suspended_and_quarantined_devices_are_withdrawn(world: World) -> None:
    device = await enrolled(world)
    await world.start()
    stream = world.discover(DEVICES)
    await stream.lists_only(device)
    await world.change_device(device, suspended=True)
    await stream.lists_only()
    await world.attested(device, "device.suspended")
    await world.change_device(device, suspended=False)
    await stream.lists_only(device)
    quarantine = {"reason": "BootIdMismatch", "since": "2026-01-01T00:00:00Z"}
    await world.cluster.patch_status(
        DEVICES_RESOURCE, "farm", device.name, {"quarantine": quarantine}, field_manager="operator"
    )
    await stream.lists_only()


async def test_what_is_not_seen_here_is_not_reported(world: World) -> None:
    """Another handler sees the device on its port; nothing that this one says may undo that."""
    device = await world.bench.device("on-a-port")
    await world.enroll(device, old_app("esp32s3"))
    instance = {"name": "ports-123456", "configuration": "ports"}
    await world.cluster.patch_status(
        DEVICES_RESOURCE, "farm", device.name, {"instance": instance}, field_manager="other"
    )
    await world.start()
    seen = await enrolled(world, "porch-2")
    await world.change_device(device, suspended=True)
    await world.attested(seen)
    assert world.status(device) == {"instance": instance}


async def test_a_name_is_resolved_and_the_device_is_judged_by_its_address(world: World) -> None:
    device = await world.bench.device(network=True)
    await world.enroll(device, old_app("esp32s3"), address="")
    await world.start()
    stream = world.discover(f"{{list: Devices, network: {{static: ['localhost:{device.server.port}']}}}}")
    await stream.lists_only(device)
    listing = stream.listing(device)
    assert listing is not None
    assert listing.endpoint == device.server.address


async def test_who_claims_many_names_is_on_file_under_one(world: World) -> None:
    device = await world.bench.device(network=True)
    assert device.application is not None
    handle, told = device.application.handle, 0

    def lie(request: Request, body: bytes) -> Reply:
        nonlocal told
        said = device.application.info() if device.application else None
        if said is None or request is not Request.INFO:
            return handle(request, body)
        told += 1
        return Reply(200, encode_info(said.model_copy(update={"ueid": b"\x01" + bytes([told]) * 32})))

    device.application.handle = lie  # type: ignore[method-assign]
    await world.start()
    stream = world.discover(f"{{list: Devices, network: {{static: ['{device.server.address}']}}}}")
    await until(lambda: told > 5, "several looks")
    assert len(world.scanner._of) <= 2
    assert stream.now == {}
