# SPDX-License-Identifier: Apache-2.0
"""What a serial update writes, where and in which order. Pure: the transport reads the chip and carries the plan out.

Rules (tests name them; docs/decisions/0014 says why):

 1. A table that is not to be written, or is there already, is the layout. One that cannot be read is PartitionMismatch;
    but where no application answers and the job permits a table, the artifact's takes its place: that is a blank board,
    or a table torn by a cut of power in an earlier attempt, which had judged the one before.
 2. In a new table nothing lies before the table itself or behind the flash (FlashTooSmall), and OTA data stays where it
    was (PartitionMismatch).
 3. A new table keeps all data of the old one; where data is wiped, only what would be wiped may move, shrink or go
    (DataWouldBeLost).
 4. In a new table the image goes into an OTA slot that the present OTA data does not select and whose written bytes lie
    outside of the running application's partition; otherwise that needs `in_place` (NoUpdateSlot).
 5. Under a new table the bootloader must be able to go back to the running application: the present OTA data selects
    its very offset, in a partition no smaller. Otherwise that needs `without_rollback` (NoRollback). Where rule 4 lets the
    running application be overwritten, there is no way back to keep open.
 6. Wiped are the partitions, of the old table and the new, that data_partitions names. Spared are: everything up to the
    end of the table, partitions of the new table that are not wiped, the image's bytes, the running application's.
 7. An image for a data partition begins where one does and fits into it; it goes only into one that may be wiped.
 8. Order: the application and its tail, bootloader, table, data, and last of all the record that selects the slot. Each
    is verified before the next begins. So whenever the power fails, the flash holds what it held before, or a complete
    new application that the bootloader finds, or no bootloader or table at all: then the chip waits in its ROM loader,
    and the next attempt writes the same again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp import partitions
from firmware_pipeline.esp.chips import FLASH_SECTOR, by_target
from firmware_pipeline.esp.data_partitions import holds_data, lost, takes_image, wiped
from firmware_pipeline.esp.partitions import Partition, PartitionTable
from flashjob.errors import FlashJobError
from flashjob.flasher import slots
from flashjob.flasher.content import Content
from flashjob.flasher.slots import SlotPlan
from flashjob.flasher.transports.base import problem
from flashjob.wire.reasons import Reason

Span = tuple[int, int]
"""(offset, size) in bytes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The table on the device and the one that it will have."""

    offset: int
    """Of the table, in bytes."""
    old: PartitionTable | None
    """None: it cannot be read."""
    new: PartitionTable
    written: bytes | None
    """The new table's bytes, if it is to be written."""


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a write: `erase`, then `data` at `offset`; verified before the next one."""

    name: str
    offset: int
    data: bytes
    erase: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class WritePlan:
    """Where everything goes."""

    layout: Layout
    target: SlotPlan
    content: Content
    erase: tuple[Span, ...]
    """Data to be erased."""
    data: tuple[tuple[Partition, bytes], ...]

    def steps(self, image: bytes, boot_id: bytes) -> list[Step]:
        """Rule 8. `boot_id`: 16 bytes for the selecting record."""
        content, target = self.content, self.target
        tail = target.tail(len(image))
        steps = [Step("image", target.slot.offset, image, (tail,) if tail[1] else ())]
        if content.bootloader is not None:
            steps.append(Step("bootloader", by_target(content.chip).bootloader_offset, content.bootloader))
        if self.layout.written is not None:
            steps.append(Step("table", self.layout.offset, self.layout.written))
        if self.erase:
            steps.append(Step("erase", 0, b"", self.erase))
        steps += [Step(f"data-{row.offset:x}", row.offset, data) for row, data in self.data]
        return [*steps, Step("otadata", *target.selection(boot_id))]


def layout(raw: bytes, offset: int, content: Content, *, answers: bool, flash_size: int | None = None) -> Layout:
    """Which table counts (rules 1 to 3).

    Args:
        raw: the 0xC00 bytes on the device.
        offset: where they stand, in bytes.
        content: what is to be written.
        answers: an application of the device has answered.
        flash_size: bytes, where known.

    Raises:
        FlashJobError: PartitionMismatch, DataWouldBeLost, FlashTooSmall, ArtifactInvalid.
    """
    old = None
    try:
        old = partitions.parse_table(raw, table_offset=offset)
    except PipelineError as error:
        if content.table is None or answers:
            raise problem(Reason.PARTITION_MISMATCH, f"at {offset:#x}: {error.message}") from error
    if old is not None and (content.table is None or _same(content.table, raw)):
        return Layout(offset, old, old, None)
    written = content.table or b""
    try:
        new = partitions.parse_table(written, table_offset=offset)
    except PipelineError as error:
        raise problem(Reason.ARTIFACT_INVALID, f"the artifact's partition table: {error.message}") from error
    end = max(row.end for row in new.partitions)
    if flash_size is not None and end > flash_size:
        raise problem(
            Reason.FLASH_TOO_SMALL, f"the new partition table reaches to {end:#x}, the flash to {flash_size:#x}"
        )
    _check_new(old, new, offset, content)
    return Layout(offset, old, new, written)


def _same(one: bytes, other: bytes) -> bool:
    return partitions.table_sha256(one) == partitions.table_sha256(other)


def _check_new(old: PartitionTable | None, new: PartitionTable, offset: int, content: Content) -> None:
    """Rules 2 and 3."""
    low = next(
        (row for row in new.partitions if row.offset < offset and (row.is_app or row.is_otadata or holds_data(row))),
        None,
    )
    if low is not None:
        message = f"{low.name!r} of the new table lies before the table, where bootloaders are"
        raise _told(Reason.PARTITION_MISMATCH, message, "build a table whose partitions all begin behind it")
    if old is None:
        return
    before, after = old.otadata, new.otadata
    if before is not None and (after is None or after.offset != before.offset):
        where = "has none" if after is None else f"has it at {after.offset:#x}"
        message = f"OTA data is at {before.offset:#x}, the new table {where}: between two writes nothing would boot"
        raise _told(Reason.PARTITION_MISMATCH, message, "build a table that leaves otadata where it is")
    kept = [row for row in old.partitions if not (content.wipe and wiped(row))]
    if found := list(lost(kept, new)):
        raise problem(Reason.DATA_WOULD_BE_LOST, f"under the new partition table {'; '.join(found)}"[:900])


def plan(place: Layout, otadata_bytes: bytes, running_subtype: int | None, content: Content) -> WritePlan:
    """Decide by rules 4 to 7.

    Args:
        place: as `layout` found it.
        otadata_bytes: the 0x2000 bytes where the new table has its OTA data; any if it has none.
        running_subtype: partition subtype of the running application as it names it; None: unknown.
        content: what is to be written.

    Raises:
        FlashJobError: NoUpdateSlot, NoRollback, PartitionMismatch, ImageTooLarge.
    """
    running: Partition | None = None
    if place.written is None:  # no partition of one table overlaps another
        target = slots.choose(place.new, otadata_bytes, running_subtype, content.in_place)
    else:
        running = slots.running(place.old, otadata_bytes, running_subtype) if place.old is not None else None
        target = _slot(place.new, otadata_bytes, running, content)
        over = running is not None and _overlap(target.written(content.image_size), running)
        if running is not None and not over and not content.without_rollback:
            _check_way_back(place.new, otadata_bytes, running)
    data = tuple(_data(place.new, content))
    for row, image in data:
        if running is not None and not content.in_place and _overlap((row.offset, len(image)), running):
            raise _none(f"the image for {row.name!r} would overwrite the application that runs")
    return WritePlan(place, target, content, tuple(_erased(place, target, running, data, content)), data)


def _slot(table: PartitionTable, otadata_bytes: bytes, running: Partition | None, content: Content) -> SlotPlan:
    """Rule 4."""
    place, count = table.otadata, len(table.ota_slots)
    if not count or place is None:
        raise _none("the new partition table has no OTA slots with otadata")
    selected = slots.booting(table, otadata_bytes)
    first = 0 if selected is None or selected.ota_index is None else selected.ota_index + 1
    plans = [
        SlotPlan(index, table.ota_slots[index], count, place, otadata_bytes)
        for index in ((first + n) % count for n in range(count))
    ]
    free = [
        one
        for one in plans
        if one.slot != selected and (running is None or not _overlap(one.written(content.image_size), running))
    ]
    fitting = [one for one in free if one.slot.size >= content.image_size]
    if not free and not content.in_place:
        raise _none("every slot of the new partition table holds bytes of the application that runs")
    return (fitting or free or plans)[0]


def _check_way_back(table: PartitionTable, otadata_bytes: bytes, running: Partition) -> None:
    """Rule 5."""
    again = slots.booting(table, otadata_bytes)
    if again is None or again.offset != running.offset or again.size < running.size:
        message = f"under the new partition table the bootloader could not go back to what runs, at {running.offset:#x}"
        step = "build a table that leaves the running slot in place, or set safety.allowWithoutRollback"
        raise _told(Reason.NO_ROLLBACK, message, step)


def _data(table: PartitionTable, content: Content) -> Iterator[tuple[Partition, bytes]]:
    """Rule 7."""
    for offset, image in content.data:
        row = table.starting_at(offset)
        if row is None:
            raise problem(Reason.PARTITION_MISMATCH, f"no partition begins at {offset:#x}, where a data image belongs")
        if not takes_image(row):
            continue
        if len(image) > row.size:
            raise problem(Reason.IMAGE_TOO_LARGE, f"{len(image)} bytes for {row.name!r}, which has {row.size}")
        yield row, image


def _erased(
    place: Layout,
    target: SlotPlan,
    running: Partition | None,
    data: Iterable[tuple[Partition, bytes]],
    content: Content,
) -> Iterator[Span]:
    """Rule 6, what images are written over left out."""
    if not content.wipe:
        return
    tables = [place.new] if place.old is None else [place.old, place.new]
    doomed = {
        n for table in tables for row in filter(wiped, table.partitions) for n in _sectors((row.offset, row.size))
    }
    spared = [(0, place.offset + FLASH_SECTOR), target.written(content.image_size)]
    spared += [(row.offset, row.size) for row in place.new.partitions if not (row.is_app or wiped(row))]
    spared += [(row.offset, len(image)) for row, image in data]
    spared += [(running.offset, running.size)] if running is not None else []
    left = sorted(doomed.difference(*map(_sectors, spared)))
    for _, run in groupby(enumerate(left), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        yield numbers[0] * FLASH_SECTOR, len(numbers) * FLASH_SECTOR


def _sectors(span: Span) -> range:
    offset, size = span
    return range(offset // FLASH_SECTOR, -(-(offset + size) // FLASH_SECTOR))


def _overlap(span: Span, row: Partition) -> bool:
    offset, size = span
    return offset < row.end and row.offset < offset + size


def _none(message: str) -> FlashJobError:
    return problem(Reason.NO_UPDATE_SLOT, message)


def _told(reason: Reason, message: str, next_step: str) -> FlashJobError:
    return FlashJobError(reason.value, message, next_step)
