# SPDX-License-Identifier: Apache-2.0
"""One granted image on its way into a slot.

Rules (tests name them):

1. Sectors are erased as the bytes reach them, so a lost connection costs nothing that was written; what is sent again
   starts at the next offset.
2. After the last byte, in this order: payload SHA-256 (11); the slot is read back, parsed and checked for this chip
   (12); measured and compared with the granted result (11). Then the rest of the last flash page is erased, and the
   slot is selected as NEW under the boot id, which is the grant id.
3. Any failure leaves the choice of the boot slot untouched and erases the slot's first sector.
4. A delta is kept until its last byte, then applied to what runs; what comes out is written and judged as any image.
"""

from __future__ import annotations

import hashlib

from attestation.device_protocol import ErrorCode
from attestation.grants import InstallGrant, PayloadFormat
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp import otadata
from firmware_pipeline.esp.otadata import SlotState
from firmware_pipeline.esp.partitions import Partition, PartitionTable
from flashjob.virtual import bootloader, delta
from flashjob.virtual.bootloader import BootError
from flashjob.virtual.flash import SECTOR, Flash, FlashIOError
from flashjob.virtual.profile import Hardware
from flashjob.virtual.replies import Refusal


class Installation:
    """State of an accepted install grant until its last byte.

    Args:
        grant: what was granted.
        sequence: of its release statement.
        slot: the inactive slot that is written.
        running: the slot that runs: what a delta starts from.
    """

    def __init__(
        self,
        grant: InstallGrant,
        sequence: int,
        slot: Partition,
        *,
        flash: Flash,
        hardware: Hardware,
        table: PartitionTable,
        running: Partition,
    ) -> None:
        self.grant = grant
        self.sequence = sequence
        self.slot = slot
        self.offset = 0
        """Bytes taken so far: where an upload starts or goes on."""
        self.live = True
        """False once another grant took over, it was cancelled, or it ended."""
        self._flash, self._hardware, self._table = flash, hardware, table
        self._hash = hashlib.sha256()
        self._running = running
        self._delta = bytearray() if grant.payload_format is PayloadFormat.ESP_DELTA else None
        self._written = 0

    @property
    def missing(self) -> int:
        """Bytes of the payload that have not come yet."""
        return self.grant.payload_size - self.offset

    def take(self, chunk: bytes) -> None:
        """Write the next bytes (rule 1). Raises Refusal STATE, TOO_LARGE or FLASH_IO."""
        if not self.live:
            raise Refusal(ErrorCode.STATE, "another grant took over")
        if len(chunk) > self.missing:
            raise Refusal(ErrorCode.TOO_LARGE, f"{self.missing} bytes are missing, {len(chunk)} came")
        try:
            if self._delta is not None:
                self._hash.update(chunk)
                self._delta += chunk
                self.offset += len(chunk)
            else:
                self._write(chunk)
        except FlashIOError as error:
            raise Refusal(ErrorCode.FLASH_IO, str(error)) from error

    def _write(self, chunk: bytes) -> None:
        """The image's next bytes; of a raw payload they are the payload's."""
        rest = memoryview(chunk)
        while rest:
            at = self.slot.offset + self._written
            room = SECTOR - self._written % SECTOR
            if room == SECTOR:
                self._flash.erase(at, SECTOR)
            piece = bytes(rest[:room])
            self._flash.program(at, piece)
            self._written += len(piece)
            if self._delta is None:
                self._hash.update(piece)
                self.offset += len(piece)
            rest = rest[room:]

    def _apply(self, patch: bytes) -> None:
        """Rule 4."""
        try:
            base = self._flash.read(self._running.offset, self._running.size)
            hash_of_base = bootloader.verify_image(base, self._hardware).appended_hash
            self._write(delta.apply(base, hash_of_base, patch, self.slot.size))
        except (PipelineError, BootError, ValueError) as error:
            raise Refusal(ErrorCode.IMAGE_OR_CHIP, f"delta: {error}") from error

    def complete(self) -> None:
        """Verify the slot and select it for the next boot (rule 2). Raises Refusal; `abandon` follows then."""
        try:
            self._verify()
            sector, record = otadata.select_record(
                bootloader.read_otadata(self._flash, self._table),
                self.slot.ota_index or 0,
                len(self._table.ota_slots),
                boot_id=self.grant.grant_id,
                state=SlotState.NEW,
            )
            bootloader.write_record(self._flash, self._table, sector, record)
        except FlashIOError as error:
            raise Refusal(ErrorCode.FLASH_IO, str(error)) from error
        self.live = False

    def abandon(self) -> None:
        """Give the installation up (rule 3). Raises Refusal FLASH_IO."""
        self.live = False
        try:
            self._flash.erase(self.slot.offset, SECTOR)
        except FlashIOError as error:
            raise Refusal(ErrorCode.FLASH_IO, str(error)) from error

    def _verify(self) -> None:
        grant, slot, flash = self.grant, self.slot, self._flash
        if self._hash.digest() != grant.payload_sha256:
            raise Refusal(ErrorCode.DIGEST, "the payload is not the granted one")
        if self._delta is not None:
            self._apply(bytes(self._delta))
        try:
            info = bootloader.verify_image(flash.read(slot.offset, slot.size), self._hardware)
        except (PipelineError, BootError) as error:
            raise Refusal(ErrorCode.IMAGE_OR_CHIP, error.message) from error
        if bootloader.measure(flash, slot, info, grant.result.alg) != grant.result:
            raise Refusal(ErrorCode.DIGEST, "the image in the slot is not the granted one")
        written = _round_up(self._written, SECTOR)
        page_end = min(slot.size, _round_up(self._written, info.mmu_page_size))
        if page_end > written:
            flash.erase(slot.offset + written, page_end - written)


class Upload:
    """One connection that brings image bytes. `lost` or the end of the bytes ends it."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.open = True

    def write(self, chunk: bytes) -> None:
        """Take the next bytes. Raises Refusal; the upload is over then."""
        try:
            self.installation.take(chunk)
        except Refusal:
            self.open = False
            raise

    def lost(self) -> None:
        """The connection is gone; what was written stays, and the sender may go on at the next offset."""
        self.open = False


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
