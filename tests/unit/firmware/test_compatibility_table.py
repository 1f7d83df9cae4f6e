# SPDX-License-Identifier: Apache-2.0
"""Every mismatch between a device and a build in one table, each refused for its own reason; and that acceptance is earned."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline.compatibility import CheckOptions, Mismatch, check, check_layout
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.errors import Reason
from firmware_pipeline.features import has
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.plan import FlashSettings, PartitionEntry, Role, SecureBoot
from tests.unit.firmware import builds

KEY, OTHER = "a" * 64, "b" * 64
ROW = PartitionEntry(name="factory", type=0, subtype=0, offset=0x20000, size=0x100000)
ONE_SLOT: dict[str, Any] = {"target_slot": None, "target_slot_size": None}
BURN = {"allow_security_version_burn": True}
IN_PLACE = {"allow_in_place": True}
APP_AND_TABLE = frozenset({Role.APP, Role.PARTITION_TABLE})


def row(**changes: Any) -> dict[str, Any]:
    """A device without inactive slot, and one partition."""
    return ONE_SLOT | {"partitions": (ROW.model_copy(update=changes),)}


def secure_boot(*keys: str) -> dict[str, Any]:
    """A device that enforces secure boot with these keys."""
    return {"secure_boot": True, "secure_boot_key_digests": keys}


@dataclass(frozen=True)
class Case:
    """One mismatch: changes to a device, a config and options that fit each other."""

    name: str
    expected: Reason
    device: dict[str, Any] = field(default_factory=dict)
    firmware: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


SERIAL = {"transport": "serial"}
NETWORK = {"transport": "network"}
TABLE = [
    Case("layout: application off 64 KiB", Reason.OffsetMisaligned, firmware={"app_offset": 0x21000}),
    Case("layout: OTA data off its sector", Reason.OffsetMisaligned, firmware={"otadata_offset": 0xD800}),
    Case("layout: bootloader at another chip's place", Reason.BootloaderOffsetWrong, firmware={"bootloader_offset": 0x1000}),
    Case("layout: OTA data over the application", Reason.ImagesOverlap, firmware={"otadata_offset": 0x20000}),
    Case("layout: bootloader over the table", Reason.ImagesOverlap, firmware={"bootloader_size": 0x8001}),
    Case("layout: application behind the flash", Reason.ImageBeyondFlash, firmware={"app_offset": 0x3F0000}),
    Case("layout: application not where its partition is", Reason.OffsetMisaligned, firmware={"app_offset": 0x30000, "keep": True}),
    Case("layout: application larger than its partition", Reason.ImageTooLarge, firmware={"app_size": 0x1C0001, "keep": True}),
    Case("layout: secure version beyond the eFuses", Reason.SecurityVersionUnrepresentable, firmware={"secure_version": 17}),
    Case("chip by name", Reason.WrongChip, {"target": "esp32s3"}),
    Case("chip by id", Reason.WrongChip, {"chip_id": 9}),
    Case("chip by name alone", Reason.WrongChip, {"target": "esp32c6", "chip_id": None}),
    Case("chip by id alone", Reason.WrongChip, {"target": None, "chip_id": 0}),
    Case("chip with name and id of two", Reason.WrongChip, {"target": "esp32c3", "chip_id": 12}),
    Case("chip that nobody knows", Reason.WrongChip, {"target": "esp8266", "chip_id": None}),
    Case("chip unread", Reason.HardwareUnknown, {"target": None, "chip_id": None}),
    Case("revision below", Reason.ChipRevisionTooLow, {"revision": 2}, {"min_rev": 3}),
    Case("revision below a major one", Reason.ChipRevisionTooLow, {"revision": 99}, {"min_rev": 100}),
    Case("revision above", Reason.ChipRevisionTooHigh, {"revision": 100}, {"max_rev": 99}),
    Case("revision unread for a minimum", Reason.HardwareUnknown, {"revision": None}, {"min_rev": 3}),
    Case("revision unread for a maximum", Reason.HardwareUnknown, {"revision": None}, {"max_rev": 99}),
    Case("flash of half the size", Reason.FlashTooSmall, {"flash_size": 2 << 20}),
    Case("flash too small for the image", Reason.ImageBeyondFlash, {"flash_size": 1 << 16}),
    Case("flash unread", Reason.HardwareUnknown, {"flash_size": None}),
    Case("bootloader unasked", Reason.RoleNotAllowed, options={"write": frozenset({Role.APP, Role.BOOTLOADER})}),
    Case("partition table unasked", Reason.RoleNotAllowed, options={"write": APP_AND_TABLE}),
    Case("OTA data unasked", Reason.RoleNotAllowed, options={"write": frozenset({Role.APP, Role.OTADATA})}),
    Case("application not permitted", Reason.RoleNotAllowed, options={"permitted": frozenset()}),
    Case("slot one byte too small", Reason.ImageTooLarge, {"target_slot_size": 0x1FFFF}),
    Case("no inactive slot", Reason.SlotUnknown, ONE_SLOT),
    Case("in place, no partition there", Reason.PartitionTableMismatch, row(offset=0x10000), options=IN_PLACE),
    Case("in place, over data", Reason.PartitionTableMismatch, row(type=1, subtype=6), options=IN_PLACE),
    Case("in place, too large", Reason.ImageTooLarge, row(size=0x10000), options=IN_PLACE),
    Case("in place, table unread", Reason.HardwareUnknown, ONE_SLOT | {"partitions": None}, options=IN_PLACE),
    Case("another partition table", Reason.PartitionTableMismatch, {"partition_table_sha256": "0" * 64}),
    Case("secure boot, unsigned", Reason.SecureBootUnsigned, {"secure_boot": True}),
    Case("secure boot, signed by another", Reason.SecureBootUnsigned, secure_boot(OTHER), {"signed": True}),
    Case("secure boot, all keys revoked", Reason.SecureBootUnsigned, secure_boot(), {"signed": True}),
    Case("secure boot unread", Reason.HardwareUnknown, {"secure_boot": None}),
    Case("encryption release over serial", Reason.EncryptionMismatch, {"flash_encryption": "release"}, {"encrypt": True}, SERIAL),
    Case("encryption release, plain image", Reason.EncryptionMismatch, {"flash_encryption": "release"}, options=SERIAL),
    Case("encryption development, plain image", Reason.EncryptionMismatch, {"flash_encryption": "development"}, options=SERIAL),
    Case("no encryption, image to be encrypted", Reason.EncryptionMismatch, {}, {"encrypt": True}, SERIAL),
    Case("encryption unread", Reason.HardwareUnknown, {"flash_encryption": None}, options=SERIAL),
    Case("secure download", Reason.SecureDownloadMode, {"secure_download": True}, options=SERIAL),
    Case("download mode unread", Reason.HardwareUnknown, {"secure_download": None}, options=SERIAL),
    Case("secure version below the eFuses", Reason.SecurityVersionTooLow, {"efuse_secure_version": 2}, {"secure_version": 1}),
    Case("secure version that would burn", Reason.SecurityVersionBurnNotAllowed, {"efuse_secure_version": 0}, {"secure_version": 1}),
    Case("secure version below, burning allowed", Reason.SecurityVersionTooLow, {"efuse_secure_version": 2}, {"secure_version": 1}, BURN),
    Case("eFuse counter unread", Reason.HardwareUnknown, {"efuse_secure_version": None}, {"secure_version": 1}),
    Case("no PSRAM", Reason.FeatureMissing, {"psram_size": 0}, {"features": ("psram-octal",)}),
    Case("PSRAM of the other kind", Reason.FeatureMissing, {"psram_mode": "quad"}, {"features": ("psram-octal",)}),
    Case("too little PSRAM", Reason.FeatureMissing, {"psram_size": 2 << 20}, {"features": ("psram>=8M",)}),
    Case("too little flash for a feature", Reason.FeatureMissing, {}, {"features": ("flash>=8M",)}),
    Case("no secure boot for a feature", Reason.FeatureMissing, {}, {"features": ("secure-boot-v2",)}),
    Case("PSRAM unread", Reason.HardwareUnknown, {"psram_size": None}, {"features": ("psram>=8M",)}),
    Case("older release", Reason.DowngradeNotAllowed, {"app_sequence": 7}, options={"sequence": 6}),
    Case("older version", Reason.DowngradeNotAllowed, {"app_version": "2.1.1"}, {"version": "2.1.0"}),
    Case("older minor version", Reason.DowngradeNotAllowed, {"app_version": "2.10.0"}, {"version": "2.9.0"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> FirmwareConfig:
    return builds.config(tmp_path_factory.mktemp("build"), "esp32c3")


def device(config: FirmwareConfig, **changes: Any) -> HardwareFacts:
    known: dict[str, Any] = {
        "target": "esp32c3", "chip_id": 5, "revision": 4, "flash_size": 4 << 20, "mac": "7c:df:a1:00:00:01",
        "secure_boot": False, "flash_encryption": "off", "secure_download": False, "efuse_secure_version": 0,
        "partition_table_sha256": config.partition_table_sha256, "partitions": config.partitions, "running_slot": 0,
        "target_slot": 1, "target_slot_size": 0x1C0000, "psram_size": 8 << 20, "psram_mode": "octal",
        "app_name": "porch-sensor", "app_version": "2.0.0", "app_sequence": 7,
    }  # fmt: skip
    return HardwareFacts(**(known | changes))


def firmware(config: FirmwareConfig, **changes: Any) -> FirmwareConfig:
    """The config with some things changed; an image that moves leaves its partition unless `keep` says otherwise."""
    keep = changes.pop("keep", False)
    images = []
    for image in config.images:
        role = image.role.value
        update = {k: changes.pop(f"{role}_{k}") for k in ("offset", "size") if f"{role}_{k}" in changes}
        if update and not keep:
            update["partition"] = None
        if image.role is Role.APP and "encrypt" in changes:
            update["encrypt"] = changes.pop("encrypt")
        images.append(image.model_copy(update=update))
    chip: dict[str, Any] = {k: changes.pop(k) for k in ("min_rev", "max_rev") if k in changes}
    app: dict[str, Any] = {k: changes.pop(k) for k in ("secure_version", "version") if k in changes}
    secure_boot = SecureBoot(key_digests=(KEY,)) if changes.pop("signed", False) else config.secure_boot
    return config.model_copy(
        update={
            "images": tuple(images),
            "chip": config.chip.model_copy(update=chip),
            "app": config.app.model_copy(update=app),
            "secure_boot": secure_boot,
            **changes,
        }
    )


def test_the_base_of_the_table_fits(config: FirmwareConfig) -> None:
    for options in (CheckOptions(), CheckOptions(transport="serial"), CheckOptions(transport="network")):
        assert check(device(config), config, options=options) == []


@pytest.mark.parametrize("case", TABLE, ids=[case.name for case in TABLE])
def test_mismatch(config: FirmwareConfig, case: Case) -> None:
    found = check(
        device(config, **case.device), firmware(config, **case.firmware), options=CheckOptions(**case.options)
    )
    assert case.expected in [mismatch.reason for mismatch in found]
    assert all(mismatch.message and mismatch.next_step for mismatch in found)


def test_the_table_is_as_long_as_promised() -> None:
    assert len({case.name for case in TABLE}) == len(TABLE) >= 40
    spoken = {case.expected for case in TABLE}
    reasons = list(Reason)
    first, last = reasons.index(Reason.WrongChip), reasons.index(Reason.HardwareUnknown)
    assert spoken == set(reasons[first : last + 1]), "every reason of compatibility has a case"


DEVICES = st.fixed_dictionaries(
    {},
    optional={
        "target": st.sampled_from([None, "esp32c3", "ESP32-C3", "esp32", "?"]),
        "chip_id": st.sampled_from([None, 5, 0]),
        "revision": st.sampled_from([None, 0, 4, 300]),
        "flash_size": st.sampled_from([None, 1, 2 << 20, 4 << 20, 16 << 20]),
        "secure_boot": st.sampled_from([None, True, False]),
        "secure_boot_key_digests": st.sampled_from([None, (), (KEY,), (OTHER,)]),
        "flash_encryption": st.sampled_from([None, "off", "development", "release"]),
        "secure_download": st.sampled_from([None, True, False]),
        "efuse_secure_version": st.sampled_from([None, 0, 1, 2]),
        "partition_table_sha256": st.sampled_from([None, "0" * 64]),
        "partitions": st.sampled_from([None, (), (ROW,)]),
        "target_slot_size": st.sampled_from([None, 1, 0x100000]),
        "psram_size": st.sampled_from([None, 0, 8 << 20]),
        "psram_mode": st.sampled_from([None, "quad", "octal"]),
        "app_sequence": st.sampled_from([None, 0, 7]),
        "app_version": st.sampled_from([None, "1.0", "3.0", "x"]),
    },
)
FIRMWARE = st.fixed_dictionaries(
    {},
    optional={
        "app_offset": st.sampled_from([0x20000, 0x21000, 0x3F0000]),
        "app_size": st.sampled_from([1, 0x20000, 0x1C0001]),
        "secure_version": st.sampled_from([0, 1, 17]),
        "min_rev": st.sampled_from([0, 3]),
        "max_rev": st.sampled_from([None, 99]),
        "signed": st.booleans(),
        "encrypt": st.booleans(),
        "features": st.sampled_from([(), ("psram-octal",), ("flash>=8M", "psram>=8M"), ("secure-boot-v2",)]),
        "flash": st.sampled_from([FlashSettings(mode="dio", size="4MB"), FlashSettings(mode="qio", size="16MB")]),
    },
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "complete": st.booleans(),
        "transport": st.sampled_from([None, "serial", "network"]),
        "allow_in_place": st.booleans(),
        "allow_downgrade": st.booleans(),
        "allow_security_version_burn": st.booleans(),
        "sequence": st.sampled_from([None, 6, 7, 8]),
    },
)


@given(DEVICES, FIRMWARE, OPTIONS)
def test_it_never_raises_and_acceptance_implies_every_rule(
    config: FirmwareConfig, changes: dict[str, Any], wish: dict[str, Any], chosen: dict[str, Any]
) -> None:
    facts, build, options = device(config, **changes), firmware(config, **dict(wish)), CheckOptions(**chosen)
    found: list[Mismatch] = check(facts, build, options=options)
    if found:
        assert all(mismatch.message and mismatch.next_step for mismatch in found)
        return
    app = build.app_image
    assert check_layout(build) == []  # L1 to L6
    assert facts.target is None or facts.target.lower().replace("-", "") == "esp32c3"  # 1
    assert facts.chip_id in (None, 5)
    if facts.revision is not None:  # 2
        assert build.chip.min_rev <= facts.revision <= (build.chip.max_rev or 65535)
    if facts.flash_size is not None:  # 3
        assert facts.flash_size >= max(build.flash.size_bytes, app.end)
    if facts.target_slot_size is not None:  # 5
        assert app.size <= facts.target_slot_size
    assert facts.target_slot_size is not None or options.allow_in_place or not options.complete
    assert build.partition_table_sha256 in (None, facts.partition_table_sha256) or not facts.partition_table_sha256  # 6
    if facts.secure_boot:  # 7
        assert build.secure_boot is not None
        assert facts.secure_boot_key_digests is None or KEY in facts.secure_boot_key_digests
    if options.transport == "serial":  # 8, 9
        assert facts.flash_encryption in (None, "development" if app.encrypt else "off")
        assert not facts.secure_download
    if facts.efuse_secure_version is not None:  # 10
        assert build.app.secure_version >= facts.efuse_secure_version
        assert options.allow_security_version_burn or build.app.secure_version == facts.efuse_secure_version
    assert all(has(feature, facts) is not False for feature in build.features)  # 11
    if not options.allow_downgrade and options.sequence is not None and facts.app_sequence is not None:  # 12
        assert options.sequence >= facts.app_sequence
    if options.complete:
        assert facts.flash_size is not None
        assert all(has(feature, facts) for feature in build.features)
