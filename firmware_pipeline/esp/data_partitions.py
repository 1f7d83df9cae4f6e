# SPDX-License-Identifier: Apache-2.0
"""Which partitions hold data, what a new table does to them, and which of them may be wiped. Pure.

Rules (tests name them):

1. Data is every partition that is neither an application nor one of the types for bootloader and partition table: also
   of types and subtypes that nobody here knows. OTA data is apart: it says which application boots.
2. A table keeps another one's data if each such partition stands in it again under its name, type and subtype, at its
   offset, and no smaller. Growing is no harm. (Tables hold no overlaps, so nothing else then covers it.)
3. Wiped are NVS, core dumps, "undefined" data and the file systems FAT, SPIFFS, LittleFS, unless the row is marked
   read-only: what applications write. Never anything else: PHY data and emulated eFuses are the board's own, NVS keys
   may have come from a factory, and what has another number (as certificates of a secure element) nobody here can judge.
"""

from collections.abc import Iterable, Iterator

from firmware_pipeline.esp.partitions import TYPE_APP, TYPE_DATA, Partition, PartitionTable

_BOOTLOADER, _PARTITION_TABLE = 0x02, 0x03
_READ_ONLY = 0b10
_WIPED = frozenset({0x02, 0x03, 0x06, 0x81, 0x82, 0x83})
"""Subtypes of rule 3: nvs, coredump, undefined, fat, spiffs, littlefs."""


def holds_data(row: Partition) -> bool:
    """Rule 1."""
    return row.type not in (TYPE_APP, _BOOTLOADER, _PARTITION_TABLE) and not row.is_otadata


def wiped(row: Partition) -> bool:
    """Rule 3."""
    return row.type == TYPE_DATA and row.subtype in _WIPED and not row.flags & _READ_ONLY


def takes_image(row: Partition) -> bool:
    """Whether an image for this partition may be written where its data is wiped: rule 3, read-only ones included."""
    return row.type == TYPE_DATA and row.subtype in _WIPED


def lost(old: Iterable[Partition], new: PartitionTable) -> Iterator[str]:
    """Rule 2: what happens to each partition of `old` that `new` does not keep, in words."""
    for row in filter(holds_data, old):
        again = new.by_name(row.name)
        if again is None or (again.type, again.subtype) != (row.type, row.subtype):
            yield f"{row.name!r} is no more"
        elif again.offset != row.offset:
            yield f"{row.name!r} would move from 0x{row.offset:x} to 0x{again.offset:x}"
        elif again.size < row.size:
            yield f"{row.name!r} would shrink from 0x{row.size:x} to 0x{again.size:x} bytes"
