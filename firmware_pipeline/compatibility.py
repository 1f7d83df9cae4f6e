# SPDX-License-Identifier: Apache-2.0
"""Whether firmware may be written to a device: pure, (hardware facts, signed config, options) -> mismatches.

An empty list accepts. Planning asks with what is recorded (`complete=False`: an unknown fact is skipped, preflight will
see it); preflight asks just before byte one with what was read (`complete=True`: facts marked * must then be known, else
HardwareUnknown). Nothing here can be overruled but by the options named.

Rules on the config alone (`check_layout`):
 L1. Every offset is on its role's boundary: applications 64 KiB (one that the ROM itself starts: where the ROM looks),
     all others 4 KiB (OffsetMisaligned).
 L2. A bootloader stands at the one offset where this chip's ROM looks for it (BootloaderOffsetWrong).
 L3. No two images share a flash sector, nor an image and the partition table's sector (ImagesOverlap).
 L4. Every image ends within the flash size of the image header (ImageBeyondFlash).
 L5. An image that names a partition begins where that begins and fits into it (OffsetMisaligned, ImageTooLarge); an
     application's partition is of type app (RoleNotAllowed).
 L6. secure_version fits the chip's eFuse counter (SecurityVersionUnrepresentable).

Rules on config and device (`check`, after L1 to L6); "written" = the images whose role is in `options.write`:
 1. Chip*: target and id are the config's (WrongChip). After a wrong chip nothing else is judged.
 2. Revision*: at least the image's minimum, at most its maximum (ChipRevisionTooLow, ChipRevisionTooHigh).
 3. Flash size*: the chip holds what the image header says (FlashTooSmall: the bootloader would refuse to start), and
    every written image (ImageBeyondFlash).
 4. Roles: what is written besides the application needs its role in `options.permitted` (RoleNotAllowed).
 5. Slot*: the application fits the inactive slot (ImageTooLarge). Where no inactive slot is known, writing needs
    `allow_in_place` (SlotUnknown); in place, the device's partition at the image's offset must be an application's and
    large enough (PartitionTableMismatch, ImageTooLarge).
 6. Partition table: if both sides know it, it is the same (PartitionTableMismatch), unless the table itself is written.
    Unknown is skipped: rule 5 still bounds the write.
 7. Secure boot*: a device that enforces it gets only signed applications, and signed with a key it trusts where its
    keys are known (SecureBootUnsigned).
 8. Serial only, flash encryption*: release mode takes nothing over serial; development mode takes images marked
    encrypt; a plain device only images that are not (EncryptionMismatch).
 9. Serial only, secure download*: refused, since what was written could not be verified (SecureDownloadMode).
10. secure_version* is not below the eFuse counter (SecurityVersionTooLow); above it, marking the image valid burns
    eFuses for ever, which needs `allow_security_version_burn` (SecurityVersionBurnNotAllowed). The counter may stay
    unknown only where the image asks for 0 and goes into an inactive slot: nothing is burnt then, and a bootloader that
    refuses the image falls back to the running one.
11. The device has every feature that the build demands (FeatureMissing); an unknown one* is HardwareUnknown.
12. No downgrade unless `allow_downgrade` (DowngradeNotAllowed): rules 2 and 3 of `downgrade`. What they leave undecided
    is skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from firmware_pipeline.config import FirmwareConfig, ImageEntry
from firmware_pipeline.downgrade import Installed, Offered, judge
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import FLASH_SECTOR, by_id, format_revision, normalise_target
from firmware_pipeline.esp.partitions import APP_ALIGNMENT
from firmware_pipeline.features import has
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.plan import Role


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One reason not to write."""

    reason: Reason
    message: str
    next_step: str

    def to_error(self) -> PipelineError:
        return PipelineError(self.reason, self.message, self.next_step)


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What the caller wants to do and may do.

    Attributes:
        complete: the facts were read from the live device; facts marked * must be known.
        transport: rules 8 and 9 hold for serial only; None = not decided yet, they are skipped.
        write: roles that this update writes.
        permitted: roles that may be written.
        allow_in_place: may overwrite the application that runs.
        sequence: release sequence of the artifact, if it has one.
    """

    complete: bool = True
    transport: Literal["serial", "network"] | None = None
    write: frozenset[Role] = frozenset({Role.APP})
    permitted: frozenset[Role] = frozenset({Role.APP})
    allow_in_place: bool = False
    allow_downgrade: bool = False
    allow_security_version_burn: bool = False
    sequence: int | None = None


_REBUILD = "Build and push the firmware again."


def _sectors(image: ImageEntry) -> tuple[int, int, str]:
    """Span of flash that writing the image erases (rounded out to sectors), and its name for people."""
    start = image.offset // FLASH_SECTOR * FLASH_SECTOR
    return start, -(-image.end // FLASH_SECTOR) * FLASH_SECTOR, f"the {image.role} image at 0x{image.offset:x}"


def check_layout(config: FirmwareConfig) -> list[Mismatch]:
    """Rules L1 to L6: whether the images could lie side by side in the flash they were built for."""
    return list(_layout(config))


def _layout(config: FirmwareConfig) -> Iterator[Mismatch]:
    chip = by_id(config.chip.chip_id)
    rows = {row.name: row.to_partition() for row in config.partitions}
    for image in config.images:
        what = f"The {image.role} image at 0x{image.offset:x}"
        alignment = APP_ALIGNMENT if image.role is Role.APP else FLASH_SECTOR
        by_rom = image.role is Role.APP and image.offset == chip.bootloader_offset
        if image.offset % alignment and not by_rom:
            yield Mismatch(Reason.OffsetMisaligned, f"{what} is not on a 0x{alignment:x} boundary.", _REBUILD)
        if image.role is Role.BOOTLOADER and image.offset != chip.bootloader_offset:
            yield Mismatch(
                Reason.BootloaderOffsetWrong,
                f"{what}: the ROM of {chip.display} loads its bootloader from 0x{chip.bootloader_offset:x}.",
                "Build for the right chip; a bootloader elsewhere never starts.",
            )
        if image.end > config.flash.size_bytes:
            yield Mismatch(
                Reason.ImageBeyondFlash,
                f"{what} ends at 0x{image.end:x}, behind the {config.flash.size} of flash it was built for.",
                "Build with the flash size of the board.",
            )
        row = rows.get(image.partition) if image.partition is not None else None
        if row is None:
            continue
        if image.offset != row.offset:
            yield Mismatch(
                Reason.OffsetMisaligned, f"{what} does not begin where {row.name!r} does (0x{row.offset:x}).", _REBUILD
            )
        if image.size > row.size:
            yield _too_large(image, f"partition {row.name!r}", row.size)
        if image.role is Role.APP and not row.is_app:
            yield Mismatch(
                Reason.RoleNotAllowed, f"{what} is an application, {row.name!r} a {row.type_name} partition.", _REBUILD
            )
    spans = [_sectors(image) for image in config.images]
    table = config.partition_table_offset
    if table is not None and not any(i.role is Role.PARTITION_TABLE and i.offset == table for i in config.images):
        spans.append((table, table + FLASH_SECTOR, "the partition table"))
    for (_, end, first), (start, _, second) in pairwise(sorted(spans)):
        if start < end:
            yield Mismatch(
                Reason.ImagesOverlap,
                f"{second[0].upper()}{second[1:]} overlaps {first}, which reaches to 0x{end:x}.",
                "Move one of them, or make the first one smaller.",
            )
    if config.app.secure_version > chip.secure_version_bits:
        yield Mismatch(
            Reason.SecurityVersionUnrepresentable,
            f"secure_version {config.app.secure_version} exceeds the {chip.secure_version_bits} steps of {chip.display}.",
            "Build with a secure_version that the chip can count.",
        )


def _too_large(image: ImageEntry, where: str, room: int) -> Mismatch:
    return Mismatch(
        Reason.ImageTooLarge,
        f"The {image.role} image has {image.size} bytes, {where} only {room}.",
        "Make the image smaller, or give the device a partition table with larger slots.",
    )


def check(facts: HardwareFacts, config: FirmwareConfig, *, options: CheckOptions | None = None) -> list[Mismatch]:
    """Apply all rules of the module and return every mismatch found; an empty list accepts.

    Args:
        facts: of the one device that would be written.
        config: verified signed config of its chip.
        options: what is to be written and what is permitted; default: the application only, facts complete.
    """
    chosen = options or CheckOptions()
    layout = check_layout(config)
    wrong = list(_chip(facts, config, chosen))
    if wrong:
        return layout + wrong
    rules = (_revision, _flash, _roles, _slot, _table, _secure_boot, _serial, _security_version, _features, _downgrade)
    return layout + [mismatch for rule in rules for mismatch in rule(facts, config, chosen)]


def _unknown(fact: str, options: CheckOptions) -> Iterator[Mismatch]:
    if options.complete:
        yield Mismatch(
            Reason.HardwareUnknown,
            f"The device's {fact} could not be read, so whether the firmware fits it cannot be said.",
            "Check the connection and read the device again; nothing was written.",
        )


def _chip(facts: HardwareFacts, config: FirmwareConfig, options: CheckOptions) -> Iterator[Mismatch]:
    """Rule 1."""
    wanted = config.chip
    if facts.target is None and facts.chip_id is None:
        yield from _unknown("chip", options)
    elif (facts.target is not None and normalise_target(facts.target) != wanted.target) or (
        facts.chip_id is not None and facts.chip_id != wanted.chip_id
    ):
        found = facts.target or f"chip id {facts.chip_id}"
        yield Mismatch(
            Reason.WrongChip,
            f"The firmware is for {wanted.target} (chip id {wanted.chip_id}), the device is {found}"
            + (f" (chip id {facts.chip_id})." if facts.target and facts.chip_id is not None else "."),
            "Push firmware for this chip too, or select other devices.",
        )


def _revision(facts: HardwareFacts, config: FirmwareConfig, options: CheckOptions) -> Iterator[Mismatch]:
    """Rule 2."""
    low, high, found = config.chip.min_rev, config.chip.max_rev, facts.revision
    if found is None:
        if low or high is not None:
            yield from _unknown("chip revision", options)
    elif found < low:
        yield Mismatch(
            Reason.ChipRevisionTooLow,
            f"The firmware needs chip revision {format_revision(low)}, the device is {format_revision(found)}.",
            "Build with a lower minimum revision, or leave this device out.",
        )
    elif high is not None and found > high:
        yield Mismatch(
            Reason.ChipRevisionTooHigh,
            f"The firmware ends at chip revision {format_revision(high)}, the device is {format_revision(found)}.",
            "Build with a framework version that supports this revision.",
        )


def _flash(facts: HardwareFacts, config: FirmwareConfig, options: CheckOptions) -> Iterator[Mismatch]:
    """Rule 3."""
    if facts.flash_size is None:
        yield from _unknown("flash size", options)
        return
    if config.flash.size_bytes > facts.flash_size:
        yield Mismatch(
            Reason.FlashTooSmall,
            f"The firmware was built for {config.flash.size} of flash, the device has {facts.flash_size} bytes.",
            "Build for the board's flash size; the bootloader would refuse to start this image.",
        )
    for image in config.images:
        if image.role in options.write and image.end > facts.flash_size:
            yield Mismatch(
                Reason.ImageBeyondFlash,
                f"The {image.role} image ends at 0x{image.end:x}, the device's flash at 0x{facts.flash_size:x}.",
                "Build for the board's flash size.",
            )


def _roles(_: HardwareFacts, config: FirmwareConfig, options: CheckOptions) -> Iterator[Mismatch]:
    """Rule 4."""
    for role in sorted({image.role for image in config.images} & options.write - options.permitted):
        yield Mismatch(
            Reason.RoleNotAllowed,
            f"This update would write the {role}, for which no permission was given; a failure there can brick a device.",
            f"Leave the {role} out, or have someone with the right permit it.",
        )


def _slot(facts: HardwareFacts, config: FirmwareConfig, options: CheckOptions) -> Iterator[Mismatch]:
    """Rule 5."""
    image = config.app_image
    if Role.APP not in options.write:
        return
    if facts.target_slot_size is not None:
        if image.size > facts.target_slot_size:
            yield _too_large(image, "the device's inactive slot", facts.target_slot_size)
    elif not options.allow_in_place:
        if options.complete:
            yield Mismatch(
                Reason.SlotUnknown,
                "The device shows no inactive application slot; writing the one that runs cannot be undone.",
                "Give the device a partition table with two OTA slots, or permit in-place writes explicitly.",
            )
    elif facts.partitions is not None:
        row = next((p.to_partition() for p in facts.partitions if p.offset == image.offset), None)
        if row is None or not row.is_app:
            yield Mismatch(
                Reason.PartitionTableMismatch,
                f"No application partition of the device begins at 0x{image.offset:x}.",
                "Build with the device's partition table.",
            )
        elif image.size > row.size:
            yield _too_large(image, f"partition {row.name!r}", row.size)
    elif Role.PARTITION_TABLE not in options.write:
        yield from _unknown("partition table", options)


def _table(facts: HardwareFacts, config: FirmwareConfig, options: CheckOptions) -> Iterator[Mismatch]:
    """Rule 6."""
    ours, theirs = config.partition_table_sha256, facts.partition_table_sha256
    if ours and theirs and ours != theirs and Role.PARTITION_TABLE not in options.write:
        yield Mismatch(
            Reason.PartitionTableMismatch,
            f"The device's partition table ({theirs[:12]}...) is not the one the firmware was built with ({ours[:12]}...).",
            "Build with the device's partition table, or push without one if the layout does not matter.",
        )


def _secure_boot(facts: HardwareFacts, config: FirmwareConfig, options: CheckOptions) -> Iterator[Mismatch]:
    """Rule 7."""
    signed = config.secure_boot
    if facts.secure_boot is None:
        if signed is None:
            yield from _unknown("secure boot setting", options)
    elif facts.secure_boot and signed is None:
        yield Mismatch(
            Reason.SecureBootUnsigned,
            "The device enforces secure boot, but the application carries no signature block: it would not start.",
            "Sign the application (espsecure sign-data --version 2) before pushing it.",
        )
    elif (
        facts.secure_boot
        and signed is not None
        and facts.secure_boot_key_digests is not None
        and not set(signed.key_digests) & set(facts.secure_boot_key_digests)
    ):
        yield Mismatch(
            Reason.SecureBootUnsigned,
            "The application is signed, but by no key whose digest the device's eFuses hold: it would not start.",
            "Sign the application with the key this device was provisioned with.",
        )


def _serial(facts: HardwareFacts, config: FirmwareConfig, options: CheckOptions) -> Iterator[Mismatch]:
    """Rules 8 and 9."""
    if options.transport != "serial":
        return
    if facts.secure_download is None:
        yield from _unknown("download mode", options)
    elif facts.secure_download:
        yield Mismatch(
            Reason.SecureDownloadMode,
            "The device is in secure download mode: written flash can be neither read nor hashed over serial.",
            "Update this device over the network.",
        )
    if facts.flash_encryption is None:
        yield from _unknown("flash encryption setting", options)
        return
    for image in config.images:
        if image.role not in options.write:
            continue
        if facts.flash_encryption == "release":
            problem, step = "takes no plain bytes over serial any more", "Update this device over the network."
        elif facts.flash_encryption == "development" and not image.encrypt:
            problem, step = "would run them as if encrypted", "Build with flash encryption, so that they are marked."
        elif facts.flash_encryption == "off" and image.encrypt:
            problem, step = "cannot encrypt them", "Build without flash encryption for this device."
        else:
            continue
        yield Mismatch(
            Reason.EncryptionMismatch,
            f"The {image.role} image is {'marked' if image.encrypt else 'not marked'} to be encrypted; the device "
            f"(flash encryption: {facts.flash_encryption}) {problem}.",
            step,
        )


def _security_version(facts: HardwareFacts, config: FirmwareConfig, options: CheckOptions) -> Iterator[Mismatch]:
    """Rule 10."""
    wanted, burnt = config.app.secure_version, facts.efuse_secure_version
    if Role.APP not in options.write:
        return
    if burnt is None:
        if wanted or facts.target_slot_size is None:
            yield from _unknown("eFuse security version", options)
    elif wanted < burnt:
        yield Mismatch(
            Reason.SecurityVersionTooLow,
            f"The firmware's secure_version {wanted} is below the device's eFuse counter {burnt}: it would never start.",
            f"Build with secure_version {burnt} or higher.",
        )
    elif wanted > burnt and not options.allow_security_version_burn:
        yield Mismatch(
            Reason.SecurityVersionBurnNotAllowed,
            f"Confirming secure_version {wanted} would burn the eFuse counter from {burnt} for ever; older firmware, and "
            "with it any rollback, would be impossible.",
            "Permit it with allowSecurityVersionBurn if that is meant.",
        )


def _features(facts: HardwareFacts, config: FirmwareConfig, options: CheckOptions) -> Iterator[Mismatch]:
    """Rule 11."""
    for feature in config.features:
        found = has(feature, facts)
        if found is None:
            yield from _unknown(f"feature {feature}", options)
        elif not found:
            yield Mismatch(
                Reason.FeatureMissing,
                f"The firmware demands {feature}, which the device does not have.",
                "Push a build without this feature too, or select other devices.",
            )


def _downgrade(facts: HardwareFacts, config: FirmwareConfig, options: CheckOptions) -> Iterator[Mismatch]:
    """Rule 12. The eFuse counter is rule 10's."""
    if Role.APP not in options.write:
        return
    offered = Offered(config.app.secure_version, options.sequence, config.app.version, config.app.project_name)
    installed = Installed(None, facts.app_sequence, facts.app_version, facts.app_name or "")
    verdict = judge(offered, installed, allow_downgrade=options.allow_downgrade)
    for error in filter(None, (finding.to_error() for finding in verdict.findings)):
        yield Mismatch(error.reason, error.message, error.next_step)
