# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing one region with the loader's commands: only what differs, each block acknowledged, all of it verified."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

from esptool.util import FatalError

from flashjob.flasher import changes

from .output import JobError

_BLOCK_ATTEMPTS: Final = 3
_BLOCK_SECONDS: Final = 3.0
_WRITE_SECONDS_PER_BYTE: Final = 40e-6
_LEVEL: Final = 6
_SHORT_BLOCKS: Final = 4
_SAMPLE_BYTES, _SAMPLES, _WORTH_IT = 4096, 8, 0.97

Written = Callable[[int], None]
"""Told the number of bytes that the chip has just acknowledged."""


class RefusedBlock(JobError):
    """The chip said no to a block again and again: its flash, not its line, is the matter."""


class Writer:
    """Writes to the flash of one connected chip.

    Args:
        esp: esptool's loader object, attached to flash.
        written: hears of progress.
    """

    def __init__(self, esp: Any, written: Written) -> None:
        self._esp, self._written = esp, written

    def differing(self, offset: int, data: bytes) -> list[changes.Run]:
        """Which runs of `data` the flash at `offset` does not hold."""
        search = changes.search(changes.padded(data))
        try:
            start, end = next(search)
            while True:
                start, end = search.send(self._esp.flash_md5sum(offset + start, end - start))
        except StopIteration as found:
            runs: list[changes.Run] = found.value
            return runs

    def holds(self, offset: int, data: bytes) -> bool:
        """Whether the flash at `offset` holds `data`, and nothing behind it up to the end of its last sector."""
        whole = changes.padded(data)
        return bool(self._esp.flash_md5sum(offset, len(whole)) == changes.md5(whole))

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`, erasing its sectors. Raises RefusedBlock, FatalError (a line that broke)."""
        esp = self._esp
        data += b"\xff" * (-len(data) % 4)
        size = esp.FLASH_WRITE_SIZE
        padded = -(-len(data) // size) * size  # plain blocks are always full ones, packed ones are not
        packed = None
        if esp.IS_STUB and (len(data) <= _SHORT_BLOCKS * size or _compressible(data)):
            packed = zlib.compress(data, _LEVEL)
        if packed is not None and len(packed) < padded:
            esp.flash_defl_begin(len(data), len(packed), offset)
            self._send_packed(packed)
        else:
            esp.flash_begin(len(data), offset, logging=False)
            self._send_plain(data)
        if esp.IS_STUB:  # the loader in ROM would start the application
            esp.flash_finish(reboot=False, timeout=_seconds(2 * size))

    def erase(self, offset: int, size: int) -> None:
        """Erase `size` bytes at `offset`, both whole sectors, unless they are."""
        if not size or self.holds(offset, b"\xff" * size):
            return
        if self._esp.IS_STUB:
            self._esp.erase_region(offset, size)
        else:
            self._esp.flash_begin(size, offset, logging=False)
        if not self.holds(offset, b"\xff" * size):
            raise JobError("VerifyFailed", f"the flash at {offset:#x} is not blank after it was erased")

    def _send_packed(self, packed: bytes) -> None:
        size, inflate, before = self._esp.FLASH_WRITE_SIZE, zlib.decompressobj(), 0
        for seq, at in enumerate(range(0, len(packed), size)):
            block = packed[at : at + size]
            large = len(inflate.decompress(block))
            # The stub acknowledges a block at once and is busy with it while the next one arrives.
            self._send("FLASH_DEFL_DATA", block, seq, _seconds(max(large, before)))
            before = large
            self._written(large)

    def _send_plain(self, data: bytes) -> None:
        size = self._esp.FLASH_WRITE_SIZE
        for seq, at in enumerate(range(0, len(data), size)):
            block = data[at : at + size]
            self._send("FLASH_DATA", block.ljust(size, b"\xff"), seq, _seconds(size))
            self._written(len(block))

    def _send(self, command: str, block: bytes, seq: int, seconds: float) -> None:
        """Send a block, again if the chip refuses it. Silence is not answered by sending it twice: was it taken?"""
        esp, packet = self._esp, struct.pack("<IIII", len(block), seq, 0, 0) + block
        for left in reversed(range(_BLOCK_ATTEMPTS)):
            try:
                esp.check_command(
                    f"write block {seq}", esp.ESP_CMDS[command], packet, esp.checksum(block), timeout=seconds
                )
                return
            except FatalError as error:
                if "result was" not in str(error):
                    raise
                if not left:
                    raise RefusedBlock("WriteFailed", str(error).partition("\n")[0]) from error


def _seconds(size: int) -> float:
    """How long a chip may take to erase and program `size` bytes."""
    return max(_BLOCK_SECONDS, size * _WRITE_SECONDS_PER_BYTE)


def _compressible(data: bytes) -> bool:
    """Whether samples of it shrink: compressing what does not would cost more than all the rest."""
    step = max(_SAMPLE_BYTES, len(data) // _SAMPLES)
    sample = b"".join(data[at : at + _SAMPLE_BYTES] for at in range(0, len(data), step))
    return len(zlib.compress(sample, 1)) < len(sample) * _WORTH_IT
