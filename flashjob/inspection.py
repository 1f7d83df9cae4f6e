# SPDX-License-Identifier: Apache-2.0
"""What can be learned of one device from a bench, and what may honestly be claimed of it.

Rules (tests name them):

1. What hardware shows (ROM loader, flash) and what the application says stay apart; where they differ, that is said.
2. A root of trust can be reached only as high as the chip allows: without an eFuse HMAC key, SelfReported; with every
   protection on, SignedBoot. Every protection that is missing, or not known to be on, is named.
3. Looking changes nothing: over serial the chip is reset into its loader and back, not a byte is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from attestation.device_protocol import Flag, Info
from attestation.policy import RootOfTrust
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp import appdesc, chips, otadata, partitions
from firmware_pipeline.esp.chips import Chip, format_revision
from firmware_pipeline.esp.otadata import OTADATA_SIZE
from firmware_pipeline.hardware import HardwareFacts
from flashjob.errors import FlashJobError
from flashjob.flasher.esptool import Esptool
from flashjob.flasher.preflight import contradictions
from flashjob.flasher.transports.base import Transport
from flashjob.wire.esptool_lines import ChipEvent, Region
from flashjob.wire.reasons import Reason
from flashjob.wire.serial import USUAL, SerialSettings

_HEADER = 0x200
"""Bytes of a slot that are read: image header and application descriptor."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One application partition, as flash shows it."""

    name: str
    offset: int
    size: int
    application: str
    state: str = ""
    selected: bool = False


@dataclass(frozen=True, slots=True)
class Inspection:
    """One device: `chip`, `table` and `slots` from the hardware, `info` from its application."""

    info: Info | None = None
    chip: ChipEvent | None = None
    partitions: tuple[partitions.Partition, ...] = ()
    partition_table_sha256: str | None = None
    slots: tuple[Slot, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What could not be read, and why."""

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Rule 1."""
        if self.info is None or self.chip is None:
            return ()
        seen = self.chip
        encryption: Literal["off", "release"] = "release" if seen.flash_encryption else "off"
        facts = HardwareFacts(
            chip_id=chips.by_target(seen.chip).chip_id,
            revision=None if seen.secure_download else seen.revision,
            flash_size=seen.flash_size or None,
            secure_boot=seen.secure_boot,
            flash_encryption=encryption,
            partition_table_sha256=self.partition_table_sha256,
        )
        return tuple(contradictions(self.info, facts))

    @property
    def model(self) -> Chip | None:
        """The chip: the hardware's word, else the application's."""
        try:
            if self.chip is not None:
                return chips.by_target(self.chip.chip)
            return chips.by_id(self.info.chip_id) if self.info is not None else None
        except PipelineError:
            return None


_PROTECTIONS = {
    Flag.SECURE_BOOT: "secure boot is not on: any image boots",
    Flag.FLASH_ENCRYPTION: "flash encryption is not on: whoever holds the board reads and changes its flash",
    Flag.ENCRYPTION_RELEASE: "flash encryption is not in release mode: plain images can still be written over serial",
    Flag.JTAG_OFF: "JTAG is open: whoever holds the board reads its memory",
    Flag.DOWNLOAD_LOCKED: "the ROM loader is open: whoever holds the board can run code in it",
}


def reach(seen: Inspection) -> tuple[RootOfTrust, tuple[str, ...]]:
    """Rule 2: the root of trust that this device could be enrolled with now, and why not a higher one."""
    chip, info = seen.model, seen.info
    if chip is None:
        return RootOfTrust.SELF_REPORTED, ("the chip is not known",)
    if not chip.hmac_key:
        return RootOfTrust.SELF_REPORTED, (
            f"{chip.display} has no eFuse key for the HMAC peripheral: its secret cannot be kept from software",
        )
    if info is None:
        return RootOfTrust.SELF_REPORTED, ("no application answers, so nothing can be attested",)
    missing = tuple(why for flag, why in _PROTECTIONS.items() if flag not in info.flags)
    if seen.chip is not None and not seen.chip.secure_boot and Flag.SECURE_BOOT in info.flags:
        missing = (*missing, "the application says secure boot is on, the ROM loader does not show it")
    if missing:
        return RootOfTrust.SELF_REPORTED, missing
    return RootOfTrust.SIGNED_BOOT, (
        "Isolated needs hardware that keeps the secret from every application, signed ones too; this chip's HMAC key answers any that runs",
    )


async def look(
    way: Transport,
    port: str | None,
    settings: SerialSettings = USUAL,
    *,
    seconds: float,
    table_offset: int,
    loader: bool,
) -> Inspection:
    """Rule 3.

    Args:
        way: to the application.
        port: serial port for the ROM loader; None: network.
        settings: how its line is driven.
        seconds: how long to wait for the application.
        table_offset: where in flash the partition table is, in bytes.
        loader: also look through the ROM loader, which resets the chip.

    Raises:
        FlashJobError: neither application nor chip answer.
    """
    info, notes = None, []
    try:
        info = await way.info(seconds)
    except FlashJobError as error:
        if port is None or not loader or error.reason in (Reason.PORT_BUSY, Reason.PORT_NOT_FOUND):
            raise
        notes.append(f"application: {error.message}")
    finally:
        await way.close()
    if port is None or not loader:
        return Inspection(info=info, notes=tuple(notes))
    async with Esptool(port, settings) as tool:
        chip, _ = await tool.probe()
        found: dict[str, Any] = {}
        try:
            if chip.secure_download:
                notes.append("flash: the ROM loader is in secure download mode and reads nothing")
            else:
                found = await _layout(tool, table_offset)
        except FlashJobError as error:
            notes.append(f"flash: {error.message}")
        except PipelineError as error:
            notes.append(f"partition table at {table_offset:#x}: {error.message}")
        await tool.reset()
    return Inspection(info=info, chip=chip, notes=tuple(notes), **found)


async def _layout(tool: Esptool, offset: int) -> dict[str, Any]:
    raw = (await tool.read(Region(offset=offset, size=partitions.TABLE_SIZE)))[offset]
    table = partitions.parse_table(raw, table_offset=offset)
    wanted = [Region(offset=row.offset, size=_HEADER) for row in table.partitions if row.is_app]
    if table.otadata is not None:
        wanted.append(Region(offset=table.otadata.offset, size=OTADATA_SIZE))
    data = await tool.read(*wanted)
    return {
        "partitions": table.partitions,
        "partition_table_sha256": partitions.table_sha256(raw).hex(),
        "slots": tuple(_slots(table, data)),
    }


def _slots(table: partitions.PartitionTable, data: dict[int, bytes]) -> Iterator[Slot]:
    record = data.get(table.otadata.offset) if table.otadata else None
    chosen = otadata.select(record, len(table.ota_slots)) if record and table.ota_slots else None
    for row in (row for row in table.partitions if row.is_app):
        selected = chosen is not None and row.ota_index == chosen.slot
        state = _state(chosen.record.state) if selected and chosen else ""
        yield Slot(row.name, row.offset, row.size, _application(data[row.offset]), state, selected)


def _application(head: bytes) -> str:
    if not head.strip(b"\xff"):
        return "empty"
    try:
        found = appdesc.parse_app_descriptor(head)
    except PipelineError as error:
        return f"unreadable ({error.reason.value})"
    return f"{found.project_name or '?'} {found.version or '?'} (secure_version {found.secure_version})"


def to_json(seen: Inspection) -> dict[str, Any]:
    """One object for scripts; bytes as hex."""
    tier, why = reach(seen)
    info = seen.info.model_dump() if seen.info else None
    if info is not None:
        info = {k: v.hex() if isinstance(v, bytes) else v for k, v in info.items()}
        info |= {"flags": flags(seen.info), "measurement": str(seen.info.measurement) if seen.info else ""}
    return {
        "chip": seen.chip.dump() if seen.chip else None,
        "info": info,
        "partitions": [
            {"name": r.name, "type": r.type_name, "offset": r.offset, "size": r.size} for r in seen.partitions
        ],
        "slots": [
            {"name": s.name, "offset": s.offset, "size": s.size, "application": s.application, "state": s.state,
             "selected": s.selected}
            for s in seen.slots
        ],
        "rootOfTrust": {"reachable": tier.value, "why": list(why)},
        "contradictions": list(seen.contradictions),
        "notes": list(seen.notes),
    }  # fmt: skip


def flags(info: Info | None) -> list[str]:
    """Names of the set flags."""
    return [flag.name or "" for flag in Flag if info is not None and flag in info.flags]


def rows(seen: Inspection) -> Iterator[tuple[str, str, str]]:
    """(whose word, what, value) for people."""
    if (chip := seen.chip) is not None:
        model = seen.model
        yield "chip", "model", f"{model.display if model else chip.chip}, revision {format_revision(chip.revision)}"
        yield "chip", "eFuse MAC", chip.mac or "not told"
        yield "chip", "flash", f"{chip.flash_size} bytes"
        for what in ("secure_boot", "flash_encryption", "secure_download"):
            yield "chip", what.replace("_", " "), "on" if getattr(chip, what) else "off"
    for slot in seen.slots:
        mark = f", selected, {slot.state}" if slot.selected else ""
        yield "flash", slot.name, f"{slot.offset:#x}, {slot.size} bytes: {slot.application}{mark}"
    if (info := seen.info) is not None:
        yield "application", "id", info.ueid.hex()
        yield (
            "application",
            "runs",
            f"{info.name} {info.version}, slot {info.running_slot:#x}, state {_state(info.slot_state)}",
        )
        yield "application", "measured", str(info.measurement)
        yield "application", "security version", f"image {info.secure_version}, eFuses {info.efuse_secure_version}"
        yield "application", "flags", ", ".join(flags(info)).lower().replace("_", " ") or "none"
        yield "application", "update slot", f"{info.target_slot_size} bytes" if info.target_slot_size else "none"
        yield "application", "partition table", info.partition_table.hex()
        if info.confirm_seconds_left is not None:
            yield "application", "waits", f"for its confirmation, {info.confirm_seconds_left} s are left"
        if info.next_offset is not None:
            yield "application", "receives", f"an image, {info.next_offset} bytes have come"
    for text in seen.contradictions:
        yield "differs", "", text
    for text in seen.notes:
        yield "not read", "", text
    tier, why = reach(seen)
    yield "claim", "root of trust", f"at most {tier.value}"
    for text in why:
        yield "claim", "why not more", text


def _state(number: int) -> str:
    try:
        return otadata.SlotState(number).name
    except ValueError:
        return str(number)
