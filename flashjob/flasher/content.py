# SPDX-License-Identifier: Apache-2.0
"""What one update brings to a device's flash, as far as its job permits. Pure.

Rules (tests name them):

1. Over the network the application alone: the device protocol has no verb for anything else.
2. Over serial the artifact's bootloader and partition table, each with its permission, and with `data: Wipe` its images
   of data partitions. What is not permitted is not even fetched.
3. A bootloader is one for this very chip: of its kind and revision, of a flash no larger than is there, ending before
   the partition table; on a chip that enforces secure boot signed, with a key that it trusts where those are known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from firmware_pipeline.config import FirmwareConfig, ImageEntry
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp.chips import FLASH_SIZES, by_id, format_revision
from firmware_pipeline.esp.image import ImageInfo, parse_image
from firmware_pipeline.esp.signature import find_signatures
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.plan import DATA_ROLES, Role
from flashjob.errors import FlashJobError
from flashjob.flasher.transports.base import problem
from flashjob.wire.pod import Data, Safety, TransportKind
from flashjob.wire.reasons import Reason

Extra = tuple[ImageEntry, bytes]
"""An image beside the application: where it belongs by the signed config, and its bytes."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is to be written, and what may be risked for it. The default: an application, and nothing.

    Attributes:
        chip: IDF target that it is for; "": not said.
        image_size: bytes of the application.
        bootloader, table: bytes, where they are to be written.
        data: (flash offset, image) for data partitions.
        wipe: data partitions are erased.
        in_place: the application that runs may be overwritten.
        without_rollback: the application that runs may become unreachable.
    """

    chip: str = ""
    image_size: int = 0
    bootloader: bytes | None = None
    table: bytes | None = None
    data: tuple[tuple[int, bytes], ...] = ()
    wipe: bool = False
    in_place: bool = False
    without_rollback: bool = False


def permitted(safety: Safety, transport: TransportKind) -> frozenset[Role]:
    """Rules 1 and 2: roles of images that may be written beside the application."""
    if transport is not TransportKind.SERIAL:
        return frozenset()
    roles = set(DATA_ROLES) if safety.data is Data.WIPE else set()
    if safety.allow_bootloader:
        roles.add(Role.BOOTLOADER)
    if safety.allow_partition_table:
        roles.add(Role.PARTITION_TABLE)
    return frozenset(roles)


def content(
    config: FirmwareConfig, image_size: int, extras: Iterable[Extra], safety: Safety, transport: TransportKind
) -> Content:
    """Choose by rules 1 and 2.

    Args:
        config: signed, of the artifact.
        image_size: bytes of its application.
        extras: what was fetched beside the application.
        safety: the job's permissions.
        transport: how the device is reached.
    """
    roles = permitted(safety, transport)
    chosen = [(image, data) for image, data in extras if image.role in roles]
    one = {image.role: data for image, data in chosen}
    serial = transport is TransportKind.SERIAL
    return Content(
        chip=config.chip.target,
        image_size=image_size,
        bootloader=one.get(Role.BOOTLOADER),
        table=one.get(Role.PARTITION_TABLE),
        data=tuple((image.offset, data) for image, data in chosen if image.role in DATA_ROLES),
        wipe=serial and safety.data is Data.WIPE,
        in_place=serial and safety.allow_in_place,
        without_rollback=safety.allow_without_rollback,
    )


def check_bootloader(data: bytes, facts: HardwareFacts, table_offset: int) -> None:
    """Rule 3.

    Args:
        data: the bootloader, signature included.
        facts: of the live chip; its kind is known.
        table_offset: flash offset in bytes of the partition table.

    Raises:
        FlashJobError: ArtifactInvalid, WrongChip, ChipRevision, FlashTooSmall, ImageTooLarge, SecureBootMismatch.
    """
    try:
        info = parse_image(data)
        keys = {block.key_digest.hex() for block in find_signatures(data, info.image_length)}
    except PipelineError as error:
        raise problem(Reason.ARTIFACT_INVALID, f"the bootloader: {error.message}") from error
    if info.app is not None:
        raise problem(Reason.ARTIFACT_INVALID, "what the artifact calls a bootloader is an application")
    if info.chip.chip_id != facts.chip_id:
        found = "an unknown chip" if facts.chip_id is None else by_id(facts.chip_id).display
        raise problem(Reason.WRONG_CHIP, f"the bootloader is for {info.chip.display}, the device is {found}")
    _check_hardware(info, facts)
    end = info.chip.bootloader_offset + len(data)
    if end > table_offset:
        message = f"the bootloader ends at {end:#x}, the partition table begins at {table_offset:#x}"
        raise problem(Reason.IMAGE_TOO_LARGE, message)
    if facts.secure_boot is not False:
        trusted = facts.secure_boot_key_digests
        if not keys or (trusted is not None and not keys & set(trusted)):
            said = "signed by no key that its eFuses hold" if keys else "not signed"
            enforces = "enforces secure boot" if facts.secure_boot else "may enforce secure boot (it does not say)"
            message = f"the device {enforces}, and the bootloader is {said}: it would never start again"
            raise problem(Reason.SECURE_BOOT_MISMATCH, message)


def _check_hardware(info: ImageInfo, facts: HardwareFacts) -> None:
    found = facts.revision
    if found is None or found < info.min_rev or (info.max_rev is not None and found > info.max_rev):
        said = "unknown" if found is None else format_revision(found)
        raise problem(Reason.CHIP_REVISION, f"the bootloader does not run on this chip's revision ({said})")
    wanted = FLASH_SIZES[info.flash_size]
    if facts.flash_size is None or wanted > facts.flash_size:
        message = f"the bootloader was built for {info.flash_size} of flash, the device has {facts.flash_size} bytes"
        raise problem(Reason.FLASH_TOO_SMALL, message)


def refuse_wipe(safety: Safety, transport: TransportKind) -> FlashJobError | None:
    """Rule 1, for what a network device was asked to do and cannot."""
    if safety.wipe_impossible(transport):
        return problem(Reason.WIPE_NEEDS_SERIAL, "the job says data: Wipe, and the device is reached over the network")
    return None
