# SPDX-License-Identifier: Apache-2.0
"""Where the network handler looks: ranges, announcements; and who turns up there: twins, and a relay that is a process."""

from __future__ import annotations

import asyncio
import functools
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation.discovery import mdns
from attestation.discovery.addresses import Address
from attestation.discovery.details import Transport
from attestation.discovery.sightings import Pace
from flashjob.virtual.adversaries import StaleNonce
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.faults import Slow

from .bench import Bench, old_app
from .discovery_world import World, until

RELAY = """
import asyncio, sys
far = sys.argv[1].rsplit(":", 1)
async def pump(reader, writer):
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
    writer.close()
async def relay(reader, writer):
    try:
        far_reader, far_writer = await asyncio.open_connection(*far)
    except OSError:
        return writer.close()
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)
async def main():
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    bench, directory = Bench(tmp_path), tmp_path / "akri"
    directory.mkdir()
    world = World(bench, directory, Transport.NETWORK, Pace(scan_seconds=0.1, survey_seconds=0.05))
    yield world
    await world.stop()
    await bench.close()


async def enrolled(world: World, name: str = "porch-1", *, address: str | None = "") -> VirtualDevice:
    device = await world.bench.device(name, network=True)
    await world.enroll(device, old_app("esp32s3"), address=address)
    return device


@asynccontextmanager
async def relay(device: VirtualDevice) -> AsyncIterator[str]:
    """A process at another address that passes everything on, both ways."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RELAY, device.server.address, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.wait()


async def test_a_range_is_looked_at_host_by_host(world: World) -> None:
    device = await enrolled(world)
    details = f"{{list: Devices, network: {{addresses: ['127.0.0.0/28:{device.server.port}']}}}}"
    await world.start()
    stream = world.discover(details)
    await stream.lists_only(device)
    assert len(stream.lists) == 1, "settled: every host was looked at once"
    dead = [one for one in world.scanner._sightings.values() if one.place.key != device.server.address]
    assert len(dead) == 13
    before = [one.failures for one in dead]
    await asyncio.sleep(1.0)  # ten scans
    assert all(one.failures <= now + 1 for one, now in zip(dead, before, strict=True)), "the dead are backed off"


async def test_a_relay_process_beside_the_device_gains_nothing(world: World) -> None:
    device = await enrolled(world, address=None)
    async with relay(device) as elsewhere:
        own = device.server.address
        await world.start()
        stream = world.discover(f"{{list: Devices, network: {{static: ['{elsewhere}']}}}}")
        await stream.lists_only(device)
        place = world.scanner._sightings[elsewhere]
        await until(lambda: place.judged is not None, "the relay has answered")
        assert place.judged is not None
        assert (place.judged.code, place.listing) == ("eat.address", None)
        listing = stream.listing(device)
        assert listing is not None
        assert listing.endpoint == own
        await world.attested(device)
        writes = world.status_writes()
        await device.stop()  # now the relay is all that could be listed, and it is a dead end
        await stream.lists_only()
        assert world.status(device)["endpoint"] == own
        assert world.status_writes() - writes <= 1


async def test_twins_at_two_addresses_are_withdrawn_until_somebody_releases_them(world: World) -> None:
    device = await enrolled(world, address=None)
    await world.start()
    stream = world.discover("list: Devices")
    await stream.lists_only(device)
    twin = await world.bench.device("porch-1", network=True)
    assert twin.identity.ueid == device.identity.ueid
    meeting = world.discover(f"{{list: Devices, network: {{static: ['{twin.server.address}']}}}}")
    state = await world.attested(device, "clone.seed")
    assert (state["accepted"], state["message"]) == (False, "two seeds in boot 1")
    await stream.lists_only()
    await meeting.lists_only()
    assert world.status(device).get("instance") is None
    await asyncio.sleep(0.5)  # both go on proving themselves, each for itself
    assert (stream.now, world.status(device)["attestation"]["code"]) == ({}, "clone.seed")

    await twin.stop()
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    await world.change_device(device, releaseFromQuarantine={"by": "ada", "reason": "found the other one", "at": at})
    await stream.lists_only(device)
    await world.attested(device)
    assert world.status(device)["endpoint"] == device.server.address


async def boot_after(device: VirtualDevice, count: int) -> None:
    """Boot it once more, as if that were the boot after this one."""
    device.nvs.boot_count = count
    device.reset()
    await until(lambda: device.application is not None and device.server.address != "", "it is up again")


@pytest.mark.parametrize(("one", "other"), [(0.4, 0.6), (0.6, 0.4)])
async def test_twins_that_are_asked_side_by_side_are_asked_again(world: World, one: float, other: float) -> None:
    """Their seeds differ as those of two boots do; of their counters nobody can say which was first. The first answers its
    question while the other has its own already."""
    device = await world.bench.device("porch-1", network=True, faults=[Slow(one)])
    twin = await world.bench.device("porch-1", network=True, faults=[Slow(other)])
    await world.enroll(device, old_app("esp32s3"), address=None)
    await boot_after(device, 41)
    await boot_after(twin, 7)
    await world.start()
    both = f"['{device.server.address}', '{twin.server.address}']"
    stream = world.discover(f"{{list: Devices, network: {{static: {both}}}}}")
    state = await world.attested(device, "clone.bootcount")
    assert state["message"] == "boot counter 8 after 42 was seen"
    await stream.lists_only()


async def test_who_only_claims_to_be_the_device_has_it_asked_no_more_often(world: World) -> None:
    """Its boot is another, and its evidence proves nothing: what it signs is over an old nonce."""
    device = await world.bench.device("porch-1", network=True)
    liar = await world.bench.device("porch-1", network=True, behaviour=StaleNonce(last=bytes(32)))
    await world.enroll(device, old_app("esp32s3"), address=None)
    await world.start()
    both = f"['{device.server.address}', '{liar.server.address}']"
    stream = world.discover(f"{{list: Devices, network: {{static: {both}}}}}")
    await stream.lists_only(device)
    (place,) = [one for one in world.scanner._sightings.values() if one.place.key == device.server.address]
    first = place.attestation
    await asyncio.sleep(2.5)  # a device answers once a second
    assert place.attestation is first
    assert len(stream.lists) == 1


async def test_a_boot_counter_that_goes_back_is_a_twin(world: World) -> None:
    device = await enrolled(world, address=None)
    await boot_after(device, 41)
    await world.start()
    stream = world.discover("list: Devices")
    await stream.lists_only(device)
    assert world.status(device)["attestation"]["bootCount"] == 42
    device.nvs.boot_count = 7
    device.reset()
    state = await world.attested(device, "clone.bootcount")
    assert state["message"] == "boot counter 8 after 42 was seen"
    await stream.lists_only()


async def test_who_is_enrolled_where_nobody_answered_is_looked_for_at_once(world: World) -> None:
    device = await world.bench.device(network=True)
    address, port = device.server.address, device.server.port
    await device.stop()
    await world.start()
    stream = world.discover(f"{{list: Devices, network: {{static: ['{address}']}}}}")
    await until(lambda: address in world.scanner._sightings, "the place is known")
    place = world.scanner._sightings[address]
    await until(lambda: place.failures > 1, "nobody answers")
    place.failures = 1000  # for days
    place.wake.set()
    await until(lambda: place.failures > 1000, "the next look is far")
    device._host_port = port
    await device.start()
    await world.enroll(device, old_app("esp32s3"), address=address)
    await stream.lists_only(device)


@asynccontextmanager
async def silent_hosts(count: int) -> AsyncIterator[tuple[list[str], list[int]]]:
    """Addresses that take a connection and say nothing; and how many were talked to at once, at each connection."""
    at_once, now = list[int](), 0

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now
        now += 1
        at_once.append(now)
        while await reader.read(1024):
            pass
        now -= 1
        writer.close()

    servers = [await asyncio.start_server(listen, "127.0.0.1", 0) for _ in range(count)]
    yield [f"127.0.0.1:{one.sockets[0].getsockname()[1]}" for one in servers], at_once
    for server in servers:
        server.close()


async def test_rule_1_only_so_many_are_looked_at_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight devices where nobody is heard of yet, eight addresses where nobody is known: each kind has its own limit."""
    monkeypatch.setattr("attestation.device_protocol.INFO_SECONDS", 14)
    world.pace = Pace(scan_seconds=0.1, survey_seconds=0.05, looks=2, probes=3)
    async with silent_hosts(8) as (unknown, strangers), silent_hosts(8) as (enrolled_at, expected):
        for number, address in enumerate(enrolled_at):
            device = await world.bench.device(f"d-{number}", network=True)
            await world.enroll(device, old_app("esp32s3"), address=address)
            await device.stop()
        await world.start()
        world.discover(f"{{list: Devices, network: {{static: {unknown}}}}}")
        await until(lambda: 3 in strangers and 2 in expected, "both limits are reached")
        await asyncio.sleep(0.5)
        assert (max(strangers), max(expected)) == (3, 2)
        await world.stop_handler()


async def test_rule_1_a_look_has_an_end(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("attestation.discovery.places.NETWORK_SECONDS", 0.3)
    async with silent_hosts(1) as ((address,), asked):
        await world.start()
        caplog.set_level("INFO")
        world.discover(f"{{list: Devices, network: {{static: ['{address}']}}}}")
        await until(lambda: f"{address}: no end within 0.3 s" in caplog.text, "the look ends")
        assert max(asked) == 1
        await world.stop_handler()


@pytest.fixture
def loopback() -> list[str]:
    """The interface that announcements go over, if multicast works there."""
    pytest.importorskip("zeroconf", reason="the extra mdns is not installed")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        try:
            two.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            two.bind(("", 0))
            member = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
            two.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            two.settimeout(2)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            one.sendto(b"?", ("224.0.0.251", two.getsockname()[1]))
            two.recv(1)
        except OSError as error:
            pytest.skip(f"no multicast on the loopback interface here: {error}")
    return ["127.0.0.1"]


async def test_an_announced_device_is_found_and_a_goodbye_is_heard(world: World, loopback: list[str]) -> None:
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

    device, silent = await enrolled(world), await enrolled(world, "porch-2")
    world.browse = functools.partial(mdns.browse, interfaces=loopback)
    await world.start()
    other = world.discover("list: Devices")
    await other.lists_only()

    def service(one: VirtualDevice, version: str) -> AsyncServiceInfo:
        said = {"v": version, "id": one.identity.ueid.hex()}
        return AsyncServiceInfo(
            mdns.SERVICE,
            f"{one.name}.{mdns.SERVICE}",
            port=one.server.port,
            addresses=[socket.inet_aton("127.0.0.1")],
            properties=said,
            server=f"{one.name}.local.",
        )

    responder = AsyncZeroconf(interfaces=loopback)
    try:
        first = service(device, "1")
        await (await responder.async_register_service(first))
        await (await responder.async_register_service(service(silent, "2")))
        stream = world.discover("{list: Devices, network: {mdns: true}}")
        await stream.lists_only(device)
        await other.lists_only(device)
        assert world.scanner._announced == {Address("127.0.0.1", device.server.port)}
        await (await responder.async_unregister_service(first))
        await until(lambda: not world.scanner._announced, "the goodbye")
        await stream.lists_only(device)  # an enrolled device that was met stays known where it was
    finally:
        await responder.async_close()
    assert stream.task is not None
    stream.task.cancel()
    await until(lambda: world.scanner._browsing is None, "nobody wants announcements any more")


async def test_without_its_library_mdns_is_refused_by_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns, "available", lambda: False)
    monkeypatch.setattr("attestation.discovery.registration.LONELY_SECONDS", 0.5)
    await world.configure("announced", "{list: Devices, network: {mdns: true}}")
    await world.start()
    stream = world.discover("{list: Devices, network: {mdns: true}}")
    await until(lambda: stream.failure is not None, "the stream fails")
    assert stream.failure is not None
    assert not stream.failure.refused, "the details are good"
    assert "flashjob[mdns]" in str(stream.failure)
    await asyncio.sleep(2.2)
    assert world.registered.empty(), "that nobody listens is not the agent's fault"
