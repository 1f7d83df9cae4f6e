# SPDX-License-Identifier: Apache-2.0
"""What an Akri agent sees of the handler, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attestation.discovery.details import Transport
from attestation.discovery.registration import SOCKET_NAME, Registration, stay_registered
from flashjob.cluster.resources import CONFIGURATIONS
from flashjob.sandbox.akri.handlers import HandlerUnavailable, discover
from flashjob.trust.discovery import ANNOTATION_WOKEN

from .bench import Bench, old_app
from .discovery_world import World, until

DEVICES = "list: Devices"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    bench, directory = Bench(tmp_path), tmp_path / "akri"
    directory.mkdir()
    world = World(bench, directory, Transport.NETWORK)
    yield world
    await world.stop()
    await bench.close()


async def test_rule_1_it_serves_before_it_registers_and_wakes_configurations(world: World) -> None:
    await world.configure("mine", DEVICES)
    await world.configure("unreadable", "list: Everything")
    body = {"metadata": {"name": "other"}, "spec": {"discoveryHandler": {"name": "udev"}}}
    await world.cluster.create(CONFIGURATIONS, "farm", body)
    await world.start()
    stream = world.discover(DEVICES)  # at once: the agent may call as soon as it knows
    await stream.lists_only()

    def woken() -> set[str]:
        return {
            obj["metadata"]["name"]
            for obj in world.cluster.all(CONFIGURATIONS)
            if ANNOTATION_WOKEN in obj["metadata"].get("annotations", {})
        }

    await until(lambda: woken() == {"mine", "unreadable"}, "both are woken")


async def test_rule_1_a_restarted_agent_is_told_again_and_only_then(world: World) -> None:
    await world.start()
    await asyncio.sleep(1.5)
    assert world.registered.empty()  # the same socket is not told twice
    for _ in range(2):
        await world.start_agent()
        endpoint = await asyncio.wait_for(world.registered.get(), 10)
        assert endpoint == world.endpoint
        await world.discover(DEVICES).lists_only()


async def test_rule_1_an_agent_that_starts_later_is_found(world: World) -> None:
    world._running = asyncio.create_task(world._run())
    await asyncio.sleep(0.3)
    await world.start_agent()
    world.endpoint = await asyncio.wait_for(world.registered.get(), 10)
    await world.discover(DEVICES).lists_only()


@pytest.mark.parametrize(
    ("details", "field"),
    [("", "list"), ("list: Ports", "list"), ("{list: Devices, serial: {ports: [/dev/x]}}", "serial")],
)
async def test_rule_2_details_that_cannot_be_followed(world: World, details: str, field: str) -> None:
    await world.start()
    stream = world.discover(details)
    await until(lambda: stream.failure is not None, "the stream fails")
    assert stream.failure is not None
    assert stream.failure.refused
    assert f"{field}:" in str(stream.failure)
    good = world.discover(DEVICES)
    await good.lists_only()


@pytest.mark.parametrize(
    "details", ["x" * 65_000, "{list: Devices, ? " + "x" * 60_000 + " : 1}"], ids=["no-yaml", "no-field"]
)
async def test_rule_2_a_refusal_is_never_too_long_for_the_agent(world: World, details: str) -> None:
    await world.start()
    stream = world.discover(details)
    await until(lambda: stream.failure is not None, "the stream fails")
    assert stream.failure is not None
    assert stream.failure.refused


async def test_rule_2_discovery_properties_are_not_passed_over(world: World) -> None:
    await world.start()
    with pytest.raises(HandlerUnavailable, match="discoveryProperties") as caught:
        await anext(discover(world.endpoint, DEVICES, {"VERIFIER": b"elsewhere"}))
    assert caught.value.refused


async def test_rule_3_an_empty_list_is_said_once(world: World) -> None:
    await world.start()
    stream = world.discover(DEVICES)
    await stream.lists_only()
    await asyncio.sleep(0.5)
    assert stream.lists == [()]


async def test_rule_5_the_end_is_silent(world: World, caplog: pytest.LogCaptureFixture) -> None:
    device = await world.bench.device(network=True)
    await world.enroll(device, old_app("esp32s3"))
    await world.start()
    stream = world.discover(DEVICES)
    await stream.lists_only(device)
    await world.stop_handler()
    await until(lambda: stream.failure is not None, "the stream ends")
    assert len(stream.lists) == 1
    assert not stream.failure.refused  # type: ignore[union-attr]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_killed_handlers_socket_is_no_hindrance(world: World) -> None:
    (world.directory / "flashjob-network.sock").write_bytes(b"")
    await world.start()
    await world.discover(DEVICES).lists_only()


async def test_a_stream_that_ends_gives_its_places_up(world: World) -> None:
    device = await world.bench.device(network=True)
    await world.enroll(device, old_app("esp32s3"), address="")
    await world.start()
    other = world.discover(DEVICES)
    stream = world.discover(f"{{list: Devices, network: {{addresses: ['{device.server.address}']}}}}")
    await stream.lists_only(device)
    await other.lists_only(device)  # one scanner for all
    assert stream.task is not None
    stream.task.cancel()
    # Its last endpoint is known by now, so the device stays; the Configuration's own place does not count any more.
    await until(lambda: len(world.scanner._subscriptions) == 1, "the subscription is given up")


async def test_the_agent_is_called_localhost(tmp_path: Path) -> None:
    """Rule 4 of registration, seen on the wire: :authority is "localhost", plain or in HPACK's Huffman code."""
    seen = bytearray()
    found = asyncio.Event()

    async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(3) + b"\x04" + bytes(5))  # SETTINGS, empty
        while data := await reader.read(4096):
            seen.extend(data)
            if b"localhost" in seen or bytes.fromhex("a0e41d139d09") in seen:
                found.set()
        writer.close()

    server = await asyncio.start_unix_server(agent, tmp_path / SOCKET_NAME)
    registration = Registration("flashjob-network", tmp_path / "own.sock", shared=True)

    async def never() -> None:
        raise AssertionError("nobody registered us")

    own = await asyncio.start_unix_server(agent, registration.endpoint)
    task = asyncio.create_task(stay_registered(tmp_path, registration, never))
    try:
        await asyncio.wait_for(found.wait(), 10)
    finally:
        task.cancel()
        own.close()
        server.close()


async def test_rule_3_an_agent_that_forgot_is_told_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestation.discovery.registration.LONELY_SECONDS", 0.5)
    await world.configure("mine", DEVICES)
    await world.start()  # and the agent does not ask
    assert await asyncio.wait_for(world.registered.get(), 10) == world.endpoint
    await world.discover(DEVICES).lists_only()
    while not world.registered.empty():
        world.registered.get_nowait()
    await asyncio.sleep(2.2)
    assert world.registered.empty()


async def test_rule_5_that_there_is_no_agent_is_said_once(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attestation.discovery.registration.LONELY_SECONDS", 0.5)
    await world.configure("mine", DEVICES)
    world._running = asyncio.create_task(world._run())
    await until(lambda: "no Akri agent here" in caplog.text, "it is said")
    await asyncio.sleep(1.2)
    assert caplog.text.count("no Akri agent here") == 1
    assert SOCKET_NAME in caplog.text
    assert "does not ask" not in caplog.text, "nobody is there who could"
    await world.start_agent()
    world.endpoint = await asyncio.wait_for(world.registered.get(), 10)
    await world.discover(DEVICES).lists_only()


async def test_rule_6_a_handler_whose_own_socket_is_gone_ends(world: World) -> None:
    await world.start()
    (world.directory / "flashjob-network.sock").unlink()
    assert world._running is not None
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(world._running, 10)
    world._running = None
    assert "own socket was removed" in str(leaves(caught.value))


async def test_rule_6_a_handler_waits_for_the_end_of_the_one_before(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A rolling update: the next one is there before the last one ends."""
    await world.start()
    first, stream = world._running, world.discover(DEVICES)
    await stream.lists_only()
    world._running = asyncio.create_task(world._run())
    await until(lambda: "another handler of this name serves here" in caplog.text, "the next one waits")
    assert world.registered.empty()
    assert first is not None
    first.cancel()
    assert await asyncio.wait_for(world.registered.get(), 10) == world.endpoint
    await world.discover(DEVICES).lists_only()
    await world.start_agent()  # it reaches the one that serves now
    assert await asyncio.wait_for(world.registered.get(), 10) == world.endpoint
    await world.discover(DEVICES).lists_only()


async def test_a_directory_with_too_long_a_path_is_refused(world: World) -> None:
    world.directory /= "x" * 100
    world.directory.mkdir()
    with pytest.raises(ExceptionGroup) as caught:
        await world._run()
    assert "at most 107 bytes" in str(leaves(caught.value))


async def test_a_directory_that_takes_no_socket_is_refused(world: World) -> None:
    world.directory = Path("/proc")
    with pytest.raises(ExceptionGroup) as caught:
        await world._run()
    assert "no socket can be made there" in str(leaves(caught.value))


async def test_a_place_that_takes_no_socket_is_refused(world: World) -> None:
    (world.directory / "flashjob-network.sock").mkdir()
    with pytest.raises(ExceptionGroup) as caught:
        await world._run()
    assert "no socket can be made there" in str(leaves(caught.value))


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [error]


async def test_rule_3_an_agent_that_forgot_for_one_configuration_is_told_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attestation.discovery.registration.LONELY_SECONDS", 0.5)
    other = "{list: Devices, applications: [porch]}"
    await world.configure("mine", DEVICES)
    await world.configure("other", other)
    await world.start()
    await world.discover(DEVICES).lists_only()
    assert await asyncio.wait_for(world.registered.get(), 10) == world.endpoint
    await world.discover(other).lists_only()
    while not world.registered.empty():
        world.registered.get_nowait()
    edited = {"spec": {"discoveryHandler": {"discoveryDetails": "{list: Devices, applications: [garden]}"}}}
    await world.cluster.patch(CONFIGURATIONS, "farm", "other", edited, field_manager="people")
    await asyncio.sleep(2.2)
    assert world.registered.empty(), "the agent goes on with what it asked for"
