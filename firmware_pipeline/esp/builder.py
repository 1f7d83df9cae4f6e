# SPDX-License-Identifier: Apache-2.0
"""Builds true ESP images without a compiler: for demos, tests and virtual devices.

What comes out has a real header, segments at addresses of the chip, an application descriptor, checksum and appended
SHA-256; esptool accepts it and the payload is reproducible from its seed. It holds no code a real CPU could run.
"""

import hashlib
from collections.abc import Sequence

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.appdesc import APP_DESC_SIZE, AppDescriptor, build_app_descriptor
from firmware_pipeline.esp.chips import FLASH_MODES, FLASH_SIZES, MMU_PAGE, Chip, by_target
from firmware_pipeline.esp.image import (
    ANY_REVISION,
    CHECKSUM_SEED,
    HASH_SIZE,
    HEADER,
    HEADER_SIZE,
    IMAGE_MAGIC,
    SEGMENT,
    SEGMENT_HEADER_SIZE,
    checksum_offset,
    xor_bytes,
)
from firmware_pipeline.esp.partitions import (
    DEFAULT_TABLE_OFFSET,
    SUBTYPE_OTA_0,
    SUBTYPE_OTADATA,
    TYPE_APP,
    TYPE_DATA,
    Partition,
    PartitionTable,
    check,
)

BUILT_DATE, BUILT_TIME, BUILT_IDF = "Jan  1 2026", "00:00:00", "v5.5"
_WP_DISABLED = 0xEE
_BOOTLOADER_DESC_MAGIC = 0x50


def _noise(seed: bytes, size: int) -> bytes:
    """`size` bytes that do not compress, the same for the same seed; rounded up to a multiple of 4."""
    return hashlib.shake_256(seed).digest((size + 3) & ~3)


def assemble(
    chip: Chip,
    segments: Sequence[tuple[int, bytes]],
    *,
    entry: int,
    flash_mode: str = "dio",
    flash_size: str = "4MB",
    flash_freq: str | None = None,
    min_rev: int = 0,
    max_rev: int | None = None,
    append_hash: bool = True,
) -> bytes:
    """Header, segments (address, data), checksum and appended SHA-256; `parse_image` is its inverse.

    Args:
        min_rev, max_rev: chip revisions, major * 100 + minor; None = any.
    """
    freq = chip.flash_freq[flash_freq or next(iter(chip.flash_freq))]
    size = list(FLASH_SIZES).index(flash_size)
    legacy_min = min(255, min_rev // 100 if chip.major_in_legacy_min_rev else min_rev)
    body = bytearray(
        HEADER.pack(
            IMAGE_MAGIC, len(segments), FLASH_MODES.index(flash_mode), size << 4 | freq, entry, _WP_DISABLED,
            bytes(3), chip.chip_id, legacy_min, min_rev, ANY_REVISION if max_rev is None else max_rev, bytes(4),
            int(append_hash),
        )
    )  # fmt: skip
    checksum = CHECKSUM_SEED
    for address, data in segments:
        body += SEGMENT.pack(address, len(data)) + data
        checksum ^= xor_bytes(data)
    body += bytes(checksum_offset(len(body)) - len(body)) + bytes([checksum])
    return bytes(body + hashlib.sha256(body).digest() if append_hash else body)


def build_app(
    chip: str,
    project_name: str,
    version: str,
    *,
    secure_version: int = 0,
    payload_size: int = 256 * 1024,
    seed: bytes = b"",
    min_rev: int = 0,
    max_rev: int | None = None,
    flash_size: str = "4MB",
    pad_to_page: bool = True,
    idf_version: str = BUILT_IDF,
) -> bytes:
    """An application image.

    Args:
        chip: target name.
        project_name, version: for the descriptor; may be empty.
        secure_version: anti-rollback counter, 0 to 2^32 - 1.
        payload_size: bytes of constants and code together, at least 16 KiB.
        seed: changes the payload; name and version change it too.
        pad_to_page: end the image on a 64 KiB boundary, so that nothing mapped stays unmeasured.

    Raises:
        PipelineError: UnknownChip; AppDescriptorMalformed (a text too long); ImageMalformed (payload too small).
    """
    if payload_size < 16 * 1024:
        raise PipelineError(
            Reason.ImageMalformed, f"A payload of {payload_size} bytes is too small.", "Ask for at least 16384 bytes."
        )
    target = by_target(chip)
    identity = b"\0".join([target.target.encode(), project_name.encode(), version.encode(), seed])
    payload = _noise(identity, payload_size)
    third = (payload_size // 3) & ~3
    constants, code = payload[:third], payload[third:]
    iram_code, flash_code = code[:8192], code[8192:]
    descriptor = build_app_descriptor(
        AppDescriptor(
            project_name=project_name,
            version=version,
            secure_version=secure_version,
            idf_version=idf_version,
            compile_date=BUILT_DATE,
            compile_time=BUILT_TIME,
            elf_sha256=hashlib.sha256(b"elf\0" + identity).digest(),
            mmu_page_size=MMU_PAGE,
            max_block_rev=99,
        )
    )
    ram_data = _noise(identity + b"\0data", 1024)
    entry = target.iram[0] + 0x4000
    segments: list[tuple[int, bytes]] = [
        (target.drom[0] + HEADER_SIZE + SEGMENT_HEADER_SIZE, descriptor + constants),
        (target.dram[0] + 0x10000, ram_data),
        (entry, iram_code),
    ]
    at = HEADER_SIZE + sum(SEGMENT_HEADER_SIZE + len(data) for _, data in segments) + SEGMENT_HEADER_SIZE
    # Constants come first in flash; code goes to the pages behind them, at the same place within its page as in the file.
    base = target.irom[0] + (len(constants) + APP_DESC_SIZE + MMU_PAGE) // MMU_PAGE * MMU_PAGE + MMU_PAGE
    segments.append((base + at % MMU_PAGE, flash_code))
    if pad_to_page:
        used = at + len(flash_code) + SEGMENT_HEADER_SIZE
        # Address 0 marks a segment that is loaded nowhere. 16 bytes hold the checksum at the end of a block.
        segments.append((0, bytes(-(used + 16 + HASH_SIZE) % MMU_PAGE // 4 * 4)))
    return assemble(target, segments, entry=entry, min_rev=min_rev, max_rev=max_rev, flash_size=flash_size)


def build_bootloader(chip: str, *, version: int = 1, flash_size: str = "4MB", payload_size: int = 20 * 1024) -> bytes:
    """A second-stage bootloader image with its descriptor (magic 0x50); `payload_size` in bytes."""
    target = by_target(chip)
    descriptor = (
        bytes([_BOOTLOADER_DESC_MAGIC, 0, 0, 0])
        + version.to_bytes(4, "little")
        + BUILT_IDF.encode().ljust(32, b"\0")
        + f"{BUILT_DATE} {BUILT_TIME}".encode().ljust(24, b"\0")
        + bytes(16)
    )
    entry = target.iram[0] + 0x4000
    seed = b"bootloader\0" + target.target.encode() + version.to_bytes(4, "little")
    segments = [
        (target.dram[0] + 0x10000, descriptor + _noise(seed + b"\0data", 2048)),
        (entry, _noise(seed, payload_size)),
    ]
    return assemble(target, segments, entry=entry, flash_size=flash_size)


def default_partitions(
    *, table_offset: int = DEFAULT_TABLE_OFFSET, flash_size: int = 4 * 1024 * 1024
) -> PartitionTable:
    """Two equal OTA slots behind NVS, OTA data and PHY data.

    A 4 MiB flash gets slots of 0x1C0000 bytes and a 0x60000 file system; the table may stand at 0x8000 to 0x18000.

    Raises:
        PipelineError: PartitionTableMalformed, if flash or table offset leave no room.
    """
    slot = (flash_size - 0x80000) // 2 // 0x10000 * 0x10000
    nvs = table_offset + 0x1000
    first = 0x20000
    return check(
        [
            Partition("nvs", TYPE_DATA, 0x02, nvs, 0x4000),
            Partition("otadata", TYPE_DATA, SUBTYPE_OTADATA, nvs + 0x4000, 0x2000),
            Partition("phy_init", TYPE_DATA, 0x01, nvs + 0x6000, 0x1000),
            Partition("ota_0", TYPE_APP, SUBTYPE_OTA_0, first, slot),
            Partition("ota_1", TYPE_APP, SUBTYPE_OTA_0 + 1, first + slot, slot),
            Partition("storage", TYPE_DATA, 0x82, first + 2 * slot, flash_size - first - 2 * slot),
        ],
        table_offset=table_offset,
        flash_size=flash_size,
    )
