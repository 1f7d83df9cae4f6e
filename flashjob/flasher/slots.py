# SPDX-License-Identifier: Apache-2.0
"""Which slot an update over serial writes, and the bytes that select it. Pure.

Rules (tests name them):

1. The slot written is never the one that runs (but see 2): if the application names a slot of the table, that one is
   spared; else the one that the bootloader would choose by otadata (none chosen: the factory application, else ota_0).
2. Of the other OTA slots the next one in order is taken. No such slot: the one that runs is overwritten if that is
   permitted (`in_place`), else nothing (NoUpdateSlot). No otadata: nothing, there is no place for a boot id.
3. Bytes of the last 64 KiB page behind the image are erased, as far as the slot reaches: they would be mapped but not
   measured.
4. The record that selects the slot is the last thing written; it goes into the otadata sector that does not hold the
   current choice, has state NEW, and its label carries the boot id.
5. Bootloader, partition table and all other partitions are never in a plan; see `writing` for those.
"""

from __future__ import annotations

from dataclasses import dataclass

from firmware_pipeline.esp import otadata
from firmware_pipeline.esp.chips import FLASH_SECTOR, MMU_PAGE
from firmware_pipeline.esp.otadata import SlotState
from firmware_pipeline.esp.partitions import Partition, PartitionTable
from flashjob.errors import FlashJobError
from flashjob.wire.reasons import Reason


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """Where an image goes, and what is needed to select it afterwards."""

    index: int
    slot: Partition
    n_slots: int
    otadata: Partition
    otadata_bytes: bytes
    """The 0x2000 bytes as read."""

    def tail(self, image_size: int) -> tuple[int, int]:
        """(offset, size) in bytes of what is erased behind an image of that size (rule 3); size 0: nothing."""
        start = _up(image_size, FLASH_SECTOR)
        end = min(_up(image_size, MMU_PAGE), self.slot.size)
        return self.slot.offset + start, max(0, end - start)

    def written(self, image_size: int) -> tuple[int, int]:
        """(offset, size) in bytes of all that an image of that size takes of the slot, its tail included."""
        tail, size = self.tail(image_size)
        return self.slot.offset, tail + size - self.slot.offset

    def selection(self, boot_id: bytes) -> tuple[int, bytes]:
        """(offset, 4096 bytes) of the otadata sector that makes this slot boot next (rule 4)."""
        sector, record = otadata.select_record(
            self.otadata_bytes, self.index, self.n_slots, boot_id=boot_id, state=SlotState.NEW
        )
        return self.otadata.offset + sector * FLASH_SECTOR, record.ljust(FLASH_SECTOR, b"\xff")


def booting(table: PartitionTable, otadata_bytes: bytes) -> Partition | None:
    """What a bootloader would choose by this table and this OTA data: a slot, the factory application, else ota_0."""
    slots = table.ota_slots
    current = otadata.select(otadata_bytes, len(slots)) if slots and table.otadata is not None else None
    if current is not None:
        return slots[current.slot]
    return table.factory or (slots[0] if slots else None)


def running(table: PartitionTable, otadata_bytes: bytes, subtype: int | None) -> Partition | None:
    """Rule 1: the application that runs, by its own word if the table knows what it names."""
    named = next((row for row in table.app_slots if row.subtype == subtype), None)
    return named or booting(table, otadata_bytes)


def choose(
    table: PartitionTable, otadata_bytes: bytes, running_subtype: int | None = None, in_place: bool = False
) -> SlotPlan:
    """Decide by rules 1 and 2.

    Args:
        table: as read from the device.
        otadata_bytes: the 0x2000 bytes as read; any bytes if the table has no otadata.
        running_subtype: partition subtype of the running application as it names it; None: unknown.
        in_place: permit to overwrite the application that runs.

    Raises:
        FlashJobError: NoUpdateSlot.
    """
    slots, place = table.ota_slots, table.otadata
    if not slots or place is None:
        raise _none("the partition table has no OTA slots with otadata")
    runs = running(table, otadata_bytes, running_subtype)
    current = None if runs is None else runs.ota_index
    index = 0 if current is None else (current + 1) % len(slots)
    if index == current and not in_place:
        raise _none("the partition table has one OTA slot, and it runs")
    return SlotPlan(index, slots[index], len(slots), place, otadata_bytes)


def _none(message: str) -> FlashJobError:
    return FlashJobError(Reason.NO_UPDATE_SLOT.value, message, Reason.NO_UPDATE_SLOT.next_step)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
