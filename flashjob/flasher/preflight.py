# SPDX-License-Identifier: Apache-2.0
"""The last look before byte one: does this image fit this very device? Pure; a refusal means 0 bytes were written.

Rules (tests name them):

1. The device is the one the task names: serial by its eFuse MAC, network by the id it claims (proven before and after
   by evidence). Otherwise WrongDevice, whatever else is true. (A chip in secure download mode tells no MAC; rule 6
   refuses it.)
2. The fetched image is the pinned one: it measures what the target says, its header names the target's chip. A right
   looking manifest around the wrong image is ArtifactInvalid, or WrongChip.
3. What the application says of its device (`info`) is what the chip shows: chip, revision, flash size (at most what is
   there), partition table; no protection that the chip has is missing from what it says. Otherwise
   HardwareContradiction. What it says is only ever a reason to refuse: secure boot counts as on if either says so.
4. The bootloader goes back from an image that fails, else it needs `allowWithoutRollback` (NoRollback).
5. Where the job names versions to start from, the device runs one of them, or already the target's (FromVersion).
6. Every rule of firmware_pipeline.compatibility holds, with complete facts, for the application and whatever else is to
   be written (`content`), each with its own permission.
7. Nobody is asked to wipe data over the network (WipeNeedsSerial), and a bootloader that is to be written is one for
   this very chip: rules 1 and 3 of `content`.

Rules 4 and 5 are asked of an application that answers; a blank board (before: None) has none and goes by the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attestation.device_protocol import Flag, Info
from firmware_pipeline.compatibility import CheckOptions, check
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.errors import Reason as PipelineReason
from firmware_pipeline.esp.chips import by_id, by_target
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.mcuboot import is_mcuboot, parse_mcuboot
from firmware_pipeline.esp.measurement import measure
from firmware_pipeline.esp.partitions import DEFAULT_TABLE_OFFSET
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.plan import Role
from flashjob.errors import FlashJobError
from flashjob.flasher.content import Content, check_bootloader, permitted, refuse_wipe
from flashjob.flasher.transports.base import problem
from flashjob.pipeline_reasons import HARDWARE_REASONS
from flashjob.wire.pod import Assignment, TransportKind
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Target

NOTHING: Final = Content()
"""Nothing beside the application."""
_UNREAD = (PipelineReason.HardwareUnknown, PipelineReason.SlotUnknown)


def check_identity(assignment: Assignment, *, mac: str | None = None, ueid: bytes | None = None) -> None:
    """Rule 1, for what is known so far. Raises FlashJobError WrongDevice."""
    if mac is not None and assignment.mac is not None and mac != assignment.mac:
        raise problem(Reason.WRONG_DEVICE, f"the chip's eFuse MAC is {mac}, the task is for {assignment.mac}")
    if ueid is not None and _attests(assignment) and ueid.hex() != assignment.device:
        raise problem(Reason.WRONG_DEVICE, f"device {ueid.hex()} answers, the task is for {assignment.device}")


def check_image(image: bytes, target: Target) -> None:
    """Rule 2. Raises FlashJobError ArtifactInvalid or WrongChip."""
    try:
        wanted = by_target(target.chip)
        if is_mcuboot(image):
            right = parse_mcuboot(image).runs_on(wanted)
        else:
            right = parse_image(image).chip == wanted
        found = {(m.scheme, m.alg, m.value.hex()) for m in measure(image)}
    except PipelineError as error:
        raise problem(Reason.ARTIFACT_INVALID, error.message) from error
    if not right:
        raise problem(Reason.WRONG_CHIP, f"the image's header is not of {target.chip}, which the artifact says")
    for expected in target.measurements:
        if (expected.scheme, expected.alg, expected.value) not in found:
            message = f"the image's {expected.scheme} measurement (alg {expected.alg}) is not the pinned one"
            raise problem(Reason.ARTIFACT_INVALID, message)


def contradictions(info: Info, facts: HardwareFacts) -> Iterator[str]:
    """Rule 3: each thing that the application says and the chip does not show."""
    if facts.chip_id is not None and info.chip_id != facts.chip_id:
        yield f"the application says chip {_chip(info.chip_id)}, the chip is {_chip(facts.chip_id)}"
    if facts.revision is not None and info.chip_revision != facts.revision:
        yield f"the application says chip revision {info.chip_revision}, the chip says {facts.revision}"
    if facts.flash_size is not None and info.flash_size > facts.flash_size:
        yield f"the application says {info.flash_size} bytes of flash, there are {facts.flash_size}"
    if facts.partition_table_sha256 is not None and info.partition_table.hex() != facts.partition_table_sha256:
        said, found = info.partition_table.hex()[:12], facts.partition_table_sha256[:12]
        yield f"the application says partition table {said}..., in flash is {found}..."
    if facts.secure_boot and Flag.SECURE_BOOT not in info.flags:
        yield "the application says secure boot is off, the chip enforces it"
    if facts.flash_encryption not in (None, "off") and Flag.FLASH_ENCRYPTION not in info.flags:
        yield "the application says flash encryption is off, the chip has it on"


def _chip(number: int | None) -> str:
    try:
        return "unknown" if number is None else by_id(number).display
    except PipelineError:
        return f"number {number}"


def check_claims(assignment: Assignment, facts: HardwareFacts, info: Info) -> HardwareFacts:
    """Rules 3 to 5, for an application that answers; the facts, with what it says against itself.

    Raises:
        FlashJobError: HardwareContradiction, NoRollback, FromVersion.
    """
    if found := list(contradictions(info, facts)):
        raise problem(Reason.HARDWARE_CONTRADICTION, "; ".join(found))
    safety = assignment.safety
    if Flag.ROLLBACK not in info.flags and not safety.allow_without_rollback:
        raise problem(Reason.NO_ROLLBACK, "a new image that does not start would stay selected")
    if safety.from_versions and info.version not in (*safety.from_versions, assignment.target.version):
        wanted = ", ".join(safety.from_versions)
        raise problem(Reason.FROM_VERSION, f"it runs {info.name} {info.version or '?'}, the job starts from {wanted}")
    return facts.model_copy(update={"secure_boot": True}) if Flag.SECURE_BOOT in info.flags else facts


def check_hardware(
    assignment: Assignment,
    facts: HardwareFacts,
    config: FirmwareConfig,
    info: Info | None = None,
    content: Content = NOTHING,
) -> None:
    """Rules 1 and 3 to 7. Raises FlashJobError with the first mismatch's reason and all messages.

    Args:
        assignment: the attempt.
        facts: what was read from the live chip.
        config: of the image that would be written.
        info: what the application said, where one answers.
        content: what would be written.
    """
    serial = assignment.transport is TransportKind.SERIAL
    if serial and assignment.mac is not None and facts.mac is None and not facts.secure_download:
        raise problem(Reason.WRONG_DEVICE, "the chip does not tell its eFuse MAC, so it may be any chip")
    check_identity(assignment, mac=facts.mac)
    if info is not None:
        facts = check_claims(assignment, facts, info)
    if refusal := refuse_wipe(assignment.safety, assignment.transport):
        raise refusal
    options = CheckOptions(
        transport="serial" if serial else "network",
        write=_roles(config, content),
        permitted=permitted(assignment.safety, assignment.transport) | {Role.APP},
        allow_in_place=serial and assignment.safety.allow_in_place,
        allow_downgrade=assignment.safety.allow_downgrade,
        allow_security_version_burn=assignment.safety.allow_security_version_burn,
        sequence=assignment.target.sequence or None,
    )
    mismatches = check(facts, config, options=options)
    if mismatches:
        # What is known to be wrong says more than what could not be read because of it.
        mismatches.sort(key=lambda mismatch: mismatch.reason in _UNREAD)
        first = mismatches[0]
        reason = HARDWARE_REASONS.get(first.reason, Reason.PREFLIGHT_FAILED)
        message = " ".join(mismatch.message for mismatch in mismatches)
        raise FlashJobError(reason.value, message[:1000], first.next_step)
    if content.bootloader is not None:
        offset = facts.partition_table_offset
        check_bootloader(content.bootloader, facts, DEFAULT_TABLE_OFFSET if offset is None else offset)


def _roles(config: FirmwareConfig, content: Content) -> frozenset[Role]:
    """What would be written, by role."""
    offsets = {offset for offset, _ in content.data}
    written = {image.role for image in config.images if image.offset in offsets} | {Role.APP}
    if content.bootloader is not None:
        written.add(Role.BOOTLOADER)
    if content.table is not None:
        written.add(Role.PARTITION_TABLE)
    return frozenset(written)


def _attests(assignment: Assignment) -> bool:
    """Whether the device id is a UEID of ours (01 and a SHA-256) rather than an owner-given id."""
    return len(assignment.device) == 66 and assignment.device.startswith("01")
