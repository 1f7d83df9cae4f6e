# SPDX-License-Identifier: Apache-2.0
"""Serial loader: the rules of rom.py and slip.py, without any port."""

import hashlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline.esp.chips import by_target
from flashjob.virtual import slip
from flashjob.virtual.chip_registers import TARGETS, ChipFuses
from flashjob.virtual.flash import SECTOR, Flash, FlashIOError
from flashjob.virtual.rom import SYNC, Reply, RomLoader

MAC = bytes.fromhex("246f28010203")
CHIP_IDS = {name: by_target(name).chip_id for name in TARGETS}


def loader(chip: str = "esp32s3", **fuses: object) -> RomLoader:
    values: dict[str, object] = {"chip": chip, "chip_id": CHIP_IDS[chip], "mac": MAC, "revision": 2} | fuses
    return RomLoader(ChipFuses(**values), Flash(4 * 1024 * 1024))  # type: ignore[arg-type]


def ask(rom: RomLoader, op: int, data: bytes = b"", checksum: int = 0) -> Reply:
    return rom.handle(struct.pack("<BBHI", 0, op, len(data), checksum) + data)


def body(rom: RomLoader, reply: Reply, frame: int = 0) -> tuple[int, bytes, int, int]:
    """(value, data, status, error) of one answer."""
    raw = reply.frames[frame]
    direction, _, length, value = struct.unpack_from("<BBHI", raw)
    assert (direction, length) == (1, len(raw) - 8)
    tail = 2 if rom.stub else 4
    return value, raw[8:-tail], raw[-tail], raw[-tail + 1]


def block(data: bytes, seq: int) -> tuple[bytes, int]:
    checksum = 0xEF
    for byte in data:
        checksum ^= byte
    return struct.pack("<IIII", len(data), seq, 0, 0) + data, checksum


def into_stub(rom: RomLoader) -> RomLoader:
    ask(rom, 0x06, struct.pack("<II", 0, 0x4000))
    return rom


def begin(rom: RomLoader, size: int, offset: int, *, op: int = 0x02) -> Reply:
    words = [size, 1, 0x400, offset]
    if rom.stub or rom.fuses.chip != "esp32":
        words.append(0)
    return ask(rom, op, struct.pack(f"<{len(words)}I", *words))


def test_rule_1_sync_restarts_the_rom_and_is_answered_eight_times() -> None:
    rom = into_stub(loader())
    assert rom.stub
    reply = ask(rom, 0x08, SYNC)
    assert not rom.stub
    assert len(reply.frames) == 8
    assert body(rom, reply)[0] != 0


def test_rule_2_the_stub_says_ohai_and_answers_shorter() -> None:
    rom = loader()
    reply = ask(rom, 0x06, struct.pack("<II", 0, 0x40370000))
    assert reply.frames[1] == b"OHAI"
    assert len(reply.frames[0]) == 8 + 4
    assert len(ask(rom, 0x0A, struct.pack("<I", 0)).frames[0]) == 8 + 2


def test_rule_3_checksum_and_sequence() -> None:
    rom = into_stub(loader())
    begin(rom, 2048, 0x10000)
    data, checksum = block(b"a" * 1024, 0)
    assert body(rom, ask(rom, 0x03, data, checksum ^ 1))[2:] == (1, 7)
    assert body(rom, ask(rom, 0x03, data, checksum))[2:] == (0, 0)
    later, later_sum = block(b"c" * 1024, 5)
    assert body(rom, ask(rom, 0x03, later, later_sum))[2:] == (1, 5)
    programmed = rom.flash.bytes_programmed
    assert body(rom, ask(rom, 0x03, data, checksum))[2:] == (0, 0)  # sent again: its answer was lost
    assert rom.flash.bytes_programmed == programmed


def test_rule_4_rom_erases_before_the_first_block_the_stub_as_blocks_arrive() -> None:
    rom = loader()
    rom.flash.load(0x10000, b"old" * 4096)
    begin(rom, 8192, 0x10000)
    assert rom.flash.bytes_erased == 8192
    stub = into_stub(loader())
    stub.flash.load(0x10000, b"old" * 4096)
    begin(stub, 8192, 0x10000)
    assert stub.flash.bytes_erased == 0
    ask(stub, 0x03, *block(b"n" * 1024, 0))
    assert stub.flash.bytes_erased == SECTOR
    assert stub.flash.read(0x10000 + SECTOR, 3) == (b"old" * 4096)[SECTOR : SECTOR + 3]


def test_rule_5_leaving_the_loader() -> None:
    stub = into_stub(loader())
    assert not ask(stub, 0x04, struct.pack("<I", 1)).boot
    assert ask(stub, 0x04, struct.pack("<I", 0)).boot
    assert ask(stub, 0x12, struct.pack("<I", 0)).boot
    assert ask(loader(), 0x04, struct.pack("<I", 1)).boot


def test_rule_6_secure_download_reads_nothing() -> None:
    rom = loader(secure_download=True)
    for op, data in (
        (0x0A, struct.pack("<I", 0)),
        (0x13, bytes(16)),
        (0x0E, bytes(8)),
        (0x06, bytes(8)),
        (0xD2, bytes(16)),
    ):
        assert body(rom, ask(rom, op, data))[2:] == (1, 5)
    flags = struct.unpack_from("<I", body(rom, ask(rom, 0x14))[1])[0]
    assert flags & 1 << 2


def test_rule_7_a_failing_flash_is_error_6_and_may_be_tried_again() -> None:
    rom = into_stub(loader())
    failures = [FlashIOError("no"), None]

    def hook(operation: str, _offset: int, _length: int) -> None:
        if operation == "program" and (error := failures.pop(0)):
            raise error

    rom.flash.hook = hook
    begin(rom, 1024, 0)
    message = block(b"x" * 1024, 0)
    assert body(rom, ask(rom, 0x03, *message))[2:] == (1, 6)
    assert body(rom, ask(rom, 0x03, *message))[2:] == (0, 0)
    assert rom.flash.read(0, 1024) == b"x" * 1024


def test_compressed_write_survives_a_repeated_block() -> None:
    rom = into_stub(loader())
    image = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(200)) * 2
    packed = zlib.compress(image, 9)
    begin(rom, len(image), 0x1000, op=0x10)
    for seq, at in enumerate(range(0, len(packed), 512)):
        message = block(packed[at : at + 512], seq)
        for _ in range(2):
            assert body(rom, ask(rom, 0x11, *message))[2:] == (0, 0)
    assert rom.flash.read(0x1000, len(image)) == image


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("stub", [False, True])
def test_md5_and_reading(chip: str, stub: bool) -> None:
    rom = loader(chip)
    rom.flash.load(0x2000, b"content" * 1000)
    if stub:
        into_stub(rom)
    digest = hashlib.md5(rom.flash.read(0x2000, 5000)).digest()
    said = body(rom, ask(rom, 0x13, struct.pack("<IIII", 0x2000, 5000, 0, 0)))[1]
    assert said == (digest if stub else digest.hex().encode())
    if not stub:
        assert body(rom, ask(rom, 0x0E, struct.pack("<II", 0x2000, 10)))[1] == b"contentcon".ljust(64, b"\0")


def test_reading_stops_at_the_window_until_it_is_acknowledged() -> None:
    rom = into_stub(loader())
    reply = ask(rom, 0xD2, struct.pack("<IIII", 0, 10 * 4096, 4096, 4))
    assert len(reply.frames) == 1 + 4
    received, frames = 4 * 4096, []
    for _ in range(10):
        frames = rom.handle(struct.pack("<I", received)).frames
        received += sum(len(frame) for frame in frames if len(frame) == 4096)
        if frames and len(frames[-1]) == 16:
            break
    assert received == 10 * 4096
    assert frames[-1] == hashlib.md5(b"\xff" * 10 * 4096).digest()


@pytest.mark.parametrize(("chip", "length"), [("esp32", None), ("esp32s2", 12), ("esp32s3", 20), ("esp32c3", 20)])
def test_security_info_has_the_form_of_the_chip(chip: str, length: int | None) -> None:
    rom = loader(chip, secure_boot=True)
    value = body(rom, ask(rom, 0x14))
    if length is None:
        assert value[2:] == (1, 5)
    else:
        assert len(value[1]) == length
        assert value[1][0] & 1
        if length == 20:
            assert struct.unpack_from("<I", value[1], 12)[0] == CHIP_IDS[chip]


@given(st.binary(max_size=300), st.sampled_from(sorted(TARGETS)), st.booleans())
def test_no_frame_breaks_it(frame: bytes, chip: str, stub: bool) -> None:
    rom = loader(chip)
    rom.stub = stub
    for reply in rom.handle(frame).frames:
        assert len(reply) >= 8 or reply == b"OHAI" or rom.stub


@given(st.integers(0, 0xFF), st.binary(max_size=80), st.integers(0, 0xFFFFFFFF))
def test_every_request_is_answered_with_its_own_code(op: int, data: bytes, checksum: int) -> None:
    rom = loader()
    rom.flash = Flash(SECTOR)
    frames = ask(rom, op, data, checksum).frames
    assert frames
    assert frames[0][:2] == bytes([1, op])


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.binary(max_size=20), st.integers(1, 7))
def test_slip_frames_survive_any_cut(frames: list[bytes], noise: bytes, step: int) -> None:
    noise = noise.replace(slip.END, b"")
    stream = noise + b"".join(map(slip.encode, frames))
    decoder = slip.SlipDecoder()
    found, outside = [], b""
    for at in range(0, len(stream), step):
        more, rest = decoder.feed(stream[at : at + step])
        found += more
        outside += rest
    assert (found, outside) == (frames, noise)


def test_slip_drops_what_never_ends() -> None:
    decoder = slip.SlipDecoder()
    decoder.feed(slip.END)
    for _ in range(4):
        decoder.feed(b"x" * slip.MAX_FRAME)
    frames, _ = decoder.feed(slip.END + slip.encode(b"again"))
    assert frames == [b"again"]
