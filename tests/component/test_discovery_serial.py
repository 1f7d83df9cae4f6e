# SPDX-License-Identifier: Apache-2.0
"""Serial ports: hardware that is always listed, and the devices behind it, which must prove themselves."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attestation.discovery.details import Transport
from attestation.discovery.sightings import Pace
from attestation.serial_port import open_port
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.faults import SilentPort

from .bench import Bench, new_app, old_app, push
from .discovery_world import Stream, World, until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    bench, directory = Bench(tmp_path), tmp_path / "akri"
    directory.mkdir()
    (tmp_path / "ports").mkdir()
    world = World(bench, directory, Transport.SERIAL, Pace(ports_seconds=0.05, gone_seconds=0.4))
    yield world
    await world.stop()
    await bench.close()


def ports(world: World) -> str:
    return f"{{list: Ports, serial: {{ports: ['{world.bench.tmp_path}/ports/*']}}}}"


def devices(world: World) -> str:
    return f"{{list: Devices, serial: {{ports: ['{world.bench.tmp_path}/ports/*']}}}}"


async def test_ports_are_listed_whatever_the_chip_says(world: World) -> None:
    blank = await world.bench.device("blank", app=b"")
    silent = await world.bench.device("silent", faults=[SilentPort()])
    (world.bench.tmp_path / "ports" / "notes.txt").write_text("no port")
    await world.start()
    assert (world.endpoint.name, world.endpoint.shared) == ("flashjob-serial", False)
    stream = world.discover(ports(world))
    await until(lambda: set(stream.now) == {"/virtual/blank", "/virtual/silent"}, "both ports")
    assert len(stream.lists) == 1
    assert blank.port is not None
    assert stream.now["/virtual/blank"] == {"UDEV_DEVNODE": blank.port.place, "UDEV_DEVPATH": "/virtual/blank"}
    blank.unplug()
    await until(lambda: set(stream.now) == {"/virtual/silent"}, "one port is gone")
    blank.replug()
    await until(lambda: len(stream.now) == 2, "it is back")
    assert os.path.realpath(stream.now["/virtual/blank"]["UDEV_DEVNODE"]) == blank.port.path
    assert silent.boots == 1


async def test_a_device_on_a_port_is_attested_and_listed(world: World) -> None:
    device = await world.bench.device("porch-1")
    await world.enroll(device, old_app("esp32s3"))
    await world.bench.device("silent", faults=[SilentPort()])
    await world.configure("on-ports", devices(world))
    await world.start()
    stream = world.discover(devices(world))
    await stream.lists_only(device)
    listing = stream.listing(device)
    assert listing is not None
    assert listing.endpoint == "serial:/virtual/porch-1"
    await world.attested(device)
    status = world.status(device)
    assert "endpoint" not in status
    assert status["instance"]["name"].startswith("on-ports-")


async def test_a_port_in_use_is_waited_for(world: World) -> None:
    device = await world.bench.device("porch-1")
    await world.enroll(device, old_app("esp32s3"))
    assert device.port is not None
    flash = await open_port(device.port.place)
    await world.start()
    stream, all_ports = world.discover(devices(world)), world.discover(ports(world))
    await asyncio.sleep(0.3)
    assert stream.lists == []
    assert set(all_ports.now) == {"/virtual/porch-1"}, "a port is listed, whoever holds it"
    assert device.application is not None
    assert device.application._last_attest == float("-inf"), "it is not probed while somebody holds its port"
    flash.close()
    await stream.lists_only(device)


async def test_from_permit_to_verdict_the_port_is_left_alone(world: World, tmp_path: Path) -> None:
    device = await world.bench.device("porch-1")
    await world.enroll(device, old_app("esp32s3"))
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    await world.start()
    stream, all_ports = world.discover(devices(world)), world.discover(ports(world))
    await stream.lists_only(device)
    await world.begin(device, release.target)
    await asyncio.sleep(0.1)
    await stream.lists_only(device)  # a task without a permit has written nothing
    await world.permit("ab" * 16)
    await stream.lists_only()
    device.unplug()
    await until(lambda: all_ports.now == {}, "the port is gone")
    device.replug()  # another terminal: it would be looked at, were it not in a task's hands
    await until(lambda: len(all_ports.now) == 1, "the port is back")
    assert device.port is not None
    for _ in range(10):
        held = await open_port(device.port.place, wait_seconds=0)
        held.close()
        await asyncio.sleep(0.03)
    assert device.application is not None
    assert device.application._last_attest == float("-inf")
    await world.conclude("Rejected")
    await stream.lists_only(device)


async def listed(world: World) -> tuple[VirtualDevice, Stream]:
    """An enrolled device on a port, and the stream that lists it."""
    device = await world.bench.device("porch-1")
    await world.enroll(device, old_app("esp32s3"))
    await world.start()
    stream = world.discover(devices(world))
    await stream.lists_only(device)
    return device, stream


async def test_a_port_is_not_opened_at_every_scan(world: World) -> None:
    device, stream = await listed(world)
    application = device.application
    assert application is not None
    asked = application._last_attest
    assert device.port is not None
    held = await open_port(device.port.place, wait_seconds=0.5)
    await asyncio.sleep(0.4)  # eight surveys
    held.close()
    assert application._last_attest == asked
    assert len(stream.lists) == 1


async def test_a_port_that_comes_back_at_once_never_left_the_list(world: World) -> None:
    """A chip that starts anew takes a USB port of its own with it for a moment."""
    device = await world.bench.device("porch-1")
    await world.enroll(device, old_app("esp32s3"))
    world.pace = Pace(ports_seconds=0.05, gone_seconds=10)
    await world.start()
    all_ports, stream = world.discover(ports(world)), world.discover(devices(world))
    await stream.lists_only(device)
    for _ in range(3):
        device.unplug()
        await asyncio.sleep(0.2)  # three looks at the directory
        device.replug()
        await asyncio.sleep(0.2)
    # Where its node is another one now, that is told; but no list was without the port.
    assert {tuple(one.id for one in found) for found in all_ports.lists} == {("/virtual/porch-1",)}
    await stream.lists_only(device)


async def test_a_directory_that_cannot_be_read_for_now_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await world.bench.device("porch-1")
    await world.start()
    stream = world.discover(ports(world))
    await until(lambda: set(stream.now) == {"/virtual/porch-1"}, "the port")
    scandir = os.scandir

    def refuse(path: str = ".") -> object:
        if str(path).endswith("/ports"):
            raise OSError(24, "Too many open files", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    await until(lambda: "Too many open files" in caplog.text, "it is said")
    await asyncio.sleep(0.6)
    assert caplog.text.count("what was found before stays listed") == 1
    assert len(stream.lists) == 1
    monkeypatch.undo()
    await world.bench.device("porch-2")
    await until(lambda: len(stream.now) == 2, "the next port")


async def test_rule_7_a_shorter_interval_holds_at_once(world: World) -> None:
    device, _ = await listed(world)
    (place,) = world.scanner._sightings.values()
    assert place.attestation is not None
    first = place.attestation.at
    await until(lambda: place.rest is not None, "its pause has begun")
    impatient = world.discover(devices(world).replace("{", "{attestIntervalSeconds: 10, ", 1))
    await impatient.lists_only(device)
    due = asyncio.get_running_loop().time() + 10 - (time.monotonic() - first)

    def ends() -> float | None:
        return place.rest.when() if place.rest else None

    assert ends() == pytest.approx(due, abs=0.5)
    assert impatient.task is not None
    impatient.task.cancel()
    await until(lambda: (ends() or 0) > due + 3000, "the hour of the other one holds again")
    assert place.attestation.at == first, "nobody asked it in between"


async def test_a_port_is_left_alone_from_the_start_of_a_pod(world: World, tmp_path: Path) -> None:
    device = await world.bench.device("porch-1", app=b"")
    await world.enroll(device, old_app("esp32s3"))
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    await world.begin(device, release.target)
    await world.phase("Starting")
    await world.start()
    stream = world.discover(devices(world))
    await stream.lists_only()
    assert device.port is not None
    for _ in range(10):  # a blank chip would be asked again and again
        held = await open_port(device.port.place, wait_seconds=0)
        held.close()
        await asyncio.sleep(0.03)
    device.factory_flash(old_app("esp32s3"))
    device.reset()
    await world.phase("Failed")
    await stream.lists_only(device)
