# SPDX-License-Identifier: Apache-2.0
"""The serial loader in a chip's mask ROM, and the RAM stub that esptool uploads, as a pure state machine.

Source: Espressif's "Serial Protocol" page and the behaviour of esptool 5.6. Integers are little-endian. A request
is ``00 op len16 chk32 data``, a reply ``01 op len16 val32 data status``; the status takes 4 bytes in ROM mode and
2 in stub mode. Rules (tests name them):

1. SYNC restarts the ROM loader and is answered eight times with a value other than zero: on a port without reset
   lines it is the only sign that somebody connects anew.
2. The uploaded stub need not run: MEM_END with an entry point is acknowledged, ``OHAI`` follows, stub mode begins.
3. Data is checked against its checksum (error 7) and its sequence number; a block that was already taken is
   acknowledged and not written again.
4. A write erases its range rounded out to sectors: the ROM before the first block, the stub as blocks arrive. So a
   cable pulled half-way through leaves the old content in what was not reached yet.
5. FLASH_END and FLASH_DEFL_END with argument 0 leave the loader: the chip boots. The ROM boots with argument 1
   too ("run user code"); the stub then stays.
6. A secure download mode chip has no stub, no registers, no MD5 and no reading: error 5 under no command's code, by
   which esptool knows that the command is not supported.
7. A flash that fails answers error 6 and the write can be repeated.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from firmware_pipeline.esp.image import xor_bytes
from flashjob.virtual.chip_registers import TARGETS, ChipFuses, registers
from flashjob.virtual.flash import SECTOR, Flash, FlashIOError

SYNC = b"\x07\x07\x12\x20" + b"\x55" * 32
INVALID_MESSAGE, FAILED_TO_ACT, BAD_CHECKSUM = 5, 6, 7
READ_BLOCK = 4096


@dataclass(slots=True)
class Reply:
    """What the loader answers to one frame: payloads to be framed, and what happens afterwards."""

    frames: list[bytes] = field(default_factory=list)
    boot: bool = False
    """The chip leaves the loader (rule 5), after the frames are sent."""
    baud: int | None = None
    """New line rate in baud, after the frames are sent."""


@dataclass(slots=True)
class _Write:
    offset: int
    end: int
    blocks: int
    position: int
    erased_to: int
    next_seq: int = 0
    inflate: zlib._Decompress | None = None


@dataclass(slots=True)
class _Read:
    offset: int
    length: int
    window: int
    sent: int = 0


class RomLoader:
    """The loader of one chip on one flash.

    Args:
        fuses: chip identity and security eFuses.
        flash: the memory it writes.
        on_write: called as ``on_write(offset, done, total)`` in bytes before each block of a write is programmed;
            what it raises passes through `handle` (a fault that pulls the cable, for instance).
    """

    def __init__(self, fuses: ChipFuses, flash: Flash, on_write: Callable[[int, int, int], None] | None = None) -> None:
        self.fuses = fuses
        self.flash = flash
        self.stub = False
        self._on_write = on_write
        self._target = TARGETS[fuses.chip]
        self._registers: dict[int, int] = {}
        self._write: _Write | None = None
        self._read: _Read | None = None
        self.restart()

    def restart(self) -> None:
        """Power-on or reset into download mode: ROM, no stub, nothing in progress."""
        self.stub = False
        self._write = self._read = None
        self._registers = registers(self.fuses)

    def handle(self, frame: bytes) -> Reply:
        """Answer one frame; frames that are no request are ignored, as the ROM does."""
        if self._read is not None and len(frame) == 4:
            return self._continue_read(int.from_bytes(frame, "little"))
        if len(frame) < 8 or frame[0] != 0:
            return Reply()
        _, op, length, checksum = struct.unpack_from("<BBHI", frame)
        data = frame[8:]
        handler = _HANDLERS.get(op)
        if self.fuses.secure_download and op not in _SECURE_DOWNLOAD:
            return self._error(0, INVALID_MESSAGE)
        if handler is None or len(data) != length:
            return self._error(op, INVALID_MESSAGE)
        try:
            return handler(self, op, data, checksum)
        except FlashIOError:
            return self._error(op, FAILED_TO_ACT)
        except (struct.error, ValueError, zlib.error):
            return self._error(op, INVALID_MESSAGE)

    # one method per command ------------------------------------------------------------------------------------

    def _sync(self, op: int, data: bytes, _: int) -> Reply:
        if data != SYNC:
            return self._error(op, INVALID_MESSAGE)
        self.restart()
        return Reply(self._ok(op, value=0x20120707).frames * 8)

    def _security_info(self, op: int, data: bytes, _: int) -> Reply:
        fuses = self.fuses
        if not self._target.security_info_bytes:
            return self._error(op, INVALID_MESSAGE)
        flags = fuses.secure_boot | fuses.secure_download << 2 | fuses.jtag_disabled << 7
        info = struct.pack("<IB7xII", flags, 7 if fuses.flash_encryption else 0, fuses.chip_id, 0)
        return self._ok(op, info[: self._target.security_info_bytes])

    def _read_reg(self, op: int, data: bytes, _: int) -> Reply:
        (address,) = struct.unpack("<I", data)
        return self._ok(op, value=self._registers.get(address, 0))

    def _write_reg(self, op: int, data: bytes, _: int) -> Reply:
        for address, value, mask, _delay in struct.iter_unpack("<IIII", data):
            self._registers[address] = self._registers.get(address, 0) & ~mask | value & mask
            if address == self._target.spi_base and value & (1 << 18):
                self._spi_command()
        return self._ok(op)

    def _spi_command(self) -> None:
        base, target = self._target.spi_base, self._target
        command = self._registers.get(base + target.spi_usr2, 0) & 0xFF
        size_code = self.flash.size.bit_length() - 1
        answers = {0x9F: size_code << 16 | 0x40EF, 0x5A: int.from_bytes(b"SFDP", "little")}
        self._registers[base + target.spi_w0] = answers.get(command, 0)
        self._registers[base] &= ~(1 << 18)

    def _accept(self, op: int, data: bytes, _: int) -> Reply:
        return self._ok(op)

    def _change_baud(self, op: int, data: bytes, _: int) -> Reply:
        new, _old = struct.unpack("<II", data)
        reply = self._ok(op)
        reply.baud = new
        return reply

    def _mem_data(self, op: int, data: bytes, checksum: int) -> Reply:
        return self._ok(op) if _block(data, checksum) is not None else self._error(op, BAD_CHECKSUM)

    def _mem_end(self, op: int, data: bytes, _: int) -> Reply:
        _stay, entry = struct.unpack("<II", data)
        reply = self._ok(op)
        if entry and not self.stub:
            reply.frames.append(b"OHAI")
            self.stub = True
        return reply

    def _begin(self, op: int, data: bytes, _: int) -> Reply:
        words = struct.unpack(f"<{len(data) // 4}I", data)
        if len(words) != (5 if self.stub or self._target.extended_begin else 4):
            return self._error(op, INVALID_MESSAGE)
        size, blocks, _block_size, offset = words[:4]
        end = offset + size
        if end > self.flash.size:
            return self._error(op, INVALID_MESSAGE)
        start = offset - offset % SECTOR
        self._write = _Write(offset, end, blocks, offset, start)
        if op == FLASH_DEFL_BEGIN:
            self._write.inflate = zlib.decompressobj()
        if not self.stub and size:
            self._erase_up_to(self._write, end)
        return self._ok(op)

    def _data(self, op: int, data: bytes, checksum: int) -> Reply:
        write, block = self._write, _block(data, checksum)
        if block is None:
            return self._error(op, BAD_CHECKSUM)
        (seq,) = struct.unpack_from("<I", data, 4)
        if write is None or seq > write.next_seq or (write.inflate is not None) != (op == FLASH_DEFL_DATA):
            return self._error(op, INVALID_MESSAGE)
        if seq < write.next_seq:
            return self._ok(op)
        inflate = write.inflate and write.inflate.copy()
        content = inflate.decompress(block) if inflate else block
        content = content[: write.end - write.position]
        if self._on_write is not None:
            self._on_write(write.offset, write.position - write.offset, write.end - write.offset)
        self._erase_up_to(write, write.position + len(content))
        self.flash.program(write.position, content)
        write.inflate = inflate
        write.position += len(content)
        write.next_seq += 1
        return self._ok(op)

    def _erase_up_to(self, write: _Write, end: int) -> None:
        target = -(-end // SECTOR) * SECTOR
        if target > write.erased_to:
            self.flash.erase(write.erased_to, target - write.erased_to)
            write.erased_to = target

    def _end(self, op: int, data: bytes, _: int) -> Reply:
        (stay,) = struct.unpack("<I", data)
        self._write = None
        reply = self._ok(op)
        reply.boot = stay == 0 or not self.stub
        return reply

    def _md5(self, op: int, data: bytes, _: int) -> Reply:
        offset, length, _zero, _zero = struct.unpack("<IIII", data)
        digest = hashlib.md5(self.flash.read(offset, length), usedforsecurity=False)
        return self._ok(op, digest.digest() if self.stub else digest.hexdigest().encode())

    def _read_slow(self, op: int, data: bytes, _: int) -> Reply:
        offset, length = struct.unpack("<II", data)
        if self.stub or length > 64:
            return self._error(op, INVALID_MESSAGE)
        return self._ok(op, self.flash.read(offset, length).ljust(64, b"\0"))

    def _erase_flash(self, op: int, data: bytes, _: int) -> Reply:
        if not self.stub:
            return self._error(op, INVALID_MESSAGE)
        self.flash.erase(0, self.flash.size)
        return self._ok(op)

    def _erase_region(self, op: int, data: bytes, _: int) -> Reply:
        offset, length = struct.unpack("<II", data)
        if not self.stub:
            return self._error(op, INVALID_MESSAGE)
        self.flash.erase(offset, length)
        return self._ok(op)

    def _read_flash(self, op: int, data: bytes, _: int) -> Reply:
        offset, length, block, window = struct.unpack("<IIII", data)
        if not self.stub or block != READ_BLOCK or not window or offset + length > self.flash.size:
            return self._error(op, INVALID_MESSAGE)
        self._read = _Read(offset, length, window)
        reply = self._ok(op)
        reply.frames += self._continue_read(0).frames
        return reply

    def _continue_read(self, acknowledged: int) -> Reply:
        read, frames = self._read, []
        if read is None:
            return Reply()
        while read.sent < read.length and read.sent - acknowledged < read.window * READ_BLOCK:
            size = min(READ_BLOCK, read.length - read.sent)
            frames.append(self.flash.read(read.offset + read.sent, size))
            read.sent += size
        if acknowledged >= read.length:
            content = self.flash.read(read.offset, read.length)
            frames.append(hashlib.md5(content, usedforsecurity=False).digest())
            self._read = None
        return Reply(frames)

    def _ok(self, op: int, data: bytes = b"", value: int = 0) -> Reply:
        return self._answer(op, data, value, 0, 0)

    def _error(self, op: int, error: int) -> Reply:
        return self._answer(op, b"", 0, 1, error)

    def _answer(self, op: int, data: bytes, value: int, status: int, error: int) -> Reply:
        body = data + bytes((status, error)) + (b"" if self.stub else b"\0\0")
        return Reply([struct.pack("<BBHI", 1, op, len(body), value) + body])


FLASH_DEFL_BEGIN, FLASH_DEFL_DATA = 0x10, 0x11
_HANDLERS: dict[int, Callable[[RomLoader, int, bytes, int], Reply]] = {
    0x02: RomLoader._begin,
    0x03: RomLoader._data,
    0x04: RomLoader._end,
    0x05: RomLoader._accept,  # MEM_BEGIN
    0x06: RomLoader._mem_end,
    0x07: RomLoader._mem_data,
    0x08: RomLoader._sync,
    0x09: RomLoader._write_reg,
    0x0A: RomLoader._read_reg,
    0x0B: RomLoader._accept,  # SPI_SET_PARAMS
    0x0D: RomLoader._accept,  # SPI_ATTACH
    0x0E: RomLoader._read_slow,
    0x0F: RomLoader._change_baud,
    FLASH_DEFL_BEGIN: RomLoader._begin,
    FLASH_DEFL_DATA: RomLoader._data,
    0x12: RomLoader._end,
    0x13: RomLoader._md5,
    0x14: RomLoader._security_info,
    0xD0: RomLoader._erase_flash,
    0xD1: RomLoader._erase_region,
    0xD2: RomLoader._read_flash,
}
_SECURE_DOWNLOAD = {0x02, 0x03, 0x04, 0x08, 0x0B, 0x0D, 0x0F, 0x10, 0x11, 0x12, 0x14}


def _block(data: bytes, checksum: int) -> bytes | None:
    """The payload of a data command, or None if its checksum is wrong (rule 3)."""
    (length,) = struct.unpack_from("<I", data)
    block = data[16:]
    if len(block) != length:
        raise ValueError("length field and block differ")
    return block if checksum & 0xFF == 0xEF ^ xor_bytes(block) else None
