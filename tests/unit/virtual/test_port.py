# SPDX-License-Identifier: Apache-2.0
"""The pseudo-terminal of a virtual device: the rules of port.py, seen from a host that opens it."""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flashjob.virtual.port import UNREAD_LIMIT, SerialPort


class Wire:
    """A port and what it received."""

    def __init__(self, link: Path, *, simulate_rate: bool = False) -> None:
        self.received = bytearray()
        self.news = asyncio.Event()
        self.port = SerialPort(link, self._take, simulate_rate=simulate_rate)

    def _take(self, data: bytes) -> None:
        self.received += data
        self.news.set()

    async def until(self, size: int) -> bytes:
        async with asyncio.timeout(5):
            while len(self.received) < size:
                self.news.clear()
                await self.news.wait()
        return bytes(self.received)


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    wire = Wire(tmp_path / "ports" / "porch-1")
    wire.port.plug()
    yield wire
    wire.port.unplug()


def host(wire: Wire) -> int:
    return os.open(wire.port.link, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)


async def read(fd: int, size: int) -> bytes:
    data = b""
    async with asyncio.timeout(5):
        while len(data) < size:
            try:
                data += os.read(fd, size - len(data))
            except BlockingIOError:
                await asyncio.sleep(0.005)
    return data


async def test_rule_1_raw_in_both_directions(wire: Wire) -> None:
    every = bytes(range(256))
    fd = host(wire)
    os.write(fd, every)
    assert await wire.until(256) == every
    wire.port.send(every)
    assert await read(fd, 256) == every
    await asyncio.sleep(0.02)
    assert bytes(wire.received) == every  # nothing was echoed
    os.close(fd)


async def test_rule_2_a_pulled_cable_is_an_error_and_a_new_node_has_the_same_name(wire: Wire) -> None:
    fd = host(wire)
    wire.port.unplug()
    assert not os.path.lexists(wire.port.link)
    assert wire.port.path == ""
    with pytest.raises(OSError):
        os.write(fd, b"x")
    os.close(fd)
    wire.port.send(b"lost")
    wire.port.log(b"lost")
    wire.port.plug()
    fd = host(wire)
    wire.port.send(b"again")
    assert await read(fd, 5) == b"again"
    os.close(fd)


async def test_rule_2_plugging_twice_and_pulling_twice_change_nothing(wire: Wire) -> None:
    node = wire.port.path
    wire.port.plug()
    assert wire.port.path == node
    wire.port.unplug()
    wire.port.unplug()
    assert not wire.port.plugged


async def test_rule_3_unread_log_is_dropped_answers_are_not(wire: Wire) -> None:
    for _ in range(100):
        wire.port.log(b"l" * 100)
        await asyncio.sleep(0)
    answer = b"A" * 200_000
    wire.port.send(answer)
    fd = host(wire)
    data = b""
    async with asyncio.timeout(5):
        while data.count(b"A") < len(answer):
            try:
                data += os.read(fd, 65536)
            except BlockingIOError:
                await asyncio.sleep(0.001)
    assert 0 < data.count(b"l") <= 2 * UNREAD_LIMIT
    assert data.endswith(answer)
    os.close(fd)


async def test_rule_4_bytes_take_their_time(tmp_path: Path) -> None:
    wire = Wire(tmp_path / "slow", simulate_rate=True)
    wire.port.plug()
    wire.port.baud = 9600
    fd = host(wire)
    tty.setraw(fd)
    loop = asyncio.get_running_loop()
    started = loop.time()
    os.write(fd, b"x" * 192)  # 0.2 s at 9,600 Bd
    await wire.until(192)
    assert loop.time() - started >= 0.199
    started = loop.time()
    wire.port.send(b"y" * 96)
    assert await read(fd, 96) == b"y" * 96
    assert loop.time() - started >= 0.099
    os.close(fd)
    wire.port.unplug()


async def test_a_link_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "porch-1"
    link.symlink_to("/nonexistent")
    wire = Wire(link)
    wire.port.plug()
    assert str(link.resolve()) == wire.port.path
    wire.port.unplug()
