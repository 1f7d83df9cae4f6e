# SPDX-License-Identifier: Apache-2.0
"""Whether fetched bytes are what the signed config says of them: pure, the last check before they may be written.

A manifest that looks right around another image is found here, not on the device.

Rules, in this order; a rule whose bytes cannot be read ends the check:
 1. Length and SHA-256 are those of the config's entry (SizeMismatch, DigestMismatch).
 2. Bootloader and application are whole images (the reasons of `esp.image`, `esp.mcuboot`) for the config's chip
    (WrongChip).
 3. The application measures what the config says, in every scheme and algorithm that it names (ContentDisagrees).
    An ESP image has a descriptor (AppDescriptorMissing), unless the ROM itself starts it.
 4. Secure version (MCUboot: security counter), chip revisions and flash size of the application are the config's
    (ContentDisagrees): compatibility with a device was judged by the config, the bootloader judges by the image. Name and
    version may differ: real images have empty ones.
 5. Its secure boot signatures are by the keys the config lists (SecureBootSignatureMalformed, ContentDisagrees).
 6. The partition table has the config's SHA-256 and rows (PartitionTable*, ContentDisagrees).
"""

import hashlib
from collections.abc import Iterator

from firmware_pipeline.compatibility import Mismatch
from firmware_pipeline.config import FirmwareConfig, ImageEntry
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.esp.image import ImageInfo, parse_image
from firmware_pipeline.esp.mcuboot import is_mcuboot, parse_mcuboot
from firmware_pipeline.esp.measurement import Measurement, measure_image, measure_mcuboot
from firmware_pipeline.esp.partitions import parse_table, table_sha256
from firmware_pipeline.esp.signature import find_signatures
from firmware_pipeline.plan import MeasurementEntry, PartitionEntry, Role

_PUSH_AGAIN = "Push the firmware again with firmware-pipeline; do not use this artifact."


def check_contents(config: FirmwareConfig, entry: ImageEntry, data: bytes) -> list[Mismatch]:
    """Compare the bytes of one image with the config; an empty list accepts.

    Args:
        config: verified signed config.
        entry: the image's entry in that config.
        data: its bytes, as fetched.
    """
    try:
        return list(_check(config, entry, data))
    except PipelineError as error:
        return [Mismatch(error.reason, f"The {entry.role} image: {error.message}", _PUSH_AGAIN)]


def _check(config: FirmwareConfig, entry: ImageEntry, data: bytes) -> Iterator[Mismatch]:
    if len(data) != entry.size:
        yield Mismatch(
            Reason.SizeMismatch, f"The {entry.role} image has {len(data)} bytes, not {entry.size}.", _PUSH_AGAIN
        )
    elif f"sha256:{hashlib.sha256(data).hexdigest()}" != entry.digest:
        yield Mismatch(Reason.DigestMismatch, f"The {entry.role} image is not {entry.digest}.", _PUSH_AGAIN)
    elif entry.role is Role.APP and is_mcuboot(data):
        yield from _mcuboot(config, data)
    elif entry.role in (Role.BOOTLOADER, Role.APP):
        info = parse_image(data)
        if info.chip.target != config.chip.target:
            yield Mismatch(
                Reason.WrongChip,
                f"The {entry.role} image is for {info.chip.target}, the artifact says {config.chip.target}.",
                _PUSH_AGAIN,
            )
        elif entry.role is Role.APP:
            yield from _application(config, info, data)
    elif entry.role is Role.PARTITION_TABLE:
        yield from _table(config, entry, data)


def _disagree(what: str, found: object, said: object) -> Iterator[Mismatch]:
    if found != said:
        yield Mismatch(
            Reason.ContentDisagrees, f"{what}: the bytes say {found!s:.140}, the config {said!s:.140}.", _PUSH_AGAIN
        )


def _application(config: FirmwareConfig, info: ImageInfo, data: bytes) -> Iterator[Mismatch]:
    by_rom = config.app_image.offset == info.chip.bootloader_offset
    if info.app is None and not by_rom:
        yield Mismatch(Reason.AppDescriptorMissing, "The app image has no descriptor: it is a bootloader.", _PUSH_AGAIN)
        return
    yield from _measurements(config, measure_image(data, info))
    secure_version = info.app.secure_version if info.app else 0
    yield from _disagree("Secure version", secure_version, config.app.secure_version)
    yield from _disagree("Minimum chip revision", info.min_rev, config.chip.min_rev)
    yield from _disagree("Maximum chip revision", info.max_rev, config.chip.max_rev)
    yield from _disagree("Flash size", info.flash_size, config.flash.size)
    keys = tuple(block.key_digest.hex() for block in find_signatures(data, info.image_length))
    yield from _disagree("Secure boot keys", keys, config.secure_boot.key_digests if config.secure_boot else ())


def _measurements(config: FirmwareConfig, measured: tuple[Measurement, ...]) -> Iterator[Mismatch]:
    found = {(m.scheme, m.alg): MeasurementEntry.of(m).value for m in measured}
    said = {(m.scheme, m.alg): m.value for m in config.measurements}
    for (scheme, alg), value in said.items():
        yield from _disagree(f"Measurement ({scheme}, alg {alg})", found.get((scheme, alg), "none"), value)


def _mcuboot(config: FirmwareConfig, data: bytes) -> Iterator[Mismatch]:
    info = parse_mcuboot(data)
    if not info.runs_on(by_target(config.chip.target)):
        yield Mismatch(
            Reason.WrongChip, f"The app image is not loaded into the RAM of {config.chip.target}.", _PUSH_AGAIN
        )
        return
    yield from _measurements(config, measure_mcuboot(data, info))
    yield from _disagree("Security counter", info.security_counter, config.app.secure_version)


def _table(config: FirmwareConfig, entry: ImageEntry, data: bytes) -> Iterator[Mismatch]:
    table = parse_table(data, table_offset=entry.offset)
    yield from _disagree("Partition table", table_sha256(data).hex(), config.partition_table_sha256)
    rows = tuple(PartitionEntry.of(row) for row in table.partitions)
    if rows != config.partitions:
        yield Mismatch(Reason.ContentDisagrees, "The rows of the partition table are not the config's.", _PUSH_AGAIN)
