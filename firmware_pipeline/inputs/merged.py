# SPDX-License-Identifier: Apache-2.0
"""Input: one merged image of a whole flash, cut into its parts.

A merged image holds FF where a device keeps OTA data and settings, so it is never written as one. Its parts are:
bootloader, partition table (at 0x8000), and whatever partitions hold; erased partitions are left out. Bytes that belong to
no part are refused: dropping them silently would change the firmware.
"""

from collections.abc import Iterator
from pathlib import Path

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import CHIPS, FLASH_SECTOR
from firmware_pipeline.esp.image import IMAGE_MAGIC, parse_image
from firmware_pipeline.esp.partitions import DEFAULT_TABLE_OFFSET, TABLE_SIZE, Partition, parse_table
from firmware_pipeline.inputs.files import read_file
from firmware_pipeline.inputs.reconcile import Claims, Overrides, RawFile, reconcile
from firmware_pipeline.plan import BuildPlan, Role

_TABLE_MAGIC = b"\xaa\x50"
_BOOTLOADER_OFFSETS = sorted({chip.bootloader_offset for chip in CHIPS})


def split(data: bytes) -> list[RawFile]:
    """Cut a merged image into files with their flash offsets.

    Args:
        data: starts at flash offset 0, or at the chip's bootloader offset.

    Raises:
        PipelineError: InputNotRecognised (no bootloader with a partition table behind it), InputDisagrees (bytes that
            belong to no part), and what the parsers of `esp` refuse.
    """
    start = _bootloader_at(data)
    if start is None:
        raise PipelineError(
            Reason.InputNotRecognised,
            "The file is no merged image: no bootloader at its start, or no partition table at 0x8000.",
            "Name the build's files with their offsets: 0x10000=app.bin.",
        )
    info = parse_image(data[start:])
    # What the file's first byte is in flash: 0 if it begins with erased bytes, else where the ROM wants the bootloader.
    base = info.chip.bootloader_offset - start
    flash = b"\xff" * base + data
    offset = info.chip.bootloader_offset
    table_end = DEFAULT_TABLE_OFFSET + TABLE_SIZE
    table_bytes = flash[DEFAULT_TABLE_OFFSET:table_end]
    table = parse_table(table_bytes, table_offset=DEFAULT_TABLE_OFFSET)
    bootloader = _content(flash[offset:DEFAULT_TABLE_OFFSET], info.image_length)
    files = [
        RawFile(offset, "bootloader.bin", bootloader, Role.BOOTLOADER),
        RawFile(DEFAULT_TABLE_OFFSET, "partition-table.bin", table_bytes, Role.PARTITION_TABLE),
        *(_partition_file(flash, row) for row in table.partitions if flash[row.offset : row.end].strip(b"\xff")),
    ]
    for begin, end in _gaps([(file.offset, file.offset + len(file.data)) for file in files], len(flash)):
        if flash[begin:end].strip(b"\xff"):
            raise PipelineError(
                Reason.InputDisagrees,
                f"The merged image holds bytes between 0x{begin:x} and 0x{end:x} that belong to no part of it.",
                "Name the build's files with their offsets instead.",
            )
    return files


def _bootloader_at(data: bytes) -> int | None:
    """File offset of the bootloader, or None."""
    for start in _BOOTLOADER_OFFSETS:
        if data[start : start + 1] != bytes([IMAGE_MAGIC]) or data[:start].strip(b"\xff"):
            continue
        expected = parse_image(data[start:]).chip.bootloader_offset
        table = DEFAULT_TABLE_OFFSET - (expected - start)
        if start in (0, expected) and data[table : table + 2] == _TABLE_MAGIC:
            return start
    return None


def _content(region: bytes, least: int) -> bytes:
    """The region without the erased bytes at its end, at least `least` bytes."""
    return region[: max(least, len(region.rstrip(b"\xff")))]


def _partition_file(flash: bytes, row: Partition) -> RawFile:
    region = flash[row.offset : row.end]
    if row.is_app:
        return RawFile(row.offset, f"{row.name}.bin", _content(region, parse_image(region).image_length), Role.APP)
    if row.is_otadata:
        return RawFile(row.offset, f"{row.name}.bin", region.ljust(row.size, b"\xff"), Role.OTADATA)
    used = len(region.rstrip(b"\xff"))
    return RawFile(row.offset, f"{row.name}.bin", region[: -(-used // FLASH_SECTOR) * FLASH_SECTOR])


def _gaps(spans: list[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    position = 0
    for begin, stop in sorted(spans):
        yield position, begin
        position = max(position, stop)
    yield position, end


class MergedInput:
    """Recognises and loads a merged image file."""

    name = "merged"

    def detect(self, path: Path) -> bool:
        """Whether `path` is a file that begins like a merged image."""
        if not path.is_file():
            return False
        try:
            return _bootloader_at(read_file(path)) is not None
        except PipelineError:
            return False

    def load(self, path: Path, overrides: Overrides | None = None) -> BuildPlan:
        """Cut the file into its parts and reduce them to a plan.

        Raises:
            PipelineError: Input*, App*, and whatever the parsers of `esp` refuse.
        """
        return reconcile(split(read_file(path)), Claims(source="the merged image"), overrides or Overrides())
