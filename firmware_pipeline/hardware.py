# SPDX-License-Identifier: Apache-2.0
"""HardwareFacts: what was read from one device, or is recorded of it. None always means "not known"."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from firmware_pipeline.plan import U32, HexSha256, Model, Name, Offset, PartitionEntry, Revision


class HardwareFacts(Model):
    """One device, as far as it is known.

    Attributes:
        target, chip_id: the chip; either suffices.
        revision: major * 100 + minor.
        flash_size: bytes.
        psram_size: bytes of PSRAM, 0 = none; psram_mode: how it is connected.
        mac: eFuse MAC, six lower-case hex pairs joined by colons.
        secure_boot: whether Secure Boot v2 is enforced.
        secure_boot_key_digests: trusted by the eFuses, not revoked; lower-case hex.
        flash_encryption: development still takes plaintext over serial, release does not.
        secure_download: the ROM loader neither reads flash nor computes MD5.
        efuse_secure_version: the anti-rollback counter.
        partition_table_sha256, partitions: as read from flash.
        running_slot: index of the OTA slot that runs; None also for a factory application.
        target_slot, target_slot_size: the inactive slot an update would fill: its index, its size in bytes.
        app_name, app_version, app_secure_version, app_sequence: of the running, confirmed application.
    """

    target: Name | None = None
    chip_id: Annotated[int, Field(ge=0, le=0xFFFF)] | None = None
    revision: Revision | None = None
    flash_size: Annotated[int, Field(gt=0, lt=1 << 40)] | None = None
    psram_size: Annotated[int, Field(ge=0, lt=1 << 40)] | None = None
    psram_mode: Literal["quad", "octal"] | None = None
    mac: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")] | None = None

    secure_boot: bool | None = None
    secure_boot_key_digests: tuple[HexSha256, ...] | None = None
    flash_encryption: Literal["off", "development", "release"] | None = None
    secure_download: bool | None = None
    jtag_disabled: bool | None = None
    anti_rollback: bool | None = None
    efuse_secure_version: U32 | None = None

    partition_table_offset: Offset | None = None
    partition_table_sha256: HexSha256 | None = None
    partitions: tuple[PartitionEntry, ...] | None = None
    running_slot: Annotated[int, Field(ge=0, lt=16)] | None = None
    target_slot: Annotated[int, Field(ge=0, lt=16)] | None = None
    target_slot_size: Annotated[int, Field(gt=0, lt=1 << 32)] | None = None

    app_name: str | None = None
    app_version: str | None = None
    app_secure_version: U32 | None = None
    app_sequence: Annotated[int, Field(ge=0, lt=1 << 64)] | None = None
