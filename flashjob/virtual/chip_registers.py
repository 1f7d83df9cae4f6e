# SPDX-License-Identifier: Apache-2.0
"""What esptool and espefuse look at inside a chip: where registers lie, and what its eFuses make them hold.

Source: the chips' technical reference manuals, chapters "eFuse Controller" and "SPI Controller". eFuse block 0 is read
at base + 0x2C, block 1 at base + 0x44; the ESP32 has a layout of its own. Rules (tests name them):

1. The MAC stands in two words, the low one first; the ESP32 keeps a CRC-8 beside it.
2. The revision is major * 100 + minor, spread over the bits that `EfuseLayout` names.
3. The anti-rollback counter burns one bit per version.
4. Everything else reads 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple


class Bits(NamedTuple):
    """`width` bits of a value, from bit `low` up, at bit `shift` of word `word` of an eFuse block."""

    word: int
    shift: int
    low: int
    width: int


@dataclass(frozen=True, slots=True)
class EfuseLayout:
    """Where a chip later than the ESP32 keeps what matters here."""

    major: tuple[Bits, ...]
    """In block 1."""
    minor: tuple[Bits, ...]
    """In block 1."""
    secure_version: int
    """Shift in word 5 of block 0 (counted from its write-protection word)."""
    secure_boot: int = 20
    """Shift in word 3."""
    crypt_count: int = 18
    """Shift in word 2."""


@dataclass(frozen=True, slots=True)
class LoaderTarget:
    """Where a chip's loader keeps what esptool looks at: register addresses and answer formats."""

    spi_base: int
    efuse_base: int
    layout: EfuseLayout | None
    """None: the ESP32's own."""
    magic: int | None = None
    """Word at 0x40001000 by which esptool knows chips that report no chip id."""
    security_info_bytes: int = 20
    """Length of the GET_SECURITY_INFO answer; 0 = command unknown."""
    spi_usr2: int = 0x20
    spi_w0: int = 0x58
    constants: tuple[tuple[int, int], ...] = ()
    """Registers that never change, as (address, value): straps, clock dividers."""

    @property
    def extended_begin(self) -> bool:
        """Whether the ROM's FLASH_BEGIN has a fifth word (encrypted)."""
        return self.layout is not None


_MINOR_0_2, _MINOR_3 = Bits(3, 18, 0, 3), Bits(5, 23, 3, 1)
_S3_C3: Final = EfuseLayout((Bits(5, 24, 0, 2),), (_MINOR_0_2, _MINOR_3), 14)
_S2: Final = EfuseLayout((Bits(3, 18, 0, 2),), (Bits(4, 4, 0, 3), Bits(3, 20, 3, 1)), 11)
_C6: Final = EfuseLayout((Bits(3, 22, 0, 2),), (Bits(3, 18, 0, 4),), 14)
_H2: Final = EfuseLayout((Bits(3, 21, 0, 2),), (Bits(3, 18, 0, 3),), 9)
_P4: Final = EfuseLayout((Bits(2, 4, 0, 2), Bits(2, 23, 2, 1)), (Bits(2, 0, 0, 4),), 9)
_C5: Final = EfuseLayout((Bits(2, 4, 0, 2),), (Bits(2, 0, 0, 4),), 9, secure_boot=25, crypt_count=16)

TARGETS: Final[dict[str, LoaderTarget]] = {
    "esp32": LoaderTarget(
        0x3FF42000, 0x3FF5A000, None, 0x00F01D83, 0, 0x24, 0x80, ((0x3FF40014, 0x15B), (0x3FF44038, 0x12))
    ),
    "esp32s2": LoaderTarget(0x3F402000, 0x3F41A000, _S2, 0x000007C6, 12),
    "esp32s3": LoaderTarget(0x60002000, 0x60007000, _S3_C3),
    "esp32c3": LoaderTarget(0x60002000, 0x60008800, _S3_C3),
    "esp32c6": LoaderTarget(0x60003000, 0x600B0800, _C6),
    "esp32h2": LoaderTarget(0x60003000, 0x600B0800, _H2),
    "esp32p4": LoaderTarget(0x5008D000, 0x5012D000, _P4),
    "esp32c5": LoaderTarget(0x60003000, 0x600B4800, _C5, constants=((0x60000014, 0x1A1), (0x60096110, 48 << 24))),
}
"""Chips that have a virtual loader."""


@dataclass(frozen=True, slots=True)
class ChipFuses:
    """What is burnt into one chip and visible through its loader."""

    chip: str
    chip_id: int
    mac: bytes
    revision: int
    """major * 100 + minor"""
    secure_version: int = 0
    """How many anti-rollback bits are burnt."""
    secure_boot: bool = False
    flash_encryption: bool = False
    secure_download: bool = False
    jtag_disabled: bool = False


def registers(fuses: ChipFuses) -> dict[int, int]:
    """Address -> word of all registers that do not read 0 after a reset."""
    target = TARGETS[fuses.chip]
    words = {0x40001000: target.magic or 0, **dict(target.constants)}
    return words | (_esp32(fuses, target) if target.layout is None else _later(fuses, target, target.layout))


def _esp32(fuses: ChipFuses, target: LoaderTarget) -> dict[int, int]:
    base, mac = target.efuse_base, fuses.mac
    major, minor = divmod(fuses.revision, 100)
    code = {0: 0, 1: 1, 2: 3, 3: 7}[major]
    low, high = _mac(mac)
    return {
        base + 0x00: (0x7F if fuses.flash_encryption else 0) << 20,
        base + 0x04: low,
        base + 0x08: high | _crc8(mac) << 16,
        base + 0x0C: (code & 1) << 15,
        base + 0x14: (code >> 1 & 1) << 20 | minor << 24 | (0xF << 28 if fuses.flash_encryption else 0),
        base + 0x18: fuses.secure_boot << 5 | fuses.jtag_disabled << 6,
        base + 0x88: _burnt(fuses.secure_version),
        0x3FF6607C: (code >> 2 & 1) << 31,
    }


def _later(fuses: ChipFuses, target: LoaderTarget, layout: EfuseLayout) -> dict[int, int]:
    base = target.efuse_base
    major, minor = divmod(fuses.revision, 100)
    low, high = _mac(fuses.mac)
    words = {
        base + 0x34: (7 if fuses.flash_encryption else 0) << layout.crypt_count,
        base + 0x38: fuses.secure_boot << layout.secure_boot,
        base + 0x40: _burnt(fuses.secure_version) << layout.secure_version,
        base + 0x44: low,
        base + 0x48: high,
    }
    for value, places in ((major, layout.major), (minor, layout.minor)):
        for place in places:
            address = base + 0x44 + 4 * place.word
            words[address] = words.get(address, 0) | (value >> place.low & (1 << place.width) - 1) << place.shift
    return words


def _burnt(version: int) -> int:
    """Rule 3."""
    return (1 << version) - 1


def _mac(mac: bytes) -> tuple[int, int]:
    """Rule 1."""
    return int.from_bytes(mac[2:], "big"), int.from_bytes(mac[:2], "big")


def _crc8(data: bytes) -> int:
    """CRC-8 with the reflected polynomial 0x8C, as the ESP32 keeps it beside its MAC."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x8C if crc & 1 else 0)
    return crc
