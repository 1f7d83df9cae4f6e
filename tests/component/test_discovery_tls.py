# SPDX-License-Identifier: Apache-2.0
"""Discovery of devices that speak TLS: listed as what is spoken to, and nobody who stands between is believed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attestation.discovery import mdns
from attestation.discovery.addresses import Address, parse_address
from attestation.discovery.details import Transport
from flashjob.virtual.device import VirtualDevice

from .bench import Bench, old_app
from .discovery_world import World, until
from .test_network_tls import Middle

DEVICES = "list: Devices"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    directory = tmp_path / "akri"
    directory.mkdir()
    world = World(Bench(tmp_path), directory, Transport.NETWORK)
    yield world
    await world.stop()
    await world.bench.close()


async def enrolled(world: World, *, address: str | None = "") -> VirtualDevice:
    device = await world.bench.device("porch-1", network=True, tls=True)
    await world.enroll(
        device, old_app("esp32s3"), address=f"https://{device.server.address}" if address is None else ""
    )
    return device


def details(*addresses: str) -> str:
    return f"{{list: Devices, network: {{static: {list(addresses)}}}}}"


@pytest.mark.parametrize("way", ["configured", "static", "range", "announced"])
async def test_it_is_found_and_listed_as_what_is_spoken_to(world: World, way: str) -> None:
    device = await enrolled(world, address=None if way == "configured" else "")
    where = f"https://{device.server.address}"

    async def browse(found: mdns.Found) -> None:
        found(frozenset([parse_address(where)]))
        await until(lambda: False, "the end", 60)

    world.browse = browse
    await world.start()
    stream = world.discover(
        {
            "configured": DEVICES,
            "static": details(where),
            "range": f"{{list: Devices, network: {{addresses: ['https://127.0.0.1/32:{device.server.port}']}}}}",
            "announced": "{list: Devices, network: {mdns: true}}",
        }[way]
    )
    await stream.lists_only(device)
    listing = stream.listing(device)
    assert listing is not None
    assert listing.endpoint == where
    assert stream.now[device.identity.ueid.hex()]["FLASHJOB_ENDPOINT"] == where
    await world.attested(device)
    assert world.status(device)["endpoint"] == where, "so that the next job speaks TLS, too"


async def test_after_a_reboot_its_new_key_is_proven_anew(world: World) -> None:
    device = await enrolled(world, address=None)
    device._host_port = device.server.port
    await world.start()
    stream = world.discover(DEVICES)
    await stream.lists_only(device)
    boots = (await world.attested(device))["bootCount"]
    device.reset()
    await until(lambda: world.status(device)["attestation"]["bootCount"] > boots, "the new boot")
    await stream.lists_only(device)
    assert world.status(device)["endpoint"] == f"https://{device.server.address}"


async def test_a_relay_that_ends_tls_under_its_own_key_is_not_listed(world: World) -> None:
    """Not even where the device believes the relay's address to be its own."""
    device = await enrolled(world)
    middle = Middle(device.server.port)
    port = await middle.start()
    assert device.application is not None
    device.application.addresses.append(f"127.0.0.1:{port}")
    await world.start()
    stream = world.discover(details(f"https://127.0.0.1:{port}"))
    state = await world.attested(device, "eat.channel")
    assert state["accepted"] is False
    assert "cnf" in state["message"]
    assert state["application"] == "porch", "whose evidence it is, is said"
    assert stream.now == {}
    assert "endpoint" not in world.status(device)
    honest = world.discover(details(f"https://{device.server.address}"))
    await honest.lists_only(device)
    assert (await world.attested(device))["accepted"] is True
    assert world.status(device)["endpoint"] == f"https://{device.server.address}"
    await middle.stop()


async def test_a_device_that_names_no_key_is_not_listed(world: World) -> None:
    device = await enrolled(world, address=None)
    assert device.application is not None
    device.application.tls_key = None
    await world.start()
    stream = world.discover(DEVICES)
    await world.attested(device, "eat.channel")
    assert stream.now == {}


async def test_junk_over_tls_is_judged_as_junk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    device = await enrolled(world, address=None)
    assert device.application is not None
    monkeypatch.setattr(device.application, "evidence", lambda _nonce: b"\xff")
    await world.start()
    world.discover(DEVICES)
    await until(lambda: bool(world.status(device).get("attestation")), "a judgement")
    assert world.status(device)["attestation"]["code"].startswith("cbor.")


async def test_tls_is_spoken_only_where_it_is_said(world: World) -> None:
    device = await enrolled(world)
    await world.start()
    stream = world.discover(details(device.server.address))
    await until(lambda: bool(stream.lists), "the first list")
    assert stream.now == {}
    place = world.scanner._sightings[str(Address("127.0.0.1", device.server.port))]
    assert place.failures
