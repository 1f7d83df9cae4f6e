# SPDX-License-Identifier: Apache-2.0
"""The second-stage bootloader of a virtual device: choose a slot, measure it, hand over one secret.

Choosing follows the ESP-IDF bootloader with rollback enabled (tests name the rules):

1. The bootloader's own image must parse and be built for this chip; the partition table must parse.
2. A record still PENDING_VERIFY at the start means that its first boot did not end in a confirmation: ABORTED.
3. The highest bootable record decides the slot; NEW becomes PENDING_VERIFY before the application starts.
4. No record: the factory application, else ota_0, for which a first record (seq 1, VALID) is written.
5. An image boots only if it parses, is an application for this chip and revision, with secure boot is signed by the
   trusted key and, with anti-rollback, its secure_version is not below the eFuse counter. Otherwise:
   down the slots to factory, then up the rest, then test.
6. With anti-rollback the counter is burnt at once when the slot that boots is VALID already.

Measuring follows the DICE life cycle:

7. The UDS is read, its key certifies layer 0 (this bootloader), the UDS is wiped.
8. The application is measured; its CDI is derived and certified by key 0; CDI 0 is wiped.
9. Only the application's CDI and the chain (with the public ids) are handed over, in an area that is overwritten from
   end to end at every boot, also at one that fails.
10. Mode: what the eFuses say; Recovery for a factory or test slot of a device with secure boot.
11. The boot id is the selecting record's, and only if the slot that boots is the one it selects; else zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from attestation import mint
from attestation.cbor import dumps, strict_loads
from attestation.mint import Layer, Mode
from attestation.statement import SHA_512, Digest
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp import otadata, partitions
from firmware_pipeline.esp.chips import FLASH_SECTOR
from firmware_pipeline.esp.image import ImageInfo, parse_image
from firmware_pipeline.esp.measurement import measure_image
from firmware_pipeline.esp.otadata import NO_BOOT_ID, OTADATA_SIZE, OtaRecord, SlotState
from firmware_pipeline.esp.partitions import SUBTYPE_FACTORY, SUBTYPE_TEST, Partition, PartitionTable
from flashjob.virtual import secure_boot
from flashjob.virtual.adversaries import Behaviour
from flashjob.virtual.flash import Flash
from flashjob.virtual.nvs import Nvs
from flashjob.virtual.profile import DeviceIdentity, Hardware

HANDOVER_SIZE: Final = 4096
BOOTSEED_SIZE: Final = 16
_REMEMBERED: Final = 16
"""Images, in each cache of pure results."""
UNNAMED: Final = "unnamed"
"""Certified name of an application whose descriptor names no project."""

Random = Callable[[int], bytes]
"""Random bytes of the given number."""


class BootError(Exception):
    """The chip does not start: what it would print on its console. `reason` is stable CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Handover:
    """What the application finds in the hand-over area: its secret and public values."""

    cdi: bytes = field(repr=False)
    ueid: bytes
    anchor_id: bytes
    certificates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class BootResult:
    """One successful boot. Holds no secret but the application's own, in `area`."""

    area: bytearray = field(repr=False)
    table: PartitionTable
    table_sha256: bytes
    slot: Partition
    sector: int | None
    """otadata sector (0, 1) of the record that selected `slot`; None where none did."""
    slot_state: SlotState | int
    boot_id: bytes
    image: ImageInfo
    measurement: Digest
    name: str
    version: str
    secure_version: int
    mode: Mode
    bootseed: bytes
    boot_count: int
    log: tuple[str, ...]
    """Console lines."""

    @property
    def unconfirmed(self) -> bool:
        """Whether this is the first boot of an installation that waits for its confirmation."""
        return self.slot_state == SlotState.PENDING_VERIFY

    def handover(self) -> Handover:
        """What the application reads at its start."""
        size = int.from_bytes(self.area[:4], "little")
        fields = strict_loads(bytes(self.area[4 : 4 + size]), HANDOVER_SIZE)
        match fields:
            case {1: bytes(cdi), 2: bytes(ueid), 3: bytes(anchor_id), 4: list(chain)}:
                return Handover(cdi, ueid, anchor_id, tuple(c for c in chain if isinstance(c, bytes)))
        raise BootError("HandoverDamaged", "the hand-over area does not hold what the bootloader wrote")


@dataclass(frozen=True, slots=True)
class _Choice:
    slot: Partition
    selected: Partition
    """Another slot only if the device lies."""
    sector: int | None
    record: OtaRecord | None


def boot(
    flash: Flash,
    identity: DeviceIdentity,
    *,
    nvs: Nvs,
    area: bytearray,
    random: Random,
    behaviour: Behaviour | None = None,
) -> BootResult:
    """Start the chip once: from reset to the hand-over.

    Args:
        flash: read and, for OTA data, written.
        identity: the chip with its secret.
        nvs: its boot counter is raised.
        area: hand-over area of HANDOVER_SIZE bytes, the same at every boot.
        random: source of the boot seed.
        behaviour: how honest the device is; honest where None.

    Raises:
        BootError: nothing can be started.
        FlashIOError: the flash failed.
    """
    area[:] = bytes(HANDOVER_SIZE)
    hardware = identity.hardware
    bootloader = _bootloader(flash, hardware)
    table, table_sha256 = _table(flash, hardware)
    behaviour = behaviour or Behaviour()
    choice, ota = _choose(flash, table, behaviour)
    if choice.record is not None and choice.record.state == SlotState.NEW:
        behaviour.first_boot(flash, choice.selected)
    slot, info, data = _first_bootable(flash, table, choice.slot, hardware)
    record = choice.record if slot == choice.slot else None
    state: SlotState | int = SlotState.UNDEFINED
    boot_id = NO_BOOT_ID
    if record is not None and choice.sector is not None:
        if record.state == SlotState.NEW:
            record = record.with_state(SlotState.PENDING_VERIFY)
            write_record(flash, table, choice.sector, record)
        state = record.state
        boot_id = behaviour.boot_id(record.boot_id)
    app = info.app
    secure_version = app.secure_version if app else 0
    if hardware.anti_rollback and state in (SlotState.VALID, SlotState.UNDEFINED):
        hardware.fuses.burn_secure_version(secure_version)
    nvs.boot_count += 1

    unconfirmed = state == SlotState.PENDING_VERIFY
    measurement = measure_bytes(data, info, hardware.hash_alg)
    certified = behaviour.certified_application(
        measurement.value, lambda: _measured(flash, choice.selected, hardware.hash_alg)
    )
    measurement = measurement.model_copy(update={"value": certified})
    table_sha256 = behaviour.certified_table(table_sha256, unconfirmed=unconfirmed)
    name = (app.project_name if app else "") or UNNAMED
    mode = hardware.fuses.mode
    if hardware.fuses.secure_boot and slot.ota_index is None:
        mode = Mode.RECOVERY
    authority = _authority(hardware)
    loader = behaviour.certified_loader(bootloader.value, unconfirmed=unconfirmed)
    layer0 = Layer(loader, mint.bootloader_config(), authority, hardware.fuses.mode)
    layer1 = Layer(
        measurement.value,
        mint.application_config(
            project_name=name,
            secure_version=secure_version,
            partition_table=table_sha256,
            boot_id=boot_id,
            slot=slot.subtype,
            security_efuses=int(hardware.fuses.flags),
        ),
        authority,
        mode,
        hidden=mint.application_hidden(name),
    )
    _hand_over(area, identity, layer0, layer1)
    version = app.version if app else ""
    lines = (
        *ota,
        f"I (31) boot: chip {hardware.chip.display} v{hardware.revision // 100}.{hardware.revision % 100}",
        f"I (42) boot: slot {slot.subtype_name} at 0x{slot.offset:x}: {name} {version}",
    )
    return BootResult(
        area=area,
        table=table,
        table_sha256=table_sha256,
        slot=slot,
        sector=choice.sector if record is not None else None,
        slot_state=state,
        boot_id=boot_id,
        image=info,
        measurement=measurement,
        name=name,
        version=version,
        secure_version=secure_version,
        mode=mode,
        bootseed=random(BOOTSEED_SIZE),
        boot_count=nvs.boot_count,
        log=lines,
    )


def read_otadata(flash: Flash, table: PartitionTable) -> bytes:
    """The 0x2000 bytes of OTA data; erased flash where the table has no such partition."""
    if table.otadata is None:
        return otadata.blank_otadata()
    return flash.read(table.otadata.offset, OTADATA_SIZE)


def write_record(flash: Flash, table: PartitionTable, sector: int, record: OtaRecord | bytes) -> None:
    """Erase one sector of OTA data and write a record at its start."""
    if table.otadata is None:
        raise BootError("NoOtadata", "the partition table has no otadata partition to write")
    offset = table.otadata.offset + sector * FLASH_SECTOR
    flash.erase(offset, FLASH_SECTOR)
    flash.program(offset, record if isinstance(record, bytes) else record.to_bytes())


def measure(flash: Flash, slot: Partition, info: ImageInfo, hash_alg: int) -> Digest:
    """Measure the image in a slot, as parsed before, with one algorithm."""
    return measure_bytes(flash.read(slot.offset, info.image_length), info, hash_alg)


def _measured(flash: Flash, slot: Partition, hash_alg: int) -> bytes:
    data = flash.read(slot.offset, slot.size)
    return measure_bytes(data, _parsed(data), hash_alg).value


def measure_bytes(data: bytes, info: ImageInfo, hash_alg: int) -> Digest:
    """The measurement of a parsed image with one algorithm (-16 or -44)."""
    return Digest.model_validate({"alg": hash_alg, "value": _hashes(data, info)[hash_alg]})


# Pure functions of the bytes, remembered because a fleet boots the same few images thousands of times.


@lru_cache(maxsize=_REMEMBERED)
def _parsed(data: bytes) -> ImageInfo:
    return parse_image(data)


@lru_cache(maxsize=_REMEMBERED)
def _hashes(data: bytes, info: ImageInfo) -> dict[int, bytes]:
    return {measured.alg: measured.value for measured in measure_image(data, info)}


@lru_cache(maxsize=_REMEMBERED)
def _signed(data: bytes, image_length: int, trusted: bytes) -> bool:
    return secure_boot.verify(data, image_length, trusted)


def _bootloader(flash: Flash, hardware: Hardware) -> Digest:
    start = hardware.chip.bootloader_offset
    data = flash.read(start, hardware.table_offset - start)
    try:
        info = _parsed(data)
    except PipelineError as error:
        raise BootError("NoBootloader", f"invalid header at 0x{start:x}: {error.message}") from error
    if info.chip is not hardware.chip:
        raise BootError("NoBootloader", f"the bootloader is for {info.chip.display}, this is {hardware.chip.display}")
    return measure_bytes(data, info, hardware.hash_alg)


def _table(flash: Flash, hardware: Hardware) -> tuple[PartitionTable, bytes]:
    raw = flash.read(hardware.table_offset, partitions.TABLE_SIZE)
    try:
        table = partitions.parse_table(raw, table_offset=hardware.table_offset, flash_size=flash.size)
    except PipelineError as error:
        raise BootError("NoPartitionTable", error.message) from error
    return table, partitions.table_sha256(raw)


def _choose(flash: Flash, table: PartitionTable, behaviour: Behaviour) -> tuple[_Choice, list[str]]:
    """Rules 2 to 4."""
    log: list[str] = []
    slots = table.ota_slots
    if not slots:
        return _no_record(table), log
    data = read_otadata(flash, table)
    for sector, record in enumerate(otadata.parse_otadata(data)):
        if record is not None and record.state == SlotState.PENDING_VERIFY:
            write_record(flash, table, sector, record.with_state(SlotState.ABORTED))
            log.append(f"W (20) boot: slot {record.slot(len(slots))} was not confirmed: ABORTED")
    selected = otadata.select(read_otadata(flash, table), len(slots))
    if selected is not None:
        slot = slots[behaviour.boot_slot(selected.slot) % len(slots)]
        return _Choice(slot, slots[selected.slot], selected.sector, selected.record), log
    if table.factory is not None or table.otadata is None:
        return _no_record(table), log
    first = OtaRecord(1, SlotState.VALID, b"\xff" * 20)
    if data == otadata.blank_otadata():
        write_record(flash, table, 0, first)
        behaviour.boot_slot(0)
        return _Choice(slots[0], slots[0], 0, first), log
    return _Choice(slots[0], slots[0], None, None), log


def _no_record(table: PartitionTable) -> _Choice:
    """Rule 4, for tables without OTA data."""
    for slot in (table.factory, *table.ota_slots, *table.app_slots):
        if slot is not None:
            return _Choice(slot, slot, None, None)
    raise BootError("NoBootableApp", "the partition table has no application partition")


def _first_bootable(
    flash: Flash, table: PartitionTable, chosen: Partition, hardware: Hardware
) -> tuple[Partition, ImageInfo, bytes]:
    """Rule 5; the slot, its image as parsed, and what was read of it."""
    failures: list[str] = []
    for slot in _fallback_order(table, chosen):
        data = flash.read(slot.offset, slot.size)
        try:
            return slot, verify_image(data, hardware), data
        except (PipelineError, BootError) as error:
            failures.append(f"{slot.subtype_name}: {error.message}")
    raise BootError("NoBootableApp", "no slot holds a bootable application: " + " ".join(failures))


def _fallback_order(table: PartitionTable, chosen: Partition) -> Iterator[Partition]:
    index = chosen.ota_index
    below = [slot for slot in reversed(table.ota_slots) if index is not None and slot.subtype < chosen.subtype]
    above = [slot for slot in table.ota_slots if slot.subtype > chosen.subtype or index is None]
    factory = [slot for slot in table.app_slots if slot.subtype == SUBTYPE_FACTORY]
    test = [slot for slot in table.app_slots if slot.subtype == SUBTYPE_TEST]
    seen: set[int] = set()
    for slot in (chosen, *below, *factory, *above, *test):
        if slot.offset not in seen:
            seen.add(slot.offset)
            yield slot


def verify_image(data: bytes, hardware: Hardware) -> ImageInfo:
    """Check that the image at byte 0 of `data` may boot on this chip.

    Raises:
        PipelineError: it does not parse.
        BootError: it is for another chip or revision, no application, not signed by the trusted key, or older than
            the eFuse counter allows.
    """
    info = _parsed(data)
    if info.chip is not hardware.chip:
        raise BootError("WrongChip", f"built for {info.chip.display}, this is {hardware.chip.display}")
    if hardware.revision < info.min_rev or (info.max_rev is not None and hardware.revision > info.max_rev):
        raise BootError("WrongRevision", f"chip revision {hardware.revision} is outside what the image accepts")
    if info.app is None:
        raise BootError("NotAnApplication", "the image has no application descriptor")
    trusted = hardware.fuses.secure_boot_key_digest
    if hardware.verifies_signatures and trusted is not None and not _signed(data, info.image_length, trusted):
        raise BootError("NotSigned", f"secure boot: no signature by the trusted key {trusted.hex()[:16]}...")
    burnt = hardware.fuses.secure_version
    if hardware.anti_rollback and info.app.secure_version < burnt:
        raise BootError("SecureVersion", f"secure version {info.app.secure_version} is below the eFuse counter {burnt}")
    return info


def _authority(hardware: Hardware) -> bytes:
    """Hash of the trusted secure-boot key digest; zeros where nothing verifies signatures."""
    digest = hardware.fuses.secure_boot_key_digest
    wide = hardware.hash_alg == SHA_512
    if digest is None:
        return bytes(64 if wide else 32)
    return (hashlib.sha512 if wide else hashlib.sha256)(digest).digest()


@contextmanager
def _secret(value: bytes) -> Iterator[bytearray]:
    buffer = bytearray(value)
    try:
        yield buffer
    finally:
        buffer[:] = bytes(len(buffer))


def _hand_over(area: bytearray, identity: DeviceIdentity, layer0: Layer, layer1: Layer) -> None:
    """Rules 7 to 9."""
    alg = identity.hardware.alg
    with _secret(identity.uds) as uds:
        uds_key = mint.signing_key(uds, alg)
        with _secret(mint.next_cdi(uds, layer0)) as cdi0:
            key0 = mint.signing_key(cdi0, alg)
            certificate0 = mint.certificate(uds_key, key0.public_key(), layer0)
            with _secret(mint.next_cdi(cdi0, layer1)) as cdi1:
                key1 = mint.signing_key(cdi1, alg)
                certificate1 = mint.certificate(key0, key1.public_key(), layer1)
                content = dumps(
                    {1: bytes(cdi1), 2: identity.ueid, 3: identity.anchor_id, 4: [certificate0, certificate1]}
                )
    area[:4] = len(content).to_bytes(4, "little")
    area[4 : 4 + len(content)] = content
