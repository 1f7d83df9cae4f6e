# SPDX-License-Identifier: Apache-2.0
"""OTA data: the two flash sectors that decide which application slot boots.

Each 4 KiB sector begins with a 32-byte record (ESP-IDF `esp_ota_select_entry_t`, little-endian): seq u32,
label[20], state u32, crc u32 over seq only. FlashJob keeps the installation's boot id in the label.

Rules of the bootloader, which `select` follows:
 1. A record counts if its crc is right, its seq is not 0xFFFFFFFF and its state is neither INVALID nor ABORTED.
 2. Of two such records the higher seq wins; equal seq: sector 0.
 3. The slot is (seq - 1) modulo the number of OTA slots.
 4. No such record: the factory application, else ota_0 (`select` returns None).

Rules of `select_record`, which follow esp_ota_set_boot_partition:
 5. It writes the sector that does not hold the current choice (sector 0 if there is none): a lost write changes nothing.
 6. Its seq is the smallest that is higher than the current one and leads to the wanted slot.
"""

import struct
import zlib
from dataclasses import dataclass, replace
from enum import IntEnum

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import FLASH_SECTOR

OTADATA_SIZE = 2 * FLASH_SECTOR
RECORD_SIZE = 32
BOOT_ID_SIZE = 16
NO_BOOT_ID = bytes(BOOT_ID_SIZE)
"""What stands in evidence where the label holds no boot id; no task accepts it."""

_RECORD = struct.Struct("<I20sII")
_LABEL_MARK = b"FJ1\0"
_BLANK_SEQ = 0xFFFFFFFF


class SlotState(IntEnum):
    """State of the installation that a record selects."""

    NEW = 0
    PENDING_VERIFY = 1
    VALID = 2
    INVALID = 3
    ABORTED = 4
    UNDEFINED = 0xFFFFFFFF


_STATES: dict[int, SlotState] = {state.value: state for state in SlotState}


@dataclass(frozen=True, slots=True)
class OtaRecord:
    """One record whose crc is right. `state` is a plain int where flash holds a value outside SlotState."""

    seq: int
    state: SlotState | int
    label: bytes

    @property
    def bootable(self) -> bool:
        """Rule 1."""
        return self.seq != _BLANK_SEQ and self.state not in (SlotState.INVALID, SlotState.ABORTED)

    @property
    def boot_id(self) -> bytes:
        """The installation's 16-byte boot id, or 16 zero bytes if FlashJob did not write this record."""
        if self.label[BOOT_ID_SIZE:] != _LABEL_MARK:
            return NO_BOOT_ID
        return self.label[:BOOT_ID_SIZE]

    def slot(self, n_slots: int) -> int:
        """Index of the OTA slot selected (rule 3); `n_slots` at least 1."""
        return ((self.seq - 1) & 0xFFFFFFFF) % n_slots

    def with_state(self, state: SlotState) -> "OtaRecord":
        """The same installation in another state (same seq, label, crc)."""
        return replace(self, state=state)

    def to_bytes(self) -> bytes:
        """The 32 bytes as they stand in flash."""
        return _RECORD.pack(self.seq, self.label, self.state, seq_crc(self.seq))


@dataclass(frozen=True, slots=True)
class Selection:
    """The record that decides the boot: its sector (0 or 1), the record, the slot it selects."""

    sector: int
    record: OtaRecord
    slot: int


def seq_crc(seq: int) -> int:
    """CRC-32 of a record: over the four little-endian bytes of seq, started from all ones."""
    return zlib.crc32(seq.to_bytes(4, "little"), 0xFFFFFFFF)


def parse_record(raw: bytes) -> OtaRecord | None:
    """The record in the first 32 bytes of a sector; None if blank or its crc is wrong."""
    if len(raw) < RECORD_SIZE:
        raise PipelineError(
            Reason.OtadataMalformed,
            f"An OTA data record has {RECORD_SIZE} bytes, got {len(raw)}.",
            "Read both otadata sectors in full (2 x 4096 bytes).",
        )
    seq, label, state, crc = _RECORD.unpack_from(raw)
    if crc != seq_crc(seq):
        return None
    return OtaRecord(seq, _STATES.get(state, state), label)


def parse_otadata(data: bytes) -> tuple[OtaRecord | None, OtaRecord | None]:
    """Both records of the otadata partition.

    Args:
        data: its 0x2000 bytes.

    Raises:
        PipelineError: OtadataMalformed, if the length is another.
    """
    if len(data) != OTADATA_SIZE:
        raise PipelineError(
            Reason.OtadataMalformed,
            f"The otadata partition has {OTADATA_SIZE} bytes (two sectors), got {len(data)}.",
            "Read both otadata sectors in full.",
        )
    return parse_record(data[:FLASH_SECTOR]), parse_record(data[FLASH_SECTOR:])


def _check_slots(n_slots: int) -> None:
    if not 1 <= n_slots <= 16:
        raise PipelineError(
            Reason.OtadataMalformed,
            f"OTA data is meaningless with {n_slots} OTA slots; 1 to 16 are possible.",
            "Use a partition table with ota_0 (and ota_1).",
        )


def select(data: bytes, n_slots: int) -> Selection | None:
    """Decide as the bootloader does (rules 1 to 4).

    Args:
        data: the 0x2000 bytes of otadata.
        n_slots: number of OTA application slots, 1 to 16.

    Returns:
        The deciding record, or None: factory, else ota_0.

    Raises:
        PipelineError: OtadataMalformed.
    """
    _check_slots(n_slots)
    found = [(r, s) for s, r in enumerate(parse_otadata(data)) if r is not None and r.bootable]
    if not found:
        return None
    record, sector = max(found, key=lambda pair: (pair[0].seq, -pair[1]))
    return Selection(sector, record, record.slot(n_slots))


def boot_label(boot_id: bytes) -> bytes:
    """The 20-byte label that carries a 16-byte boot id.

    Raises:
        PipelineError: OtadataMalformed, if the id has another length or is all zero (the mark of "none").
    """
    if len(boot_id) != BOOT_ID_SIZE or boot_id == NO_BOOT_ID:
        raise PipelineError(
            Reason.OtadataMalformed,
            f"A boot id is {BOOT_ID_SIZE} bytes and not all zero, got {boot_id.hex() or 'nothing'}.",
            "Use the grant id of this installation.",
        )
    return boot_id + _LABEL_MARK


def select_record(
    data: bytes, slot: int, n_slots: int, *, boot_id: bytes, state: SlotState = SlotState.NEW
) -> tuple[int, bytes]:
    """Plan the record that makes `slot` boot next (rules 5 and 6).

    Args:
        data: the 0x2000 bytes of otadata as they stand in flash now.
        slot: index of the OTA slot, 0 to n_slots - 1.
        n_slots: number of OTA application slots.
        boot_id: 16 bytes that identify this installation.

    Returns:
        (sector, record): erase that sector (0 or 1) of otadata, then write these 32 bytes at its start.

    Raises:
        PipelineError: OtadataMalformed.
    """
    _check_slots(n_slots)
    if not 0 <= slot < n_slots:
        raise PipelineError(
            Reason.OtadataMalformed,
            f"Slot {slot} does not exist; the partition table has {n_slots} OTA slots.",
            "Choose an existing slot.",
        )
    current = select(data, n_slots)
    now = current.record.seq if current else 0
    seq = now + 1 + (slot - now) % n_slots
    if seq >= _BLANK_SEQ:
        raise PipelineError(
            Reason.OtadataMalformed,
            f"The OTA sequence number {now} leaves no higher one.",
            "Erase the otadata partition once, by hand; then the first slot boots.",
        )
    sector = 1 - current.sector if current else 0
    return sector, OtaRecord(seq, state, boot_label(boot_id)).to_bytes()


def write_record(data: bytes, sector: int, record: bytes) -> bytes:
    """The otadata bytes after erasing `sector` and writing `record` at its start."""
    image = record.ljust(FLASH_SECTOR, b"\xff")
    return image + data[FLASH_SECTOR:] if sector == 0 else data[:FLASH_SECTOR] + image


def blank_otadata() -> bytes:
    """Erased OTA data: the factory application boots, else ota_0."""
    return b"\xff" * OTADATA_SIZE
