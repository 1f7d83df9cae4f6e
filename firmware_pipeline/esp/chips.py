# SPDX-License-Identifier: Apache-2.0
"""The chip table: every fact about an ESP chip that FlashJob relies on, in one place.

Sources: ESP-IDF `esp_chip_id_t` and soc capabilities, the chips' technical reference manuals (memory maps, eFuse
block 0, SPI flash clock dividers in the image header).
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from firmware_pipeline.errors import PipelineError, Reason

Architecture = Literal["xtensa", "riscv32"]
Range = tuple[int, int]

KIB = 1024
MMU_PAGE = 64 * KIB
"""Page size in bytes that every chip here supports, and the default of all of them."""

FLASH_SECTOR = 4 * KIB
"""Smallest erasable unit of SPI NOR flash, in bytes."""

FLASH_SIZES: dict[str, int] = {f"{1 << n}MB": 1 << (20 + n) for n in range(8)}
"""Name -> bytes; the image header holds the position in this table in its size nibble."""

FLASH_MODES = ("qio", "qout", "dio", "dout", "fast_read", "slow_read")
"""Position = value of the header's spi_mode byte."""

_FREQ_80 = {"80m": 0xF, "40m": 0x0, "26m": 0x1, "20m": 0x2}
_FREQ_80_NO_26 = {"80m": 0xF, "40m": 0x0, "20m": 0x2}
_FREQ_48 = {"48m": 0xF, "24m": 0x0}


@dataclass(frozen=True, slots=True)
class Chip:
    """One chip family.

    Attributes:
        target: ESP-IDF target name, lower case ("esp32s3"); the OCI platform variant.
        chip_id: u16 of the image header and of GET_SECURITY_INFO.
        architecture: CPU family; the OCI platform architecture.
        bootloader_offset: flash offset in bytes where the ROM loads the second-stage bootloader.
        irom, drom: address ranges that the MMU maps from flash (code, constants).
        iram, dram: address ranges of internal RAM (code, data).
        hmac_key: whether an eFuse key can serve the HMAC peripheral (needed for tier SignedBoot).
        secure_version_bits: width of the eFuse anti-rollback counter (one bit per version).
        flash_freq: name -> header nibble.
        mmu_pages: MMU page sizes in bytes that an image may be linked for.
        major_in_legacy_min_rev: the legacy min_rev byte counts major revisions (else minor ones of v0).
    """

    target: str
    chip_id: int
    architecture: Architecture
    bootloader_offset: int
    irom: Range
    drom: Range
    iram: Range
    dram: Range
    hmac_key: bool = True
    secure_version_bits: int = 16
    flash_freq: dict[str, int] = field(default_factory=lambda: dict(_FREQ_80), hash=False)
    mmu_pages: tuple[int, ...] = (MMU_PAGE,)
    major_in_legacy_min_rev: bool = False

    @property
    def display(self) -> str:
        """Name as printed by the vendor: "ESP32", "ESP32-S3"."""
        suffix = self.target.removeprefix("esp32").upper()
        return f"ESP32-{suffix}" if suffix else "ESP32"

    def is_mapped(self, address: int) -> bool:
        """Whether a segment loaded at `address` stays in flash and is mapped by the MMU."""
        return any(low <= address < high for low, high in (self.irom, self.drom))


_SMALL_PAGES = (8 * KIB, 16 * KIB, 32 * KIB, MMU_PAGE)

CHIPS: tuple[Chip, ...] = (
    Chip("esp32", 0, "xtensa", 0x1000, (0x400D0000, 0x40400000), (0x3F400000, 0x3F800000),
         (0x40080000, 0x400A0000), (0x3FFAE000, 0x40000000), hmac_key=False, secure_version_bits=32,
         major_in_legacy_min_rev=True),
    Chip("esp32s2", 2, "xtensa", 0x1000, (0x40080000, 0x40800000), (0x3F000000, 0x3FF80000),
         (0x40020000, 0x40070000), (0x3FFB0000, 0x40000000), major_in_legacy_min_rev=True),
    Chip("esp32c3", 5, "riscv32", 0x0, (0x42000000, 0x42800000), (0x3C000000, 0x3C800000),
         (0x4037C000, 0x403E0000), (0x3FC80000, 0x3FCE0000)),
    Chip("esp32s3", 9, "xtensa", 0x0, (0x42000000, 0x44000000), (0x3C000000, 0x3E000000),
         (0x40370000, 0x403E0000), (0x3FC88000, 0x3FD00000)),
    Chip("esp32c2", 12, "riscv32", 0x0, (0x42000000, 0x42400000), (0x3C000000, 0x3C400000),
         (0x4037C000, 0x403C0000), (0x3FCA0000, 0x3FCE0000), hmac_key=False, secure_version_bits=4,
         flash_freq={"60m": 0xF, "30m": 0x0, "20m": 0x1, "15m": 0x2}, mmu_pages=_SMALL_PAGES[1:]),
    Chip("esp32c6", 13, "riscv32", 0x0, (0x42000000, 0x43000000), (0x42000000, 0x43000000),
         (0x40800000, 0x40880000), (0x40800000, 0x40880000),
         flash_freq={"80m": 0x0, "40m": 0x0, "20m": 0x2}, mmu_pages=_SMALL_PAGES),
    Chip("esp32h2", 16, "riscv32", 0x0, (0x42000000, 0x43000000), (0x42000000, 0x43000000),
         (0x40800000, 0x40850000), (0x40800000, 0x40850000),
         flash_freq={"48m": 0xF, "24m": 0x0, "16m": 0x1, "12m": 0x2}, mmu_pages=_SMALL_PAGES),
    Chip("esp32p4", 18, "riscv32", 0x2000, (0x40000000, 0x4C000000), (0x40000000, 0x4C000000),
         (0x4FF00000, 0x4FFA0000), (0x4FF00000, 0x4FFA0000)),
    Chip("esp32c61", 20, "riscv32", 0x0, (0x42000000, 0x44000000), (0x42000000, 0x44000000),
         (0x40800000, 0x40860000), (0x40800000, 0x40860000), hmac_key=False,
         flash_freq=dict(_FREQ_80_NO_26), mmu_pages=_SMALL_PAGES),
    Chip("esp32c5", 23, "riscv32", 0x2000, (0x42000000, 0x44000000), (0x42000000, 0x44000000),
         (0x40800000, 0x40860000), (0x40800000, 0x40860000), secure_version_bits=9,
         flash_freq=dict(_FREQ_80_NO_26), mmu_pages=_SMALL_PAGES),
    Chip("esp32h21", 25, "riscv32", 0x0, (0x42000000, 0x43000000), (0x42000000, 0x43000000),
         (0x40800000, 0x40850000), (0x40800000, 0x40850000),
         flash_freq=dict(_FREQ_48), mmu_pages=_SMALL_PAGES),
    Chip("esp32h4", 28, "riscv32", 0x2000, (0x42000000, 0x44000000), (0x42000000, 0x44000000),
         (0x40810000, 0x40860000), (0x40810000, 0x40860000),
         flash_freq=dict(_FREQ_48), mmu_pages=_SMALL_PAGES),
    Chip("esp32s31", 32, "riscv32", 0x2000, (0x40000000, 0x54000000), (0x40000000, 0x54000000),
         (0x2F000000, 0x2F080000), (0x2F000000, 0x2F080000), flash_freq=dict(_FREQ_80_NO_26),
         mmu_pages=(32 * KIB, MMU_PAGE, 128 * KIB, 256 * KIB)),
)  # fmt: skip

_BY_TARGET = {chip.target: chip for chip in CHIPS}
_BY_ID = {chip.chip_id: chip for chip in CHIPS}


def normalise_target(name: str) -> str:
    """Bring any usual spelling ("ESP32-S3", "esp32_s3") into the target form "esp32s3"."""
    return re.sub(r"[-_ ]", "", name.strip()).lower()


def by_target(name: str) -> Chip:
    """The chip called `name` in any usual spelling.

    Raises:
        PipelineError: UnknownChip.
    """
    chip = _BY_TARGET.get(normalise_target(name))
    if chip is None:
        raise PipelineError(
            Reason.UnknownChip,
            f"{name[:40]!r} is not a chip that FlashJob knows.",
            f"Use one of: {', '.join(sorted(_BY_TARGET))}.",
        )
    return chip


def by_id(chip_id: int) -> Chip:
    """The chip with this image-header chip id.

    Raises:
        PipelineError: UnknownChip.
    """
    chip = _BY_ID.get(chip_id)
    if chip is None:
        raise PipelineError(
            Reason.UnknownChip,
            f"Chip id {chip_id} (0x{chip_id:x}) is not in the chip table.",
            "Check that the file is an ESP application image; a newer chip needs a newer FlashJob.",
        )
    return chip


def format_revision(revision: int) -> str:
    """Print major * 100 + minor as "v3.1"."""
    return f"v{revision // 100}.{revision % 100}"
