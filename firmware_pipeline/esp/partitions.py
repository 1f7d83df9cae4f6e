# SPDX-License-Identifier: Apache-2.0
"""The ESP-IDF partition table: parse, check, build.

The table fills 0xC00 bytes of a flash sector (usually at 0x8000): 32-byte rows {AA 50, type, subtype, offset u32,
size u32, name[16], flags u32}, then a row {EB EB, 14 x FF, MD5 of the rows before}, then FF.

Rules, all PartitionTableMalformed but for the last:
 1. Length 0xC00; at least one row, at most 95; nothing but FF behind the end.
 2. Names are unique, printable and not empty.
 3. Offsets are multiples of 4 KiB, those of applications of 64 KiB; sizes are multiples of 4 KiB and not 0.
 4. Partitions do not overlap, nor the sector of the table (where its offset is given), nor end behind the flash (ditto).
 5. At most one otadata, of 0x2000 bytes; OTA slots are numbered from 0 without a gap; with two slots otadata is there.
 6. Known flag bits only (bit 0 encrypted, bit 1 read-only).
 7. The MD5 row, which must be there, is right (PartitionTableHashMismatch).
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import FLASH_SECTOR
from firmware_pipeline.esp.otadata import OTADATA_SIZE

TABLE_SIZE = 0xC00
DEFAULT_TABLE_OFFSET = 0x8000
MAX_ROWS = 95
APP_ALIGNMENT = 0x10000

TYPE_APP, TYPE_DATA = 0x00, 0x01
SUBTYPE_FACTORY, SUBTYPE_OTA_0, SUBTYPE_TEST = 0x00, 0x10, 0x20
SUBTYPE_OTADATA = 0x00

_ROW = struct.Struct("<2sBBII16sI")
_ROW_MAGIC = b"\xaa\x50"
_MD5_MAGIC = b"\xeb\xeb" + b"\xff" * 14
_KNOWN_FLAGS = 0b11
_NEXT = "Build the partition table again from its CSV; do not edit the binary."

_TYPE_NAMES = {0: "app", 1: "data", 2: "bootloader", 3: "partition_table"}
_DATA_NAMES = {
    0x00: "ota", 0x01: "phy", 0x02: "nvs", 0x03: "coredump", 0x04: "nvs_keys", 0x05: "efuse", 0x06: "undefined",
    0x81: "fat", 0x82: "spiffs", 0x83: "littlefs",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition: type and subtype numbers, offset and size in bytes, flag bits."""

    name: str
    type: int
    subtype: int
    offset: int
    size: int
    flags: int = 0

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.size

    @property
    def encrypted(self) -> bool:
        """Whether flash encryption covers it although its type alone would not."""
        return bool(self.flags & 1)

    @property
    def is_app(self) -> bool:
        return self.type == TYPE_APP

    @property
    def ota_index(self) -> int | None:
        """n of ota_n, or None."""
        if self.is_app and SUBTYPE_OTA_0 <= self.subtype < SUBTYPE_OTA_0 + 16:
            return self.subtype - SUBTYPE_OTA_0
        return None

    @property
    def is_otadata(self) -> bool:
        return (self.type, self.subtype) == (TYPE_DATA, SUBTYPE_OTADATA)

    @property
    def type_name(self) -> str:
        """The CSV word of the type, or its number in hex."""
        return _TYPE_NAMES.get(self.type, f"0x{self.type:02x}")

    @property
    def subtype_name(self) -> str:
        """The CSV word of the subtype, or its number in hex."""
        if self.ota_index is not None:
            return f"ota_{self.ota_index}"
        if self.is_app and self.subtype in (SUBTYPE_FACTORY, SUBTYPE_TEST):
            return "factory" if self.subtype == SUBTYPE_FACTORY else "test"
        if self.type == TYPE_DATA and self.subtype in _DATA_NAMES:
            return _DATA_NAMES[self.subtype]
        return f"0x{self.subtype:02x}"


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A checked partition table, rows in their order in flash."""

    partitions: tuple[Partition, ...]

    @property
    def ota_slots(self) -> tuple[Partition, ...]:
        """ota_0, ota_1, ... in order of their number."""
        slots = [(p.ota_index, p) for p in self.partitions if p.ota_index is not None]
        return tuple(p for _, p in sorted(slots, key=lambda pair: pair[0]))

    @property
    def app_slots(self) -> tuple[Partition, ...]:
        """Every application partition, in table order."""
        return tuple(p for p in self.partitions if p.is_app)

    @property
    def factory(self) -> Partition | None:
        return next((p for p in self.partitions if p.is_app and p.subtype == SUBTYPE_FACTORY), None)

    @property
    def otadata(self) -> Partition | None:
        return next((p for p in self.partitions if p.is_otadata), None)

    def by_name(self, name: str) -> Partition | None:
        return next((p for p in self.partitions if p.name == name), None)

    def starting_at(self, offset: int) -> Partition | None:
        """The partition that begins at `offset`."""
        return next((p for p in self.partitions if p.offset == offset), None)

    def containing(self, offset: int) -> Partition | None:
        """The partition that holds the byte at `offset`."""
        return next((p for p in self.partitions if p.offset <= offset < p.end), None)


def _bad(message: str, next_step: str = _NEXT) -> PipelineError:
    return PipelineError(Reason.PartitionTableMalformed, message, next_step)


def check(
    partitions: Iterable[Partition], *, table_offset: int | None = None, flash_size: int | None = None
) -> PartitionTable:
    """Apply rules 1 to 6 and return the table.

    Args:
        partitions: rows in table order.
        table_offset: flash offset in bytes of the table itself, if known.
        flash_size: bytes of the flash chip, if known.

    Raises:
        PipelineError: PartitionTableMalformed.
    """
    rows = tuple(partitions)
    if not 1 <= len(rows) <= MAX_ROWS:
        raise _bad(f"A partition table has 1 to {MAX_ROWS} partitions, this one {len(rows)}.")
    for p in rows:
        where = f"Partition {p.name!r} at 0x{p.offset:x}"
        if not p.name or not p.name.isprintable() or len(p.name.encode()) > 16:
            raise _bad(f"{where}: a name is 1 to 16 bytes of printable text.")
        if not (0 <= p.type <= 0xFE and 0 <= p.subtype <= 0xFE) or p.flags & ~_KNOWN_FLAGS:
            raise _bad(f"{where}: type, subtype or flags (0x{p.flags:x}) hold an undefined value.")
        alignment = APP_ALIGNMENT if p.is_app else FLASH_SECTOR
        if p.offset % alignment or p.offset < 0:
            raise _bad(f"{where}: the offset is not a multiple of 0x{alignment:x}.")
        if p.size <= 0 or p.size % FLASH_SECTOR or p.end > 1 << 32:
            raise _bad(f"{where}: the size 0x{p.size:x} is not a positive multiple of 0x{FLASH_SECTOR:x}.")
        if flash_size is not None and p.end > flash_size:
            raise _bad(
                f"{where} ends at 0x{p.end:x}, behind the end of the flash (0x{flash_size:x} bytes).",
                "Choose a larger flash size in the build, or smaller partitions.",
            )
    duplicate = [name for name, n in Counter(p.name for p in rows).items() if n > 1]
    if duplicate:
        raise _bad(f"Several partitions are called {duplicate[0]!r}; names must be unique.")
    _check_overlaps(rows, table_offset)
    _check_ota(rows)
    return PartitionTable(rows)


def _check_overlaps(rows: tuple[Partition, ...], table_offset: int | None) -> None:
    spans = [(p.offset, p.end, p.name) for p in rows if p.type in (TYPE_APP, TYPE_DATA) or p.type >= 0x40]
    if table_offset is not None:
        spans.append((table_offset, table_offset + FLASH_SECTOR, "the partition table itself"))
    spans.sort()
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end:
            raise _bad(f"{second!r} at 0x{start:x} overlaps {first!r}, which ends at 0x{end:x}.")


def _check_ota(rows: tuple[Partition, ...]) -> None:
    slots = sorted(p.ota_index for p in rows if p.ota_index is not None)
    otadata = [p for p in rows if p.is_otadata]
    if slots != list(range(len(slots))):
        raise _bad(f"OTA slots must be ota_0, ota_1, ... without gap or repetition; found numbers {slots}.")
    if len(otadata) > 1:
        raise _bad("There are several otadata partitions; the bootloader uses one.")
    if otadata and otadata[0].size != OTADATA_SIZE:
        raise _bad(f"otadata has 0x{otadata[0].size:x} bytes; the bootloader demands 0x{OTADATA_SIZE:x}.")
    if len(slots) > 1 and not otadata:
        raise _bad("There are OTA slots but no otadata partition, so no slot could ever be selected.")


def parse_table(data: bytes, *, table_offset: int | None = None, flash_size: int | None = None) -> PartitionTable:
    """Read and check a partition table (rules 1 to 7).

    Args:
        data: its 0xC00 bytes; longer input is accepted if only FF follows.
        table_offset, flash_size: see `check`.

    Raises:
        PipelineError: PartitionTableMalformed, PartitionTableHashMismatch.
    """
    if len(data) < TABLE_SIZE or len(data) > FLASH_SECTOR or data[TABLE_SIZE:].strip(b"\xff"):
        raise _bad(
            f"A partition table has 0x{TABLE_SIZE:x} bytes, then only FF up to the sector's end; got {len(data)} bytes."
        )
    rows: list[Partition] = []
    position, hashed = 0, False
    while position < TABLE_SIZE:
        raw = data[position : position + 32]
        if raw == b"\xff" * 32:
            break
        if raw[:16] == _MD5_MAGIC:
            if hashlib.md5(data[:position], usedforsecurity=False).digest() != raw[16:]:
                raise PipelineError(
                    Reason.PartitionTableHashMismatch,
                    f"The MD5 row at 0x{position:x} is not that of the rows before it: damaged or edited bytes.",
                    _NEXT,
                )
            hashed, position = True, position + 32
            break
        magic, kind, subtype, offset, size, name, flags = _ROW.unpack(raw)
        if magic != _ROW_MAGIC:
            raise _bad(f"Row {position // 32} begins with {magic.hex()}, not with aa50, ebeb or ffff.")
        rows.append(Partition(_name(name, position), kind, subtype, offset, size, flags))
        position += 32
    if data[position:TABLE_SIZE].strip(b"\xff"):
        raise _bad(f"Bytes other than FF follow the end of the table at 0x{position:x}.")
    if not hashed:
        raise PipelineError(
            Reason.PartitionTableHashMismatch,
            "The partition table has no MD5 row, so damage to it could not be seen.",
            "Build it with the MD5 checksum (the default of ESP-IDF).",
        )
    return check(rows, table_offset=table_offset, flash_size=flash_size)


def _name(raw: bytes, position: int) -> str:
    head, _, tail = raw.partition(b"\0")
    try:
        name = head.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    if not name or tail.strip(b"\0"):
        raise _bad(f"Row {position // 32} has no readable name.")
    return name


def build_table(table: PartitionTable) -> bytes:
    """The 0xC00 bytes of a checked table, MD5 row included."""
    rows = b"".join(
        _ROW.pack(_ROW_MAGIC, p.type, p.subtype, p.offset, p.size, p.name.encode(), p.flags) for p in table.partitions
    )
    digest = hashlib.md5(rows, usedforsecurity=False).digest()
    return (rows + _MD5_MAGIC + digest).ljust(TABLE_SIZE, b"\xff")


def table_sha256(data: bytes) -> bytes:
    """SHA-256 of the table's 0xC00 bytes as they stand in flash: what devices report and configs pin."""
    return hashlib.sha256(data[:TABLE_SIZE]).digest()
