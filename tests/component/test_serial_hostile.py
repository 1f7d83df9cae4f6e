# SPDX-License-Identifier: Apache-2.0
"""Whatever a serial device answers, the esptool program ends with a reason and in time."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flashjob.errors import FlashJobError
from flashjob.flasher.esptool import Esptool
from flashjob.virtual import rom, slip
from flashjob.virtual.rom import Reply, RomLoader
from flashjob.wire.esptool_lines import Region

from .bench import Bench, new_app, push

SECONDS = 4.0


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


@contextmanager
def line(talk: Callable[[bytes, threading.Event], Iterator[bytes]]) -> Iterator[str]:
    """A pseudo-terminal whose other end says, after each read, what `talk` yields."""
    master, slave = os.openpty()
    tty.setraw(master)
    tty.setraw(slave)
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                heard = os.read(master, 65536)
                for said in talk(heard, over):
                    while said and not over.is_set():
                        said = said[os.write(master, said) :]
            except BlockingIOError:
                over.wait(0.005)
            except OSError:
                return

    os.set_blocking(master, False)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield os.ttyname(slave)
    finally:
        over.set()
        thread.join(5)
        os.close(slave)
        os.close(master)


def endless_log(_heard: bytes, over: threading.Event) -> Iterator[bytes]:
    while not over.is_set():
        yield b"I (123) wifi: still scanning\r\n" * 8


def endless_packet(_heard: bytes, over: threading.Event) -> Iterator[bytes]:
    yield b"\xc0"
    while not over.is_set():
        yield b"A" * 4096


def endless_packets(_heard: bytes, over: threading.Event) -> Iterator[bytes]:
    while not over.is_set():
        yield slip.encode(struct.pack("<BBHI", 1, 0x77, 4, 0) + b"\0\0\0\0") * 16


def trickle(_heard: bytes, over: threading.Event) -> Iterator[bytes]:
    yield b"\xc0"
    while not over.wait(0.04):
        yield b"A"


def no_status(heard: bytes, _over: threading.Event) -> Iterator[bytes]:
    """Every request is answered by the right command's code and nothing else."""
    for frame in slip.SlipDecoder().feed(heard)[0]:
        if len(frame) > 1:
            yield slip.encode(struct.pack("<BBHI", 1, frame[1], 0, 0)) * (8 if frame[1] == 8 else 1)


def bad_escapes(_heard: bytes, _over: threading.Event) -> Iterator[bytes]:
    yield b"\xc0\x01\x08\xdb\x00\x00\x00\xc0" * 4


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (endless_log, "PortSilent"),
        (endless_packet, "PortSilent"),
        (endless_packets, "PortSilent"),
        (trickle, "TransportLost"),
        (no_status, "TransportLost"),
        (bad_escapes, "PortSilent"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_loader_that_answers_nonsense(
    talk: Callable[[bytes, threading.Event], Iterator[bytes]], reason: str
) -> None:
    with line(talk) as port:
        async with Esptool(port, job_seconds=SECONDS * 5 if reason == "PortSilent" else SECONDS) as tool:
            with pytest.raises(FlashJobError) as refused:
                await tool.probe()
    assert refused.value.reason == reason
    assert refused.value.next_step
    assert len(refused.value.message) < 1000


async def test_a_chip_that_claims_to_hold_everything_is_not_believed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is not written then; evidence shows that the old one runs."""
    device = await bench.device()
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")

    def flatter(self: RomLoader, op: int, data: bytes, _: int) -> Reply:
        offset, size, *_zero = struct.unpack("<IIII", data)
        start = offset - 0x1E0000
        wanted = (
            release.image[start : start + size].ljust(size, b"\xff") if start >= 0 else self.flash.read(offset, size)
        )
        return self._ok(op, hashlib.md5(wanted, usedforsecurity=False).digest())

    monkeypatch.setitem(rom._HANDLERS, 0x13, flatter)
    result, judge = await bench.flash(device, release)
    assert not result.ok
    assert result.reason == "WentBack", result.message
    assert not judge.case.judged


async def test_a_chip_that_contradicts_itself_fails_verification(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await bench.device()
    assert device.port is not None
    file = tmp_path / "app.bin"
    file.write_bytes(new_app("esp32s3"))

    def random_md5(self: RomLoader, op: int, data: bytes, _: int) -> Reply:
        return self._ok(op, os.urandom(16))

    monkeypatch.setitem(rom._HANDLERS, 0x13, random_md5)
    async with Esptool(device.port.place) as tool:
        with pytest.raises(FlashJobError) as refused:
            await tool.write([Region(offset=0x1E0000, file=str(file))], [], lambda _done, _total: None)
    assert refused.value.reason == "VerifyFailed"


async def test_short_md5_answers_are_nonsense_with_a_reason(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await bench.device()
    assert device.port is not None
    file = tmp_path / "app.bin"
    file.write_bytes(new_app("esp32s3"))
    monkeypatch.setitem(rom._HANDLERS, 0x13, lambda self, op, _data, _chk: self._ok(op, b""))
    async with Esptool(device.port.place) as tool:
        with pytest.raises(FlashJobError) as refused:
            await tool.write([Region(offset=0x1E0000, file=str(file))], [], lambda _done, _total: None)
    assert refused.value.reason == "TransportLost"
